//! Snowflake's client protocol: which operation a request is, what is in it, what goes upstream instead, and what of
//! an answer may reach the client. Pure: no sockets, no clock.
//!
//! ARCHITECTURE.md lists the facts of the protocol that this rests on.

#![forbid(unsafe_code)]

mod actions;
mod api;
mod credential;
mod held;
pub mod history;
mod json;
mod login;
mod mcp;
mod metadata;
mod operation;
mod parts;
mod query;
mod refusal;
mod reply;
mod rest;
mod results;
mod telemetry;
mod token;
mod transfer;

pub use api::are_ours;
pub use credential::{CredentialError, Proof};
pub use held::{cancelled_answer, held_answer, held_answer_of_api};
pub use json::{Malformed, Object};
pub use login::{
    LoginAnswer, LoginRequest, LoginTarget, Renewal, login_query, query_tag, reissued, renewal_body,
};
pub use mcp::{Ask, McpError, McpRequest};
pub use metadata::{Metadata, UnreadableEncryption};
pub use operation::{KnownQuery, Operation, QueryId, UnknownOperation, classify};
pub use parts::{InParts, LEASE, moved, rows_of_part};
pub use query::{QueryRequest, aborted_request};
pub use refusal::Refusal;
pub use reply::{Ending, Leads, Reply, secret_of_objects};
pub use rest::{RestBody, RestCall};
pub use results::{LeadsElsewhere, accepted, linked, path as path_of_result};
pub use telemetry::{telemetry_answer, telemetry_body};
pub use token::{ClientToken, TokenHash, authorization, bearer_token, snowflake_token};
pub use transfer::{Access, Direction, Stage, Storage, Transfer, TransferError};
