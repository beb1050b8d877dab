//! A session as it was recorded: who had it, its statements with what became of them, and its payloads, which are read
//! piece by piece.

mod exported;
mod loading;

use std::ops::ControlFlow;

use uuid::Uuid;

use self::loading::Loading;
use super::payload::{self, Content, Frame, FrameKind, Identities, Payload, Pieces, ReadError};
use super::{AuditError, Records, Session};

pub use exported::ExportFileError;

/// Pieces of a body that are looked at: no honest one has so many.
const MANY: usize = 1 << 20;

/// A session that can be replayed.
pub struct RecordedSession {
    pub session: Session,
    /// In the order in which they were recorded.
    pub statements: Vec<RecordedStatement>,
    /// In the order in which they began.
    pub payloads: Vec<Payload>,
    pieces: Box<dyn Pieces>,
    identities: Box<Identities>,
}

/// A statement, and what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedStatement {
    pub id: Uuid,
    pub time: i64,
    /// Its beginning, if it is long.
    pub sql: String,
    pub verdict: String,
    pub policy: String,
    /// `open` without an outcome.
    pub status: String,
    /// When its outcome was recorded.
    pub ended: Option<i64>,
    pub query_id: String,
    pub rows: Option<u64>,
    pub code: String,
    pub message: String,
    pub approval: Option<RecordedApproval>,
}

/// What became of a statement that was held for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedApproval {
    pub time: i64,
    pub ruling: String,
    /// Empty where nobody has ruled.
    pub approver: String,
    pub reason: String,
}

impl RecordedSession {
    /// Reads a session; `None` where there is none of this identifier.
    pub fn load(
        records: &Records<'_>,
        id: Uuid,
        pieces: Box<dyn Pieces>,
        identities: Box<Identities>,
    ) -> Result<Option<Self>, AuditError> {
        let mut loading = Loading::new(id);
        records.of_session(id, |record| loading.record(record))?;
        let Loading { session, statements, payloads, .. } = loading.end();
        Ok(session.map(|session| Self { session, statements, payloads, pieces, identities }))
    }

    /// Hands over what a payload holds, frame by frame, until that breaks.
    pub fn frames(
        &self,
        payload: &Payload,
        each: impl FnMut(Frame<'_>) -> ControlFlow<()>,
    ) -> Result<(), ReadError> {
        payload::frames(self.pieces.as_ref(), payload, &self.identities, each)
    }

    /// The request of a payload, of its body no more than `limit` bytes.
    pub fn request(&self, payload: &Payload, limit: usize) -> Result<Content, ReadError> {
        self.part(payload, limit, |content, kind| {
            kind == FrameKind::Answer || content.request.body.len() >= limit
        })
    }

    /// The request's head and the answer, of each body no more than `limit` bytes.
    pub fn answer(&self, payload: &Payload, limit: usize) -> Result<Content, ReadError> {
        self.part(payload, limit, |content, _| content.answer.body.len() >= limit)
    }

    fn part(
        &self,
        payload: &Payload,
        limit: usize,
        is_enough: impl Fn(&Content, FrameKind) -> bool,
    ) -> Result<Content, ReadError> {
        let mut content = Content::default();
        self.frames(payload, |frame| {
            content.add(frame, limit);
            let is_too_much = content.request.pieces.len().max(content.answer.pieces.len()) > MANY;
            if is_too_much || is_enough(&content, frame.kind) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::payload::Kept;
    use crate::audit::{Journal, Verdict, samples};

    #[tokio::test]
    async fn a_session_is_read_with_what_became_of_its_statements() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let session = samples::session();
        let (one, other) = (
            samples::statement(session.id, &"x".repeat(100_000), Verdict::Allow),
            samples::statement(session.id, "drop table t", Verdict::Deny),
        );
        let foreign = samples::statement(Uuid::now_v7(), "select 1", Verdict::Allow);
        let payload = samples::payload(session.id, one.id);
        let outcome = samples::outcome(one.id);
        let records = vec![
            session.clone().into(),
            one.clone().into(),
            outcome.into(),
            other.clone().into(),
            foreign.into(),
            payload.clone().into(),
        ];
        journal.append(records).await.unwrap();
        let load = |id| {
            let pieces = Box::new(Kept::new(directory.path().join("spool"), None));
            RecordedSession::load(&Records::Journal(&path), id, pieces, Box::new([])).unwrap()
        };
        let recorded = load(session.id).unwrap();
        assert_eq!((&recorded.session, &recorded.payloads), (&session, &vec![payload]));
        let [first, second] = recorded.statements.as_slice() else { panic!("{:?}", recorded.statements) };
        assert_eq!((first.id, first.sql.len(), first.status.as_str()), (one.id, loading::SHOWN, "succeeded"));
        assert_eq!((second.verdict.as_str(), second.status.as_str(), second.ended), ("deny", "open", None));
        assert!(load(Uuid::now_v7()).is_none());
        assert!(recorded.answer(&recorded.payloads[0], 9).is_err(), "there is no spool");
    }
}
