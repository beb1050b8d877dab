//! What the agent gives a client to come back with: sealed with the vault's key, so that it says what it is for to the agent
//! alone, also after a restart; and good for the workload that it was given to, the account, and some hours.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::service::Exchange;
use super::sessions::Session;

/// As long as Snowflake's own addresses of parts are good.
const LIFETIME: Duration = Duration::from_hours(6);

/// Whom something was given to, and until when.
#[derive(Serialize, Deserialize)]
pub struct Bound {
    pub session: Uuid,
    cgroup_id: u64,
    account: String,
    /// Seconds since the Unix epoch.
    expires: u64,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("the request says nothing of what it may have")]
    Missing,
    #[error("what the request comes with is none of this agent's")]
    Unknown,
    #[error("what the request asks for was given to another workload")]
    OtherWorkload,
    #[error("what the request asks for was given to another caller")]
    OtherCaller,
    #[error("what the request asks for is another account's")]
    OtherAccount,
    #[error("what the request asks for was given for some hours, which are over: begin anew")]
    Expired,
}

impl Bound {
    pub fn new(exchange: &Exchange<'_>, session: &Session) -> Self {
        Self {
            session: session.id,
            cgroup_id: exchange.peer.flow.workload.cgroup_id,
            account: exchange.account().to_owned(),
            expires: now() + LIFETIME.as_secs(),
        }
    }

    /// Whether the sender of a request is the one that it was given to.
    pub fn check(&self, exchange: &Exchange<'_>) -> Result<(), LeaseError> {
        if self.cgroup_id != exchange.peer.flow.workload.cgroup_id {
            return Err(LeaseError::OtherWorkload);
        }
        if self.account != exchange.account() {
            return Err(LeaseError::OtherAccount);
        }
        if self.expires <= now() {
            return Err(LeaseError::Expired);
        }
        Ok(())
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
