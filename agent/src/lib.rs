//! Snowfence: a host network agent that captures, decides on and records every Snowflake statement.
//!
//! One folder a concern, each knowing only those below it: `cli`, `proxy`, then `snowflake`, `policy`, `identity`,
//! then `sql`, `tls`, `audit`, `capture`, then `config`. [`app`] wires them together.

pub mod config;
pub mod tls;
