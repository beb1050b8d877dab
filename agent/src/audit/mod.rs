//! The audit trail: the journal on this host, and where it goes from there.
//!
//! The [`Journal`] is an embedded database that a record is durably in before the statement that it describes goes
//! upstream. Sinks read it at their own pace, each with a cursor of its own in it. People read it by `snowfence audit`.

#![forbid(unsafe_code)]

pub mod chain;
pub mod clickhouse;
pub mod delivery;
pub mod payload;
pub mod query;
pub mod siem;
pub mod summary;
pub mod tail;
pub mod trail;

mod error;
mod filter;
mod journal;
mod owners;
mod record;
mod recording;
mod records;
mod retention;
mod salvage;
mod schema;
mod store;
mod successor;
mod wal;

#[cfg(test)]
pub(crate) mod samples;

pub use error::AuditError;
pub use filter::Filter;
pub use journal::{Journal, Recorded, Written};
pub use owners::{OwnedQuery, latest_queries};
pub use record::{
    Approval, Caller, Event, EventKind, Outcome, OutcomeStatus, Record, Ruling, Running, Session, Statement,
    Verdict, Workload, iso_time, now,
};
pub use recording::{ExportFileError, RecordedApproval, RecordedSession, RecordedStatement};
pub use records::Records;
pub use retention::{Announced, Removal, Retention};
pub use salvage::{Salvage, begin_anew, salvage};
pub use successor::serve as serve_predecessor;
