//! Towards Snowflake: connections from sockets that the capture lets pass, TLS verified, answers read with a limit.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use std::{fmt, io};

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use object_store::client::HttpRequestBody;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::Dialer;
use super::mcp_session;
use super::parts::Part;
use super::storage::{self, Opened, StorageError};
use crate::audit::{Recorded, Verdict};
use crate::capture::Names;
use crate::config::Secret;
use crate::snowflake::{Operation, Stage, authorization};
use crate::storage::innermost;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// Snowflake answers within 45 s, if only to say that the statement still runs.
const ANSWER_DEADLINE: Duration = Duration::from_mins(2);
/// The inline part of a result is a few megabytes.
pub const ANSWER_LIMIT: usize = 128 * 1024 * 1024;
const IDLE: Duration = Duration::from_mins(1);
const PORT: u16 = 443;

/// Headers of the client that go on to Snowflake: what it is, and how it wants the answer. No other, as each is a way
/// to say something that was not decided on.
const FORWARDED: [&str; 6] =
    ["accept", "client_app_id", "client_app_version", "mcp-protocol-version", "traceparent", "user-agent"];

/// By which the SQL API is told what kind of bearer token comes.
const TOKEN_TYPE: &str = "x-snowflake-authorization-token-type";
/// By which the REST interfaces are told [`Run`].
const ROLE: &str = "x-snowflake-role";
const WAREHOUSE: &str = "x-snowflake-warehouse";

/// Sends requests to Snowflake.
pub struct Upstream {
    client: Client<Connector, HttpRequestBody>,
}

/// A request as it goes upstream.
pub struct Outgoing<'a> {
    pub account: &'a str,
    pub operation: &'a Operation,
    /// The query string; empty for none.
    pub query: &'a str,
    /// The client's headers, of which a few go on.
    pub headers: &'a HeaderMap,
    /// A login has none.
    pub token: Option<Token<'a>>,
    pub run: Run<'a>,
    /// The session with an MCP server, as the server knows it.
    pub mcp_session: Option<HeaderValue>,
    pub body: Bytes,
}

/// As which role, and on which warehouse, a call of the REST interfaces is to run.
#[derive(Clone, Copy, Default)]
pub struct Run<'a> {
    pub role: Option<&'a str>,
    pub warehouse: Option<&'a str>,
}

/// What tells Snowflake on whose behalf the agent asks.
#[derive(Clone, Copy)]
pub enum Token<'a> {
    /// Of a session of the agent's.
    Session(&'a Secret),
    /// A credential of the agent's itself, and of which kind it is, as the SQL API wants it.
    Bearer(&'a Secret, &'static str),
}

/// Snowflake's answer, whole.
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("Snowflake cannot be reached: {0}")]
    Connect(String),
    #[error(
        "what answers in Snowflake's place is not trusted: {0}. If a gateway on the way inspects TLS, the agent's `tls.upstream_ca_bundle` must hold its root certificate"
    )]
    Untrusted(rustls::Error),
    #[error("the connection to Snowflake broke: {0}")]
    Broken(String),
    #[error("Snowflake did not answer within {} s", ANSWER_DEADLINE.as_secs())]
    Slow,
    #[error("Snowflake's answer is larger than {ANSWER_LIMIT} bytes")]
    TooLarge,
    #[error("the request cannot be sent: {0}")]
    Request(String),
}

impl UpstreamError {
    /// Whether the same request fails again, however often it is sent.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::Untrusted(_) | Self::TooLarge | Self::Request(_))
    }

    /// Whether Snowflake may have seen the request.
    pub fn may_have_arrived(&self) -> bool {
        !matches!(self, Self::Connect(_) | Self::Untrusted(_) | Self::Request(_))
    }
}

impl Upstream {
    pub fn new(dialer: Dialer, names: Arc<Names>, tls: Arc<ClientConfig>) -> Self {
        let connector = Connector { dialer, names, tls };
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .build(connector);
        Self { client }
    }

    /// Forwards a statement. It takes the proof that the statement is recorded, and recorded as allowed.
    pub async fn forward(&self, recorded: Recorded, request: Outgoing<'_>) -> Result<Answer, UpstreamError> {
        allowed(&recorded)?;
        self.send(request).await
    }

    /// Forwards a call of the REST interfaces, whose answer may come bit by bit. It takes the same proof.
    pub async fn call(
        &self,
        recorded: Recorded,
        request: Outgoing<'_>,
    ) -> Result<Response<Incoming>, UpstreamError> {
        allowed(&recorded)?;
        let request = request.into_request()?;
        let response = tokio::time::timeout(ANSWER_DEADLINE, self.client.request(request)).await;
        response.map_err(|_| UpstreamError::Slow)?.map_err(|error| unanswered(&error))
    }

    /// Sends a request that carries no statement: logins, the life of sessions, results of statements that were
    /// forwarded before.
    pub async fn control(&self, request: Outgoing<'_>) -> Result<Answer, UpstreamError> {
        debug_assert!(!request.operation.carries_a_statement(), "a statement goes by `forward`");
        self.send(request).await
    }

    /// Asks the storage behind Snowflake for a part of a result that Snowflake has given.
    pub async fn part(&self, part: &Part, more: HeaderMap) -> Result<Response<Incoming>, UpstreamError> {
        // An address is a secret, so it is in no error.
        let uri: Uri = part
            .url
            .parse()
            .map_err(|_| UpstreamError::Request("the address of a part is invalid".into()))?;
        let mut request = Request::new(HttpRequestBody::empty());
        *request.uri_mut() = uri;
        *request.headers_mut() = part.headers.clone();
        request.headers_mut().extend(more);
        let response = tokio::time::timeout(ANSWER_DEADLINE, self.client.request(request));
        response.await.map_err(|_| UpstreamError::Slow)?.map_err(|error| unanswered(&error))
    }

