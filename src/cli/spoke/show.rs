//! `bespoke spoke show`: prints the properties of a spoke's file.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::Serialize;

use crate::adapter::{self, Adapter, Format, Generation, Limits, Post, Spoke};
use crate::cli::table;

/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A LoRA or Felix spoke as GGUF, a Felix spoke as safetensors, a PEFT folder or its zip
    /// archive
    file: PathBuf,
    /// Also check it against this post
    #[arg(long, value_name = "MODEL.gguf")]
    post: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Shown {
    generation: Generation,
    #[serde(flatten)]
    spoke: Spoke,
}

/// Runs the command.
///
/// # Errors
/// Why the file is no spoke, or not one for the post.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let limits = Limits::default();
    let post = args.post.as_deref().map(Post::open).transpose()?;
    let spoke = adapter::inspect(&args.file, post.as_ref(), &limits)?;
    let generation = adapter::generation(&args.file, &limits)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&Shown { generation, spoke })?);
        return Ok(());
    }
    println!("{}: {}", args.file.display(), format(spoke.format));
    println!("generation   {generation}");
    println!("{}", describe(&spoke));
    println!("blocks       {}", ranges(spoke.layers.iter().copied()));
    println!("size         {}, {} in memory", ByteSize(spoke.file_bytes), ByteSize(spoke.resident_bytes));
    let known = [
        ("architecture", spoke.architecture.clone()),
        ("post", spoke.post.map(|digest| digest.to_string())),
        ("tokenizer", spoke.tokenizer.map(|digest| digest.to_string())),
        ("prompt", spoke.prompt.clone()),
        ("task", spoke.task.clone()),
    ];
    for (name, value) in known {
        println!("{name:<12} {}", value.as_deref().unwrap_or("not recorded"));
    }
    let mut norms = table::plain(&["block", "|down|", "|up|"]);
    for norm in &spoke.norms {
        let layer = norm.layer.map_or("embedding, output".to_owned(), |layer| layer.to_string());
        norms.add_row([layer, format!("{:.4}", norm.down), format!("{:.4}", norm.up)]);
    }
    println!("{norms}");
    Ok(())
}

/// The name of a format.
pub(super) fn format(format: Format) -> &'static str {
    match format {
        Format::LoraGguf => "a LoRA (llama.cpp's GGUF)",
        Format::PeftFolder => "a LoRA (PEFT's folder)",
        Format::PeftZip => "a LoRA (PEFT's folder as a zip archive)",
        Format::FelixGguf => "a Felix spoke (GGUF)",
        Format::FelixSafetensors => "a Felix spoke (safetensors)",
    }
}

fn describe(spoke: &Spoke) -> String {
    match &spoke.adapter {
        Adapter::Lora(lora) => {
            let ranks: Vec<String> = lora.ranks.iter().map(u64::to_string).collect();
            format!(
                "rank         {}, alpha {}, {} matrices",
                ranks.join(", "),
                lora.alpha,
                lora.targets.len()
            )
        }
        Adapter::Felix(felix) => {
            let eps = felix.eps.map_or("the post's".to_owned(), |eps| format!("{eps:e}"));
            let norm = if felix.learned_norm { "a learned norm" } else { "a norm without weights" };
            format!("rank         {} bottlenecks of {}, {norm}, epsilon {eps}", felix.spokes, felix.rank)
        }
    }
}

/// Ascending numbers, with ranges as `first-last`.
fn ranges(numbers: impl Iterator<Item = u32>) -> String {
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text =
        |(first, last): (u32, u32)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    if runs.is_empty() {
        "none".to_owned()
    } else {
        runs.into_iter().map(text).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_blocks_are_written_short() {
        assert_eq!(ranges([0, 1, 2, 5, 7, 8].into_iter()), "0-2, 5, 7-8");
        assert_eq!(ranges([].into_iter()), "none");
    }
}
