//! What is computed here instead of by llama.cpp, on the CPU: the inner loops, free of llama.cpp's types.

pub mod attention;
pub mod felix;
pub mod product;

/// Numbers in -1..1 without end, the same each time.
#[cfg(test)]
pub fn numbers(salt: u32) -> impl Iterator<Item = f32> {
    let mut state = salt.wrapping_mul(2_654_435_761) | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    })
}
