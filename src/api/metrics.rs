//! `GET /metrics`: all metrics in Prometheus' text format, with llama-server's names first.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::app::App;
use super::error::ApiError;
use crate::engine::{CloseReason, EngineState, Health, Outcome, Totals, Usage};
use crate::spokes::life::STATES;
use crate::spokes::registry::Totals as SpokeTotals;

/// Histogram bounds for times from a millisecond to minutes.
const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
/// Histogram bounds for times from a tenth of a millisecond to seconds.
const GAPS: &[f64] = &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0];
/// Histogram bounds for numbers of tokens.
const TOKENS: &[f64] =
    &[16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16_384.0, 32_768.0];

/// Most spoke names with their own label. Later ones are counted together.
const MOST_NAMES: usize = 256;

/// Metrics of one daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    client_gone: IntCounter,
    queue_seconds: Histogram,
    first_token_seconds: Histogram,
    inter_token_seconds: Histogram,
    prompt_tokens: HistogramVec,
    output_tokens: HistogramVec,
    cached_tokens: IntCounter,
    forced_tokens: IntCounter,
    drafted_tokens: IntCounter,
    accepted_tokens: IntCounter,
    closed: IntCounterVec,
    spoke_requests: IntCounterVec,
    /// Spoke names that have their own label.
    spoke_names: Mutex<HashSet<String>>,
    /// Metrics that the engine and the reconciler count. They are copied by one scrape at a
    /// time.
    others: Mutex<FromOthers>,
}

/// Reads a metric's value.
type Of<T> = fn(&T) -> f64;

/// Counters are set anew at each scrape: the engine and the reconciler hold the true values.
#[derive(Debug)]
struct FromOthers {
    counters: Vec<(Counter, Of<Totals>)>,
    gauges: Vec<(Gauge, Of<Health>)>,
    beat_age: Gauge,
    spoke_counters: Vec<(Counter, Of<SpokeTotals>)>,
    spoke_gauges: Vec<(Gauge, Of<SpokeTotals>)>,
    transitions: IntCounterVec,
    spokes: IntGaugeVec,
    kernels: IntGaugeVec,
    self_test: IntGaugeVec,
}

/// llama-server's counters, with its names and help texts, and our own for the cache.
const COUNTERS: &[(&str, &str, Of<Totals>)] = &[
    ("llamacpp:prompt_tokens_total", "Number of prompt tokens processed.", |t| t.prompt_tokens as f64),
    ("llamacpp:prompt_seconds_total", "Prompt process time", |t| t.prompt_seconds),
    ("llamacpp:tokens_predicted_total", "Number of generation tokens processed.", |t| {
        t.predicted_tokens as f64
    }),
    ("llamacpp:tokens_predicted_seconds_total", "Predict process time", |t| t.predicted_seconds),
    ("llamacpp:n_decode_total", "Total number of llama_decode() calls", |t| t.decodes as f64),
    ("llamacpp:prompt_tokens_cached_total", "Number of prompt tokens that a cache had.", |t| {
        t.cached_tokens as f64
    }),
    ("llamacpp:n_tokens_max", "Largest number of tokens of a request, prompt and answer.", |t| {
        t.most_tokens as f64
    }),
    ("llamacpp:spec_decode_num_drafts_total", "Number of drafts.", |t| t.drafts as f64),
    ("llamacpp:spec_decode_num_draft_tokens_total", "Number of drafted tokens.", |t| t.drafted_tokens as f64),
    ("llamacpp:spec_decode_num_accepted_tokens_total", "Number of drafted tokens that were right.", |t| {
        t.accepted_tokens as f64
    }),
    ("bespoke_cache_evictions_total", "Sequences whose keys and values were dropped for others.", |t| {
        t.cache_evictions as f64
    }),
];

