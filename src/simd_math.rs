//! Inner loops that the compiler can vectorise: reductions over 16 independent lanes, and a
//! branch-free exponential.

/// Lanes of a reduction: two 256-bit or one 512-bit register.
const LANES: usize = 16;

/// `a * b + c`, fused if the build target has FMA. Without it, `f32::mul_add` would be a slow
/// library call.
#[inline(always)]
pub fn fma(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_feature = "fma") { a.mul_add(b, c) } else { a * b + c }
}

/// Runs `work` compiled for AVX2 where the processor has it, even if the program is built for less.
/// Loops in `work`, and everything inlined into it, are vectorised. A build for AVX2 calls `work`
/// directly.
///
/// Use it for loops of exponentials, which then take half the time. Loops that only add gain
/// nothing: memory bounds them.
#[inline(always)]
pub fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    if cfg!(target_feature = "avx2") { work() } else { crate::native::vectorised(work) }
}

/// Folds two slices into [`LANES`] independent accumulators, so that the compiler can use vector
/// registers.
#[inline(always)]
fn fold2(a: &[f32], b: &[f32], start: f32, f: impl Fn(f32, f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            lanes[lane] = f(lanes[lane], a[lane], b[lane]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *lane = f(*lane, a, b);
    }
    lanes
}

/// Inner product.
#[inline]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    fold2(a, b, 0.0, |sum, a, b| fma(a, b, sum)).iter().sum()
}

/// Sum.
#[inline]
pub fn sum(a: &[f32]) -> f32 {
    fold2(a, a, 0.0, |sum, a, _| sum + a).iter().sum()
}

/// Largest value; negative infinity for an empty slice.
#[inline]
pub fn max(a: &[f32]) -> f32 {
    fold2(a, a, f32::NEG_INFINITY, |max, a, _| if a > max { a } else { max })
        .into_iter()
        .fold(f32::NEG_INFINITY, f32::max)
}

/// `y += x`.
#[inline]
pub fn add(y: &mut [f32], x: &[f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y += x;
    }
}

/// `exp(x)` to about 2 ulp for x in -87..88; below that range, a number of the order of 1e-38.
///
/// Cephes' `expf`: x = n ln 2 + r, a polynomial in r, and n added to the exponent bits.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    exp_by(x, fma)
}

/// [`exp`] with a given [`fma`]. Kernels compiled for processors with FMA pass `f32::mul_add`.
#[inline(always)]
pub fn exp_by(x: f32, fma: impl Fn(f32, f32, f32) -> f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, which is then in the low mantissa bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = fma(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma(n, -0.693_359_4, x);
    let r = fma(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma(p, r, coefficient);
    }
    let p = fma(p, r * r, r + 1.0);
    p * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Logistic function.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, to about 1e-7 of 1.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(2.0 * x.clamp(-20.0, 20.0));
    (e - 1.0) / (e + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_exact_to_a_few_ulp() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01;
            let expected = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(relative < 3e-7, "exp({x}): {} instead of {expected}", exp(x));
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(-1000.0) >= 0.0);
    }

    #[test]
    fn the_hyperbolic_tangent_is_exact_to_1e_7() {
        for i in -3000..3000 {
            let x = i as f32 * 0.01;
            assert!((f64::from(tanh(x)) - f64::from(x).tanh()).abs() < 2e-7, "tanh({x}): {}", tanh(x));
        }
    }

    #[test]
    fn reductions_take_the_rest_into_account() {
        let values: Vec<f32> = (0..37).map(|i| i as f32 - 30.0).collect();
        assert!((sum(&values) - (-444.0)).abs() < 1e-3);
        assert!((max(&values) - 6.0).abs() < 1e-6);
        let expected: f32 = values.iter().map(|v| v * v).sum();
        assert!((dot(&values, &values) - expected).abs() < 1e-2);
    }
}
