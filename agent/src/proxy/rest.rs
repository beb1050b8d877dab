//! Snowflake's REST interfaces beside the SQL API: objects, the Cortex services, managed MCP servers. Each call goes the
//! way of a statement: judged, recorded, and only then forwarded, with the rule's credential in the place of the
//! caller's token. A tool of an MCP server that takes a statement is judged by the statement.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, LINK, LOCATION, RETRY_AFTER};
use hyper::{HeaderMap, Response, StatusCode};
use uuid::Uuid;

use super::service::{Exchange, Reaction, json_answer, with_status, withheld};
use super::sessions::{Pending, Session};
use super::statement::{self, Asked, NotHeld, outcome};
use super::upstream::{Answer, Outgoing, Run, Token};
use super::{Proxy, body, mcp_session, sql_api};
use crate::audit::{EventKind, Outcome, OutcomeStatus};
use crate::config::Secret;
use crate::policy::Decision;
use crate::snowflake::{
    Ask, LeadsElsewhere, McpRequest, Object, QueryId, Refusal, RestBody, RestCall, accepted, linked,
    path_of_result, secret_of_objects,
};
use crate::sql::{Access, Action, Classification, Effect, Object as Named, ObjectKind};

/// Between two events of a stream.
const PATIENCE: Duration = Duration::from_mins(5);
/// Pieces of a stream that wait for the client.
const WAITING: usize = 2;
const EVENTS: &str = "text/event-stream";

/// A call that is on its way: what its answer needs.
struct Call<'a> {
    exchange: &'a Exchange<'a>,
    session: &'a Session,
    path: &'a RestCall,
    credential: (Secret, &'static str),
    started: Instant,
}

