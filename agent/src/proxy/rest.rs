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
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use uuid::Uuid;

use super::service::{Exchange, Reaction, json_answer, with_status, withheld};
use super::sessions::Session;
use super::statement::{self, Asked, outcome};
use super::upstream::{Answer, Outgoing, Run, Token};
use super::{Proxy, body, sql_api};
use crate::audit::{EventKind, Outcome, OutcomeStatus};
use crate::config::Secret;
use crate::policy::Decision;
use crate::snowflake::{Ask, McpRequest, Object, Refusal, RestCall, secret_of_objects};
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

impl Call<'_> {
    async fn ask(&self, body: Bytes) -> Reaction {
        if !body.is_empty()
            && let Err(error) = Object::parse(&body)
        {
            return self.exchange.malformed(&error.to_string()).await;
        }
        let text = self.text(&body);
        let classification = self.path.classification();
        let asked = Asked { text: &text, describe_only: false, binds: 0 };
        let decision = statement::decide(self.exchange, self.session, &asked, &classification);
        match self.forward(&asked, &classification, &decision, body).await {
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
            Ask::Tool(_) => (text.as_str(), self.path.classification(), ""),
        };
        let classification = self.by_a_tool(classification, &request.ask);
        let asked = Asked { text, describe_only: false, binds: 0 };
        let decision = statement::judge(self.exchange, self.session, &asked, sql, &classification);
        match self.forward(&asked, &classification, &decision, forwarded.into()).await {
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
    ) -> Result<Reaction, Refusal> {
        let (exchange, started) = (self.exchange, self.started);
        let (recorded, id) =
            statement::admit(exchange, self.session, asked, classification, decision, started).await?;
        let rule = self.session.principal.rule();
        let (secret, kind) = &self.credential;
        let outgoing = Outgoing {
            run: Run { role: rule.role.as_deref(), warehouse: rule.warehouse.as_deref() },
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

    /// Passes an answer that came whole.
    async fn pass(&self, id: Uuid, answer: &Answer) -> Reaction {
        let exchange = self.exchange;
        let said = Object::parse(&answer.body).unwrap_or_default();
        let text = |key| said.field::<String>(key).unwrap_or_default();
        let (code, message) =
            if answer.status.is_success() { Default::default() } else { (text("code"), text("message")) };
        let status = match answer.status {
            status if status.is_success() => OutcomeStatus::Succeeded,
            status if status.is_server_error() => OutcomeStatus::Unknown,
            _ => OutcomeStatus::Failed,
        };
        let outcome = Outcome {
            status,
            code: code.clone(),
            message: message.clone(),
            response_bytes: answer.body.len() as u64,
            ..outcome(id, self.started)
        };
        statement::append(exchange.proxy, outcome);
        if answer.status == StatusCode::UNAUTHORIZED {
            return sql_api::credential_refused(exchange, self.session, &code, &message).await;
        }
        match secret_of_objects(&answer.body) {
            Ok(Some(key)) if self.path.is_of_objects() => exchange.refuse(&Refusal::answer(withheld(&key))),
            Ok(_) => {
                let mut reaction = with_status(answer.status, answer.body.clone());
                if let Some(after) = answer.headers.get(RETRY_AFTER) {
                    reaction.headers_mut().insert(RETRY_AFTER, after.clone());
                }
                reaction
            }
            Err(error) => exchange.pass(answer, Err(error)).await,
        }
    }

    /// Passes an answer that comes event by event.
    fn stream(&self, id: Uuid, response: Response<Incoming>) -> Reaction {
        let (sender, body) = Channel::new(WAITING);
        let mut reaction = Response::new(Either::Right(body));
        *reaction.status_mut() = response.status();
        reaction.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(EVENTS));
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
