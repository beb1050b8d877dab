//! The sandbox: everything that Snowfence meets in production, on one machine, in namespaces of its own.
//!
//! ```text
//!   pod "main" 10.77.2.2 ──┐                      ┌── 10.77.1.2, fd77:1::2  emulated Snowflake (and .3, .8)
//!   pod "…"    10.77.2.3 ──┤  node: the agent,    ├── 10.77.1.4  ClickHouse
//!                          ├─ routes between them ┼── 10.77.1.5  identity provider
//!                          │                      ├── 10.77.1.6  DNS
//!                          └  no way out          ├── 10.77.1.7  HTTP and SOCKS proxy
//!                                                 ├── 10.77.1.9  the storage behind Snowflake
//!                                                 └── 10.77.3.x, fd77:3::x  Snowflake, where nobody knows of it
//! ```
//!
//! A test reads like this:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let mut sandbox = sandbox::Sandbox::builder().start()?;
//! let pod = sandbox.pod("reports")?;
//! assert!(pod.run(["true"])?.succeeded());
//! sandbox.kill_agent()?;
//! # Ok(())
//! # }
//! ```
//!
//! Whatever a sandbox makes in the kernel or on disk carries its id, so that it can be taken down by anybody who knows
//! the id: on drop, on a signal, by `--down`, or at the next start when its owner was killed.

pub mod bench;
pub mod certificates;
pub mod cgroup;
pub mod client_table;
pub mod command_line;
pub mod configuration;
pub mod container;
pub mod credential;
pub mod demo;
pub mod launch;
pub mod network;
pub mod node;
pub mod pod;
pub mod process;
pub mod python;
pub mod sandbox;
pub mod services;
pub mod signals;
pub mod state;
pub mod supervisor;

pub use credential::Credential;
pub use pod::{Output, Pod};
pub use python::Environment;
pub use sandbox::{Builder, Sandbox};
