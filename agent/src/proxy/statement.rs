//! A statement: classified, decided on, recorded, and only then forwarded.

use std::sync::Arc;
use std::time::Instant;

use hyper::StatusCode;
use uuid::Uuid;

use super::approvals;
use super::login::unrecorded;
use super::payload::unkept;
use super::service::{Exchange, Reaction, withheld};
use super::sessions::{Pending, Session};
use super::upstream::{Answer, Outgoing, Token};
use super::{Proxy, workload};
use crate::audit::{self, EventKind, Outcome, OutcomeStatus, Record, Recorded, Running};
use crate::policy::{Decision, Subject, Verdict, label};
use crate::snowflake::{Ending, QueryId, QueryRequest, Refusal, Reply};
use crate::sql::{
    Classification, Effect, Feature, MAX_TEXT_BYTES, ObjectKind, Statement, classify, local_files,
    with_values,
};

/// Texts above this size are classified off the data path's threads, in bytes.
const INLINE: usize = 16 * 1024;
/// Of a text that is too large to be decided on, so much is recorded, in bytes.
const REFUSED_TEXT: usize = 64 * 1024;

/// What is refused whatever the policy says: its name in the record, and why.
const BUILT_IN: [(&str, &str); 5] =
    [TOO_LARGE, UNCLEAR_TRANSFER, TRANSFER_BY_API, OTHERS_RESULT, SESSION_WAITS];
const TOO_LARGE: (&str, &str) = ("text-too-large", "its text is too large to be decided on");
const UNCLEAR_TRANSFER: (&str, &str) = (
    "file-transfer-unclear",
    "a file transfer must be a statement by itself that names local files as `file://…`",
);
const TRANSFER_BY_API: (&str, &str) = (
    "file-transfer-by-api",
    "files are transferred by a driver, not by the SQL API or a tool of an MCP server",
);
const OTHERS_RESULT: (&str, &str) = (
    "result-of-another",
    "it reads the result of a query that is not known as one of this caller's; name one by its id, or by LAST_QUERY_ID()",
);
const SESSION_WAITS: (&str, &str) = (
    "session-waits",
    "a statement of this session waits for the approval of a person: wait for it, cancel it, or use another session",
);

/// Handles one request to run SQL, by whichever door it came. If it may, it goes upstream with the token.
pub async fn run(
    exchange: &Exchange<'_>,
    session: &Session,
    request: QueryRequest,
    token: Token<'_>,
) -> Reaction {
    let started = Instant::now();
    let (held, operation) = (&exchange.proxy.approvals, &exchange.operation);
    // A driver whose connection broke sends the same again.
    if let Some(id) = held.of_request(session, operation, &exchange.query.request_id) {
        return approvals::in_progress(exchange, id);
    }
    let sql = with_values(&request.sql, |number| request.text(number));
    let Some(classification) = classified(&sql).await else {
        return exchange.malformed("the statement cannot be classified").await;
    };
    let mut asked = Asked::of(&request);
    let (mut decision, local) = judged(exchange, session, &asked, &sql, &classification);
    // What is approved is to run in the session as it was: by the SQL API a request says all of that itself.
    let needs_session = held.is_configured() && !operation.is_of_api();
    let under_way = needs_session.then(|| held.enter(session));
    if matches!(under_way, Some(None)) {
        decision = denied(SESSION_WAITS.0);
    }
    if decision.verdict == Verdict::Hold {
        let record = record(exchange, session, &asked, &classification, &decision);
        match approvals::place(exchange, session, &record, &request) {
            Ok(place) => {
                drop(sql);
                return approvals::hold(exchange, session, place, record, request, started).await;
            }
            Err(why) => asked.not_held = why,
        }
    }
    match admit(exchange, session, &asked, &classification, &decision, started).await {
        Ok((recorded, id)) => {
            let outgoing = exchange.outgoing(Some(token), request.to_vec().into());
            let request_id = &exchange.query.request_id;
            let statement = Forward { outgoing, request_id, local: local.as_deref(), id, started };
            forward(exchange, session, statement, recorded).await.0
        }
        Err(refusal) => exchange.refuse(&refusal),
    }
}

