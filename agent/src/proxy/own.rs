//! A session with Snowflake of the agent's own, to ask something for itself. What it asks is in the trail, like any other
//! statement.

use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderName, HeaderValue, USER_AGENT};
use serde_json::json;
use uuid::Uuid;

use super::parts::Part;
use super::upstream::{ANSWER_LIMIT, Answer, Outgoing, Run, Token, UpstreamError};
use super::{Proxy, body, statement};
use crate::audit::{self, AuditError, Caller, Outcome, OutcomeStatus, Running, Workload};
use crate::config::Secret;
use crate::snowflake::{
    InParts, LoginAnswer, LoginRequest, LoginTarget, Malformed, Object, Operation, QueryId, Reply,
    login_query, rows_of_part,
};

/// How often the result of a statement that runs for long is asked for: Snowflake answers within 45 s each time.
const PATIENCE: u32 = 20;

/// A row of a result in JSON, in which every value is a text.
pub type Row = Vec<Option<String>>;

/// As whom the agent asks, and where.
pub struct Asker<'a> {
    pub account: &'a str,
    pub user: &'a str,
    pub role: Option<&'a str>,
    pub warehouse: Option<&'a str>,
    /// The name of a credential.
    pub credential: &'a str,
    /// The rule that all of this is of; empty if it is of none.
    pub rule: &'a str,
    /// Who the trail says that it was.
    pub caller: &'static str,
}

#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    #[error("{0}")]
    Credential(String),
    #[error("Snowflake refused {what}: {code} {message}")]
    Refused { what: String, code: String, message: String },
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("Snowflake's answer cannot be understood: {0}")]
    Answer(String),
    #[error("Snowflake has not finished {0} after a quarter of an hour")]
    Slow(String),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl From<Malformed> for OwnError {
    fn from(error: Malformed) -> Self {
        Self::Answer(error.to_string())
    }
}

/// The session.
pub struct OwnSession<'a> {
    proxy: &'a Proxy,
    asker: &'a Asker<'a>,
    headers: HeaderMap,
    login: LoginAnswer,
    record: audit::Session,
}

impl Proxy {
    /// Logs in. Whoever does must [close](OwnSession::close) the session.
    pub async fn own_session<'a>(&'a self, asker: &'a Asker<'a>) -> Result<OwnSession<'a>, OwnError> {
        let target = LoginTarget { user: asker.user, role: asker.role, warehouse: asker.warehouse };
        let proof =
            self.proof_of(asker.credential, asker.user, asker.account).map_err(OwnError::Credential)?;
        let body = LoginRequest::agents_own(asker.account).for_upstream(&target, &proof);
        let query = login_query(Some(&format!("requestId={}", Uuid::new_v4())), &target);
        let headers = headers();
        let request = outgoing(asker.account, &headers, &Operation::Login, &query, None, body.into());
        let answer = self.upstream.control(request).await?;
        let Some(login) = LoginAnswer::parse(&answer.body)? else {
            return Err(refused(format!("the login of {}", asker.user), &answer));
        };
        let role = if login.role.is_empty() { asker.role.unwrap_or_default() } else { &login.role };
        let record = audit::Session {
            id: Uuid::now_v7(),
            time: audit::now(),
            workload: Workload {
                pid: std::process::id(),
                comm: "snowfence".to_owned(),
                ..Workload::default()
            },
            caller: Caller { subject: asker.caller.to_owned(), ..Caller::default() },
            account: asker.account.to_owned(),
            rule: asker.rule.to_owned(),
            user: asker.user.to_owned(),
            role: role.to_owned(),
            snowflake_session: login.session_id.clone(),
            client: "snowfence".to_owned(),
        };
        let session = OwnSession { proxy: self, asker, headers, login, record };
        if let Err(error) = self.journal.append(vec![session.record.clone().into()]).await {
            session.close().await;
            return Err(error.into());
        }
        Ok(session)
    }
}

