//! Which spokes a request runs with: those that it names, else that of its task, else the default, else none.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::HeaderValue;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::blame;
use crate::adapter::{Generation, Kind};
use crate::api::app::{App, Deadline};
use crate::api::body::JsonBody;
use crate::api::error::ApiError;
use crate::api::observe::RequestContext;
use crate::config::Otherwise;
use crate::engine::{ScaledSpoke, SpokeSet};
use crate::spokes::leases::{Lease, Leases, Refused};
use crate::spokes::life::State;
use crate::spokes::reconciler::{POST, SpokeError};
use crate::spokes::registry::Serving;
use crate::text::fields::{kind, short};

/// The header that says which spokes answered.
pub(in crate::api) const HEADER: &str = "x-bespoke-spokes";
/// How often a request that comes in the middle of swaps looks again.
const LOOKS: usize = 32;
/// Largest scale, up or down.
const LARGEST: f64 = 100.0;

/// What requests get that choose nothing: set by the configuration, and by `POST /lora-adapters` until the next start.
pub(in crate::api) type Default = BTreeMap<String, f32>;

/// As written.
#[derive(Debug, Deserialize)]
struct ChoiceFields {
    model: Option<Value>,
    lora: Option<Value>,
}

/// What a body says about spokes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::api) struct Choice {
    model: Option<String>,
    /// By the number of a name, or by the name itself; empty is none, absent says nothing.
    lora: Option<Vec<(Id, f32)>>,
    task: Option<String>,
    /// This and nothing else, whatever the body says: for the gate.
    held: Option<Arc<Lease>>,
}

#[derive(Debug, Clone, PartialEq)]
enum Id {
    Number(i64),
    Name(String),
}

impl PartialEq for Lease {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.slot(), other.slot())
    }
}

/// What a request runs with; held until its end.
#[derive(Debug, Default)]
pub(in crate::api) struct Chosen {
    set: SpokeSet,
    told: Vec<Told>,
    _leases: Vec<Lease>,
    _held: Option<Arc<Lease>>,
}

#[derive(Debug, Clone)]
struct Told {
    name: String,
    generation: Generation,
    scale: f32,
}

impl Choice {
    /// Judges what can be judged without knowing what is there.
    pub(in crate::api) fn parse(body: &JsonBody) -> Result<Self, ApiError> {
        let ChoiceFields { model, lora } = body.parse()?;
        let task = body.0.pointer("/response_format/json_schema/name").and_then(Value::as_str);
        Ok(Self {
            // What is no text names nothing.
            model: model.as_ref().and_then(Value::as_str).map(str::to_owned),
            lora: lora.filter(|lora| !lora.is_null()).map(|lora| adapters("lora", &lora)).transpose()?,
            task: task.map(str::to_owned),
            held: None,
        })
    }

    /// This and nothing else.
    pub(in crate::api) fn only(lease: Arc<Lease>) -> Self {
        Self { held: Some(lease), ..Self::default() }
    }

    /// Names and scales, by what serves now.
    fn resolve(&self, app: &App, serving: &Serving) -> Result<BTreeMap<String, f32>, ApiError> {
        let mut set = BTreeMap::new();
        let named = self.model.as_deref().map_or(Ok(None), |model| by_model(app, serving, model))?;
        if let Some(adapters) = &self.lora {
            for (index, (id, scale)) in adapters.iter().enumerate() {
                let field = format!("lora[{index}].id");
                let name = id.name(app, &field, serving)?;
                if set.insert(name.to_owned(), *scale).is_some() {
                    return Err(ApiError::field(field, format!("{name:?} stands above already")));
                }
            }
        }
        match named {
            Some(named) => drop(set.entry(named.to_owned()).or_insert(1.0)),
            None if self.lora.is_none() => {
                let there = |name: &&String| serving.names.contains_key(*name);
                let task = self.task.as_ref().and_then(|task| app.spokes_of_tasks().get(task)).filter(there);
                match task {
                    Some(task) => drop(set.insert(task.clone(), 1.0)),
                    None => set.extend(
                        app.default_spokes()
                            .iter()
                            .filter(|(name, _)| there(name))
                            .map(|(name, scale)| (name.clone(), *scale)),
                    ),
                }
            }
            None => {}
        }
        set.retain(|_, scale| *scale != 0.0);
        Ok(set)
    }
}