/// What is asked for, as it is recorded.
pub struct Asked<'a> {
    pub text: &'a str,
    pub describe_only: bool,
    pub binds: u32,
    /// Why it is refused if it should be held.
    pub not_held: NotHeld,
}

impl<'a> Asked<'a> {
    pub fn of(request: &'a QueryRequest) -> Self {
        let QueryRequest { sql, describe_only, binds, .. } = request;
        Self { text: sql, describe_only: *describe_only, binds: *binds, not_held: NotHeld::NoWay }
    }
}

/// Why a statement that needs the approval of a person cannot wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotHeld {
    #[error("by this interface there is no way to wait for it: ask by a driver, or by the SQL API")]
    NoWay,
    #[error(
        "the driver does not wait for it: run the statement, rather than submit it or ask for the shape of its result"
    )]
    NotAwaited,
    #[error("who could not see its values, which are in a stage: bind fewer of them")]
    Staged,
    #[error("and nobody is configured who may give it (`[approvals]`)")]
    NotConfigured,
    #[error("for which it cannot wait while another statement of its session runs")]
    SessionBusy,
    #[error("for which this agent, which is ending, cannot wait: try again")]
    Ending,
    #[error("for which too many statements wait: try again later")]
    TooMany,
    #[error("for which a request of this size cannot wait")]
    TooLarge,
}

/// A statement on its way to Snowflake.
pub struct Forward<'a> {
    pub outgoing: Outgoing<'a>,
    /// The client's identifier of the request; empty where it sent none.
    pub request_id: &'a str,
    /// The local files of a `PUT` or `GET`.
    pub local: Option<&'a str>,
    pub id: Uuid,
    pub started: Instant,
}

/// Classifies a text, a large one off the data path's threads.
pub async fn classified(sql: &str) -> Option<Classification> {
    if sql.len() <= INLINE {
        return Some(classify(sql));
    }
    let sql = sql.to_owned();
    tokio::task::spawn_blocking(move || classify(&sql)).await.ok()
}

/// Decides on the text of a request, and says which local files it names if it is a file transfer.
pub fn judged(
    exchange: &Exchange<'_>,
    session: &Session,
    asked: &Asked<'_>,
    sql: &str,
    classification: &Classification,
) -> (Decision, Option<String>) {
    if !transfers(classification) {
        return (judge(exchange, session, asked, sql, classification), None);
    }
    match local_files(sql) {
        // The answer tells the driver which local files to touch: it must be clear which the statement names.
        None if !exchange.operation.is_of_api() => (denied(UNCLEAR_TRANSFER.0), None),
        local => (judge(exchange, session, asked, sql, classification), local),
    }
}

/// Decides on a statement: first what no policy can allow.
pub fn judge(
    exchange: &Exchange<'_>,
    session: &Session,
    asked: &Asked<'_>,
    sql: &str,
    classification: &Classification,
) -> Decision {
    if exchange.operation.is_of_api() && transfers(classification) {
        return denied(TRANSFER_BY_API.0);
    }
    if !results_are_own(exchange, session, sql, classification) {
        return denied(OTHERS_RESULT.0);
    }
    decide(exchange, session, asked, classification)
}

/// Records what is asked for and what was decided. What comes of it when it is allowed lets it be forwarded.
pub async fn admit(
    exchange: &Exchange<'_>,
    session: &Session,
    asked: &Asked<'_>,
    classification: &Classification,
    decision: &Decision,
    started: Instant,
) -> Result<(Recorded, Uuid), Refusal> {
    let record = record(exchange, session, asked, classification, decision);
    let id = record.id;
    exchange.is_statement(id);
    let refusal = if decision.verdict != Verdict::Allow {
        let why = why_not(classification, decision, asked.not_held);
        let kind = worst(classification);
        Some(Refusal::statement(refused_because(kind, &why, &decision.policy, &record.request_id), id))
    } else if let Some(Err(error)) = exchange.proxy.payloads.as_ref().map(|payloads| payloads.ready()) {
        exchange.event(EventKind::PayloadNotKept, Some(session), error.to_string()).await;
        let refusal = Refusal::statement(unkept(&error), id);
        Some(Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ..refusal })
    } else {
        None
    };
    if let Some(refusal) = refusal {
        let outcome = refused(&refusal, id, started);
        let recorded = exchange.proxy.journal.append(vec![Record::from(record), Record::from(outcome)]).await;
        return Err(recorded.map_or_else(|error| not_recorded(&error, id), |()| refusal));
    }
    let recorded = exchange.proxy.journal.append_statement(record).await;
    recorded.map(|recorded| (recorded, id)).map_err(|error| not_recorded(&error, id))
}

