//! How a running agent is.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::audit::delivery;
use crate::audit::payload::ArchiveStatus;
use crate::capture::{CoverageState, EndpointClass};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    pub node: String,
    /// Seconds since the Unix epoch.
    pub since: u64,
    pub endpoints: EndpointCounts,
    pub coverage: CoverageState,
    /// Where the trail is delivered.
    #[serde(default)]
    pub sinks: Vec<delivery::Status>,
    /// Where payloads are archived.
    #[serde(default)]
    pub archive: Option<ArchiveStatus>,
}

/// How many networks are in the endpoint sets, and why.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCounts {
    pub declared: usize,
    pub resolved: usize,
    pub confirmed: usize,
    pub learnt: usize,
}

impl EndpointCounts {
    pub fn of(classes: impl Iterator<Item = EndpointClass>) -> Self {
        classes.fold(Self::default(), |mut counts, class| {
            match class {
                EndpointClass::Declared => counts.declared += 1,
                EndpointClass::Resolved => counts.resolved += 1,
                EndpointClass::Confirmed => counts.confirmed += 1,
                EndpointClass::Learnt => counts.learnt += 1,
            }
            counts
        })
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
