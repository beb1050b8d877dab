//! The way to a running agent, for root of this host: a Unix socket in the state directory.
//!
//! One request a connection, JSON both ways: [`Client`] asks, [`Server`] answers. A successor asks for more than that:
//! see [`succession`].

#![forbid(unsafe_code)]

mod client;
pub mod metrics;
mod server;
pub mod status;
pub mod succession;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use client::Client;
pub use server::{Agent, Server, Succession, remembered};
pub use status::Status;

use crate::audit::EventKind;
use crate::capture::Endpoint;
use crate::proxy::{AllowedHost, HeldStatement, Rule};
use crate::reconcile::{Report, Wanted};

/// What can be asked of a running agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    Status,
    Endpoints,
    /// Ask Snowflake by which hosts the accounts are reached.
    SyncEndpoints,
    /// Compare the trail with Snowflake's history.
    Reconcile(Wanted),
    /// The statements that wait for a person.
    Held,
    /// Rule on one of them.
    Rule(Rule),
    /// Record that something was done to the trail.
    Note {
        kind: EventKind,
        detail: String,
    },
    /// Hand everything over to the process that asks.
    TakeOver {
        version: String,
        pid: u32,
    },
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Status(Box<Status>),
    Endpoints(Vec<Endpoint>),
    Synced(Vec<SyncedAccount>),
    Reconciled(Vec<Report>),
    Held(Vec<HeldStatement>),
    Ruled(Box<HeldStatement>),
    Noted,
    Failed(String),
}

/// What Snowflake said of an account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncedAccount {
    pub account: String,
    /// Why it could not be asked; empty if it could.
    pub error: String,
    /// Names that are Snowflake's, and are captured from now on.
    pub captured: Vec<String>,
    /// Hosts that are not: under none of the suffixes, or on another port.
    pub others: Vec<AllowedHost>,
}

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error("no agent is running with this configuration (nobody listens on {})", .0.display())]
    NotRunning(PathBuf),
    #[error("{}: {source}", path.display())]
    Socket { path: PathBuf, source: std::io::Error },
    #[error("the agent has ended without an answer")]
    NoAnswer,
    #[error("the agent answers something else: is it of another version?")]
    Unexpected,
    #[error("{0}")]
    Failed(String),
}