    /// Opens the storage of a stage.
    pub fn open(&self, stage: &Stage) -> Result<Opened, StorageError> {
        storage::open(&self.client, stage)
    }

    async fn send(&self, outgoing: Outgoing<'_>) -> Result<Answer, UpstreamError> {
        let request = outgoing.into_request()?;
        let exchange = async {
            let response = self.client.request(request).await.map_err(|error| unanswered(&error))?;
            Answer::whole(response).await
        };
        tokio::time::timeout(ANSWER_DEADLINE, exchange).await.map_err(|_| UpstreamError::Slow)?
    }
}

impl Answer {
    /// Reads an answer to its end.
    pub async fn whole(response: Response<Incoming>) -> Result<Self, UpstreamError> {
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_LIMIT).collect();
        let body = tokio::time::timeout(ANSWER_DEADLINE, body).await.map_err(|_| UpstreamError::Slow)?;
        let body = body.map_err(|error| {
            if error.is::<http_body_util::LengthLimitError>() {
                UpstreamError::TooLarge
            } else {
                UpstreamError::Broken(error.to_string())
            }
        })?;
        Ok(Self { status: parts.status, headers: parts.headers, body: body.to_bytes() })
    }
}

/// What of a client's headers goes on.
pub fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut forwarded = HeaderMap::new();
    for (name, value) in headers {
        if FORWARDED.contains(&name.as_str()) {
            forwarded.append(name, value.clone());
        }
    }
    forwarded
}

/// Whether the record says so.
fn allowed(recorded: &Recorded) -> Result<(), UpstreamError> {
    match recorded.verdict() {
        Verdict::Allow => Ok(()),
        Verdict::Deny | Verdict::Hold => Err(UpstreamError::Request("it is not allowed".into())),
    }
}

impl Outgoing<'_> {
    fn into_request(self) -> Result<Request<HttpRequestBody>, UpstreamError> {
        let separator = if self.query.is_empty() { "" } else { "?" };
        let uri = format!("https://{}{}{separator}{}", self.account, self.operation.path(), self.query);
        let uri: Uri =
            uri.parse().map_err(|_| UpstreamError::Request("its query string is invalid".into()))?;
        let encoding = if self.takes_gzip() { "gzip" } else { "identity" };
        let mut request = Request::new(self.body.into());
        *request.headers_mut() = forwarded(self.headers);
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        // The answer is read here, so it comes as it is; partitions are large, and a client of the SQL API may want to
        // have them compressed.
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static(encoding));
        if let Some(token) = self.token {
            let text = match token {
                Token::Session(token) => authorization(token.expose()),
                Token::Bearer(token, _) => format!("Bearer {}", token.expose()),
            };
            let mut value = HeaderValue::try_from(text)
                .map_err(|_| UpstreamError::Request("the agent's token is not a header".into()))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
            if let Token::Bearer(_, kind) = token {
                request.headers_mut().insert(TOKEN_TYPE, HeaderValue::from_static(kind));
            }
        }
        for (name, value) in [(ROLE, self.run.role), (WAREHOUSE, self.run.warehouse)] {
            let Some(value) = value else { continue };
            let value = HeaderValue::try_from(value).map_err(|_| {
                UpstreamError::Request(format!("the rule's value for {name} is not a header"))
            })?;
            request.headers_mut().insert(name, value);
        }
        if let Some(session) = self.mcp_session {
            request.headers_mut().insert(mcp_session::HEADER, session);
        }
        *request.method_mut() = self.operation.method();
        *request.uri_mut() = uri;
        *request.version_mut() = Version::HTTP_11;
        Ok(request)
    }

    fn takes_gzip(&self) -> bool {
        let named =
            self.headers.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
        matches!(self.operation, Operation::ApiResult(_)) && named.contains("gzip")
    }
}

#[derive(Clone)]
pub struct Connector {
    dialer: Dialer,
    names: Arc<Names>,
    tls: Arc<ClientConfig>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<Verified>> {
        let host = uri.host().ok_or_else(|| io::Error::other("no host"))?.to_owned();
        let addresses = self.names.resolve(&host).await.map_err(io::Error::other)?;
        let stream = self.dial_any(&addresses, uri.port_u16().unwrap_or(PORT)).await?;
        let name = host.try_into().map_err(io::Error::other)?;
        let connector = TlsConnector::from(self.tls);
        let stream = tokio::time::timeout(CONNECT_DEADLINE, connector.connect(name, stream))
            .await
            .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no TLS handshake in time"))??;
        Ok(TokioIo::new(Verified(stream)))
    }

    async fn dial_any(&self, addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
        let mut failure = io::Error::other("the name has no address");
        for address in addresses {
            match self.dialer.dial((*address, port).into()).await {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = io::Error::new(error.kind(), format!("{address}: {error}")),
            }
        }
        Err(failure)
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Verified>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection to Snowflake whose certificate was verified.
pub struct Verified(TlsStream<TcpStream>);

impl Connection for Verified {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.0.get_ref().1.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

fn unanswered(error: &hyper_util::client::legacy::Error) -> UpstreamError {
    if let Some(error) = certificate_error(error) {
        return UpstreamError::Untrusted(error);
    }
    let reason = innermost(error);
    if error.is_connect() { UpstreamError::Connect(reason) } else { UpstreamError::Broken(reason) }
}

fn certificate_error(error: &(dyn std::error::Error + 'static)) -> Option<rustls::Error> {
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>()?.get_ref()?.downcast_ref::<rustls::Error>())
        .find(|error| matches!(error, rustls::Error::InvalidCertificate(_)))
        .cloned()
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verified")
    }
}

impl AsyncRead for Verified {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Verified {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
