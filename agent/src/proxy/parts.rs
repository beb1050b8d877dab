//! The parts of a result that lie in the storage behind Snowflake: fetched by the agent, for whom Snowflake gave them to.
//!
//! The client gets a name for each part and a lease for all of them. Both are sealed with the vault's key, so that they
//! say what is needed to fetch the part, to the agent alone, also after a restart; and a lease is good for the workload
//! that it was given to, the account, and as long as Snowflake's own addresses are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use bytes::{Bytes, BytesMut};
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use hyper::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH,
    RANGE,
};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::Proxy;
use super::body::GZIP;
use super::lease::{Bound, LeaseError};
use super::service::{Exchange, Reaction, plain};
use super::sessions::Session;
use super::upstream::UpstreamError;
use crate::audit::EventKind;
use crate::capture::Workload;
use crate::snowflake::{InParts, LEASE, Malformed};

/// How often a part is taken up again where it broke off.
const RETRIES: u32 = 4;
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Between two pieces of a part.
const PATIENCE: Duration = Duration::from_mins(1);
/// Pieces that wait for the client; each is some tens of kilobytes.
const WAITING: usize = 2;
/// What Python's connector does not try again, unlike 400 and 403, which it tries for ever.
const REFUSED: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;

/// Who may fetch the parts of one result, and what the storage wants to be told.
#[derive(Serialize, Deserialize)]
struct Lease {
    bound: Bound,
    query: String,
    headers: BTreeMap<String, String>,
}

/// A part, as the storage knows it.
pub struct Part {
    pub url: String,
    pub headers: HeaderMap,
    query: String,
}

impl Part {
    /// A part of a result that the agent itself has asked for.
    pub fn new(url: String, headers: HeaderMap) -> Self {
        Self { url, headers, query: String::new() }
    }
}

/// An answer whose result is in parts, for the client.
pub fn lease(
    exchange: &Exchange<'_>,
    session: &Session,
    query: &str,
    answer: &[u8],
) -> Result<Vec<u8>, Malformed> {
    let answer = InParts::parse(answer)?;
    let vault = exchange.proxy.sessions.vault();
    let lease = Lease {
        bound: Bound::new(exchange, session),
        query: query.to_owned(),
        headers: answer.headers().clone(),
    };
    let lease = serde_json::to_vec(&lease).ok().and_then(|lease| vault.seal("lease", lease).ok());
    let lease = lease.ok_or(Malformed::Field(LEASE))?;
    answer.for_client(exchange.account(), &lease, |url| {
        vault.seal(&part_of(&lease), url.as_bytes().to_vec()).ok()
    })
}

/// Fetches a part for the client.
pub async fn fetch(exchange: &Exchange<'_>, name: &str) -> Reaction {
    let part = match open(exchange, name) {
        Ok(part) => part,
        Err(error) => {
            exchange.event(EventKind::SessionRefused, None, error.to_string()).await;
            return plain(REFUSED, &error.to_string());
        }
    };
    let response = match exchange.proxy.upstream.part(&part, HeaderMap::new()).await {
        Ok(response) => response,
        Err(error) => return exchange.failed(&error).await,
    };
    if response.status() != StatusCode::OK {
        // What the storage says of it may repeat what it was asked with.
        let detail = format!("the storage behind Snowflake answers HTTP {}", response.status().as_u16());
        exchange.event(EventKind::UpstreamFailed, None, detail.clone()).await;
        let is_error = response.status().is_client_error() || response.status().is_server_error();
        return plain(if is_error { response.status() } else { StatusCode::BAD_GATEWAY }, &detail);
    }
    let mut relay = Relay {
        proxy: Arc::clone(exchange.proxy),
        workload: exchange.peer.flow.workload.clone(),
        account: exchange.account().to_owned(),
        part,
        length: length(response.headers()),
        etag: response.headers().get(ETAG).cloned(),
        position: 0,
    };
    let encoding = response.headers().get(CONTENT_ENCODING).cloned();
    let mut source = response.into_body();
    let first = match relay.first(&mut source).await {
        Ok(first) => first,
        Err(error) => return exchange.failed(&error).await,
    };
    // Where the bytes are gzip, some drivers must be told, and others find out.
    let encoding = encoding.or_else(|| first.starts_with(&GZIP).then(|| HeaderValue::from_static("gzip")));
    let (sender, body) = Channel::new(WAITING);
    let mut reaction = Response::new(Either::Right(body));
    let headers = reaction.headers_mut();
    // Not JSON: one driver would parse it.
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("binary/octet-stream"));
    if let Some(encoding) = encoding {
        headers.insert(CONTENT_ENCODING, encoding);
    }
    if let Some(length) = relay.length {
        headers.insert(CONTENT_LENGTH, length.into());
    }
    exchange.proxy.tasks.spawn(relay.run(first, source, sender));
    reaction
}

