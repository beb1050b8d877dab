//! Recorded sessions for tests.

use std::time::Instant;

use age::x25519;
use bytes::Bytes;
use serde_json::json;
use uuid::Uuid;

use crate::audit::payload::{About, Ending, FrameKind, Kept, Payloads};
use crate::audit::{Caller, Journal, Record, RecordedSession, Records, Session, Workload, now};
use crate::config;

/// What a session asked and was answered: target, answer, how it ended.
pub type Exchange<'a> = (&'a str, Option<&'a [u8]>, Ending);

/// A session with these exchanges, and with more records of it; and the folder that its files are in.
pub async fn recorded(
    exchanges: &[Exchange<'_>],
    more: impl FnOnce(&Session) -> Vec<Record>,
) -> (tempfile::TempDir, RecordedSession) {
    let directory = tempfile::tempdir().unwrap();
    let (spool, path) = (directory.path().join("spool"), directory.path().join("journal.db"));
    let identity = x25519::Identity::generate();
    let settings = config::Payloads::sample(identity.to_public());
    let payloads = Payloads::open(&spool, settings).unwrap();
    let session = Session {
        id: Uuid::now_v7(),
        time: now(),
        workload: Workload::default(),
        caller: Caller::default(),
        account: "acme.example".to_owned(),
        rule: String::new(),
        user: "SVC".to_owned(),
        role: "ANALYST".to_owned(),
        snowflake_session: "77".to_owned(),
        client: String::new(),
    };
    let mut records: Vec<Record> = vec![session.clone().into()];
    for (target, answer, ending) in exchanges {
        let about = About { session: session.id, ..About::default() };
        let mut recording = payloads.begin(&about, Instant::now());
        let request = json!({ "method": "GET", "target": target, "headers": [] }).to_string();
        recording.add(FrameKind::Request, request.as_bytes()).await.unwrap();
        if let Some(answer) = answer {
            let head = json!({ "status": 202, "headers": [["x-two", "1"], ["x-two", "2"]] }).to_string();
            recording.add(FrameKind::Answer, head.as_bytes()).await.unwrap();
            recording.add_body(FrameKind::AnswerBody, vec![Bytes::copy_from_slice(answer)]).await.unwrap();
        }
        records.push(recording.end(*ending, "the client left").await.unwrap().into());
    }
    records.extend(more(&session));
    let journal = Journal::open(&path, "node").unwrap();
    journal.append(records).await.unwrap();
    let pieces = Box::new(Kept::new(spool, None));
    let session =
        RecordedSession::load(&Records::Journal(&path), session.id, pieces, Box::new([Box::new(identity)]));
    (directory, session.unwrap().unwrap())
}
