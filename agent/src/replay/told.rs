//! A recorded session as it is told: each request when it was sent, each answer when it had come, statements with their
//! verdicts and outcomes.

use std::collections::{HashMap, HashSet};

use hyper::Method;
use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::asked::Asked;
use super::result::{self, Column, Table};
use crate::audit::payload::{Ending, Payload, ReadError};
use crate::audit::{RecordedSession, RecordedStatement};
use crate::proxy::inflated;
use crate::snowflake::Operation;

/// What is looked at of a body, in bytes; and of a part of a result that comes compressed.
const LOOKED_AT: usize = 16 << 20;
const INFLATED: usize = 64 << 20;
/// Of a text that is no result, so many characters are told.
const TOLD: usize = 4096;
/// Queries whose columns are remembered for their parts.
const REMEMBERED: usize = 1000;

/// When something happened, and what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// Microseconds since the first of them.
    pub at: i64,
    is_answer: bool,
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// By its number in the session.
    Payload(usize),
    /// One without a payload.
    Statement(usize),
    /// What was ruled on a statement that was held.
    Ruling(usize),
}

/// What is told of a moment.
#[derive(Debug, Default, Serialize)]
pub struct Step {
    pub at_us: i64,
    /// `request`, `answer` or `ruling`.
    pub what: &'static str,
    pub operation: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement: Option<Uuid>,
    /// The statement, or method and path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub asked: String,
    #[serde(skip_serializing_if = "Value::is_null")]
    pub bindings: Value,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub verdict: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Who ruled; nobody where there was no need.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub approver: String,
    /// Of HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<u64>,
    /// How the statement ended.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub status: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub query_id: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub code: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Of the whole result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// Parts of the result that are asked for by themselves.
    #[serde(skip_serializing_if = "is_none")]
    pub parts: usize,
    /// Of the answer's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<Table>,
    /// The beginning of an answer that is a text and no result.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
    /// Why the answer is not whole, or cannot be read.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub problem: String,
}

impl Step {
    /// Names the operation of a payload that was lost: of such a one only the pieces are known.
    fn name(&mut self, operation: Option<&Operation>) {
        if self.operation.is_empty() {
            operation.map_or("?", Operation::name).clone_into(&mut self.operation);
        }
    }
}

/// Tells a session.
pub struct Teller {
    session: RecordedSession,
    statements: HashMap<Uuid, usize>,
    /// The columns of queries, for their parts.
    columns: HashMap<String, Vec<Column>>,
    /// Of a result, so many rows are told.
    rows: usize,
}

impl Teller {
    pub fn new(session: RecordedSession, rows: usize) -> Self {
        let statements =
            session.statements.iter().enumerate().map(|(index, statement)| (statement.id, index)).collect();
        Self { session, statements, columns: HashMap::new(), rows }
    }

    pub fn session(&self) -> &RecordedSession {
        &self.session
    }

    /// All that happened, in its order.
    pub fn moments(&self) -> Vec<Moment> {
        // A login begins before there is a session.
        let times = self.session.payloads.iter().map(|payload| payload.time);
        let began = times.fold(self.session.session.time, i64::min);
        let mut moments = Vec::new();
        let mut add = |time: i64, is_answer, of| {
            moments.push(Moment { at: time.saturating_sub(began).max(0), is_answer, of });
        };
        let mut kept: HashSet<Uuid> = HashSet::new();
        for (index, payload) in self.session.payloads.iter().enumerate() {
            kept.insert(payload.statement);
            let micros = i64::try_from(payload.duration_us).unwrap_or(i64::MAX);
            add(payload.time, false, Of::Payload(index));
            add(payload.time.saturating_add(micros), true, Of::Payload(index));
        }
        for (index, statement) in self.session.statements.iter().enumerate() {
            if let Some(approval) = &statement.approval {
                add(approval.time, false, Of::Ruling(index));
            }
            if !kept.contains(&statement.id) {
                add(statement.time, false, Of::Statement(index));
                let ended = statement.ended.unwrap_or(statement.time);
                add(ended, true, Of::Statement(index));
            }
        }
        moments.sort_by_key(|moment| (moment.at, moment.is_answer));
        moments
    }