/// Handles one call.
pub async fn handle(exchange: &Exchange<'_>, path: &RestCall, body: &mut Incoming) -> Reaction {
    let started = Instant::now();
    let session = match sql_api::session(exchange).await {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    // Who shares the Snowflake user would be given the other's answer by it.
    if exchange.proxy.sessions.is_of_another(&session, &exchange.query.request_id) {
        return exchange.malformed("its requestId is another caller's").await;
    }
    let body = match exchange.read(body, body::QUERY).await {
        Ok(body) => body,
        Err(error) => return exchange.unreadable(&error).await,
    };
    let credential = match sql_api::credential(exchange, &session).await {
        Ok(credential) => credential,
        Err(refusal) => return refusal,
    };
    let call = Call { exchange, session: &session, path, credential, started };
    if path.is_mcp() { call.ask_mcp(&body.bytes).await } else { call.ask(body.bytes.clone()).await }
}

/// Asks for the result of a call that was answered before it had ended, or for a page of it.
pub async fn result(exchange: &Exchange<'_>, handle: &QueryId) -> Reaction {
    let session = match sql_api::session(exchange).await {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    exchange.is_about(handle.as_str());
    if !exchange.proxy.sessions.owns(&session, handle) {
        return exchange.not_the_owner(&session, handle.as_str()).await;
    }
    let (secret, kind) = match sql_api::credential(exchange, &session).await {
        Ok(credential) => credential,
        Err(refusal) => return refusal,
    };
    let token = Some(Token::Bearer(&secret, kind));
    let outgoing = Outgoing { run: run(&session), ..exchange.outgoing(token, Bytes::new()) };
    let answer = match exchange.proxy.upstream.control(outgoing).await {
        Ok(answer) => answer,
        Err(error) => return exchange.failed(&error).await,
    };
    if let Some(status) = ended(answer.status, &exchange.query.text)
        && let Some(Pending { statement, since }) = exchange.proxy.sessions.finish(handle)
    {
        let outcome = answered(statement, since, status, &answer);
        let query_id = handle.as_str().to_owned();
        statement::append(exchange.proxy, Outcome { query_id, ..outcome });
    }
    let later = (answer.status == StatusCode::ACCEPTED).then_some(handle);
    pass(exchange, &session, &answer, later, true).await
}

/// How a statement ended, if this answer to the question for its result says that it has. Any other may be about the
/// question alone: whether it may be asked, whether there is such a page, or, with status 400, what the client left out to
/// have its statement recorded as failed.
fn ended(status: StatusCode, query: &str) -> Option<OutcomeStatus> {
    match status {
        StatusCode::ACCEPTED => None,
        status if status.is_success() => Some(OutcomeStatus::Succeeded),
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::UNPROCESSABLE_ENTITY
            if query.is_empty() =>
        {
            Some(OutcomeStatus::Failed)
        }
        _ => None,
    }
}

/// As which role, and on which warehouse, what the session's caller asks for is to run.
fn run(session: &Session) -> Run<'_> {
    let rule = session.principal.rule();
    Run { role: rule.role.as_deref(), warehouse: rule.warehouse.as_deref() }
}

/// By which handle the result of a call that was accepted is to be had.
fn accepted_by(exchange: &Exchange<'_>, answer: &Answer) -> Result<Option<QueryId>, LeadsElsewhere> {
    let locations = answer.headers.get_all(LOCATION).iter().map(|location| location.to_str().ok());
    accepted(locations, &answer.body, exchange.account())
}

/// What a failure's answer says of it: a code and a message.
fn reason(answer: &Answer) -> (String, String) {
    let said = Object::parse(&answer.body).unwrap_or_default();
    let text = |key| said.field::<String>(key).unwrap_or_default();
    if answer.status.is_success() { Default::default() } else { (text("code"), text("message")) }
}

fn answered(statement: Uuid, started: Instant, status: OutcomeStatus, answer: &Answer) -> Outcome {
    let (code, message) = reason(answer);
    let response_bytes = answer.body.len() as u64;
    Outcome { status, code, message, response_bytes, ..outcome(statement, started) }
}

/// Passes an answer that came whole; `later` is where its result is to be had, if it is none yet.
async fn pass(
    exchange: &Exchange<'_>,
    session: &Session,
    answer: &Answer,
    later: Option<&QueryId>,
    is_of_objects: bool,
) -> Reaction {
    if answer.status == StatusCode::UNAUTHORIZED {
        let (code, message) = reason(answer);
        return sql_api::credential_refused(exchange, session, &code, &message).await;
    }
    match secret_of_objects(&answer.body) {
        Ok(Some(key)) if is_of_objects => return exchange.refuse(&Refusal::answer(withheld(&key))),
        Ok(_) => {}
        Err(error) => return exchange.pass(answer, Err(error)).await,
    }
    let mut reaction = with_status(answer.status, answer.body.clone());
    let headers = reaction.headers_mut();
    if let Some(after) = answer.headers.get(RETRY_AFTER) {
        headers.insert(RETRY_AFTER, after.clone());
    }
    if let Some(path) = later.and_then(|handle| HeaderValue::try_from(path_of_result(handle)).ok()) {
        headers.insert(LOCATION, path);
    }
    // A client follows them with its token.
    for links in answer.headers.get_all(LINK) {
        let Some(pages) = links.to_str().ok().and_then(linked) else { continue };
        for handle in pages {
            exchange.proxy.sessions.own(handle, session);
        }
        headers.append(LINK, links.clone());
    }
    reaction
}

impl Call<'_> {
    async fn ask(&self, body: Bytes) -> Reaction {
        let said = match RestBody::parse(&body) {
            Ok(said) => said,
            Err(error) => return self.exchange.malformed(&error.to_string()).await,
        };
        let text = self.text(&body);
        let classification = self.path.classification(&self.exchange.query.text, &said);
        let asked = Asked { text: &text, describe_only: false, binds: 0, not_held: NotHeld::NoWay };
        let decision = statement::decide(self.exchange, self.session, &asked, &classification);
        match self.forward(&asked, &classification, &decision, body, None).await {
            Ok(reaction) => reaction,
            Err(refusal) if refusal.status == StatusCode::UNPROCESSABLE_ENTITY => {
                self.exchange.refuse(&Refusal { status: StatusCode::FORBIDDEN, ..refusal })
            }
            Err(refusal) => self.exchange.refuse(&refusal),
        }
    }

    async fn ask_mcp(&self, body: &[u8]) -> Reaction {
        let request = match McpRequest::parse(body) {
            Ok(request) => request,
            Err(error) => {
                let kind = EventKind::MalformedRequest;
                self.exchange.event(kind, Some(self.session), format!("to an MCP server: {error}")).await;
                return json_answer(error.answer());
            }
        };
        let within = match mcp_session::open(self.exchange, self.session) {
            Ok(within) => within,
            Err(error) => {
                let detail = format!("the session of an MCP server: {error}");
                self.exchange.event(EventKind::SessionRefused, Some(self.session), detail).await;
                // Upon which a client begins another.
                let body = request.refusal(&format!("Snowfence refused this request: {error}"), "");
                return with_status(StatusCode::NOT_FOUND, body.into());
            }
        };
        let forwarded = request.to_vec();
        let text = self.text(&forwarded);
        let (text, classification, sql) = match &request.ask {
            Ask::Sql { sql, .. } => match statement::classified(sql).await {
                Some(classification) => (sql.as_str(), classification, sql.as_str()),
                None => return self.exchange.malformed("the statement cannot be classified").await,
            },
            Ask::Housekeeping => (text.as_str(), Classification::of_call("MCP", Effect::None, [], []), ""),
            Ask::ListTools => (
                text.as_str(),
                Classification::of_call("MCP LIST TOOLS", Effect::Read, [Action::List], []),
                "",
            ),
            Ask::Tool(_) => (text.as_str(), self.path.classification("", &RestBody::default()), ""),
        };
        let classification = self.by_a_tool(classification, &request.ask);
        let asked = Asked { text, describe_only: false, binds: 0, not_held: NotHeld::NoWay };
        let decision = statement::judge(self.exchange, self.session, &asked, sql, &classification);
        match self.forward(&asked, &classification, &decision, forwarded.into(), within).await {
            Ok(reaction) => reaction,
            // An error of JSON-RPC, which a model is shown.
            Err(refusal) => {
                let statement = refusal.query_id.map(|id| id.to_string()).unwrap_or_default();
                json_answer(request.refusal(&refusal.message, &statement))
            }
        }
    }

    /// With the server, and the tool if one is called, among the objects, so that a policy can name them.
    fn by_a_tool(&self, mut classification: Classification, ask: &Ask) -> Classification {
        let server = self.path.object(Access::Use);
        let tool = match ask {
            Ask::Sql { tool, .. } | Ask::Tool(tool) => server.as_ref().map(|server| Named {
                name: format!("{}:{tool}", server.name),
                kind: ObjectKind::Unknown,
                access: Access::Execute,
            }),
            Ask::Housekeeping | Ask::ListTools => None,
        };
        for statement in &mut classification.statements {
            statement.objects.extend(server.iter().chain(&tool).cloned());
        }
        classification
    }

    /// What is recorded of a call without a statement: what was asked for, and with what.
    fn text(&self, body: &[u8]) -> String {
        let (method, path, query) = (self.path.method(), self.path.path(), &self.exchange.query.text);
        let separator = if query.is_empty() { "" } else { "?" };
        let mut text = format!("{method} {path}{separator}{query}");
        if !body.is_empty() {
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(body));
        }
        text
    }

    async fn forward(
        &self,
        asked: &Asked<'_>,
        classification: &Classification,
        decision: &Decision,
        body: Bytes,
        within: Option<HeaderValue>,
    ) -> Result<Reaction, Refusal> {
        let (exchange, started) = (self.exchange, self.started);
        let (recorded, id) =
            statement::admit(exchange, self.session, asked, classification, decision, started).await?;
        if !exchange.query.request_id.is_empty() {
            exchange.proxy.sessions.own_request(&exchange.query.request_id, self.session);
        }
        let (secret, kind) = &self.credential;
        let outgoing = Outgoing {
            run: run(self.session),
            mcp_session: within,
            ..exchange.outgoing(Some(Token::Bearer(secret, kind)), body)
        };
        let answered = match exchange.proxy.upstream.call(recorded, outgoing).await {
            Ok(response) if is_a_stream(&response) => return Ok(self.stream(id, response)),
            Ok(response) => Answer::whole(response).await,
            Err(error) => Err(error),
        };
        Ok(match answered {
            Ok(answer) => self.pass(id, &answer).await,
            Err(error) => {
                let status =
                    if error.may_have_arrived() { OutcomeStatus::Unknown } else { OutcomeStatus::Failed };
                let message = error.to_string();
                statement::append(exchange.proxy, Outcome { status, message, ..outcome(id, started) });
                exchange.failed(&error).await
            }
        })
    }

    /// Passes an answer that came whole, and records the outcome, or notes that it is still to come.
    async fn pass(&self, id: Uuid, answer: &Answer) -> Reaction {
        let exchange = self.exchange;
        // By an MCP server what needs no answer is accepted, and that is all.
        let later = if answer.status == StatusCode::ACCEPTED && !self.path.is_mcp() {
            match self.later(id, answer).await {
                Ok(handle) => Some(handle),
                Err(message) => {
                    let outcome = answered(id, self.started, OutcomeStatus::Unknown, answer);
                    statement::append(exchange.proxy, Outcome { message: message.clone(), ..outcome });
                    return exchange.refuse(&Refusal::answer(message));
                }
            }
        } else {
            let status = match answer.status {
                status if status.is_success() => OutcomeStatus::Succeeded,
                status if status.is_server_error() => OutcomeStatus::Unknown,
                _ => OutcomeStatus::Failed,
            };
            statement::append(exchange.proxy, answered(id, self.started, status, answer));
            None
        };
        let is_of_objects = self.path.is_of_objects();
        let mut reaction = pass(exchange, self.session, answer, later.as_ref(), is_of_objects).await;
        self.begin_mcp_session(&answer.headers, &mut reaction);
        reaction
    }

    /// Notes that the result of a call comes later, and whose it is.
    async fn later(&self, id: Uuid, answer: &Answer) -> Result<QueryId, String> {
        let handle = accepted_by(self.exchange, answer).map_err(|LeadsElsewhere(key)| withheld(key))?;
        let handle =
            handle.ok_or("Snowfence: Snowflake accepted the request and does not say where its result is")?;
        self.exchange.proxy.sessions.own(handle.clone(), self.session);
        self.exchange.is_about(handle.as_str());
        statement::runs_on(self.exchange.proxy, &handle, id, self.started).await;
        Ok(handle)
    }

    fn begin_mcp_session(&self, answer: &HeaderMap, reaction: &mut Reaction) {
        if self.path.is_mcp()
            && let Some(session) = mcp_session::seal(self.exchange, self.session, answer)
        {
            reaction.headers_mut().insert(mcp_session::HEADER, session);
        }
    }

    /// Passes an answer that comes event by event.
    fn stream(&self, id: Uuid, response: Response<Incoming>) -> Reaction {
        let (sender, body) = Channel::new(WAITING);
        let mut reaction = Response::new(Either::Right(body));
        *reaction.status_mut() = response.status();
        reaction.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
        self.begin_mcp_session(response.headers(), &mut reaction);
        let proxy = Arc::clone(self.exchange.proxy);
        self.exchange.proxy.tasks.spawn(relay(proxy, response.into_body(), sender, id, self.started));
        reaction
    }
}