/// The same for gauges.
const GAUGES: &[(&str, &str, Of<Health>)] = &[
    ("llamacpp:prompt_tokens_seconds", "Average prompt throughput in tokens/s.", |h| {
        ratio(h.totals.prompt_tokens as f64, h.totals.prompt_seconds)
    }),
    ("llamacpp:predicted_tokens_seconds", "Average generation throughput in tokens/s.", |h| {
        ratio(h.totals.predicted_tokens as f64, h.totals.predicted_seconds)
    }),
    ("llamacpp:requests_processing", "Number of requests processing.", |h| f64::from(h.running)),
    ("llamacpp:requests_deferred", "Number of requests deferred.", |h| f64::from(h.waiting)),
    ("llamacpp:n_busy_slots_per_decode", "Average number of busy slots per llama_decode() call", |h| {
        ratio(h.totals.busy_lanes as f64, h.totals.decodes as f64)
    }),
    ("bespoke_threads", "Threads that compute, fewer while other programs need the processors.", |h| {
        f64::from(h.totals.threads)
    }),
    ("bespoke_cache_used_tokens", "Places for keys and values that hold something.", |h| {
        h.totals.cache_used as f64
    }),
    ("bespoke_cache_size_tokens", "Places for keys and values.", |h| h.totals.cache_size as f64),
    ("bespoke_cache_used_bytes", "Bytes of keys and values that are held.", |h| {
        (h.totals.cache_used * h.totals.place_bytes) as f64
    }),
    ("bespoke_cache_size_bytes", "Bytes that keys and values may take.", |h| {
        (h.totals.cache_size * h.totals.place_bytes) as f64
    }),
];

/// Counters of the reconciler.
const SPOKE_COUNTERS: &[(&str, &str, Of<SpokeTotals>)] = &[
    ("bespoke_spoke_swaps_total", "Names that got another generation of a new file.", |s| s.swaps as f64),
    ("bespoke_spoke_swap_seconds_total", "Time from the last change of a file to its swap.", |s| {
        s.swap_seconds
    }),
    ("bespoke_spoke_loads_total", "Loads of spokes into the engine.", |s| s.loads as f64),
    ("bespoke_spoke_load_failures_total", "Loads that failed.", |s| s.load_failures as f64),
    ("bespoke_spoke_load_seconds_total", "Time that loads took.", |s| s.load_seconds),
    ("bespoke_spoke_evictions_total", "Spokes that made room in memory for others.", |s| s.evictions as f64),
];

/// The same for gauges.
const SPOKE_GAUGES: &[(&str, &str, Of<SpokeTotals>)] = &[
    ("bespoke_spoke_resident_bytes", "Memory of the spokes that are loaded.", |s| s.resident_bytes as f64),
    (
        "bespoke_spoke_folder_readable",
        "1 if the folder of spokes could be read when it was last looked at.",
        |s| f64::from(u8::from(s.folder_readable)),
    ),
    (
        "bespoke_spoke_state_writable",
        "1 if the last change of spokes could be written to the database.",
        |s| f64::from(u8::from(s.state_writable)),
    ),
];

