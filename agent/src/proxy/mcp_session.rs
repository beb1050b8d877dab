//! The sessions of MCP servers (`Mcp-Session-Id`). Whoever has the id of one could go on in it, since upstream everybody is
//! the rule's Snowflake user. So the client gets it sealed, as it gets the addresses of parts: good for its caller, workload
//! and account, the server, and some hours. That needs no table here, and the agent's successor knows it too.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};

use super::lease::{Bound, LeaseError};
use super::service::Exchange;
use super::sessions::{Owner, Session};

pub const HEADER: HeaderName = HeaderName::from_static("mcp-session-id");

/// Longer ids are none.
const LONGEST: usize = 1024;

/// A session, and whose it is.
#[derive(Serialize, Deserialize)]
struct Lease {
    bound: Bound,
    owner: Owner,
    /// As the server knows it.
    id: String,
}

/// The server's id of the session that a request is in.
pub fn open(exchange: &Exchange<'_>, session: &Session) -> Result<Option<HeaderValue>, LeaseError> {
    let mut sealed = exchange.parts.headers.get_all(HEADER).iter();
    let Some(first) = sealed.next() else { return Ok(None) };
    let sealed = first.to_str().ok().filter(|_| sealed.next().is_none()).ok_or(LeaseError::Unknown)?;
    let lease = exchange.proxy.sessions.vault().open_sealed(&purpose(exchange), sealed);
    let lease: Lease =
        lease.and_then(|lease| serde_json::from_slice(&lease).ok()).ok_or(LeaseError::Unknown)?;
    lease.bound.check(exchange)?;
    if lease.owner != Owner::of(session) {
        return Err(LeaseError::OtherCaller);
    }
    let mut id = HeaderValue::try_from(lease.id).map_err(|_| LeaseError::Unknown)?;
    id.set_sensitive(true);
    Ok(Some(id))
}

/// The session that a server's answer begins, as the client is to know it.
pub fn seal(exchange: &Exchange<'_>, session: &Session, answer: &HeaderMap) -> Option<HeaderValue> {
    let id = answer.get(HEADER)?.to_str().ok().filter(|id| is_id(id))?.to_owned();
    let lease = Lease { bound: Bound::new(exchange, session), owner: Owner::of(session), id };
    let lease = serde_json::to_vec(&lease).ok()?;
    let sealed = exchange.proxy.sessions.vault().seal(&purpose(exchange), lease).ok()?;
    HeaderValue::try_from(sealed).ok()
}

fn purpose(exchange: &Exchange<'_>) -> String {
    format!("session with {}", exchange.operation.path())
}

/// Visible ASCII, as the protocol has it.
fn is_id(id: &str) -> bool {
    (1..=LONGEST).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}