impl OwnSession<'_> {
    /// The rows of a question.
    pub async fn rows(&self, sql: &str) -> Result<Vec<Row>, OwnError> {
        let (record, request_id) = (self.statement(sql), Uuid::new_v4().to_string());
        let id = record.id;
        let recorded = self
            .proxy
            .journal
            .append_statement(audit::Statement { request_id: request_id.clone(), ..record })
            .await?;
        let started = Instant::now();
        let body = json!({ "sqlText": sql, "asyncExec": false, "sequenceId": 1, "isInternal": false });
        let query = format!("requestId={request_id}");
        let request = self.outgoing(&Operation::Query, &query, body.to_string().into_bytes().into());
        let answer = self.proxy.upstream.forward(recorded, request).await.map_err(OwnError::from);
        let ended = match answer {
            Ok(answer) => self.until_ended(sql, id, answer).await,
            Err(error) => Err(error),
        };
        let outcome = statement::outcome(id, started);
        let outcome = match &ended {
            Ok((answer, reply)) => Outcome {
                status: if reply.success { OutcomeStatus::Succeeded } else { OutcomeStatus::Failed },
                query_id: reply.query_id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
                rows: reply.rows,
                code: reply.code.clone(),
                message: reply.message.clone(),
                response_bytes: answer.body.len() as u64,
                ..outcome
            },
            Err(error) => Outcome { message: error.to_string(), ..outcome },
        };
        self.proxy.journal.append(vec![outcome.into()]).await?;
        let (answer, reply) = ended?;
        if !reply.success {
            let what = format!("a question of the agent's ({})", self.asker.caller);
            return Err(OwnError::Refused { what, code: reply.code, message: reply.message });
        }
        self.read(&answer).await
    }

    pub async fn close(self) {
        let request = self.outgoing(&Operation::CloseSession, "delete=true", "{}".into());
        if let Err(error) = self.proxy.upstream.control(request).await {
            tracing::debug!(%error, "a session of the agent's own stays open until it is idle for long enough");
        }
    }

    /// Asks again for as long as the statement runs.
    async fn until_ended(&self, sql: &str, id: Uuid, answer: Answer) -> Result<(Answer, Reply), OwnError> {
        let mut answer = answer;
        let mut reply = Reply::parse(&answer.body)?;
        let mut tries = 0;
        while let (true, Some(query)) = (reply.in_progress, reply.query_id.clone()) {
            if tries == 0 {
                let query_id = query.as_str().to_owned();
                let running = Running { statement: id, time: audit::now(), query_id };
                self.proxy.journal.append(vec![running.into()]).await?;
            }
            tries += 1;
            if tries > PATIENCE {
                return Err(OwnError::Slow(sql.chars().take(100).collect()));
            }
            (answer, reply) = self.again(query).await?;
        }
        Ok((answer, reply))
    }

    async fn again(&self, query: QueryId) -> Result<(Answer, Reply), OwnError> {
        let operation = Operation::Result(query);
        let answer = self.proxy.upstream.control(self.outgoing(&operation, "", Bytes::new())).await?;
        let reply = Reply::parse(&answer.body)?;
        Ok((answer, reply))
    }

    /// The rows in an answer, and in the parts that it leads to.
    async fn read(&self, answer: &Answer) -> Result<Vec<Row>, OwnError> {
        let data = Object::parse(&answer.body)?.object("data")?;
        let rows: Option<Vec<Row>> = data.field("rowset");
        let mut rows = rows.ok_or_else(|| OwnError::Answer("it has no rows in JSON".to_owned()))?;
        if !InParts::is_in(&data) {
            return Ok(rows);
        }
        let parts = InParts::parse(&answer.body)?;
        let mut headers = HeaderMap::new();
        for (name, value) in parts.headers() {
            let header = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
            let (name, value) =
                header.ok_or_else(|| OwnError::Answer("a header for its parts is none".to_owned()))?;
            headers.insert(name, value);
        }
        for url in parts.urls()? {
            let part = Part::new(url, headers.clone());
            let answer = Answer::whole(self.proxy.upstream.part(&part, HeaderMap::new()).await?).await?;
            if !answer.status.is_success() {
                return Err(OwnError::Answer(format!(
                    "a part of the result is HTTP {}",
                    answer.status.as_u16()
                )));
            }
            let content = body::inflated(&answer.body, ANSWER_LIMIT)
                .map_err(|error| OwnError::Answer(format!("a part of the result: {error}")))?;
            rows.extend(rows_of_part(&content)?);
        }
        Ok(rows)
    }

    fn statement(&self, sql: &str) -> audit::Statement {
        audit::Statement {
            id: Uuid::now_v7(),
            session: self.record.id,
            time: audit::now(),
            request_id: String::new(),
            workload: self.record.workload.clone(),
            caller: self.record.caller.clone(),
            account: self.record.account.clone(),
            user: self.record.user.clone(),
            role: self.record.role.clone(),
            sql: sql.to_owned(),
            kind: "SELECT".to_owned(),
            effect: "read".to_owned(),
            actions: vec!["select".to_owned()],
            objects: Vec::new(),
            features: Vec::new(),
            verdict: audit::Verdict::Allow,
            policy: "agents-own".to_owned(),
            describe_only: false,
            binds: 0,
        }
    }

    fn outgoing<'b>(&'b self, operation: &'b Operation, query: &'b str, body: Bytes) -> Outgoing<'b> {
        let token = Some(self.login.session_token());
        outgoing(self.asker.account, &self.headers, operation, query, token, body)
    }
}

fn outgoing<'b>(
    account: &'b str,
    headers: &'b HeaderMap,
    operation: &'b Operation,
    query: &'b str,
    token: Option<&'b Secret>,
    body: Bytes,
) -> Outgoing<'b> {
    let token = token.map(Token::Session);
    Outgoing { account, operation, query, headers, token, run: Run::default(), mcp_session: None, body }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/snowflake"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("snowfence/", env!("CARGO_PKG_VERSION"))));
    headers
}

fn refused(what: String, answer: &Answer) -> OwnError {
    match Reply::parse(&answer.body) {
        Ok(reply) => OwnError::Refused { what, code: reply.code, message: reply.message },
        Err(error) => OwnError::Answer(error.to_string()),
    }
}
