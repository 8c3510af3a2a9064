//! Numbers within limits. All 64-bit integers, signed or not, and all doubles can be written.
//! Numbers that no reader could represent (`1e999`, endless digits) can't. A value within limits
//! stays within them when it is read as a double.

use llguidance::derivre::RegexAst;

use super::decimal::Decimal;
use super::digits::{
    FRACTION, WHOLE, any_fraction, at_least, at_most, both, either, optional, predecessor, regex, sequence,
    successor, text, whole,
};
use super::lexeme::Lexeme;

/// Maximum digits that an unfinished number (`-`, `1.` or `1e+`) lacks.
const UNFINISHED: usize = 4;
/// Smallest power of ten of a double.
const LEAST_EXPONENT: i32 = -324;
/// Largest coefficient of a `multipleOf`, because llguidance computes remainders in 32 bits.
const LARGEST_FACTOR: u32 = 400_000_000;

/// One end of a range.
#[derive(Debug, Clone)]
pub struct Limit {
    pub value: Decimal,
    /// Whether the value itself is excluded.
    pub exclusive: bool,
}

/// What a schema says about a number.
#[derive(Debug, Clone, Default)]
pub struct Numbers {
    low: Option<Limit>,
    high: Option<Limit>,
    pub whole: bool,
    multiples: Vec<Decimal>,
}

impl Numbers {
    pub fn at_least(&mut self, limit: Limit) {
        let tighter = |old: &Limit| (&limit.value, limit.exclusive) > (&old.value, old.exclusive);
        if self.low.as_ref().is_none_or(tighter) {
            self.low = Some(limit);
        }
    }

    pub fn at_most(&mut self, limit: Limit) {
        let tighter = |old: &Limit| limit.value < old.value || (limit.value == old.value && limit.exclusive);
        if self.high.as_ref().is_none_or(tighter) {
            self.high = Some(limit);
        }
    }

    /// Requires multiples of this factor, which must not be 0.
    pub fn multiple_of(&mut self, factor: Decimal) {
        self.multiples.push(factor);
    }

    /// Whether no number satisfies both.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        let below = |high: &Option<Limit>, low: &Option<Limit>| match (high, low) {
            (Some(high), Some(low)) => {
                high.value < low.value || (high.value == low.value && (high.exclusive || low.exclusive))
            }
            _ => false,
        };
        below(&self.high, &other.low) || below(&other.high, &self.low)
    }

    /// Whether this number satisfies the limits and factors. Does not check whether it is whole.
    pub fn holds(&self, number: &Decimal) -> bool {
        let above = |limit: &Limit| number > &limit.value || (number == &limit.value && !limit.exclusive);
        let below = |limit: &Limit| number < &limit.value || (number == &limit.value && !limit.exclusive);
        self.low.as_ref().is_none_or(above)
            && self.high.as_ref().is_none_or(below)
            && self.multiples.iter().all(|factor| number.is_multiple_of(factor))
    }

    /// The lexeme of these numbers; `None` if there are none.
    ///
    /// # Errors
    /// The numbers can't be expressed, with the reason in words.
    pub fn lexeme(&self) -> Result<Option<Lexeme>, String> {
        let ast = if self.whole { self.integers()? } else { self.numbers() };
        let multiples = self.multiples.iter().map(multiples).collect::<Result<Vec<_>, _>>()?;
        let plain = multiples.is_empty();
        let ast = multiples.into_iter().fold(ast, both);
        let digits = |limit: &Option<Limit>| {
            limit.as_ref().map_or(0, |limit| limit.value.whole().len() + limit.value.fraction().len())
        };
        // To satisfy a limit, a number may need as many digits as the limit has.
        let closing = UNFINISHED + digits(&self.low).max(digits(&self.high));
        Lexeme::checked(ast, plain.then_some(closing))
    }

    fn integers(&self) -> Result<RegexAst, String> {
        let beyond = || "integers of more than 38 digits are not supported".to_owned();
        let limit = |limit: &Limit, is_low: bool| -> Result<i128, String> {
            let value = inside(limit, is_low, false);
            let (floor, exact) = value.floor().ok_or_else(beyond)?;
            Ok(match (is_low, exact, limit.exclusive && value == limit.value) {
                (true, true, true) | (true, false, _) => floor + 1,
                (false, true, true) => floor - 1,
                _ => floor,
            })
        };
        let (least, most) = (i128::from(i64::MIN), i128::from(u64::MAX));
        let low = self.low.as_ref().map(|low| limit(low, true)).transpose()?;
        let high = self.high.as_ref().map(|high| limit(high, false)).transpose()?;
        // If the other limit lies outside the 64-bit range, leave some room beyond it.
        let low_or = low.unwrap_or_else(|| least.min(high.map_or(least, |high| high.saturating_mul(10))));
        let high_or = high.unwrap_or_else(|| most.max(low.map_or(most, |low| low.saturating_mul(10))));
        Ok(integers(low_or, high_or))
    }

    fn numbers(&self) -> RegexAst {
        // Readers represent these integers exactly.
        let (mut low, mut high) = (i128::from(i64::MIN), i128::from(u64::MAX));
        if let Some(limit) = &self.low {
            let (floor, exact) =
                limit.value.floor().unwrap_or((if limit.value.is_negative() { low } else { high + 1 }, true));
            low = low.max(floor + i128::from(!exact || limit.exclusive));
        }
        if let Some(limit) = &self.high {
            let (floor, exact) =
                limit.value.floor().unwrap_or((if limit.value.is_negative() { low - 1 } else { high }, true));
            high = high.min(floor - i128::from(exact && limit.exclusive));
        }
        let exact = integers(low, high);
        let largest = Decimal::of_double(f64::MAX);
        let low =
            self.low.as_ref().map_or_else(|| Decimal::of_double(f64::MIN), |low| inside(low, true, true));
        let high = self.high.as_ref().map_or_else(|| largest.clone(), |high| inside(high, false, true));
        if low > high {
            return exact;
        }
        let above = |limit: &Option<Limit>| {
            limit.as_ref().is_some_and(|limit| limit.exclusive && limit.value.is_zero())
        };
        let written = self.multiples.is_empty();
        let zero = Decimal::of_whole(0);
        let mut options = vec![exact];
        if !high.is_negative() {
            let least = if low.is_negative() { &zero } else { &low };
            options.push(magnitudes(least, !low.is_negative() && above(&self.low), &high, written));
        }
        if low.is_negative() {
            let least = if high.is_negative() { high.magnitude() } else { zero.clone() };
            let above_zero = !high.is_negative() && high.is_zero() && above(&self.high);
            options
                .push(sequence(vec![text("-"), magnitudes(&least, above_zero, &low.magnitude(), written)]));
        }
        either(options)
    }
}

