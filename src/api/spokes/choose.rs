//! Chooses the spokes of a request: those that it names, else its task's, else the default, else
//! none.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::http::HeaderValue;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};

use super::blame;
use crate::adapter::{Generation, Kind};
use crate::api::app::{App, Deadline};
use crate::api::error::ApiError;
use crate::api::observe::RequestContext;
use crate::config::Otherwise;
use crate::engine::{ScaledSpoke, SpokeSet};
use crate::spokes::leases::{Lease, Leases, Refused};
use crate::spokes::life::State;
use crate::spokes::reconciler::{POST, SpokeError};
use crate::spokes::registry::Serving;
use crate::text::fields::{kind, short};

/// The header that names the spokes that answered.
pub(in crate::api) const HEADER: &str = "x-bespoke-spokes";
/// Most attempts of a request that coincides with swaps.
const LOOKS: usize = 32;
/// Largest absolute value of a scale.
const LARGEST: f64 = 100.0;

/// Spokes of requests that choose none: set by the configuration, and by `POST /lora-adapters`
/// until the next start.
pub(in crate::api) type Default = BTreeMap<String, f32>;

/// Fields that choose spokes, as written.
#[derive(Debug, Default, Deserialize)]
pub(in crate::api) struct SpokeFields {
    model: Option<Value>,
    lora: Option<Value>,
}

/// What a body says about spokes.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::api) struct SpokeChoice {
    model: Option<String>,
    /// By a name's id, or by the name itself. Empty means no spokes; absent leaves the choice open.
    lora: Option<Vec<(Id, f32)>>,
    task: Option<String>,
    /// Only this spoke, whatever the body says; used by the gate.
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

/// The spokes of a request, held until it ends.
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

impl SpokeChoice {
    /// Validates the fields, without checking that the spokes exist. A task may have a spoke too;
    /// the name of the answer's schema tells it.
    pub(in crate::api) fn new(written: SpokeFields, task: Option<&str>) -> Result<Self, ApiError> {
        let SpokeFields { model, lora } = written;
        Ok(Self {
            // A model that is no string names nothing.
            model: model.as_ref().and_then(Value::as_str).map(str::to_owned),
            lora: lora.filter(|lora| !lora.is_null()).map(|lora| adapters("lora", &lora)).transpose()?,
            task: task.map(str::to_owned),
            held: None,
        })
    }

    /// Only what this model's name stands for.
    pub(in crate::api) fn named(model: &str) -> Self {
        Self { model: Some(model.to_owned()), lora: Some(Vec::new()), ..Self::default() }
    }

    /// Only this spoke.
    pub(in crate::api) fn only(lease: Arc<Lease>) -> Self {
        Self { held: Some(lease), ..Self::default() }
    }

    /// Resolves the choice to names and scales, by what serves now.
    fn resolve(&self, app: &App, serving: &Serving) -> Result<BTreeMap<String, f32>, ApiError> {
        let mut set = BTreeMap::new();
        let named = self.model.as_deref().map_or(Ok(None), |model| by_model(app, serving, model))?;
        if let Some(adapters) = &self.lora {
            for (index, (id, scale)) in adapters.iter().enumerate() {
                let field = format!("lora[{index}].id");
                let name = id.name(app, &field, serving)?;
                if set.insert(name.to_owned(), *scale).is_some() {
                    return Err(ApiError::field(field, format!("{name:?} is listed twice")));
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

/// The spoke that a model's name stands for, if any.
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
        // A name with the post's name in front explicitly means a spoke, so there is no fallback.
        ApiError::NoSuchModel { .. } if explicit.is_none() => app.unknown_model(),
        _ => Otherwise::Refuse,
    };
    match otherwise {
        Otherwise::Post => Ok(None),
        Otherwise::Refuse => Err(error),
    }
}

/// The error for a name that doesn't serve; the request wrote it as `wanted`.
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
            // It is about to serve, or has just stopped serving.
            None if latest.is_some() => {
                return ApiError::SpokeUnderWay { name: name.to_owned(), state: State::Gated.name() };
            }
            None => return ApiError::no_such_model(wanted, app),
        },
    };
    ApiError::NotServing { name: name.to_owned(), why, served: app.served_models() }
}

impl Id {
    /// Resolves to a serving name. An unknown name is a 404, as for a model. An unknown id, which
    /// llama-server's clients take from its list, is a 400, as in llama-server.
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

/// llama-server's list of `{id, scale}`; names are accepted as ids.
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

/// A body of `POST /lora-adapters`: the default for later requests that choose no spoke.
pub(in crate::api) fn defaults(app: &App, body: &Value, serving: &Serving) -> Result<Default, ApiError> {
    let mut set = Default::new();
    for (index, (id, scale)) in adapters("body", body)?.iter().enumerate() {
        set.insert(id.name(app, &format!("[{index}].id"), serving)?.to_owned(), *scale);
    }
    check_kinds(
        set.iter().filter(|(_, scale)| **scale != 0.0).map(|(name, _)| &serving.names[name].slot),
        "body",
    )?;
    Ok(set)
}

/// Refuses two Felix spokes: both would rewrite the same residual stream in sequence, and their
/// order is undefined.
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
    /// Takes leases on the chosen spokes as they serve at this moment. Loads those that aren't in
    /// memory.
    pub(in crate::api) async fn take(
        app: &App,
        choice: SpokeChoice,
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
                    // A retry of the client will find another generation, or none.
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
            // Two names with the same generation add up.
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

    /// The spokes for the engine.
    pub(in crate::api) fn set(&self) -> &SpokeSet {
        &self.set
    }

    /// Short form: `name@generation*scale`.
    fn text(&self) -> String {
        let told =
            self.told.iter().map(|told| format!("{}@{}*{}", told.name, told.generation.short(), told.scale));
        told.collect::<Vec<_>>().join(" ")
    }

    /// The reply's field that names the spokes that answered; `None` for the post alone.
    pub(in crate::api) fn field(&self) -> Option<Value> {
        let one =
            |told: &Told| json!({"name": told.name, "generation": told.generation, "scale": told.scale});
        (!self.told.is_empty()).then(|| self.told.iter().map(one).collect())
    }

    /// The response with the header that names the spokes that answer.
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

    fn parsed(body: Value) -> Result<SpokeChoice, String> {
        let task = body.pointer("/response_format/json_schema/name").and_then(Value::as_str);
        let written = serde_json::from_value(body.clone()).unwrap();
        SpokeChoice::new(written, task).map_err(|error| error.to_string())
    }

    #[test]
    fn a_body_may_say_nothing_much_or_several_things() {
        assert_eq!(parsed(json!({})).unwrap(), SpokeChoice::default());
        assert_eq!(parsed(json!({"model": null, "lora": null})).unwrap(), SpokeChoice::default());
        assert_eq!(parsed(json!({"model": 7})).unwrap(), SpokeChoice::default());
        let all = parsed(json!({
            "model": "encoding", "lora": [{"id": 1}, {"id": "b", "scale": -0.5}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "t", "schema": {}}}
        }));
        let lora = vec![(Id::Number(1), 1.0), (Id::Name("b".to_owned()), -0.5)];
        let expected = SpokeChoice {
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
