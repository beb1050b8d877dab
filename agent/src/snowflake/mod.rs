//! Snowflake's client protocol: which operation a request is, what is in it, what goes upstream instead, and what of
//! an answer may reach the client. Pure: no sockets, no clock.
//!
//! ARCHITECTURE.md lists the facts of the protocol that this rests on.

#![forbid(unsafe_code)]

mod api;
mod credential;
mod json;
mod login;
mod operation;
mod parts;
mod query;
mod refusal;
mod reply;
mod token;

pub use api::are_ours;
pub use credential::{CredentialError, Proof};
pub use json::{Malformed, Object};
pub use login::{LoginAnswer, LoginRequest, LoginTarget, Renewal, login_query, renewal_body};
pub use operation::{KnownQuery, Operation, QueryId, UnknownOperation, classify};
pub use parts::{InParts, LEASE};
pub use query::{QueryRequest, aborted_request};
pub use refusal::{Refusal, telemetry_answer};
pub use reply::{Ending, Reply};
pub use token::{ClientToken, TokenHash, authorization, bearer_token, snowflake_token};
