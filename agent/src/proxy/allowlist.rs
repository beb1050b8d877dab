//! Asks Snowflake by which hosts an account is reached, with the agent's own credentials: `SYSTEM$ALLOWLIST()`.

use std::time::Instant;

use bytes::Bytes;
use hyper::HeaderMap;
use hyper::header::{ACCEPT, HeaderValue, USER_AGENT};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::Proxy;
use super::upstream::{Answer, Outgoing, Run, Token, UpstreamError};
use crate::audit::{self, AuditError, Caller, Outcome, OutcomeStatus, Workload};
use crate::config::{Rule, Secret};
use crate::snowflake::{
    LoginAnswer, LoginRequest, LoginTarget, Malformed, Object, Operation, Reply, login_query,
};

const STATEMENT: &str = "SELECT SYSTEM$ALLOWLIST()";
/// Who the trail says that it was.
const CALLER: &str = "snowfence endpoints sync";

/// A host that an account's clients need to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedHost {
    #[serde(rename = "type")]
    pub kind: String,
    pub host: String,
    #[serde(default)]
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum AllowlistError {
    #[error("no rule is for this account: the agent has no credential for it")]
    NoRule,
    #[error("{0}")]
    Credential(String),
    #[error("Snowflake refused {what}: {code} {message}")]
    Refused { what: String, code: String, message: String },
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("Snowflake's answer cannot be understood: {0}")]
    Answer(String),
    #[error(transparent)]
    Audit(#[from] AuditError),
}

impl From<Malformed> for AllowlistError {
    fn from(error: Malformed) -> Self {
        Self::Answer(error.to_string())
    }
}

impl Proxy {
    /// The hosts of an account. The question is in the trail, like any other statement.
    pub async fn allowlist(&self, account: &str) -> Result<Vec<AllowedHost>, AllowlistError> {
        let is_for = |rule: &&Rule| rule.account.as_ref().is_none_or(|of| of == account);
        let rule = self.config.rules.iter().find(is_for).ok_or(AllowlistError::NoRule)?;
        let asking = Asking { proxy: self, account, rule, headers: headers() };
        let login = asking.log_in().await?;
        let asked = asking.ask(&login).await;
        asking.log_out(login.session_token()).await;
        asked
    }
}

struct Asking<'a> {
    proxy: &'a Proxy,
    account: &'a str,
    rule: &'a Rule,
    headers: HeaderMap,
}