/// The spoke that a model's name stands for, if it stands for one.
fn by_model<'a>(app: &App, serving: &'a Serving, model: &'a str) -> Result<Option<&'a str>, ApiError> {
    if app.is_post(model) {
        return Ok(None);
    }
    let behind = |prefix: &str| model.strip_prefix(prefix).and_then(|rest| rest.strip_prefix(':'));
    let explicit = behind(app.model_id()).or_else(|| behind(POST));
    let name = explicit.unwrap_or(model);
    if serving.names.contains_key(name) {
        return Ok(Some(name));
    }
    let error = absent(app, serving, name, model);
    let otherwise = match error {
        ApiError::NotServing { .. } => app.retired_spoke(),
        // Whoever names the post in front means a spoke, and no other thing.
        ApiError::NoSuchModel { .. } if explicit.is_none() => app.unknown_model(),
        _ => Otherwise::Refuse,
    };
    match otherwise {
        Otherwise::Post => Ok(None),
        Otherwise::Refuse => Err(error),
    }
}

/// Why nothing serves under a name that was asked for as `wanted`.
fn absent(app: &App, serving: &Serving, name: &str, wanted: &str) -> ApiError {
    let latest = app.spokes().registry().latest(name);
    let why = match latest {
        Some((state, _)) if state.is_moving() => {
            return ApiError::SpokeUnderWay { name: name.to_owned(), state: state.name() };
        }
        Some((State::Waiting(why), _)) => {
            return ApiError::SpokeWaits { name: Some(name.to_owned()), why };
        }
        Some((State::Inert, _)) => "it is inert: its answers would be those of the post".to_owned(),
        Some((state, Some(why))) => format!("it is {}: {why}", state.name()),
        latest => match serving.past.get(name) {
            Some(Some(why)) => format!("it is retired: {why}"),
            Some(None) => "it is retired".to_owned(),
            // It is about to serve, or has just ceased to.
            None if latest.is_some() => {
                return ApiError::SpokeUnderWay { name: name.to_owned(), state: State::Gated.name() };
            }
            None => return ApiError::no_such_model(wanted, app),
        },
    };
    ApiError::NotServing { name: name.to_owned(), why, served: app.served_models() }
}

impl Id {
    /// The name that serves. A name that doesn't is a 404, as it is for a model; a number, which llama-server's clients take
    /// from its list, a 400, as llama-server's.
    fn name<'a>(&'a self, app: &App, field: &str, serving: &'a Serving) -> Result<&'a str, ApiError> {
        let id = match self {
            Self::Name(name) if serving.names.contains_key(name) => return Ok(name),
            Self::Name(name) => return Err(absent(app, serving, name, name)),
            Self::Number(id) => *id,
        };
        serving.by_id(id).ok_or_else(|| {
            let there: Vec<String> =
                serving.names.iter().map(|(name, served)| format!("{} ({name})", served.id)).collect();
            let there = if there.is_empty() {
                "none is loaded".to_owned()
            } else {
                format!("there are {}", there.join(", "))
            };
            ApiError::field(field, format!("no adapter has the id {id}; {there}"))
        })
    }
}

