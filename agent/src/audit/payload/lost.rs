//! Payloads that their agent could not record before it ended.

use std::collections::HashMap;
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use uuid::Uuid;

use super::entry::Place;
use super::{Ending, Payload, hexadecimal, segments};
use crate::audit::{AuditError, schema};

/// The payloads of runs that have ended before they could be recorded, and what notes that they are recorded.
pub fn lost(root: &Path, journal: &Path) -> Result<(Vec<Payload>, impl FnOnce() + use<>), AuditError> {
    let ended = segments::unsettled(root)?;
    let mut lost: HashMap<Uuid, (Payload, Context)> = HashMap::new();
    let connection = schema::open_read_only(journal)?;
    let mut known = connection.prepare("SELECT 1 FROM payloads WHERE id = ?1").map_err(AuditError::read)?;
    // Rows of what is older have left the journal in their time.
    let removed: i64 = connection
        .query_row(
            "SELECT coalesce(max(c.time), 0) FROM checkpoints c JOIN events e ON e.kind = 'records_removed'
             WHERE c.number = json_extract(e.detail, '$.checkpoint')",
            [],
            |row| row.get(0),
        )
        .map_err(AuditError::read)?;
    for ended in &ended {
        let mut failure = None;
        let wants = |id: Uuid| match known.exists([id.to_string()]) {
            Ok(exists) => !exists && !id.is_nil(),
            Err(error) => {
                failure = Some(error);
                false
            }
        };
        ended.entries(wants, |entry, written| {
            if entry.time <= removed {
                return;
            }
            let (payload, digest) = lost.entry(entry.payload).or_insert_with(|| {
                let payload = Payload {
                    id: entry.payload,
                    session: entry.session,
                    statement: entry.statement,
                    query_id: String::new(),
                    time: entry.time,
                    operation: String::new(),
                    request_bytes: 0,
                    answer_bytes: 0,
                    sealed_bytes: 0,
                    duration_us: 0,
                    ending: Ending::Lost,
                    run: ended.run,
                    places: Vec::new(),
                    digest: String::new(),
                };
                (payload, Context::new(&SHA256))
            });
            payload.sealed_bytes += u64::from(written.bytes);
            let micros = u64::try_from(entry.time.saturating_sub(payload.time)).ok();
            payload.places.push(Place { micros, ..written.place });
            digest.update(&written.digest);
        })?;
        if let Some(error) = failure {
            return Err(AuditError::read(error));
        }
    }
    let mut lost: Vec<Payload> = lost
        .into_values()
        .map(|(payload, digest)| Payload { digest: hexadecimal(digest.finish().as_ref()), ..payload })
        .collect();
    lost.sort_by_key(|payload| payload.id);
    let settle = move || {
        for ended in ended {
            if let Err(error) = ended.settled() {
                tracing::warn!(%error, "the spool of an earlier run will be looked through again");
            }
        }
    };
    Ok((lost, settle))
}