/// Moves a limit so that a number that doesn't exceed it as a decimal doesn't exceed it as a double
/// either. A limit of 0 is kept, and so is a whole number that readers represent exactly, unless
/// `fractions` is set.
fn inside(limit: &Limit, is_low: bool, fractions: bool) -> Decimal {
    let exact = (Decimal::of_whole(i128::from(i64::MIN)), Decimal::of_whole(i128::from(u64::MAX)));
    if limit.value.is_zero() || (!fractions && exact.0 <= limit.value && limit.value <= exact.1) {
        return limit.value.clone();
    }
    let double = limit.value.double();
    let decimal = Decimal::of_double(double);
    let out = if is_low { decimal < limit.value } else { decimal > limit.value };
    let equal = decimal == limit.value;
    if !(out || equal && limit.exclusive) {
        return if equal { limit.value.clone() } else { decimal };
    }
    Decimal::of_double(if is_low { double.next_up() } else { double.next_down() })
}

fn integers(low: i128, high: i128) -> RegexAst {
    let mut options = Vec::new();
    if low < 0 {
        let nearest = high.min(-1).unsigned_abs().to_string();
        options.push(sequence(vec![text("-"), whole(&nearest, &low.unsigned_abs().to_string())]));
    }
    if high >= 0 {
        options.push(whole(&low.max(0).to_string(), &high.to_string()));
    }
    either(options)
}

/// Numbers from `low` (exclusive with `above`) to `high`, neither negative. Written with digits,
/// and with `exponents` also with powers of ten.
fn magnitudes(low: &Decimal, above: bool, high: &Decimal, exponents: bool) -> RegexAst {
    let mut options = vec![plain(low, above, high)];
    if exponents {
        options.push(scientific(low, above, high));
        if low.is_zero() && !above && high.exponent() >= 200 {
            // The usual notation, with any number of digits before the point.
            options.push(sequence(vec![
                regex(format!("(?:0|[1-9][0-9]{{0,{}}})", WHOLE - 1)),
                any_fraction(),
                regex("[eE][+-]?[0-9]{1,2}"),
            ]));
        }
    }
    either(options)
}

