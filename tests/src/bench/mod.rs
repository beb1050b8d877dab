//! What Snowfence costs. Figures come in pairs: with it and without it, one right after the other, in turns; so that what
//! else the machine does meets both.

use std::path::PathBuf;

mod capture;
mod pairs;
mod probe;
mod questions;
mod results;

pub use capture::run as capture;
pub use probe::Probe;
pub use questions::run as questions;
pub use results::{resident, run as results};

/// How a bench is run and told.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Pairs of each figure.
    pub pairs: usize,
    /// Statements that questions are asked about.
    pub rows: u64,
    /// JSON instead of a table.
    pub json: bool,
    /// The agent's; none: the one beside this program.
    pub binary: Option<PathBuf>,
    /// Who is told what happens.
    pub say: fn(&str),
}