/// Records the outcome of a statement whose result came later than its answer.
pub fn finish(proxy: &Arc<Proxy>, session: &Session, query: &QueryId, answer: &Answer, reply: &Reply) {
    if reply.in_progress {
        return;
    }
    for id in &reply.result_ids {
        proxy.sessions.own(id.clone(), session);
    }
    if let Some(Pending { statement, since }) = proxy.sessions.finish(query) {
        append(proxy, answered(statement, since, answer, reply));
    }
}

/// Records the outcome of a statement that a client asks about and never fetches.
pub fn observe(proxy: &Arc<Proxy>, query: &QueryId, answer: &Answer) {
    let Some(ending) = Ending::parse(&answer.body) else { return };
    if let Some(Pending { statement, since }) = proxy.sessions.finish(query) {
        let status = if ending.succeeded { OutcomeStatus::Succeeded } else { OutcomeStatus::Failed };
        let query_id = query.as_str().to_owned();
        let Ending { code, message, .. } = ending;
        append(proxy, Outcome { status, query_id, code, message, ..outcome(statement, since) });
    }
}

/// Whether every result of an earlier query that is read is one of the caller's: Snowflake knows only its user.
fn results_are_own(
    exchange: &Exchange<'_>,
    session: &Session,
    sql: &str,
    classification: &Classification,
) -> bool {
    let mut objects = classification.statements.iter().flat_map(|statement| &statement.objects);
    let is_own = |id: &str| {
        let id = QueryId::parse(id);
        id.is_some_and(|id| exchange.proxy.sessions.owns(session, &id))
    };
    // What is cut off the list could be one.
    let hides = |statement: &Statement| {
        let has = |feature| statement.features.contains(&feature);
        has(Feature::Truncated)
            && (has(Feature::DynamicSql) || sql.to_ascii_uppercase().contains("RESULT_SCAN"))
    };
    objects.all(|object| object.kind != ObjectKind::QueryResult || is_own(&object.name))
        && !classification.statements.iter().any(hides)
}

/// A refusal that is no policy's.
fn denied(reason: &'static str) -> Decision {
    Decision { verdict: Verdict::Deny, policy: reason.into() }
}

/// Decides by the policy.
pub fn decide(
    exchange: &Exchange<'_>,
    session: &Session,
    asked: &Asked<'_>,
    classification: &Classification,
) -> Decision {
    if asked.text.len() > MAX_TEXT_BYTES {
        return denied(TOO_LARGE.0);
    }
    let (caller, rule) = (session.principal.caller(), session.principal.rule());
    let subject = Subject {
        issuer: &caller.issuer,
        subject: &caller.subject,
        groups: &caller.groups,
        account: &session.account,
        cgroup: &exchange.peer.flow.workload.cgroup,
        uid: exchange.peer.flow.workload.uid,
        rule: &rule.name,
        user: &rule.user,
        role: rule.role.as_deref(),
    };
    exchange.proxy.policy.load().decide(&subject, classification)
}

