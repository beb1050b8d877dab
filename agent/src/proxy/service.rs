//! One request: which operation it is, whose session it is on, and who handles it.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::channel::Channel;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, USER_AGENT};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::body::{self, Body, BodyError};
use super::connection::Peer;
use super::payload::Noted;
use super::sessions::{OpenSession, Session, SessionError, TokenKind, UpstreamTokens};
use super::upstream::{Answer, Outgoing, Run, Token, UpstreamError};
use super::{Proxy, approvals, files, login, parts, rest, sql_api, statement};
use crate::audit::{self, EventKind};
use crate::config::Telemetry;
use crate::snowflake::{
    KnownQuery, Leads, Malformed, Operation, QueryId, QueryRequest, Refusal, Renewal, Reply, aborted_request,
    classify, renewal_body, snowflake_token, telemetry_answer, telemetry_body,
};

/// An answer for the client, whole or as it comes.
pub type Reaction = Response<Either<Full<Bytes>, Channel<Bytes, io::Error>>>;

/// A request of a client, with what every handler needs.
pub struct Exchange<'a> {
    pub proxy: &'a Arc<Proxy>,
    pub peer: &'a Peer,
    pub operation: Operation,
    pub query: KnownQuery,
    pub parts: Parts,
    /// Cancelled when the client has gone.
    pub gone: CancellationToken,
    /// Where it is noted what the request is, if it is kept.
    pub noted: Option<&'a Noted>,
}

/// Handles one request.
pub async fn handle(
    proxy: &Arc<Proxy>,
    peer: &Peer,
    request: Request<Incoming>,
    gone: CancellationToken,
) -> Reaction {
    let (parts, mut body) = request.into_parts();
    let noted = Noted::new(proxy, &parts);
    let reaction = react(proxy, peer, (parts, &mut body), gone, noted.as_ref()).await;
    // What was not read, because nobody needs it or the request is refused: by HTTP/2, a client that is cut off while it
    // sends may not see the answer.
    body::skip(&mut body).await;
    match noted {
        Some(noted) => noted.answered(proxy, peer, reaction).await,
        None => reaction,
    }
}

async fn react(
    proxy: &Arc<Proxy>,
    peer: &Peer,
    (parts, body): (Parts, &mut Incoming),
    gone: CancellationToken,
    noted: Option<&Noted>,
) -> Reaction {
    if !names_the_server(&parts, &peer.server_name) {
        let detail = "the Host of a request differs from the server name of the connection".to_owned();
        proxy
            .event(EventKind::HostMismatch, Some(&peer.flow.workload), None, &peer.server_name, detail)
            .await;
        return plain(
            StatusCode::MISDIRECTED_REQUEST,
            "the Host of the request is not the name of the connection",
        );
    }
    let operation = match classify(&parts.method, parts.uri.path(), parts.uri.query()) {
        Ok(operation) => operation,
        Err(unknown) => {
            let detail = unknown.to_string();
            proxy
                .event(
                    EventKind::UnknownOperation,
                    Some(&peer.flow.workload),
                    None,
                    &peer.server_name,
                    detail.clone(),
                )
                .await;
            let Some(method) = unknown.takes else { return plain(StatusCode::NOT_FOUND, &detail) };
            // What a client of an MCP server takes for "there is no such stream", and goes on without.
            let mut reaction = plain(StatusCode::METHOD_NOT_ALLOWED, &detail);
            reaction.headers_mut().insert(ALLOW, HeaderValue::from_static(method));
            return reaction;
        }
    };
    let operation = proxy.sessions.resolve(operation);
    let query = KnownQuery::parse(&operation, parts.uri.query());
    if let Some(noted) = noted {
        // Nobody else tells it.
        let _ = noted.operation.set(operation.name());
    }
    let mut exchange = Exchange { proxy, peer, operation, query: KnownQuery::default(), parts, gone, noted };
    match query {
        Ok(query) => exchange.query = query,
        Err(error) => return exchange.malformed(&error.to_string()).await,
    }
    match &exchange.operation {
        Operation::Login => login::login(exchange, body).await,
        Operation::Part(name) => parts::fetch(&exchange, name).await,
        Operation::Upload(name) => files::upload(&exchange, name, body).await,
        Operation::FileHead(name) => files::head(&exchange, name).await,
        Operation::Download(name) => files::download(&exchange, name).await,
        Operation::Renew => renew(exchange, body).await,
        Operation::Telemetry if proxy.config.telemetry == Telemetry::Forward => {
            in_session(exchange, body).await
        }
        // The token is the client's own, which goes nowhere.
        Operation::Telemetry | Operation::SessionlessTelemetry => match proxy.config.telemetry {
            Telemetry::Refuse => plain(StatusCode::NOT_FOUND, "telemetry is refused here"),
            Telemetry::Answer | Telemetry::Forward => json_answer(telemetry_answer()),
        },
        Operation::Query
        | Operation::Heartbeat
        | Operation::CloseSession
        | Operation::Abort
        | Operation::Result(_)
        | Operation::AbortQuery(_)
        | Operation::Monitor(_) => in_session(exchange, body).await,
        Operation::ApiStatement | Operation::ApiResult(_) | Operation::ApiCancel(_) => {
            sql_api::handle(&exchange, body).await
        }
        Operation::Rest(call) => rest::handle(&exchange, call, body).await,
        Operation::RestResult(handle) => rest::result(&exchange, handle).await,
    }
}