/// llama-server's list of `{id, scale}`; ids may be names too.
fn adapters(field: &str, written: &Value) -> Result<Vec<(Id, f32)>, ApiError> {
    let Value::Array(entries) = written else {
        return Err(ApiError::field(field, format!("found {}, expected an array", short(written))));
    };
    let place = |index: usize, part: &str| {
        let root = if field == "body" { "" } else { field };
        format!("{root}[{index}].{part}")
    };
    let adapter = |(index, entry): (usize, &Value)| {
        let id = match entry.get("id") {
            None => return Err(ApiError::field(place(index, "id"), "is missing")),
            Some(Value::String(name)) => Id::Name(name.clone()),
            Some(id) => Id::Number(id.as_i64().ok_or_else(|| {
                let message = format!("found {}, expected the number or the name of an adapter", short(id));
                ApiError::field(place(index, "id"), message)
            })?),
        };
        let scale = entry.get("scale").map_or(Some(1.0), Value::as_f64);
        let scale = scale.filter(|scale| scale.abs() <= LARGEST).ok_or_else(|| {
            let found = entry.get("scale").map_or("nothing", kind);
            let message = format!("found {found}, expected a number from -{LARGEST} to {LARGEST}");
            ApiError::field(place(index, "scale"), message)
        })?;
        Ok((id, scale as f32))
    };
    entries.iter().enumerate().map(adapter).collect()
}

/// A body of `POST /lora-adapters`: what requests get from now on that choose nothing.
pub(in crate::api) fn defaults(app: &App, body: &JsonBody, serving: &Serving) -> Result<Default, ApiError> {
    let mut set = Default::new();
    for (index, (id, scale)) in adapters("body", &body.0)?.iter().enumerate() {
        set.insert(id.name(app, &format!("[{index}].id"), serving)?.to_owned(), *scale);
    }
    check_kinds(
        set.iter().filter(|(_, scale)| **scale != 0.0).map(|(name, _)| &serving.names[name].slot),
        "body",
    )?;
    Ok(set)
}

/// Felix spokes rewrite the same residual stream, one after the other: which of two would come first nobody has decided.
fn check_kinds<'a>(slots: impl Iterator<Item = &'a Arc<Leases>>, field: &str) -> Result<(), ApiError> {
    let felix: Vec<&str> =
        slots.filter(|slot| slot.facts.kind == Kind::Felix).map(|slot| slot.name.as_str()).collect();
    if felix.len() < 2 {
        return Ok(());
    }
    let message = format!(
        "{} are Felix spokes, and a request can run with one: their order would change the answer",
        felix.join(" and ")
    );
    Err(ApiError::field(field, message))
}

impl Chosen {
    /// Takes leases of what a request chose, as it serves at this moment; loads it if it isn't in memory.
    pub(in crate::api) async fn take(
        app: &App,
        choice: Choice,
        deadline: Deadline,
    ) -> Result<Arc<Self>, ApiError> {
        if let Some(held) = choice.held {
            let (generation, name) = (held.slot().generation, held.slot().name.clone());
            let set = vec![ScaledSpoke { generation, scale: 1.0 }];
            let told = vec![Told { name, generation, scale: 1.0 }];
            return Ok(Arc::new(Self { set, told, _leases: Vec::new(), _held: Some(held) }));
        }
        let registry = app.spokes().registry();
        deadline.within(registry.restored()).await?;
        for _ in 0..LOOKS {
            let serving = registry.serving();
            let wanted = choice.resolve(app, &serving)?;
            let slots: Vec<Arc<Leases>> =
                wanted.keys().map(|name| Arc::clone(&serving.names[name].slot)).collect();
            check_kinds(slots.iter(), if choice.lora.is_some() { "lora" } else { "model" })?;
            let leases = match slots.iter().map(Leases::lease).collect::<Result<Vec<_>, _>>() {
                Ok(leases) => leases,
                Err(Refused::Retired) => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Err(Refused::Absent) => match deadline.within(app.spokes().hold(slots)).await? {
                    Ok(leases) => leases,
                    Err(SpokeError::Retired) => continue,
                    // It will be another one, or none, at the next look of whoever asks again.
                    Err(SpokeError::Refused(why) | SpokeError::Postponed(why)) => {
                        return Err(ApiError::SpokeFailed(why));
                    }
                    Err(trouble) => return Err(blame("model")(trouble)),
                },
            };
            return Ok(Arc::new(Self::of(app, &wanted, leases)));
        }
        Err(ApiError::SpokeConflict("the spoke was swapped again and again".to_owned()))
    }

