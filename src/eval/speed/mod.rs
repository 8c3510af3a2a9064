//! How fast an endpoint of the OpenAI API answers: what is asked, what one streamed answer took, and what many took together.
//!
//! Nothing here sends anything: `cli::bench` does, and hands over what came back.

pub mod answer;
pub mod plot;
pub mod report;
pub mod shared_prefix;
pub mod statistics;
pub mod workload;

pub use answer::Answer;
pub use report::{Level, Report, Round};
pub use workload::{Kind, Request, Requests, Workload};
