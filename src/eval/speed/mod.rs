//! Measures the speed of an endpoint of the OpenAI API: the requests, the timing of one streamed
//! answer, and the figures of many.
//!
//! Nothing here sends requests; `cli::bench` does, and passes in the results.

pub mod answer;
pub mod plot;
pub mod report;
pub mod shared_prefix;
pub mod statistics;
pub mod workload;

pub use answer::Answer;
pub use report::{Level, Report, Round};
pub use workload::{Kind, Request, Requests, Workload};