fn record(
    exchange: &Exchange<'_>,
    session: &Session,
    asked: &Asked<'_>,
    classification: &Classification,
    decision: &Decision,
) -> audit::Statement {
    let statements = &classification.statements;
    let mut kinds: Vec<&str> = statements.iter().map(|statement| statement.kind.as_str()).collect();
    kinds.dedup();
    audit::Statement {
        id: Uuid::now_v7(),
        session: session.id,
        time: audit::now(),
        request_id: exchange.query.request_id.clone(),
        workload: workload(&exchange.peer.flow.workload),
        caller: session.principal.caller().clone(),
        account: session.account.clone(),
        user: session.principal.rule().user.clone(),
        role: session.role.clone(),
        sql: recorded_text(asked.text),
        kind: kinds.join("; "),
        effect: label(&classification.effect),
        actions: distinct(statements.iter().flat_map(|one| one.actions.iter().map(label))),
        objects: distinct(
            statements.iter().flat_map(|one| one.objects.iter().map(|object| object.name.clone())),
        ),
        features: distinct(statements.iter().flat_map(|one| one.features.iter().map(label))),
        verdict: match decision.verdict {
            Verdict::Allow => audit::Verdict::Allow,
            Verdict::Hold => audit::Verdict::Hold,
            Verdict::Deny => audit::Verdict::Deny,
        },
        policy: decision.policy.clone(),
        describe_only: asked.describe_only,
        binds: asked.binds,
    }
}

/// Forwards a recorded statement, and records its outcome.
///
/// Also returns by which identifier Snowflake knows it, or why that is not known.
pub async fn forward(
    exchange: &Exchange<'_>,
    session: &Session,
    statement: Forward<'_>,
    recorded: Recorded,
) -> (Reaction, Result<QueryId, String>) {
    let Forward { outgoing, request_id, local, id, started } = statement;
    if !request_id.is_empty() {
        exchange.proxy.sessions.own_request(request_id, session);
    }
    let answer = exchange.proxy.upstream.forward(recorded, outgoing).await;
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let status =
                if error.may_have_arrived() { OutcomeStatus::Unknown } else { OutcomeStatus::Failed };
            let message = error.to_string();
            append(exchange.proxy, Outcome { status, message: message.clone(), ..outcome(id, started) });
            return (exchange.failed(&error).await, Err(message));
        }
    };
    let mut known = Err("Snowflake's answer does not name it".to_owned());
    let reply = exchange.read_answer(&answer);
    if let Ok(reply) = &reply {
        if let Some(query) = &reply.query_id {
            exchange.is_about(query.as_str());
            known = Ok(query.clone());
        }
        settle(exchange.proxy, session, &answer, reply, id, started).await;
    } else {
        let message = format!("the answer (HTTP {}) is not Snowflake's", answer.status.as_u16());
        let status = OutcomeStatus::Unknown;
        append(exchange.proxy, Outcome { status, message, ..outcome(id, started) });
    }
    let reaction = match local {
        Some(local) => exchange.pass_transfer(session, id, local, &answer, reply).await,
        None => exchange.pass_result(session, &answer, reply).await,
    };
    (reaction, known)
}

/// Whether there is a `PUT` or a `GET` among the statements.
fn transfers(classification: &Classification) -> bool {
    classification.statements.iter().any(|statement| matches!(statement.kind.as_str(), "PUT" | "GET"))
}

/// Records the outcome of a statement that was answered, unless it is still to come.
async fn settle(
    proxy: &Arc<Proxy>,
    session: &Session,
    answer: &Answer,
    reply: &Reply,
    id: Uuid,
    started: Instant,
) {
    for query in reply.query_id.iter().chain(&reply.result_ids) {
        proxy.sessions.own(query.clone(), session);
    }
    match &reply.query_id {
        Some(query) if reply.in_progress => {
            runs_on(proxy, query, id, started).await;
        }
        _ => append(proxy, answered(id, started, answer, reply)),
    }
}

/// Notes that Snowflake goes on running a statement: a restart must not part the query from its caller.
pub async fn runs_on(proxy: &Arc<Proxy>, query: &QueryId, statement: Uuid, since: Instant) {
    proxy.sessions.wait(query.clone(), Pending { statement, since });
    let running = Running { statement, time: audit::now(), query_id: query.as_str().to_owned() };
    if let Err(error) = proxy.journal.append(vec![running.into()]).await {
        tracing::error!(%error, "which query a statement is could not be recorded");
    }
}