/// What needs a session.
async fn in_session(exchange: Exchange<'_>, body: &mut Incoming) -> Reaction {
    let open = match exchange.session(TokenKind::Session).await {
        Ok(open) => open,
        Err(refusal) => return refusal,
    };
    let session = &open.session;
    let (sessions, held) = (&exchange.proxy.sessions, &exchange.proxy.approvals);
    if let Some(held) = held.of_query(session, &exchange.operation) {
        match &exchange.operation {
            Operation::Result(_) => {
                let tokens = open.upstream();
                return approvals::poll(&exchange, session, held, Token::Session(&tokens.session)).await;
            }
            Operation::AbortQuery(_) if let Some(cancelled) = approvals::cancel(&exchange, held).await => {
                return cancelled;
            }
            _ => {}
        }
    }
    if let Operation::Result(query) | Operation::AbortQuery(query) | Operation::Monitor(query) =
        &exchange.operation
    {
        exchange.is_about(query.as_str());
    }
    // What the client sends along is read only where it says something, and then only that goes on.
    let body = match &exchange.operation {
        Operation::Query => {
            let body = match exchange.read(body, body::QUERY).await {
                Ok(body) => body,
                Err(error) => return exchange.unreadable(&error).await,
            };
            return match QueryRequest::parse(&body.bytes) {
                Ok(request) => {
                    let tokens = open.upstream();
                    statement::run(&exchange, session, request, Token::Session(&tokens.session)).await
                }
                Err(error) => exchange.malformed(&error.to_string()).await,
            };
        }
        Operation::Telemetry => match exchange.read(body, body::OTHER).await {
            Ok(body) => match telemetry_body(&body.bytes) {
                Ok(body) => body.into(),
                Err(error) => return exchange.malformed(&error.to_string()).await,
            },
            Err(error) => return exchange.unreadable(&error).await,
        },
        Operation::Abort => {
            let body = match exchange.read(body, body::QUERY).await {
                Ok(body) => body,
                Err(error) => return exchange.unreadable(&error).await,
            };
            match aborted_request(&body.bytes) {
                Ok(request)
                    if let Some(held) = held.of_request(session, &Operation::Query, &request)
                        && let Some(cancelled) = approvals::cancel(&exchange, held).await =>
                {
                    return cancelled;
                }
                Ok(request) if sessions.owns_request(session, &request) => {
                    json!({ "requestId": request }).to_string().into()
                }
                Ok(request) => return exchange.not_the_owner(session, &request).await,
                Err(error) => return exchange.malformed(&error.to_string()).await,
            }
        }
        Operation::Result(query) | Operation::AbortQuery(query) | Operation::Monitor(query)
            if !sessions.owns(session, query) =>
        {
            return exchange.not_the_owner(session, query.as_str()).await;
        }
        Operation::Result(_) | Operation::Monitor(_) => Bytes::new(),
        _ => Bytes::from_static(b"{}"),
    };
    if exchange.operation == Operation::CloseSession {
        exchange.proxy.end_held(session).await;
    }
    let tokens = open.upstream();
    let outgoing = exchange.outgoing(Some(Token::Session(&tokens.session)), body);
    let answer = exchange.proxy.upstream.control(outgoing).await;
    if exchange.operation == Operation::CloseSession {
        sessions.close(session);
        exchange.event(EventKind::SessionClosed, Some(session), format!("session {}", session.id)).await;
    }
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return exchange.failed(&error).await,
    };
    let reply = Reply::parse(&answer.body);
    match (&exchange.operation, &reply) {
        (Operation::Result(query), Ok(reply)) => {
            statement::finish(exchange.proxy, session, query, &answer, reply);
        }
        (Operation::Monitor(query), _) => statement::observe(exchange.proxy, query, &answer),
        _ => {}
    }
    match &exchange.operation {
        Operation::Result(_) => exchange.pass_result(session, &answer, reply).await,
        _ => exchange.pass(&answer, reply).await,
    }
}

