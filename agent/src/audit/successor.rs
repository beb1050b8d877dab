//! Between an agent that has handed its journal over and goes on for a while, and the one that has it now: the first sends
//! what it would append, the second appends it and says so.

use std::io;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::store::Write;
use super::{AuditError, Journal, Record};
use crate::wire;

/// What is asked of the successor.
#[derive(Serialize)]
struct Request<'a> {
    append: Vec<&'a Record>,
}

/// The same as it is read.
#[derive(Deserialize)]
struct Append {
    append: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
struct Answer {
    /// Why it was not appended; none if it was.
    error: Option<String>,
}

/// Has the successor write. The outer error says that there is none any more.
pub(super) fn write<'a>(
    stream: &mut UnixStream,
    writes: impl Iterator<Item = &'a Write>,
) -> io::Result<Result<(), AuditError>> {
    let records = writes.filter_map(|write| match write {
        Write::Records(records) => Some(records),
        // A sink's place and the settling of statements are the successor's own affair by now.
        Write::Cursor { .. } | Write::Remove { .. } | Write::Settle { .. } => None,
    });
    wire::send(stream, &Request { append: records.flatten().collect() })?;
    let answer: Answer = wire::receive(stream)?.ok_or(io::ErrorKind::UnexpectedEof)?;
    Ok(answer.error.map_or(Ok(()), |reason| Err(AuditError::Successor(reason))))
}

/// Appends what a predecessor sends until it ends, and then settles what it has left open: of `open`, and of what it sent,
/// the statements that `has_ended` says of that nobody waits for them. Blocks; must be called where `runtime` is not.
pub fn serve(
    mut stream: UnixStream,
    journal: &Journal,
    mut open: Vec<Uuid>,
    has_ended: impl Fn(Uuid) -> bool,
    runtime: &tokio::runtime::Handle,
) -> Result<(), AuditError> {
    while let Ok(Some(Append { append })) = wire::receive(&mut stream) {
        open.extend(append.iter().filter_map(|record| match record {
            Record::Statement(statement) => Some(statement.id),
            _ => None,
        }));
        let appended = runtime.block_on(journal.append(append));
        let answer = Answer { error: appended.err().map(|error| error.to_string()) };
        if wire::send(&mut stream, &answer).is_err() {
            break;
        }
    }
    open.retain(|statement| has_ended(*statement));
    runtime.block_on(journal.settle(open))
}