    /// What is told of a moment.
    pub fn step(&mut self, moment: Moment) -> Step {
        let mut step = Step { at_us: moment.at, ..Step::default() };
        step.what = if moment.is_answer { "answer" } else { "request" };
        match moment.of {
            Of::Ruling(index) => {
                step.what = "ruling";
                "query".clone_into(&mut step.operation);
                self.tell_ruling(&mut step, index);
            }
            Of::Statement(index) => {
                "query".clone_into(&mut step.operation);
                self.tell_statement(&mut step, Some(index), moment.is_answer);
            }
            Of::Payload(index) => {
                let Some(payload) = self.session.payloads.get(index).cloned() else { return step };
                step.payload = Some(payload.id);
                step.operation.clone_from(&payload.operation);
                let statement = self.statements.get(&payload.statement).copied();
                self.tell_statement(&mut step, statement, moment.is_answer);
                let told = if moment.is_answer {
                    self.tell_answer(&mut step, &payload)
                } else {
                    self.tell_request(&mut step, &payload)
                };
                if let Err(error) = told {
                    step.problem = error.to_string();
                }
            }
        }
        step
    }

    /// What the journal says.
    fn tell_statement(&self, step: &mut Step, index: Option<usize>, is_answer: bool) {
        let Some(statement) = index.and_then(|index| self.session.statements.get(index)) else { return };
        let RecordedStatement { id, sql, verdict, policy, status, query_id, rows, code, message, .. } =
            statement;
        step.statement = Some(*id);
        if is_answer {
            step.status.clone_from(status);
            step.query_id.clone_from(query_id);
            step.code.clone_from(code);
            step.message.clone_from(message);
            step.rows = *rows;
        } else {
            step.asked.clone_from(sql);
            step.verdict.clone_from(verdict);
            step.policy.clone_from(policy);
        }
    }

    fn tell_ruling(&self, step: &mut Step, index: usize) {
        let Some(statement) = self.session.statements.get(index) else { return };
        let Some(approval) = &statement.approval else { return };
        step.statement = Some(statement.id);
        step.asked.clone_from(&statement.sql);
        step.status.clone_from(&approval.ruling);
        step.approver.clone_from(&approval.approver);
        step.message.clone_from(&approval.reason);
    }

    fn tell_request(&self, step: &mut Step, payload: &Payload) -> Result<(), ReadError> {
        let content = self.session.request(payload, LOOKED_AT)?;
        let head = head(&content.request.head);
        let asked = Asked::of(&head.0, &head.1, head.2.as_deref(), &content.request.body);
        step.name(asked.operation.as_ref());
        if step.asked.is_empty() {
            step.asked = format!("{} {}", head.0, head.1).chars().take(TOLD).collect();
        }
        if asked.operation.is_some_and(|operation| operation.carries_a_statement()) {
            let body: Value = serde_json::from_slice(&content.request.body).unwrap_or_default();
            step.bindings = body.get("bindings").cloned().unwrap_or_default();
        }
        Ok(())
    }

    fn tell_answer(&mut self, step: &mut Step, payload: &Payload) -> Result<(), ReadError> {
        let content = self.session.answer(payload, LOOKED_AT)?;
        let (method, path, query) = head(&content.request.head);
        step.name(Asked::of(&method, &path, query.as_deref(), b"").operation.as_ref());
        step.http = content.answer.head["status"].as_u64();
        step.bytes = Some(payload.answer_bytes);
        step.duration_us = Some(payload.duration_us);
        if step.query_id.is_empty() {
            step.query_id.clone_from(&payload.query_id);
        }
        step.problem = match payload.ending {
            Ending::Complete => String::new(),
            Ending::Truncated => "the answer was longer than what is kept of it".to_owned(),
            Ending::Broken | Ending::Lost => {
                let reason = content.end["reason"].as_str().unwrap_or("the agent ended meanwhile");
                format!("the answer broke off: {reason}")
            }
        };
        let body = inflated(&content.answer.body, INFLATED).unwrap_or_default();
        let is_part = step.operation == "part";
        if is_part || step.operation == "api_result" {
            let columns = self.columns.get(&payload.query_id).map_or(&[][..], Vec::as_slice);
            step.table = result::part(&body, columns, self.rows);
        }
        if step.table.is_none()
            && !is_part
            && let Some(answer) = result::answer(&body, self.rows)
        {
            step.parts = answer.parts;
            if matches!(answer.code.as_str(), "333333" | "333334") {
                // How it ended is told with the answer that says so.
                "running".clone_into(&mut step.status);
                (step.rows, step.query_id, step.message) = (None, String::new(), String::new());
                step.code.clear();
            }
            step.rows = step.rows.or(answer.total);
            if let Some(table) = &answer.table
                && answer.parts > 0
                && self.columns.len() < REMEMBERED
            {
                self.columns.insert(answer.query_id.to_ascii_lowercase(), table.columns.clone());
            }
            for (told, said) in [
                (&mut step.code, answer.code),
                (&mut step.message, answer.message),
                (&mut step.query_id, answer.query_id),
            ] {
                if told.is_empty() {
                    *told = said;
                }
            }
            step.table = answer.table;
        } else if step.table.is_none()
            && let Ok(text) = std::str::from_utf8(&body)
        {
            step.text = text.chars().take(TOLD).collect();
        }
        Ok(())
    }
}