    fn of(app: &App, wanted: &BTreeMap<String, f32>, leases: Vec<Lease>) -> Self {
        let mut set: BTreeMap<Generation, f32> = BTreeMap::new();
        let mut told = Vec::new();
        for ((name, scale), lease) in wanted.iter().zip(&leases) {
            let generation = lease.slot().generation;
            // Two names of one content act as one.
            *set.entry(generation).or_default() += scale;
            told.push(Told { name: name.clone(), generation, scale: *scale });
            app.metrics().spoke_used(name);
        }
        let set = set.into_iter().map(|(generation, scale)| ScaledSpoke { generation, scale }).collect();
        let chosen = Self { set, told, _leases: leases, _held: None };
        if !chosen.told.is_empty() {
            RequestContext::current().set_spokes(chosen.text());
        }
        chosen
    }

    /// What the engine is told.
    pub(in crate::api) fn set(&self) -> &SpokeSet {
        &self.set
    }

    /// In short: `name@generation*scale`.
    fn text(&self) -> String {
        let told =
            self.told.iter().map(|told| format!("{}@{}*{}", told.name, told.generation.short(), told.scale));
        told.collect::<Vec<_>>().join(" ")
    }

    /// The field of a reply that says which spokes answered; `None`: the post alone.
    pub(in crate::api) fn field(&self) -> Option<Value> {
        let one =
            |told: &Told| json!({"name": told.name, "generation": told.generation, "scale": told.scale});
        (!self.told.is_empty()).then(|| self.told.iter().map(one).collect())
    }

    /// The response with the header that says which spokes answer.
    pub(in crate::api) fn sign(&self, mut response: Response) -> Response {
        if !self.told.is_empty()
            && let Ok(value) = HeaderValue::from_str(&self.text())
        {
            response.headers_mut().insert(HEADER, value);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(body: Value) -> Result<Choice, String> {
        Choice::parse(&JsonBody(body)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_may_say_nothing_much_or_several_things() {
        assert_eq!(parsed(json!({})).unwrap(), Choice::default());
        assert_eq!(parsed(json!({"model": null, "lora": null})).unwrap(), Choice::default());
        assert_eq!(parsed(json!({"model": 7})).unwrap(), Choice::default());
        let all = parsed(json!({
            "model": "encoding", "lora": [{"id": 1}, {"id": "b", "scale": -0.5}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "t", "schema": {}}}
        }));
        let lora = vec![(Id::Number(1), 1.0), (Id::Name("b".to_owned()), -0.5)];
        let expected = Choice {
            model: Some("encoding".to_owned()),
            lora: Some(lora),
            task: Some("t".to_owned()),
            held: None,
        };
        assert_eq!(all.unwrap(), expected);
        assert_eq!(parsed(json!({"lora": []})).unwrap().lora, Some(vec![]));
    }

    #[test]
    fn what_is_wrong_with_a_list_of_adapters_is_named_by_its_place() {
        for (lora, expected) in [
            (json!(3), "lora: found 3, expected an array"),
            (json!([{"scale": 1}]), "lora[0].id: is missing"),
            (
                json!([{"id": 1}, {"id": 1.5}]),
                "lora[1].id: found 1.5, expected the number or the name of an adapter",
            ),
            (
                json!([{"id": 1, "scale": "x"}]),
                "lora[0].scale: found a string, expected a number from -100 to 100",
            ),
            (
                json!([{"id": 1, "scale": 1e9}]),
                "lora[0].scale: found a number, expected a number from -100 to 100",
            ),
        ] {
            assert_eq!(parsed(json!({"lora": lora})).unwrap_err(), expected);
        }
    }
}