async fn renew(exchange: Exchange<'_>, body: &mut Incoming) -> Reaction {
    let open = match exchange.session(TokenKind::Master).await {
        Ok(open) => open,
        Err(refusal) => return refusal,
    };
    let tokens = open.upstream();
    let body = match exchange.read(body, body::OTHER).await {
        Ok(body) => body,
        Err(error) => return exchange.unreadable(&error).await,
    };
    let body = match renewal_body(&body.bytes, &tokens.session) {
        Ok(body) => body,
        Err(error) => return exchange.malformed(&error.to_string()).await,
    };
    let outgoing = exchange.outgoing(Some(Token::Session(&tokens.master)), body.into());
    let answer = match exchange.proxy.upstream.control(outgoing).await {
        Ok(answer) => answer,
        Err(error) => return exchange.failed(&error).await,
    };
    match Renewal::parse(&answer.body) {
        Ok(Some(renewal)) => {
            let upstream = UpstreamTokens {
                session: renewal.session_token().clone(),
                master: renewal.master_token().clone(),
            };
            match exchange.proxy.sessions.renew(&open, upstream) {
                Ok(client) => json_answer(renewal.for_client(&client.session, &client.master)),
                Err(error) => exchange.malformed(&error.to_string()).await,
            }
        }
        // Snowflake refused; its answer says why.
        _ => exchange.pass(&answer, Reply::parse(&answer.body)).await,
    }
}

