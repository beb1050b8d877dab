//! What Snowfence costs. Figures come in pairs: with it and without it, one right after the other, in turns; so that what
//! else the machine does meets both.

use std::path::PathBuf;

mod capture;
mod pairs;
mod probe;

pub use capture::run as capture;
pub use probe::Probe;

/// How a bench is run and told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pairs of each figure.
    pub pairs: usize,
    /// JSON instead of a table.
    pub json: bool,
    /// The agent's; none: the one beside this program.
    pub binary: Option<PathBuf>,
    /// Who is told what happens.
    pub say: fn(&str),
}