fn answered(statement: Uuid, started: Instant, answer: &Answer, reply: &Reply) -> Outcome {
    let status = match answer.status {
        StatusCode::OK if reply.success => OutcomeStatus::Succeeded,
        // It may have run all the same, or may still.
        status if status.is_server_error() || reply.in_progress => OutcomeStatus::Unknown,
        _ => OutcomeStatus::Failed,
    };
    Outcome {
        status,
        query_id: reply.query_id.as_ref().map(|id| id.as_str().to_owned()).unwrap_or_default(),
        rows: reply.rows,
        code: reply.code.clone(),
        message: reply.secret.as_ref().map_or_else(|| reply.message.clone(), |key| withheld(key)),
        response_bytes: answer.body.len() as u64,
        ..outcome(statement, started)
    }
}

/// The outcome of a statement of which nothing is known yet.
pub fn outcome(statement: Uuid, started: Instant) -> Outcome {
    Outcome {
        statement,
        time: audit::now(),
        status: OutcomeStatus::Unknown,
        query_id: String::new(),
        rows: None,
        code: String::new(),
        message: String::new(),
        duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        response_bytes: 0,
    }
}

/// The outcome of a statement that is not forwarded.
pub fn refused(refusal: &Refusal, statement: Uuid, started: Instant) -> Outcome {
    let message = refusal.message.clone();
    Outcome { status: OutcomeStatus::Refused, message, ..outcome(statement, started) }
}

/// The client need not wait for the outcome to be durable: a crash before that leaves the outcome unknown, and says so.
pub fn append(proxy: &Arc<Proxy>, outcome: Outcome) {
    let journal = proxy.journal.clone();
    proxy.tasks.spawn(async move {
        if let Err(error) = journal.append(vec![outcome.into()]).await {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    });
}

pub fn not_recorded(error: &audit::AuditError, id: Uuid) -> Refusal {
    tracing::error!(%error, "a statement could not be recorded");
    let refusal = Refusal::statement(unrecorded("statement"), id);
    Refusal { status: StatusCode::SERVICE_UNAVAILABLE, ..refusal }
}

/// The kind of the statement that a text is as bad as.
fn worst(classification: &Classification) -> &str {
    let mut statements = classification.statements.iter();
    let worst = statements.find(|statement| statement.effect == classification.effect);
    worst.map_or("this", |statement| statement.kind.as_str())
}

/// Why a statement is refused.
pub fn why_not(classification: &Classification, decision: &Decision, not_held: NotHeld) -> String {
    let built_in = BUILT_IN.iter().find(|(name, _)| decision.policy == *name);
    let why = match (decision.verdict, classification.effect) {
        (Verdict::Deny, _) if let Some((_, why)) = built_in => why,
        (Verdict::Hold, _) => return format!("it needs the approval of a person, {not_held}"),
        (_, Effect::Destructive) => "it is destructive",
        (_, Effect::Admin) => "it administers the account",
        (_, Effect::Exfiltration) => "it moves data out of, or between, accounts and storage",
        (_, Effect::Opaque) => "what it does cannot be determined",
        (_, Effect::None | Effect::Read | Effect::Session | Effect::Write) => "no policy allows it",
    };
    why.to_owned()
}

/// What the driver's exception says.
pub fn refused_because(kind: &str, why: &str, policy: &str, request_id: &str) -> String {
    let request = if request_id.is_empty() { String::new() } else { format!(", request {request_id}") };
    format!("SQL access control error:\nSnowfence refused {kind}: {why} (policy {policy}{request})")
}

/// The text for the record: whole, unless it is one that is refused for its size.
fn recorded_text(sql: &str) -> String {
    if sql.len() <= MAX_TEXT_BYTES {
        return sql.to_owned();
    }
    let end = (0..=REFUSED_TEXT).rev().find(|end| sql.is_char_boundary(*end)).unwrap_or(0);
    format!("{} … [{} bytes in all]", sql.get(..end).unwrap_or_default(), sql.len())
}

fn distinct(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    values.filter(|value| seen.insert(value.clone())).collect()
}