/// Method, path and query of a request's head.
pub fn head(head: &Value) -> (Method, String, Option<String>) {
    let text = |key: &str| head[key].as_str().unwrap_or_default();
    let method = Method::from_bytes(text("method").as_bytes()).unwrap_or_default();
    let target = text("target");
    match target.split_once('?') {
        Some((path, query)) => (method, path.to_owned(), Some(query.to_owned())),
        None => (method, target.to_owned(), None),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_none(number: &usize) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::{Approval, Outcome, OutcomeStatus, Ruling, Statement, Verdict};
    use crate::replay::samples;

    #[tokio::test]
    async fn what_has_no_payload_is_told_from_the_journal() {
        let id = Uuid::now_v7();
        let part = ("/snowfence/parts/a", Some(&br#"["1"],["2"]"#[..]), Ending::Broken);
        let (_directory, session) = samples::recorded(&[part], |session| {
            let statement = Statement {
                id,
                session: session.id,
                time: session.time + 1_000_000,
                request_id: String::new(),
                workload: session.workload.clone(),
                caller: session.caller.clone(),
                account: session.account.clone(),
                user: String::new(),
                role: String::new(),
                sql: "drop table t".to_owned(),
                kind: String::new(),
                effect: String::new(),
                actions: Vec::new(),
                objects: Vec::new(),
                features: Vec::new(),
                verdict: Verdict::Hold,
                policy: "destructive-denied".to_owned(),
                describe_only: false,
                binds: 0,
            };
            let outcome = Outcome {
                statement: id,
                time: session.time + 3_000_000,
                status: OutcomeStatus::Refused,
                query_id: String::new(),
                rows: None,
                code: "003001".to_owned(),
                message: "no".to_owned(),
                duration_us: 0,
                response_bytes: 0,
            };
            let approval = Approval {
                statement: id,
                time: session.time + 2_000_000,
                ruling: Ruling::Denied,
                approver_issuer: "https://idp.example".to_owned(),
                approver: "kim".to_owned(),
                reason: "not today".to_owned(),
            };
            vec![statement.into(), approval.into(), outcome.into()]
        })
        .await;
        let mut teller = Teller::new(session, 1);
        let moments = teller.moments();
        let steps: Vec<Step> = moments.iter().map(|moment| teller.step(*moment)).collect();
        let [request, answer, asked, ruling, refused] = steps.as_slice() else { panic!("{steps:?}") };
        assert_eq!((request.operation.as_str(), request.asked.as_str()), ("part", "GET /snowfence/parts/a"));
        assert_eq!(
            (answer.http, answer.problem.as_str()),
            (Some(202), "the answer broke off: the client left")
        );
        assert_eq!((asked.statement, asked.asked.as_str()), (Some(id), "drop table t"));
        assert_eq!((asked.verdict.as_str(), asked.policy.as_str()), ("hold", "destructive-denied"));
        assert_eq!((refused.status.as_str(), refused.code.as_str()), ("refused", "003001"));
        assert_eq!(
            (ruling.what, ruling.status.as_str(), ruling.approver.as_str()),
            ("ruling", "denied", "kim")
        );
        assert_eq!((ruling.asked.as_str(), ruling.message.as_str()), ("drop table t", "not today"));
        assert_eq!(ruling.at_us - asked.at_us, 1_000_000);
        let rows = &answer.table.as_ref().unwrap().rows;
        assert_eq!((answer.operation.as_str(), rows), ("part", &vec![vec![Some("1".to_owned())]]));
        assert_eq!(refused.at_us - asked.at_us, 2_000_000);
    }
}
