//! A session as it comes to be of its records, wherever they are kept.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use super::{RecordedApproval, RecordedStatement};
use crate::audit::chain::{self, Members, id, integer};
use crate::audit::payload::Payload;
use crate::audit::{AuditError, Caller, Session, Workload};

/// Of a statement's text, so many characters: the whole of it is in its payload.
pub(super) const SHOWN: usize = 64 * 1024;
/// Bytes that statements and places of payloads may take in memory.
const MOST: usize = 512 << 20;

/// What was read so far.
pub(super) struct Loading {
    pub session: Option<Session>,
    pub statements: Vec<RecordedStatement>,
    pub payloads: Vec<Payload>,
    /// Where a statement is among them.
    numbers: HashMap<Uuid, usize>,
    pub room: Room,
}

/// Memory that a session may take.
pub(super) struct Room {
    pub left: usize,
    pub session: Uuid,
}

impl Room {
    pub fn take(&mut self, bytes: usize) -> Result<(), AuditError> {
        self.left = self.left.checked_sub(bytes).ok_or(AuditError::LongSession(self.session))?;
        Ok(())
    }
}

impl Loading {
    pub fn new(session: Uuid) -> Self {
        let room = Room { left: MOST, session };
        Self { session: None, statements: Vec::new(), payloads: Vec::new(), numbers: HashMap::new(), room }
    }

    /// Adds a record. What belongs to a statement comes after it.
    pub fn record(&mut self, record: &Members) -> Result<(), AuditError> {
        let unknown = || AuditError::Record(integer(record, "seq").unwrap_or_default());
        match chain::text(record, "table") {
            Some("sessions") => self.session = Some(session(record).ok_or_else(unknown)?),
            Some("statements") => {
                let statement = statement(record).ok_or_else(unknown)?;
                self.room.take(size_of_val(&statement) + statement.sql.len())?;
                self.numbers.insert(statement.id, self.statements.len());
                self.statements.push(statement);
            }
            Some("approvals") => {
                let reason = self.approval(record).ok_or_else(unknown)?;
                self.room.take(reason)?;
            }
            Some("outcomes") => {
                let message = self.outcome(record).ok_or_else(unknown)?;
                self.room.take(message)?;
            }
            Some("payloads") => {
                let payload = Payload::of(record).ok_or_else(unknown)?;
                self.room.take(size_of_val(&payload) + size_of_val(payload.places.as_slice()) + 128)?;
                self.payloads.push(payload);
            }
            _ => {}
        }
        Ok(())
    }

    /// All of it is read.
    pub fn end(mut self) -> Self {
        self.payloads.sort_by_key(|payload| payload.time);
        self
    }

    /// Returns how long its reason is.
    fn approval(&mut self, members: &Members) -> Option<usize> {
        let number = *self.numbers.get(&id(members, "statement")?)?;
        let approval = RecordedApproval {
            time: integer(members, "time")?,
            ruling: text(members, "ruling")?,
            approver: text(members, "approver")?,
            reason: text(members, "reason")?,
        };
        let length = approval.reason.len();
        self.statements.get_mut(number)?.approval = Some(approval);
        Some(length)
    }

    /// Returns how long its message is.
    fn outcome(&mut self, members: &Members) -> Option<usize> {
        let number = *self.numbers.get(&id(members, "statement")?)?;
        let statement = self.statements.get_mut(number)?;
        statement.status = text(members, "status")?;
        statement.ended = integer(members, "time");
        statement.query_id = text(members, "query_id")?;
        statement.rows = members.get("rows").and_then(Value::as_u64);
        statement.code = text(members, "code")?;
        statement.message = text(members, "message")?;
        Some(statement.message.len())
    }
}

fn session(members: &Members) -> Option<Session> {
    let text = |name| text(members, name);
    Some(Session {
        id: id(members, "id")?,
        time: integer(members, "time")?,
        workload: Workload {
            cgroup: text("cgroup")?,
            pid: integer(members, "pid")?.try_into().ok()?,
            uid: integer(members, "uid")?.try_into().ok()?,
            comm: text("comm")?,
            executable: text("executable")?,
        },
        caller: Caller {
            issuer: text("issuer")?,
            subject: text("subject")?,
            groups: match members.get("groups") {
                Some(groups) => serde_json::from_value(groups.clone()).ok()?,
                None => Vec::new(),
            },
        },
        account: text("account")?,
        rule: text("rule")?,
        user: text("user")?,
        role: text("role")?,
        snowflake_session: text("snowflake_session")?,
        client: text("client")?,
    })
}

fn statement(members: &Members) -> Option<RecordedStatement> {
    let text = |name| text(members, name);
    Some(RecordedStatement {
        id: id(members, "id")?,
        time: integer(members, "time")?,
        sql: text("sql")?.chars().take(SHOWN).collect(),
        verdict: text("verdict")?,
        policy: text("policy")?,
        status: "open".to_owned(),
        ended: None,
        query_id: String::new(),
        rows: None,
        code: String::new(),
        message: String::new(),
        approval: None,
    })
}

fn text(members: &Members, name: &str) -> Option<String> {
    chain::text(members, name).map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_that_is_too_long_is_refused() {
        let mut room = Room { left: 10, session: Uuid::nil() };
        room.take(10).unwrap();
        assert!(matches!(room.take(1), Err(AuditError::LongSession(_))));
    }
}