impl Default for Metrics {
    fn default() -> Self {
        let registry = Registry::new();
        let counter = |name, help| kept(&registry, IntCounter::new(name, help));
        let histogram = |name, help, bounds: &[f64]| {
            kept(&registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec())))
        };
        let by_task = |name, help| {
            kept(
                &registry,
                HistogramVec::new(HistogramOpts::new(name, help).buckets(TOKENS.to_vec()), &["task"]),
            )
        };
        let build = Gauge::with_opts(
            Opts::new("bespoke_build_info", "Always 1; the version is its label.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        );
        kept(&registry, build).set(1.0);
        let requests = IntCounterVec::new(
            Opts::new("bespoke_requests_total", "Requests by route and status; 499: the client left first."),
            &["route", "status"],
        );
        let by_state = |name, help, label| (Opts::new(name, help), [label]);
        let (transitions, to) =
            by_state("bespoke_spoke_transitions_total", "Spokes that came to a state.", "to");
        let (spokes, state) = by_state("bespoke_spokes", "Spokes by state.", "state");
        let others = FromOthers {
            counters: COUNTERS
                .iter()
                .map(|&(name, help, value)| (kept(&registry, Counter::new(name, help)), value))
                .collect(),
            gauges: GAUGES
                .iter()
                .map(|&(name, help, value)| (kept(&registry, Gauge::new(name, help)), value))
                .collect(),
            beat_age: kept(
                &registry,
                Gauge::new(
                    "bespoke_engine_beat_age_seconds",
                    "Seconds since the engine's last sign of life.",
                ),
            ),
            spoke_counters: SPOKE_COUNTERS
                .iter()
                .map(|&(name, help, value)| (kept(&registry, Counter::new(name, help)), value))
                .collect(),
            spoke_gauges: SPOKE_GAUGES
                .iter()
                .map(|&(name, help, value)| (kept(&registry, Gauge::new(name, help)), value))
                .collect(),
            transitions: kept(&registry, IntCounterVec::new(transitions, &to)),
            spokes: kept(&registry, IntGaugeVec::new(spokes, &state)),
            kernels: kept(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "bespoke_kernel",
                        "1 for the form in which a kernel computes; llama.cpp: not at all.",
                    ),
                    &["kernel", "form"],
                ),
            ),
            self_test: kept(
                &registry,
                IntGaugeVec::new(
                    Opts::new("bespoke_self_test", "1 for how the self-test of the kernels ended."),
                    &["outcome"],
                ),
            ),
        };
        let spoke_requests = IntCounterVec::new(
            Opts::new("bespoke_spoke_requests_total", "Requests that ran with a spoke, by its name."),
            &["spoke"],
        );
        let closed = IntCounterVec::new(
            Opts::new(
                "bespoke_closed_total",
                "What answers were kept from: repeated items, loops, endless texts.",
            ),
            &["why"],
        );
        let closed = kept(&registry, closed);
        // Create all labels at once, so that the first event shows up as an increase.
        for why in [CloseReason::RepeatedItem, CloseReason::Loop, CloseReason::TooLong] {
            closed.with_label_values(&[why.name()]);
        }
        Self {
            closed,
            requests: kept(&registry, requests),
            client_gone: counter("bespoke_client_gone_total", "Answers that were given up before their end."),
            queue_seconds: histogram("bespoke_queue_seconds", "Time in the queue.", SECONDS),
            first_token_seconds: histogram(
                "bespoke_time_to_first_token_seconds",
                "Time from the queueing of a request to the first text of its answer.",
                SECONDS,
            ),
            inter_token_seconds: histogram(
                "bespoke_inter_token_seconds",
                "Time between two texts of an answer (a text is one token, or several that came at once).",
                GAPS,
            ),
            prompt_tokens: by_task("bespoke_prompt_tokens", "Tokens of a prompt."),
            output_tokens: by_task("bespoke_output_tokens", "Tokens of an answer."),
            cached_tokens: counter("bespoke_cached_tokens_total", "Prompt tokens that a cache had."),
            forced_tokens: counter("bespoke_forced_tokens_total", "Tokens that a constraint dictated."),
            drafted_tokens: counter("bespoke_drafted_tokens_total", "Tokens that were drafted."),
            accepted_tokens: counter("bespoke_accepted_tokens_total", "Drafted tokens that were right."),
            spoke_requests: kept(&registry, spoke_requests),
            spoke_names: Mutex::default(),
            others: Mutex::new(others),
            registry,
        }
    }
}

/// Registers a metric.
fn kept<M: Collector + Clone + 'static>(registry: &Registry, metric: prometheus::Result<M>) -> M {
    let metric = metric.expect("names and labels are constants that a test has seen");
    registry.register(Box::new(metric.clone())).expect("each name is registered once");
    metric
}

impl Metrics {
    /// Counts a request that has ended.
    pub(super) fn request(&self, route: &str, status: u16, gone: bool) {
        self.requests.with_label_values(&[route, &status.to_string()]).inc();
        if gone {
            self.client_gone.inc();
        }
    }

    /// Counts an answer that was kept from repeating itself.
    pub(super) fn closed(&self, why: CloseReason) {
        self.closed.with_label_values(&[why.name()]).inc();
    }