impl Asking<'_> {
    async fn log_in(&self) -> Result<LoginAnswer, AllowlistError> {
        let target = LoginTarget {
            user: &self.rule.user,
            role: self.rule.role.as_deref(),
            warehouse: self.rule.warehouse.as_deref(),
        };
        let proof = self.proxy.proof(self.rule, self.account).map_err(AllowlistError::Credential)?;
        let body = LoginRequest::agents_own(self.account).for_upstream(&target, &proof);
        let query = login_query(Some(&format!("requestId={}", Uuid::new_v4())), &target);
        let answer =
            self.proxy.upstream.control(self.outgoing(&Operation::Login, &query, None, body.into())).await?;
        match LoginAnswer::parse(&answer.body)? {
            Some(login) => Ok(login),
            None => Err(refused(format!("the login of {}", self.rule.user), &answer)),
        }
    }

    async fn ask(&self, login: &LoginAnswer) -> Result<Vec<AllowedHost>, AllowlistError> {
        let (session, statement) = (Uuid::now_v7(), Uuid::now_v7());
        let workload =
            Workload { pid: std::process::id(), comm: "snowfence".to_owned(), ..Workload::default() };
        let caller = Caller { subject: CALLER.to_owned(), ..Caller::default() };
        let role = if login.role.is_empty() { self.rule.role.clone() } else { Some(login.role.clone()) };
        let role = role.unwrap_or_default();
        let record = audit::Session {
            id: session,
            time: audit::now(),
            workload: workload.clone(),
            caller: caller.clone(),
            account: self.account.to_owned(),
            rule: self.rule.name.clone(),
            user: self.rule.user.clone(),
            role: role.clone(),
            snowflake_session: login.session_id.clone(),
            client: "snowfence".to_owned(),
        };
        self.proxy.journal.append(vec![record.into()]).await?;
        let request_id = Uuid::new_v4().to_string();
        let record = audit::Statement {
            id: statement,
            session,
            time: audit::now(),
            request_id: request_id.clone(),
            workload,
            caller,
            account: self.account.to_owned(),
            user: self.rule.user.clone(),
            role,
            sql: STATEMENT.to_owned(),
            kind: "SELECT".to_owned(),
            effect: "read".to_owned(),
            actions: vec!["select".to_owned()],
            objects: Vec::new(),
            features: Vec::new(),
            verdict: audit::Verdict::Allow,
            policy: "agents-own".to_owned(),
            describe_only: false,
            binds: 0,
        };
        let recorded = self.proxy.journal.append_statement(record).await?;
        let started = Instant::now();
        let body = json!({ "sqlText": STATEMENT, "asyncExec": false, "sequenceId": 1, "isInternal": false });
        let query = format!("requestId={request_id}");
        let token = login.session_token();
        let outgoing =
            self.outgoing(&Operation::Query, &query, Some(token), body.to_string().into_bytes().into());
        let answer = self.proxy.upstream.forward(recorded, outgoing).await;
        let read = answer.map_err(AllowlistError::from).and_then(|answer| {
            let reply = Reply::parse(&answer.body)?;
            if reply.success {
                Ok((hosts(&answer.body)?, reply))
            } else {
                Err(refused(STATEMENT.to_owned(), &answer))
            }
        });
        let outcome = Outcome {
            statement,
            time: audit::now(),
            status: if read.is_ok() { OutcomeStatus::Succeeded } else { OutcomeStatus::Failed },
            query_id: String::new(),
            rows: None,
            code: String::new(),
            message: read.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            response_bytes: 0,
        };
        let outcome = match &read {
            Ok((_, reply)) => Outcome {
                query_id: reply.query_id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
                rows: reply.rows,
                ..outcome
            },
            Err(_) => outcome,
        };
        self.proxy.journal.append(vec![outcome.into()]).await?;
        read.map(|(hosts, _)| hosts)
    }

    async fn log_out(&self, token: &Secret) {
        let outgoing = self.outgoing(&Operation::CloseSession, "delete=true", Some(token), "{}".into());
        if let Err(error) = self.proxy.upstream.control(outgoing).await {
            tracing::debug!(%error, "a session of the agent's own stays open until it is idle for long enough");
        }
    }

    fn outgoing<'b>(
        &'b self,
        operation: &'b Operation,
        query: &'b str,
        token: Option<&'b Secret>,
        body: Bytes,
    ) -> Outgoing<'b> {
        let token = token.map(Token::Session);
        Outgoing {
            account: self.account,
            operation,
            query,
            headers: &self.headers,
            token,
            run: Run::default(),
            mcp_session: None,
            body,
        }
    }
}

fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/snowflake"));
    headers.insert(USER_AGENT, HeaderValue::from_static(concat!("snowfence/", env!("CARGO_PKG_VERSION"))));
    headers
}

fn refused(what: String, answer: &Answer) -> AllowlistError {
    match Reply::parse(&answer.body) {
        Ok(reply) => AllowlistError::Refused { what, code: reply.code, message: reply.message },
        Err(error) => AllowlistError::Answer(error.to_string()),
    }
}

/// The list is the only value of the only row, as JSON in a text.
fn hosts(body: &[u8]) -> Result<Vec<AllowedHost>, AllowlistError> {
    let data = Object::parse(body)?.object("data")?;
    let rows: Vec<Vec<Option<String>>> =
        data.field("rowset").ok_or_else(|| AllowlistError::Answer("it has no rows in JSON".to_owned()))?;
    let value = rows.into_iter().flatten().flatten().next();
    let list = value.ok_or_else(|| AllowlistError::Answer("it is empty".to_owned()))?;
    serde_json::from_str(&list).map_err(|error| AllowlistError::Answer(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_out_of_the_result() {
        let list = r#"[{"type":"SNOWFLAKE_DEPLOYMENT","host":"acme.snowflakecomputing.com","port":443},{"type":"STAGE","host":"b.s3.amazonaws.com","port":443},{"type":"OCSP_CACHE","host":"o"}]"#;
        let body = json!({ "data": { "rowset": [[list]], "total": 1 }, "code": null, "success": true });
        let hosts = hosts(body.to_string().as_bytes()).unwrap();
        assert_eq!(
            (hosts.len(), hosts[0].host.as_str(), hosts[2].port),
            (3, "acme.snowflakecomputing.com", 0)
        );
        for rows in [json!([]), json!([[null]]), json!([["nonsense"]]), json!(null)] {
            let body = json!({ "data": { "rowset": rows } }).to_string();
            assert!(super::hosts(body.as_bytes()).is_err());
        }
    }
}