impl Exchange<'_> {
    /// The account of the connection.
    pub fn account(&self) -> &str {
        &self.peer.server_name
    }

    /// That the account is one of the configured ones; why not, otherwise.
    pub fn configured(&self) -> Result<(), String> {
        if self.proxy.config.accounts.iter().any(|account| account.host == self.account()) {
            return Ok(());
        }
        Err(format!("the account {} is not one of the configured accounts", self.account()))
    }

    /// What the client says it is.
    pub fn user_agent(&self) -> String {
        let agent = self.parts.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        agent.unwrap_or_default().chars().take(200).collect()
    }

    pub async fn event(&self, kind: EventKind, session: Option<&Session>, detail: String) {
        let caller = session.map(|session| session.principal.caller());
        self.proxy.event(kind, Some(&self.peer.flow.workload), caller, self.account(), detail).await;
    }

    /// The session of the request's token, or the refusal.
    pub async fn session(&self, kind: TokenKind) -> Result<Arc<OpenSession>, Reaction> {
        let header = self.parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = header.and_then(snowflake_token);
        let find = || self.proxy.sessions.find(token, kind, &self.peer.flow.workload, self.account());
        let mut found = find();
        if matches!(found, Err(SessionError::Unknown)) && self.proxy.sessions.look_again(&self.proxy.identity)
        {
            found = find();
        }
        match found {
            Ok(session) => {
                self.is_on(session.session.id);
                Ok(session)
            }
            Err(error) => {
                self.event(EventKind::SessionRefused, None, error.to_string()).await;
                let refusal = match kind {
                    TokenKind::Session => Refusal::session(),
                    TokenKind::Master => Refusal::master_token(),
                };
                Err(self.refuse(&refusal))
            }
        }
    }

    /// Notes whose session a request is on.
    pub fn is_on(&self, session: Uuid) {
        if let Some(noted) = self.noted {
            // The first to be told of is the one.
            let _ = noted.session.set(session);
        }
    }

    /// Notes which statement a request carries.
    pub fn is_statement(&self, statement: Uuid) {
        if let Some(noted) = self.noted {
            // Each request carries one.
            let _ = noted.statement.set(statement);
        }
    }

    /// Notes which query a request is about.
    pub fn is_about(&self, query: &str) {
        if let Some(noted) = self.noted {
            // The first to be told of is the one.
            let _ = noted.query.set(query.to_owned());
        }
    }

    /// Reads the request's body, out of the workload's share of memory.
    pub async fn read(&self, body: &mut Incoming, limit: usize) -> Result<Body, BodyError> {
        let body = body::read(&self.parts.headers, body, limit, &self.peer.share).await?;
        // Those carry the client's token, and nothing that is asked for.
        if let Some(noted) = self.noted
            && !matches!(self.operation, Operation::Login | Operation::Renew)
        {
            let _ = noted.body.set(body.bytes.clone());
        }
        Ok(body)
    }

    /// The request as it goes upstream.
    pub fn outgoing<'b>(&'b self, token: Option<Token<'b>>, body: Bytes) -> Outgoing<'b> {
        Outgoing {
            account: self.account(),
            operation: &self.operation,
            query: &self.query.text,
            headers: &self.parts.headers,
            token,
            run: Run::default(),
            mcp_session: None,
            body,
        }
    }

    /// Says no, as the clients of the operation understand it.
    pub fn refuse(&self, refusal: &Refusal) -> Reaction {
        refused(Some(&self.operation), refusal)
    }

    /// Reads the answer to a statement.
    pub fn read_answer(&self, answer: &Answer) -> Result<Reply, Malformed> {
        if self.operation.is_of_api() { sql_api::read(answer) } else { Reply::parse(&answer.body) }
    }

    /// Passes an answer of Snowflake's to the client, unless what was read of it says that it carries a secret.
    pub async fn pass(&self, answer: &Answer, reply: Result<Reply, Malformed>) -> Reaction {
        match reply {
            Ok(Reply { secret: None, leads: None, .. }) => with_status(answer.status, answer.body.clone()),
            Ok(Reply { secret: None, leads: Some(Leads::ToParts), .. }) => {
                self.refuse(&Refusal::answer(withheld("chunks")))
            }
            Ok(Reply { secret: None, .. }) => self.refuse(&Refusal::answer(withheld("stageInfo"))),
            Ok(Reply { secret: Some(key), .. }) => self.refuse(&Refusal::answer(withheld(&key))),
            Err(error) => {
                let status = answer.status;
                let detail = format!("the answer (HTTP {}) is not Snowflake's: {error}", status.as_u16());
                self.event(EventKind::UpstreamFailed, None, detail.clone()).await;
                self.unusable(status, &detail)
            }
        }
    }

    /// The agent's answer in the place of an error page: one that the driver tries again after where that may help, else
    /// one that it raises at once. Some try again for ever after 307, 400 or 403.
    fn unusable(&self, status: StatusCode, detail: &str) -> Reaction {
        if status.is_success() {
            return plain(StatusCode::BAD_GATEWAY, detail);
        }
        if status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        {
            return plain(status, detail);
        }
        let hint = if status.is_redirection() {
            ". It leads elsewhere, where Snowfence does not follow: name the account by the host where it is now"
        } else {
            ""
        };
        let message = format!("Snowfence: {detail}{hint}");
        self.refuse(&match self.operation {
            Operation::Login => Refusal::login(message),
            _ => Refusal::answer(message),
        })
    }

    /// Passes the answer to a statement, or its result, of which the client may fetch the parts.
    pub async fn pass_result(
        &self,
        session: &Session,
        answer: &Answer,
        reply: Result<Reply, Malformed>,
    ) -> Reaction {
        if self.operation.is_of_api() {
            return sql_api::pass(self, session, answer, reply).await;
        }
        let Ok(Reply { leads: Some(Leads::ToParts), secret: None, query_id, .. }) = &reply else {
            return self.pass(answer, reply).await;
        };
        let query = query_id.as_ref().map_or("", QueryId::as_str);
        match parts::lease(self, session, query, &answer.body) {
            Ok(body) => with_status(answer.status, body.into()),
            Err(error) => {
                let detail = format!("the result of query {query} is in parts that cannot be read: {error}");
                self.event(EventKind::UpstreamFailed, Some(session), detail).await;
                self.refuse(&Refusal::answer(withheld("chunks")))
            }
        }
    }

    /// Passes the answer to a `PUT` or `GET`, whose files go by the agent.
    pub async fn pass_transfer(
        &self,
        session: &Session,
        statement: uuid::Uuid,
        local: &str,
        answer: &Answer,
        reply: Result<Reply, Malformed>,
    ) -> Reaction {
        let Ok(Reply { leads: Some(Leads::ToStage), secret: None, query_id, .. }) = &reply else {
            return self.pass(answer, reply).await;
        };
        let query = query_id.as_ref().map_or("", QueryId::as_str);
        match files::lease(self, session, statement, query, local, &answer.body) {
            Ok(body) => with_status(answer.status, body.into()),
            Err(error) => {
                let detail = format!("the answer to the file transfer {query} is not relayed: {error}");
                self.event(EventKind::TransferFailed, Some(session), detail).await;
                self.refuse(&Refusal::answer(format!("Snowfence cannot relay this file transfer: {error}")))
            }
        }
    }

    /// Snowflake did not answer.
    pub async fn failed(&self, error: &UpstreamError) -> Reaction {
        self.event(EventKind::UpstreamFailed, None, error.to_string()).await;
        if error.is_final() {
            return self.refuse(&Refusal::answer(format!("Snowfence: {error}")));
        }
        plain(StatusCode::SERVICE_UNAVAILABLE, &error.to_string())
    }

    /// The request cannot be understood.
    pub async fn malformed(&self, reason: &str) -> Reaction {
        self.event(EventKind::MalformedRequest, None, reason.to_owned()).await;
        self.refuse(&Refusal::request(format!("Snowfence refused this request: {reason}")))
    }

    /// The request's body cannot be read.
    pub async fn unreadable(&self, error: &BodyError) -> Reaction {
        let kind = match error {
            BodyError::TooLarge(_) => EventKind::RequestTooLarge,
            BodyError::Busy => EventKind::ShareUsedUp,
            _ => EventKind::MalformedRequest,
        };
        self.event(kind, None, error.to_string()).await;
        match error {
            // Drivers come again by themselves.
            BodyError::Busy => plain(StatusCode::SERVICE_UNAVAILABLE, &error.to_string()),
            _ => self.refuse(&Refusal::request(format!("Snowfence refused this request: {error}"))),
        }
    }

    pub async fn not_the_owner(&self, session: &Session, query: &str) -> Reaction {
        let detail = format!("query {query} is not this caller's");
        self.event(EventKind::SessionRefused, Some(session), detail).await;
        let message = "Snowfence does not know this query as one of this caller's. One that was held for a person when the agent ended has to be asked again, unless the trail says that it may have run";
        self.refuse(&Refusal::query(message.to_owned()))
    }
}