    /// Counts a request with a spoke. Names come and go with files, so names beyond [`MOST_NAMES`]
    /// are counted together.
    pub(super) fn spoke_used(&self, name: &str) {
        let mut names = self.spoke_names.lock().unwrap_or_else(PoisonError::into_inner);
        let own = names.contains(name) || (names.len() < MOST_NAMES && names.insert(name.to_owned()));
        self.spoke_requests.with_label_values(&[if own { name } else { "other" }]).inc();
    }

    /// Records the first text of an answer.
    pub(super) fn first_text(&self, after: Duration) {
        self.first_token_seconds.observe(after.as_secs_f64());
    }

    /// Records further text.
    pub(super) fn more_text(&self, after: Duration) {
        self.inter_token_seconds.observe(after.as_secs_f64());
    }

    /// Records a complete answer. `task` has few values.
    pub(super) fn answered(&self, task: &str, usage: &Usage) {
        self.queue_seconds.observe(usage.queued_ms / 1e3);
        self.prompt_tokens.with_label_values(&[task]).observe(f64::from(usage.prompt_tokens));
        self.output_tokens.with_label_values(&[task]).observe(f64::from(usage.completion_tokens));
        self.cached_tokens.inc_by(u64::from(usage.cached_tokens));
        self.forced_tokens.inc_by(u64::from(usage.forced_tokens));
        self.drafted_tokens.inc_by(u64::from(usage.drafted_tokens));
        self.accepted_tokens.inc_by(u64::from(usage.accepted_tokens));
    }

