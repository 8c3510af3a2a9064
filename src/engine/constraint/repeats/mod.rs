//! Detects answers that repeat themselves: items of a list that must differ, and texts and numbers
//! that loop.

mod identity;
mod looping;
mod unique;
mod watch;

pub use self::looping::Loops;
pub use self::unique::Shapes;
pub use self::watch::{Mark, Repeat, Rules, Watch};