/// Why an answer does not reach the client.
pub fn withheld(key: &str) -> String {
    format!(
        "Snowfence withheld Snowflake's answer: it carries `{key}`, a secret or the way to storage outside the account's host"
    )
}

/// A refusal, as the clients of an operation understand it; of an unknown one, as whoever speaks HTTP does.
pub fn refused(operation: Option<&Operation>, refusal: &Refusal) -> Reaction {
    match operation {
        None => plain(StatusCode::NOT_FOUND, &refusal.message),
        Some(operation) if operation.is_of_rest() => {
            with_status(refusal.status, refusal.body_of_rest().into())
        }
        // What is said with status 200 would be taken for the part.
        Some(Operation::Part(_)) => plain(refusal.status, &refusal.message),
        Some(operation) if operation.is_of_api() => {
            with_status(refusal.status, refusal.body_of_api(audit::now() / 1000).into())
        }
        Some(_) => json_answer(refusal.body()),
    }
}

pub fn json_answer(body: Vec<u8>) -> Reaction {
    with_status(StatusCode::OK, body.into())
}

/// An error of HTTP, in the envelope that drivers expect.
pub fn plain(status: StatusCode, message: &str) -> Reaction {
    let code = format!("{:06}", status.as_u16());
    let body =
        json!({ "data": null, "code": code, "message": format!("Snowfence: {message}"), "success": false });
    with_status(status, body.to_string().into())
}

pub fn with_status(status: StatusCode, body: Bytes) -> Reaction {
    let mut response = Response::new(Either::Left(Full::new(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Whether everything in a request that names a host names the server of the connection.
fn names_the_server(parts: &Parts, server_name: &str) -> bool {
    let hosts = parts.headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or(""));
    let mut names = hosts.chain(parts.uri.authority().map(hyper::http::uri::Authority::as_str)).peekable();
    names.peek().is_some()
        && names.all(|name| {
            let name = name.strip_suffix(":443").unwrap_or(name);
            name.trim_end_matches('.').eq_ignore_ascii_case(server_name)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(uri: &str, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().uri(uri);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn every_name_in_a_request_is_the_connections() {
        let name = "acme.snowflakecomputing.com";
        assert!(names_the_server(&parts("/", &[name]), name));
        assert!(names_the_server(&parts("/", &["ACME.snowflakecomputing.com:443"]), name));
        assert!(names_the_server(&parts("https://acme.snowflakecomputing.com/", &[]), name));
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["other.snowflakecomputing.com"]),
            ("/", &[name, "other.snowflakecomputing.com"]),
            ("https://other.snowflakecomputing.com/", &[name]),
            ("/", &["acme.snowflakecomputing.com:8443"]),
            ("/", &["user@acme.snowflakecomputing.com"]),
        ] {
            assert!(!names_the_server(&parts(uri, hosts), name), "{uri} {hosts:?}");
        }
    }
}
