//! A recorded session once more: told to people step by step, or answered to the driver that it was recorded from.

#![forbid(unsafe_code)]

mod answers;
mod arrow;
mod asked;
mod result;
mod script;
mod server;
mod told;
mod values;

#[cfg(test)]
mod samples;

pub use result::{Column, Table};
pub use server::{Server, Summary};
pub use told::{Moment, Step, Teller};
pub use values::timestamp;
