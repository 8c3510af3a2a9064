//! Renders templates with minijinja, set up as `transformers` sets up Jinja.

use std::time::SystemTime;

use minijinja::value::{Kwargs, Rest, merge_maps};
use minijinja::{Environment, Error, ErrorKind, Value, context};

use super::python::{self, Raised};
use super::sentinel::Guard;
use super::source::Use;
use super::to_json::to_json;
use super::{Special, TemplateError};
use crate::native::local_time;

/// An environment that holds this template under the name `chat`.
pub(super) fn environment(source: &str) -> Result<Environment<'static>, TemplateError> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    python::add_to(&mut environment);
    give(&mut environment, &Guard::default(), SystemTime::UNIX_EPOCH);
    let added = environment.add_template_owned("chat", source.to_owned());
    added.map_err(|error| TemplateError::Syntax(detail(&error)))?;
    Ok(environment)
}

/// Adds the functions that differ between renderings.
fn give(environment: &mut Environment<'_>, guard: &Guard, now: SystemTime) {
    let guard = guard.clone();
    environment.add_filter("tojson", move |value: Value, arguments: Rest<Value>, kwargs: Kwargs| {
        to_json(&guard, &value, arguments, &kwargs)
    });
    environment.add_function("strftime_now", move |format: String| {
        local_time(&super::sentinel::read(&format), now).ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidOperation,
                format!("strftime_now: {format:?} is no format of a time"),
            )
        })
    });
}

/// Renders the template with these variables.
pub(super) fn render(
    environment: &Environment<'static>,
    variables: &serde_json::Value,
    special: &Special,
    guard: &Guard,
    now: SystemTime,
) -> Result<String, TemplateError> {
    // The clone shares the compiled template.
    let mut environment = environment.clone();
    give(&mut environment, guard, now);
    let template = environment.get_template("chat").expect("was added when the environment was made");
    let Special { bos_token, eos_token } = special;
    // In case of duplicate keys the later map wins.
    let context = merge_maps([Value::from_serialize(variables), context! { bos_token, eos_token }]);
    template.render(context).map_err(|error| {
        let detail = detail(&error);
        match error.kind() {
            ErrorKind::UnknownFilter
            | ErrorKind::UnknownTest
            | ErrorKind::UnknownFunction
            | ErrorKind::UnknownMethod => TemplateError::Broken(detail),
            _ => TemplateError::Refused(detail),
        }
    })
}

/// Checks that the filters and tests that a template uses exist.
pub(super) fn check_names(
    environment: &Environment<'static>,
    uses: &[(Use, String, usize)],
) -> Result<(), TemplateError> {
    for (used, name, line) in uses {
        let (expression, kind, what) = match used {
            Use::Filter => (format!("x|{name}"), ErrorKind::UnknownFilter, "filter"),
            Use::Test => (format!("x is {name}"), ErrorKind::UnknownTest, "test"),
        };
        // Other errors come from the value that it is applied to.
        let tried = environment.compile_expression(&expression).and_then(|it| it.eval(context! { x => "" }));
        if tried.is_err_and(|error| error.kind() == kind) {
            return Err(TemplateError::Syntax(format!("line {line}: unknown {what}: {name}")));
        }
    }
    Ok(())
}

/// The error's message and its line.
fn detail(error: &Error) -> String {
    let raised =
        std::error::Error::source(error).is_some_and(<dyn std::error::Error + 'static>::is::<Raised>);
    let what = match error.detail() {
        Some(detail) if raised || error.kind() == ErrorKind::InvalidOperation => detail.to_owned(),
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    };
    error.line().map_or_else(|| what.clone(), |line| format!("line {line}: {what}"))
}