    /// All metrics as text, with the current values of the engine and the reconciler.
    fn text(
        &self,
        health: &Health,
        beat_age: Duration,
        spokes: &SpokeTotals,
    ) -> Result<String, prometheus::Error> {
        let others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        for (counter, value) in &others.counters {
            counter.reset();
            counter.inc_by(value(&health.totals));
        }
        for (gauge, value) in &others.gauges {
            gauge.set(value(health));
        }
        others.beat_age.set(beat_age.as_secs_f64());
        for (counter, value) in &others.spoke_counters {
            counter.reset();
            counter.inc_by(value(spokes));
        }
        for (gauge, value) in &others.spoke_gauges {
            gauge.set(value(spokes));
        }
        if let EngineState::Ready(model) = &health.state {
            others.kernels.reset();
            for kernel in &model.computing.kernels {
                others.kernels.with_label_values(&[kernel.kernel.name(), &kernel.form]).set(1);
            }
            for outcome in Outcome::ALL {
                let is = outcome == model.computing.self_test.outcome;
                others.self_test.with_label_values(&[outcome.name()]).set(i64::from(is));
            }
        }
        others.transitions.reset();
        for (at, state) in STATES.into_iter().enumerate() {
            others.transitions.with_label_values(&[state]).inc_by(spokes.transitions[at]);
            others.spokes.with_label_values(&[state]).set(spokes.lives[at] as i64);
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

/// A speed; 0 if no time has passed.
fn ratio(above: f64, below: f64) -> f64 {
    if below > 0.0 { above / below } else { 0.0 }
}

/// Answers with all metrics.
pub(super) async fn show(State(app): State<App>) -> Result<impl IntoResponse, ApiError> {
    if !app.options().server.metrics {
        return Err(ApiError::Disabled { path: "/metrics", setting: "server.metrics" });
    }
    let health = app.engine().health().borrow().clone();
    let spokes = app.spokes().registry().totals();
    let text = app.metrics().text(&health, app.liveness().age(), &spokes).unwrap_or_else(|error| {
        tracing::error!(%error, "metrics can't be written");
        String::new()
    });
    // llama-server's header, by which scrapers notice that counters restarted.
    let began = HeaderValue::from(app.created());
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT)),
        (HeaderName::from_static("process-start-time-unix"), began),
    ];
    Ok((headers, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        let totals = Totals {
            decodes: 4,
            busy_lanes: 10,
            prompt_tokens: 100,
            prompt_seconds: 0.5,
            predicted_tokens: 30,
            predicted_seconds: 1.5,
            cache_used: 7,
            cache_size: 64,
            place_bytes: 100,
            cache_evictions: 2,
            cached_tokens: 11,
            drafts: 5,
            most_tokens: 77,
            ..Totals::default()
        };
        Health { state: EngineState::Loading, beat: 1, running: 3, waiting: 2, totals }
    }

    fn spokes() -> SpokeTotals {
        let transitions = std::array::from_fn(|at| at as u64);
        SpokeTotals { transitions, swaps: 3, swap_seconds: 1.5, resident_bytes: 7, ..SpokeTotals::default() }
    }

    #[test]
    fn llama_servers_names_have_the_engines_numbers_however_often_they_are_asked_for() {
        let metrics = Metrics::default();
        metrics.text(&health(), Duration::ZERO, &spokes()).unwrap();
        let text = metrics.text(&health(), Duration::from_millis(1_500), &spokes()).unwrap();
        for line in [
            "llamacpp:prompt_tokens_total 100",
            "llamacpp:prompt_seconds_total 0.5",
            "llamacpp:tokens_predicted_total 30",
            "llamacpp:tokens_predicted_seconds_total 1.5",
            "llamacpp:n_decode_total 4",
            "llamacpp:prompt_tokens_cached_total 11",
            "llamacpp:n_tokens_max 77",
            "llamacpp:spec_decode_num_drafts_total 5",
            "llamacpp:prompt_tokens_seconds 200",
            "llamacpp:predicted_tokens_seconds 20",
            "llamacpp:requests_processing 3",
            "llamacpp:requests_deferred 2",
            "llamacpp:n_busy_slots_per_decode 2.5",
            "# TYPE llamacpp:prompt_tokens_total counter",
            "# TYPE llamacpp:requests_deferred gauge",
            "bespoke_cache_used_tokens 7",
            "bespoke_cache_size_tokens 64",
            "bespoke_cache_used_bytes 700",
            "bespoke_cache_size_bytes 6400",
            "bespoke_cache_evictions_total 2",
            "bespoke_engine_beat_age_seconds 1.5",
            "bespoke_spoke_swaps_total 3",
            "bespoke_spoke_swap_seconds_total 1.5",
            "bespoke_spoke_resident_bytes 7",
            "bespoke_spoke_folder_readable 0",
            "bespoke_spoke_state_writable 0",
            "bespoke_spoke_transitions_total{to=\"serving\"} 5",
            "bespoke_spokes{state=\"quarantined\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }

    #[test]
    fn names_of_spokes_are_counted_apart_as_long_as_they_are_not_too_many() {
        let metrics = Metrics::default();
        for name in 0..MOST_NAMES + 20 {
            metrics.spoke_used(&format!("spoke{name}"));
        }
        metrics.spoke_used("spoke0");
        let text = metrics.text(&health(), Duration::ZERO, &spokes()).unwrap();
        let series = text.lines().filter(|line| line.starts_with("bespoke_spoke_requests_total{")).count();
        assert_eq!(series, MOST_NAMES + 1);
        for line in ["{spoke=\"spoke0\"} 2", "{spoke=\"other\"} 20"] {
            assert!(text.contains(&format!("bespoke_spoke_requests_total{line}")), "{line}");
        }
    }

    #[test]
    fn answers_are_counted_by_task() {
        let metrics = Metrics::default();
        let usage = Usage {
            prompt_tokens: 20,
            cached_tokens: 5,
            completion_tokens: 9,
            forced_tokens: 4,
            drafted_tokens: 3,
            accepted_tokens: 2,
            queued_ms: 12.0,
            ..Usage::default()
        };
        metrics.answered("gate_response", &usage);
        metrics.request("/v1/x", 200, true);
        let text = metrics.text(&health(), Duration::ZERO, &spokes()).unwrap();
        for line in [
            "bespoke_prompt_tokens_sum{task=\"gate_response\"} 20",
            "bespoke_output_tokens_sum{task=\"gate_response\"} 9",
            "bespoke_queue_seconds_sum 0.012",
            "bespoke_cached_tokens_total 5",
            "bespoke_forced_tokens_total 4",
            "bespoke_drafted_tokens_total 3",
            "bespoke_accepted_tokens_total 2",
            "bespoke_client_gone_total 1",
            "bespoke_requests_total{route=\"/v1/x\",status=\"200\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
        }
    }
}
