//! Tensor names of Felix spokes, in training and in GGUF files.

/// Role of a tensor in its layer. `s` counts the bottlenecks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::adapter) enum Role {
    /// Weights of the norm, `[d]`.
    Norm,
    /// The gate's b, one number.
    Gate,
    /// All W_down, stacked as rows: `[S r, d]`.
    DownFused,
    /// All W_up, side by side: `[d, S r]`.
    UpFused,
    /// W_down of one bottleneck: `[r, d]`.
    Down(u32),
    /// W_up of one bottleneck: `[d, r]`.
    Up(u32),
}

/// The naming scheme of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::adapter) enum Naming {
    /// Training's names: `{layer}.w_down.{s}.weight`.
    Trained,
    /// Names in GGUF files: `blk.{layer}.spoke.w_down_fused.weight`, or `.w_down.{s}.weight` in
    /// older ones.
    Gguf,
}

impl Naming {
    /// Parses a tensor's name into layer and role.
    pub fn read(self, name: &str) -> Option<(u32, Role)> {
        let (layer, rest) = match self {
            Self::Trained => name.split_once('.')?,
            Self::Gguf => name.strip_prefix("blk.")?.split_once(".spoke.")?,
        };
        let layer = number(layer)?;
        Some((layer, if rest == "gate_bias" { Role::Gate } else { role(rest)? }))
    }

    /// The name of a tensor.
    pub fn name(self, layer: u32, role: Role) -> String {
        let prefix = match self {
            Self::Trained => layer.to_string(),
            Self::Gguf => format!("blk.{layer}.spoke"),
        };
        match role {
            Role::Gate => format!("{prefix}.gate_bias"),
            Role::Norm => format!("{prefix}.norm.weight"),
            Role::DownFused => format!("{prefix}.w_down_fused.weight"),
            Role::UpFused => format!("{prefix}.w_up_fused.weight"),
            Role::Down(s) => format!("{prefix}.w_down.{s}.weight"),
            Role::Up(s) => format!("{prefix}.w_up.{s}.weight"),
        }
    }
}

fn role(rest: &str) -> Option<Role> {
    match rest.strip_suffix(".weight")? {
        "norm" => Some(Role::Norm),
        "w_down_fused" => Some(Role::DownFused),
        "w_up_fused" => Some(Role::UpFused),
        part => {
            let (matrix, s) = part.split_once('.')?;
            match matrix {
                "w_down" => Some(Role::Down(number(s)?)),
                "w_up" => Some(Role::Up(number(s)?)),
                _ => None,
            }
        }
    }
}

/// Parses a number in canonical form: "07" and "+7" would be second names of 7.
fn number(text: &str) -> Option<u32> {
    let number: u32 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for role in [Role::Norm, Role::Gate, Role::DownFused, Role::UpFused, Role::Down(3), Role::Up(0)] {
            for naming in [Naming::Gguf, Naming::Trained] {
                assert_eq!(naming.read(&naming.name(12, role)), Some((12, role)));
            }
        }
        assert_eq!(Naming::Trained.name(12, Role::Down(3)), "12.w_down.3.weight");
        assert_eq!(Naming::Gguf.name(0, Role::UpFused), "blk.0.spoke.w_up_fused.weight");
        for wrong in
            ["00.gate_bias", "+1.gate_bias", "0.w_down.01.weight", "0.w_down.weight", "x.gate_bias", "0"]
        {
            assert_eq!(Naming::Trained.read(wrong), None, "{wrong}");
        }
        for wrong in ["blk.0.attn_q.weight", "blk.0.spoke.other", "0.gate_bias", "blk.x.spoke.gate_bias"] {
            assert_eq!(Naming::Gguf.read(wrong), None, "{wrong}");
        }
    }
}