fn open(exchange: &Exchange<'_>, name: &str) -> Result<Part, LeaseError> {
    let vault = exchange.proxy.sessions.vault();
    let sealed = exchange.parts.headers.get(LEASE).ok_or(LeaseError::Missing)?;
    let sealed = sealed.to_str().map_err(|_| LeaseError::Unknown)?;
    let lease = vault.open_sealed("lease", sealed).ok_or(LeaseError::Unknown)?;
    let lease: Lease = serde_json::from_slice(&lease).map_err(|_| LeaseError::Unknown)?;
    lease.bound.check(exchange)?;
    exchange.is_on(lease.bound.session);
    exchange.is_about(&lease.query);
    let url = vault.open_sealed(&part_of(sealed), name).ok_or(LeaseError::Unknown)?;
    let url = String::from_utf8(url.to_vec()).map_err(|_| LeaseError::Unknown)?;
    let mut headers = HeaderMap::new();
    for (name, value) in &lease.headers {
        let name = name.parse::<hyper::header::HeaderName>().map_err(|_| LeaseError::Unknown)?;
        let mut value = HeaderValue::from_str(value).map_err(|_| LeaseError::Unknown)?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(Part { url, headers, query: lease.query })
}

/// What a part's name is sealed for: one lease.
fn part_of(lease: &str) -> String {
    format!("part of {lease}")
}

/// Carries a part from the storage to the client.
struct Relay {
    proxy: Arc<Proxy>,
    workload: Workload,
    account: String,
    part: Part,
    /// In bytes, if the storage said it.
    length: Option<u64>,
    /// What tells this version of the part from another.
    etag: Option<HeaderValue>,
    /// Bytes that have come.
    position: u64,
}

/// Why no more comes.
enum Stopped {
    /// The client is gone.
    Client,
    Storage(UpstreamError),
}

impl Relay {
    /// The first bytes, of which there are two at least if there are so many.
    async fn first(&mut self, source: &mut Incoming) -> Result<Bytes, UpstreamError> {
        let mut first = BytesMut::new();
        while first.len() < 2
            && let Some(piece) = self.next(source).await?
        {
            first.extend_from_slice(&piece);
        }
        Ok(first.freeze())
    }

    async fn next(&mut self, source: &mut Incoming) -> Result<Option<Bytes>, UpstreamError> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, source.frame()).await;
            let Some(frame) = frame.map_err(|_| broken("it sends nothing any more"))? else {
                return Ok(None);
            };
            // Trailers say nothing that anybody needs.
            if let Ok(piece) = frame.map_err(|error| broken(&error))?.into_data() {
                self.position += piece.len() as u64;
                return Ok(Some(piece));
            }
        }
    }

    async fn run(mut self, first: Bytes, mut source: Incoming, mut client: Sender<Bytes, io::Error>) {
        if client.send_data(first).await.is_err() {
            return;
        }
        let mut retries = RETRIES;
        loop {
            let mut error = match self.relay(&mut source, &mut client).await {
                Ok(()) | Err(Stopped::Client) => return,
                Err(Stopped::Storage(error)) => error,
            };
            source = loop {
                if retries == 0 {
                    // An end without the end: no driver takes half a part for a whole one.
                    client.abort(io::Error::other("the part broke off"));
                    return self.tell(&error).await;
                }
                retries -= 1;
                match self.resume(error).await {
                    Ok(more) => break more,
                    Err(next) => error = next,
                }
            };
        }
    }

    async fn tell(&self, error: &UpstreamError) {
        let detail = format!("a part of the result of query {}: {error}", self.part.query);
        let (kind, workload) = (EventKind::UpstreamFailed, Some(&self.workload));
        self.proxy.event(kind, workload, None, &self.account, detail).await;
    }

    async fn relay(
        &mut self,
        source: &mut Incoming,
        client: &mut Sender<Bytes, io::Error>,
    ) -> Result<(), Stopped> {
        while let Some(piece) = self.next(source).await.map_err(Stopped::Storage)? {
            client.send_data(piece).await.map_err(|_| Stopped::Client)?;
        }
        match self.length {
            Some(length) if self.position != length => Err(Stopped::Storage(broken("it ended early"))),
            _ => Ok(()),
        }
    }

    /// Asks for the rest of the part.
    async fn resume(&mut self, error: UpstreamError) -> Result<Incoming, UpstreamError> {
        let (Some(_), Some(etag)) = (self.length, &self.etag) else { return Err(error) };
        tracing::debug!(query = self.part.query, position = self.position, %error, "a part broke off: asking for its rest");
        tokio::time::sleep(RETRY_PAUSE).await;
        let mut headers = HeaderMap::new();
        let range =
            HeaderValue::from_str(&format!("bytes={}-", self.position)).map_err(|_| broken("no range"))?;
        headers.insert(RANGE, range);
        headers.insert(IF_MATCH, etag.clone());
        let response = self.proxy.upstream.part(&self.part, headers).await?;
        let begins = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
        let expected = format!("bytes {}-", self.position);
        if response.status() != StatusCode::PARTIAL_CONTENT
            || !begins.is_some_and(|it| it.starts_with(&expected))
        {
            return Err(broken(&format!(
                "asked for its rest, it answers HTTP {}",
                response.status().as_u16()
            )));
        }
        Ok(response.into_body())
    }
}

fn broken(reason: &(impl fmt::Display + ?Sized)) -> UpstreamError {
    UpstreamError::Broken(reason.to_string())
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
