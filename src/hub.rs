//! The composition root: settings -> engine, API; owns start, reload and shutdown.