fn plain(low: &Decimal, above: bool, high: &Decimal) -> RegexAst {
    let (from, mut to) = (low.whole(), high.whole());
    let mut end = at_most(&high.fraction());
    if to.len() > WHOLE && from.len() <= WHOLE {
        (to, end) = ("9".repeat(WHOLE), any_fraction());
    }
    if from == to {
        return sequence(vec![text(from), both(at_least(&low.fraction(), above), end)]);
    }
    let (after, before) = (successor(&from), predecessor(&to));
    either(vec![
        sequence(vec![text(from), at_least(&low.fraction(), above)]),
        sequence(vec![whole(&after, &before), any_fraction()]),
        sequence(vec![text(to), end]),
    ])
}

/// One digit, possibly more after a point, and a power of ten.
fn scientific(low: &Decimal, above: bool, high: &Decimal) -> RegexAst {
    let mantissa = |from: &str, to: Option<&str>| {
        let fraction = |digits: &str| digits.get(1..).unwrap_or_default().to_owned();
        let first = |digits: &str| digits[..1].to_owned();
        let floor = [text(first(from)), at_least(&fraction(from), false)];
        let Some(to) = to else {
            let larger = whole(&successor(&first(from)), "9");
            return either(vec![sequence(floor.into()), sequence(vec![larger, any_fraction()])]);
        };
        if first(from) == first(to) {
            let tail = both(at_least(&fraction(from), false), at_most(&fraction(to)));
            return sequence(vec![text(first(from)), tail]);
        }
        let between = whole(&successor(&first(from)), &predecessor(&first(to)));
        either(vec![
            sequence(floor.into()),
            sequence(vec![between, any_fraction()]),
            sequence(vec![text(first(to)), at_most(&fraction(to))]),
        ])
    };
    let with = |mantissa: RegexAst, from: i32, to: i32| {
        (from <= to).then(|| sequence(vec![mantissa, regex("[eE]"), exponents(from, to)]))
    };
    if high.is_zero() {
        return RegexAst::NoMatch;
    }
    let top = high.exponent();
    // A number that is read as 0 is not above 0.
    let least = LEAST_EXPONENT + i32::from(above);
    let bottom = if low.is_zero() { least - 1 } else { low.exponent() };
    let mut options = Vec::new();
    if bottom == top {
        options.extend(with(mantissa(low.digits(), Some(high.digits())), top, top));
    } else {
        options.extend(with(sequence(vec![regex("[1-9]"), any_fraction()]), bottom + 1, top - 1));
        options.extend(with(mantissa("1", Some(high.digits())), top, top));
        if !low.is_zero() {
            options.extend(with(mantissa(low.digits(), None), bottom, bottom));
        }
    }
    either(options)
}

/// Exponents from `from` to `to`, with sign and leading zero as programs write them.
fn exponents(from: i32, to: i32) -> RegexAst {
    let padded =
        |low: i32, high: i32| sequence(vec![regex("0?"), whole(&low.to_string(), &high.to_string())]);
    let mut options = Vec::new();
    if to >= 0 {
        options.push(sequence(vec![regex("\\+?"), padded(from.max(0), to)]));
    }
    if from < 0 {
        options.push(sequence(vec![text("-"), padded(-to.min(-1), -from)]));
    }
    either(options)
}

/// Multiples of this factor, with or without a sign.
fn multiples(factor: &Decimal) -> Result<RegexAst, String> {
    let magnitude = factor.magnitude();
    let refused = || "at most 8 significant digits, and 8 after the point, are supported".to_owned();
    let coefficient: u32 = magnitude.digits().parse().map_err(|_| refused())?;
    // The factor is coefficient · 10^scale.
    let scale = magnitude.exponent() + 1 - magnitude.digits().len() as i32;
    let ast = if scale >= 0 {
        let zeros = "0".repeat(scale as usize);
        if coefficient > LARGEST_FACTOR {
            return Err(refused());
        }
        let whole = sequence(vec![RegexAst::MultipleOf(coefficient, 0), text(zeros)]);
        sequence(vec![either(vec![whole, text("0")]), optional(regex(format!("\\.0{{1,{FRACTION}}}")))])
    } else {
        let places = scale.unsigned_abs();
        let fits = 10u32
            .checked_pow(places)
            .is_some_and(|ten| u64::from(ten) * 10 + u64::from(coefficient) * 10 < u64::from(u32::MAX));
        if !fits || places > 8 {
            return Err(refused());
        }
        // Zeros at the end of the fraction may be missing.
        RegexAst::MultipleOf(coefficient, places)
    };
    Ok(sequence(vec![optional(text("-")), ast]))
}
