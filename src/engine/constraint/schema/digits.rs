//! Regular expressions for ranges of non-negative decimal numbers.

use llguidance::derivre::RegexAst;

/// Maximum digits before the point of a number without a limit.
pub const WHOLE: usize = 100;
/// Maximum digits after the point, in addition to those of a limit. A double written out in full
/// has more only if it is tiny.
pub const FRACTION: u32 = 100;

pub fn text(text: impl Into<String>) -> RegexAst {
    RegexAst::Literal(text.into())
}

pub fn regex(regex: impl Into<String>) -> RegexAst {
    RegexAst::Regex(regex.into())
}

/// Alternatives.
pub fn either(mut options: Vec<RegexAst>) -> RegexAst {
    match options.len() {
        0 => RegexAst::NoMatch,
        1 => options.swap_remove(0),
        _ => RegexAst::Or(options),
    }
}

pub fn both(first: RegexAst, second: RegexAst) -> RegexAst {
    RegexAst::And(vec![first, second])
}

pub fn optional(what: RegexAst) -> RegexAst {
    RegexAst::Repeat(Box::new(what), 0, 1)
}

pub fn sequence(parts: Vec<RegexAst>) -> RegexAst {
    RegexAst::Concat(parts)
}

/// Up to `most` digits.
fn any(most: usize) -> RegexAst {
    regex(format!("[0-9]{{0,{most}}}"))
}

fn exactly(digits: usize) -> RegexAst {
    regex(format!("[0-9]{{{digits}}}"))
}

/// One digit of a range; `None` if the range is empty.
fn digit(from: u8, to: u8) -> Option<RegexAst> {
    (from <= to).then(|| regex(format!("[{}-{}]", char::from(from), char::from(to))))
}

/// Whole numbers from `low` to `high`, both without leading zeros.
pub fn whole(low: &str, high: &str) -> RegexAst {
    if (low.len(), low) > (high.len(), high) {
        return RegexAst::NoMatch;
    }
    if low.len() == high.len() {
        return same_length(low, high);
    }
    let mut options = vec![same_length(low, &"9".repeat(low.len()))];
    let between = (low.len() + 1, high.len() - 1);
    if between.0 <= between.1 {
        options.push(regex(format!("[1-9][0-9]{{{},{}}}", between.0 - 1, between.1 - 1)));
    }
    options.push(same_length(&format!("1{}", "0".repeat(high.len() - 1)), high));
    either(options)
}

fn same_length(low: &str, high: &str) -> RegexAst {
    let (l, h, length) = (low.as_bytes(), high.as_bytes(), low.len());
    let Some(parting) = (0..length).find(|&at| l[at] != h[at]) else { return text(low) };
    let from = |prefix: &str, digit: Option<RegexAst>| {
        digit.map(|digit| sequence(vec![text(prefix), digit, exactly(length - prefix.len() - 1)]))
    };
    let mut options: Vec<RegexAst> = Vec::new();
    options.extend(from(&low[..parting], digit(l[parting] + 1, h[parting] - 1)));
    // If the rest of a bound is all zeros (or nines), it imposes no limit.
    if low[parting + 1..].bytes().all(|byte| byte == b'0') {
        options.extend(from(&low[..parting], digit(l[parting], l[parting])));
    } else {
        options.push(text(low));
        options.extend((parting + 1..length).filter_map(|at| from(&low[..at], digit(l[at] + 1, b'9'))));
    }
    if high[parting + 1..].bytes().all(|byte| byte == b'9') {
        options.extend(from(&high[..parting], digit(h[parting], h[parting])));
    } else {
        options.push(text(high));
        options.extend(
            (parting + 1..length)
                .filter(|&at| h[at] > b'0')
                .filter_map(|at| from(&high[..at], digit(b'0', h[at] - 1))),
        );
    }
    either(options)
}

/// Any fraction with its point, or none.
pub fn any_fraction() -> RegexAst {
    regex(format!("(?:\\.[0-9]{{1,{FRACTION}}})?"))
}

/// Fractions of at least 0.`limit` (which has no trailing zeros), or above it.
pub fn at_least(limit: &str, above: bool) -> RegexAst {
    let l = limit.as_bytes();
    if limit.is_empty() && !above {
        return any_fraction();
    }
    let more = if above {
        regex(format!("0{{0,{FRACTION}}}[1-9][0-9]{{0,{FRACTION}}}"))
    } else {
        any(FRACTION as usize)
    };
    let mut options = vec![sequence(vec![text(limit), more])];
    for at in 0..l.len() {
        let larger = digit(l[at] + 1, b'9');
        options
            .extend(larger.map(|larger| sequence(vec![text(&limit[..at]), larger, any(FRACTION as usize)])));
    }
    sequence(vec![text("."), either(options)])
}

/// Fractions of at most 0.`limit` (which has no trailing zeros).
pub fn at_most(limit: &str) -> RegexAst {
    let l = limit.as_bytes();
    let zeros = regex(format!("0{{0,{FRACTION}}}"));
    if limit.is_empty() {
        return optional(sequence(vec![text(".0"), zeros]));
    }
    let mut options = vec![sequence(vec![text(limit), zeros])];
    for at in 0..l.len() {
        if at > 0 {
            options.push(text(&limit[..at]));
        }
        let smaller = if l[at] > b'0' { digit(b'0', l[at] - 1) } else { None };
        options.extend(
            smaller.map(|smaller| sequence(vec![text(&limit[..at]), smaller, any(FRACTION as usize)])),
        );
    }
    optional(sequence(vec![text("."), either(options)]))
}

/// The next whole number.
pub fn successor(digits: &str) -> String {
    let kept = digits.trim_end_matches('9');
    let zeros = "0".repeat(digits.len() - kept.len());
    match kept.as_bytes().split_last() {
        Some((last, before)) => {
            format!("{}{}{zeros}", String::from_utf8_lossy(before), char::from(last + 1))
        }
        None => format!("1{zeros}"),
    }
}

/// The previous whole number. `digits` must not be 0.
pub fn predecessor(digits: &str) -> String {
    let kept = digits.trim_end_matches('0');
    let nines = "9".repeat(digits.len() - kept.len());
    let Some((last, before)) = kept.as_bytes().split_last() else { return "0".to_owned() };
    let less = format!("{}{}{nines}", String::from_utf8_lossy(before), char::from(last - 1));
    let trimmed = less.trim_start_matches('0');
    if trimmed.is_empty() { "0".to_owned() } else { trimmed.to_owned() }
}
