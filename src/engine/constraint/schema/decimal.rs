//! Exact decimal numbers of schemas: limits are compared digit by digit, not as doubles.

use std::cmp::Ordering;

use serde_json::Number;

/// ±0.d₁d₂… · 10^point, with neither leading nor trailing zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decimal {
    negative: bool,
    digits: String,
    point: i32,
}

impl Decimal {
    /// The value of a JSON number.
    pub fn of(number: &Number) -> Self {
        Self::parse(&number.to_string())
    }

    /// The shortest decimal that is read as this double.
    pub fn of_double(double: f64) -> Self {
        if double.is_infinite() {
            // Beyond every double.
            return Self::parse(if double > 0.0 { "1e400" } else { "-1e400" });
        }
        Self::parse(&format!("{double:e}"))
    }

    /// The value of a whole number.
    pub fn of_whole(number: i128) -> Self {
        Self::parse(&number.to_string())
    }

    fn parse(text: &str) -> Self {
        let (negative, text) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i32 = exponent.parse().expect("serde_json and Rust write small exponents");
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        let zeros = digits.len() - digits.trim_start_matches('0').len();
        let point = whole.len() as i32 - zeros as i32 + exponent;
        let digits = digits.trim_matches('0').to_owned();
        if digits.is_empty() {
            return Self { negative: false, digits, point: 0 };
        }
        Self { negative, digits, point }
    }

    /// Whether the number is 0.
    pub fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// Whether the number is below 0.
    pub fn is_negative(&self) -> bool {
        self.negative
    }

    /// The absolute value.
    pub fn magnitude(&self) -> Self {
        Self { negative: false, ..self.clone() }
    }

    /// All significant digits.
    pub fn digits(&self) -> &str {
        &self.digits
    }

    /// The power of ten of the first digit.
    pub fn exponent(&self) -> i32 {
        self.point - 1
    }

    /// The digits before the point, at least one.
    pub fn whole(&self) -> String {
        let point = usize::try_from(self.point).unwrap_or(0);
        if point == 0 {
            return "0".to_owned();
        }
        let digits = &self.digits[..point.min(self.digits.len())];
        format!("{digits}{}", "0".repeat(point - digits.len()))
    }

    /// The digits after the point, without trailing zeros.
    pub fn fraction(&self) -> String {
        if self.point < 0 {
            return format!("{}{}", "0".repeat(self.point.unsigned_abs() as usize), self.digits);
        }
        self.digits.get(self.point as usize..).unwrap_or_default().to_owned()
    }

    /// The largest whole number that isn't larger, and whether it is equal; `None` beyond 128 bits.
    pub fn floor(&self) -> Option<(i128, bool)> {
        let exact = self.fraction().is_empty();
        let whole: i128 = self.whole().parse().ok()?;
        Some((if self.negative { -whole - i128::from(!exact) } else { whole }, exact))
    }

    /// Whether the number is a whole multiple of `factor`, which must not be 0.
    pub fn is_multiple_of(&self, factor: &Self) -> bool {
        let parts = |decimal: &Self| -> Option<(u128, i32)> {
            Some((decimal.digits.parse().ok()?, decimal.point - decimal.digits.len() as i32))
        };
        let (Some((own, scale)), Some((other, unit))) = (parts(self), parts(factor)) else {
            return self.is_zero();
        };
        // The digits have no trailing zeros, so dividing them by a power of ten leaves a remainder.
        scale >= unit && (unit..scale).fold(own % other, |rest, _| rest * 10 % other) == 0
    }

    /// The nearest double.
    pub fn double(&self) -> f64 {
        let sign = if self.negative { "-" } else { "" };
        format!("{sign}0.{}e{}", self.digits, self.point).parse().unwrap_or(0.0)
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |decimal: &Self| i8::from(!decimal.is_zero()) * if decimal.negative { -1 } else { 1 };
        if sign(self) != sign(other) || self.is_zero() {
            return sign(self).cmp(&sign(other));
        }
        let magnitude = self.point.cmp(&other.point).then_with(|| self.digits.cmp(&other.digits));
        if self.negative { magnitude.reverse() } else { magnitude }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_taken_apart_and_compared_exactly() {
        for (text, whole, fraction, floor) in [
            ("0", "0", "", (0, true)),
            ("-0.0", "0", "", (0, true)),
            ("120.50", "120", "5", (120, false)),
            ("-0.05", "0", "05", (-1, false)),
            ("1e3", "1000", "", (1000, true)),
            ("1.25e-3", "0", "00125", (0, false)),
            ("18446744073709551615", "18446744073709551615", "", (18_446_744_073_709_551_615, true)),
        ] {
            let decimal = Decimal::parse(text);
            assert_eq!((decimal.whole().as_str(), decimal.fraction().as_str()), (whole, fraction), "{text}");
            assert_eq!(decimal.floor(), Some(floor), "{text}");
        }
        let rising =
            ["-1e300", "-2", "-1.5", "-1e-9", "0", "1e-300", "0.1", "0.10000000000000001", "9", "10", "1e22"];
        for pair in rising.windows(2) {
            assert!(Decimal::parse(pair[0]) < Decimal::parse(pair[1]), "{pair:?}");
        }
        assert_eq!(Decimal::parse("100e-2"), Decimal::parse("1.0"));
        for double in [f64::MAX, 5e-324, 0.1, -2.5] {
            assert_eq!(Decimal::of_double(double).double().to_bits(), double.to_bits());
        }
    }
}
