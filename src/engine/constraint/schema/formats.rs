//! The formats of JSON Schema as regular expressions, by the RFCs that it names. If a format is
//! more than a regular language (leap days are not, host names in other scripts are), the
//! expression covers a part of it.

/// Formats that are enforced.
pub const KNOWN: [&str; 14] = [
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "idn-email",
    "hostname",
    "idn-hostname",
    "ipv4",
    "ipv6",
    "uuid",
    "uri",
    "iri",
    "json-pointer",
];

/// February has 29 days in years divisible by 4; of whole centuries, only in those divisible by
/// 400.
macro_rules! date {
    () => {
        concat!(
            "(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|",
            "02-(?:0[1-9]|1[0-9]|2[0-8]))|",
            "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
        )
    };
}
/// RFC 3339, without leap seconds, which a model can't know.
macro_rules! time {
    () => {
        concat!(
            "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,9})?",
            "(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
        )
    };
}
macro_rules! duration_of_day {
    () => {
        concat!("(?:[0-9]{1,9}H(?:[0-9]{1,9}M(?:[0-9]{1,9}S)?)?|[0-9]{1,9}M(?:[0-9]{1,9}S)?|[0-9]{1,9}S)")
    };
}
macro_rules! host {
    () => {
        "(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)(?:\\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*"
    };
}
macro_rules! ipv4 {
    () => {
        "(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
    };
}
macro_rules! ipv6 {
    () => {
        concat!(
            "(?:(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){1,7}:|",
            "(?:[0-9A-Fa-f]{1,4}:){1,6}:[0-9A-Fa-f]{1,4}|(?:[0-9A-Fa-f]{1,4}:){1,5}(?::[0-9A-Fa-f]{1,4}){1,2}|",
            "(?:[0-9A-Fa-f]{1,4}:){1,4}(?::[0-9A-Fa-f]{1,4}){1,3}|(?:[0-9A-Fa-f]{1,4}:){1,3}(?::[0-9A-Fa-f]{1,4}){1,4}|",
            "(?:[0-9A-Fa-f]{1,4}:){1,2}(?::[0-9A-Fa-f]{1,4}){1,5}|[0-9A-Fa-f]{1,4}:(?::[0-9A-Fa-f]{1,4}){1,6}|",
            ":(?::[0-9A-Fa-f]{1,4}){1,7}|::)"
        )
    };
}
/// A character of a path in RFC 3986.
macro_rules! path {
    () => {
        "(?:[A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
    };
}
macro_rules! uri {
    () => {
        concat!(
            "[A-Za-z][A-Za-z0-9+.-]*:(?://(?:(?:[A-Za-z0-9._~!$&'()*+,;=:-]|%[0-9A-Fa-f]{2})*@)?",
            "(?:\\[",
            ipv6!(),
            "\\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]{0,5})?(?:/",
            path!(),
            "*)*|/(?:",
            path!(),
            "+(?:/",
            path!(),
            "*)*)?|(?:",
            path!(),
            "+(?:/",
            path!(),
            "*)*)?)(?:\\?(?:[/?]|",
            path!(),
            ")*)?(?:#(?:[/?]|",
            path!(),
            ")*)?"
        )
    };
}

/// The expressions that a text of the format must all match as a whole; `None` for an unknown
/// format.
pub fn expressions(format: &str) -> Option<Vec<&'static str>> {
    Some(match format {
        "date-time" => vec![concat!(date!(), "[tT]", time!())],
        "date" => vec![date!()],
        "time" => vec![time!()],
        "duration" => vec![concat!(
            "P(?:[0-9]{1,9}W|(?:[0-9]{1,9}Y(?:[0-9]{1,9}M(?:[0-9]{1,9}D)?)?|[0-9]{1,9}M(?:[0-9]{1,9}D)?|[0-9]{1,9}D)",
            "(?:T",
            duration_of_day!(),
            ")?|T",
            duration_of_day!(),
            ")"
        )],
        "email" | "idn-email" => vec![
            concat!("[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(?:\\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*@", host!()),
            "[^@]{1,64}@[^@]{1,253}",
        ],
        "hostname" | "idn-hostname" => vec![host!(), "[a-zA-Z0-9.-]{1,253}"],
        "ipv4" => vec![ipv4!()],
        "ipv6" => vec![ipv6!()],
        "uuid" => vec!["[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}"],
        "uri" | "iri" => vec![uri!()],
        "json-pointer" => vec!["(?:/(?:[^/~]|~[01])*)*"],
        _ => return None,
    })
}