/// Carries events to the client as they come, and records how it ended.
async fn relay(
    proxy: Arc<Proxy>,
    mut source: Incoming,
    mut client: Sender<Bytes, io::Error>,
    id: Uuid,
    started: Instant,
) {
    let mut response_bytes = 0;
    let (status, message) = loop {
        let frame = match tokio::time::timeout(PATIENCE, source.frame()).await {
            Ok(None) => break (OutcomeStatus::Succeeded, String::new()),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                client.abort(io::Error::other("the answer broke off"));
                break (OutcomeStatus::Unknown, format!("the answer broke off: {error}"));
            }
            Err(_) => {
                client.abort(io::Error::other("no event comes any more"));
                break (OutcomeStatus::Unknown, "no event came any more".to_owned());
            }
        };
        let Ok(piece) = frame.into_data() else { continue };
        response_bytes += piece.len() as u64;
        if client.send_data(piece).await.is_err() {
            break (OutcomeStatus::Unknown, "the client left before the end of the answer".to_owned());
        }
    };
    statement::append(&proxy, Outcome { status, message, response_bytes, ..outcome(id, started) });
}

fn is_a_stream(response: &Response<Incoming>) -> bool {
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    response.status().is_success() && kind.split(';').next().is_some_and(|kind| kind.trim() == EVENTS)
}
