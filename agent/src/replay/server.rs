//! Answers a driver with what was recorded, byte for byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_rustls::TlsAcceptor;

use super::asked::Asked;
use super::script::Script;
use super::told::head;
use crate::audit::RecordedSession;
use crate::audit::payload::{Ending, FrameKind, ReadError};
use crate::proxy::{Reaction, inflated, json_answer, plain, refused};
use crate::snowflake::{ClientToken, Operation, Refusal, moved, reissued, telemetry_answer};

/// Connections at a time.
const CONNECTIONS: usize = 256;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request's head may take.
const HEAD_DEADLINE: Duration = Duration::from_mins(5);
/// A request's body, as it comes and inflated.
const REQUEST: usize = 32 << 20;
/// An answer in which addresses or tokens are replaced: no longer ones reach a client.
const CHANGED: usize = 160 << 20;
/// What is read ahead of an answer.
const AHEAD: usize = 1 << 20;
/// No honest answer has so many pieces in that.
const PIECES: usize = 1 << 16;
/// Frames that wait for the client.
const WAITING: usize = 2;
const PAUSE: Duration = Duration::from_secs(1);

/// A session that answers.
pub struct Server {
    session: RecordedSession,
    script: Mutex<Script>,
    /// The last answers to what is of the session itself, by operation.
    housekeeping: HashMap<&'static str, usize>,
    /// Answers take the time that they took.
    timing: bool,
    answered: AtomicU64,
    unmatched: AtomicU64,
}

/// What came of it.
#[derive(Debug)]
pub struct Summary {
    pub answered: u64,
    /// Requests that the recording has no answer to.
    pub unmatched: u64,
    /// Recorded requests that nobody has asked, in their order.
    pub never_asked: Vec<String>,
}

/// Why a recorded answer cannot be given.
#[derive(Debug, thiserror::Error)]
enum ReplayError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("it was not answered before the agent ended")]
    NoAnswer,
    #[error("its answer is too long to be changed on its way")]
    TooLong,
}

/// A piece of a recorded answer, and when it passed, in microseconds since the request began.
enum Piece {
    Head(u64, Value),
    Body(u64, Bytes),
}

/// What of an answer cannot be as it was.
enum Change {
    Nothing,
    /// The tokens, which nobody needs any more.
    Tokens,
    /// The address of parts, to a server that is not the account's host.
    Origin(String),
}

impl Server {
    /// Reads all requests of a session. Returns how many of them cannot be read, too.
    pub fn new(session: RecordedSession, timing: bool) -> (Self, Option<(usize, ReadError)>) {
        let (mut script, mut housekeeping, mut failed) = (Script::default(), HashMap::new(), None);
        for (index, payload) in session.payloads.iter().enumerate() {
            let content = match session.request(payload, REQUEST) {
                Ok(content) => content,
                Err(error) => {
                    let before = failed.map_or(0, |(count, _)| count);
                    failed = Some((before + 1, error));
                    continue;
                }
            };
            let (method, path, query) = head(&content.request.head);
            let asked = Asked::of(&method, &path, query.as_deref(), &content.request.body);
            if asked.is_housekeeping()
                && payload.ending == Ending::Complete
                && let Some(operation) = &asked.operation
            {
                housekeeping.insert(operation.name(), index);
            }
            script.add(index, asked);
        }
        let server = Self {
            session,
            script: Mutex::new(script),
            housekeeping,
            timing,
            answered: AtomicU64::new(0),
            unmatched: AtomicU64::new(0),
        };
        (server, failed)
    }

    /// How many requests there are to ask.
    pub fn requests(&self) -> usize {
        self.script().to_come().count()
    }

    /// Answers until it is told to stop.
    pub async fn serve(
        self: &Arc<Self>,
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        stop: impl Future<Output = ()>,
    ) -> Summary {
        let (places, mut connections) = (Arc::new(Semaphore::new(CONNECTIONS)), JoinSet::new());
        tokio::pin!(stop);
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            };
            let (place, accepted) = tokio::select! {
                () = &mut stop => break,
                accepted = accepted => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection cannot be accepted");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let (server, tls) = (Arc::clone(self), tls.clone());
            connections.spawn(async move {
                let _place = place;
                let Some(tls) = tls else { return server.connection(stream, "http").await };
                let accepted = tokio::time::timeout(HANDSHAKE_DEADLINE, TlsAcceptor::from(tls).accept(stream));
                match accepted.await {
                    Ok(Ok(stream)) => server.connection(stream, "https").await,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "a client broke off the TLS handshake: does it trust the replay's CA?");
                    }
                    Err(_) => {}
                }
            });
        }
        connections.shutdown().await;
        let never_asked = self.script().to_come().map(|line| line.shown.clone()).collect();
        Summary {
            answered: self.answered.load(Ordering::Relaxed),
            unmatched: self.unmatched.load(Ordering::Relaxed),
            never_asked,
        }
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
        self: Arc<Self>,
        stream: S,
        scheme: &'static str,
    ) {
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.handle(request, scheme).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE);
        builder.http2().timer(TokioTimer::new());
        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
            tracing::debug!(%error, "a client's connection ended");
        }
    }

    async fn handle(self: &Arc<Self>, request: Request<Incoming>, scheme: &str) -> Reaction {
        let since = Instant::now();
        let (parts, body) = request.into_parts();
        let Ok(body) = Limited::new(body, REQUEST).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "the body did not come whole, or is too long");
        };
        let Ok(body) = inflated(&body.to_bytes(), REQUEST).map(std::borrow::Cow::into_owned) else {
            return plain(StatusCode::BAD_REQUEST, "the body is not valid gzip");
        };
        let asked = Asked::of(&parts.method, parts.uri.path(), parts.uri.query(), &body);
        let found = match &asked.operation {
            Some(operation) if asked.is_housekeeping() => {
                // That it was asked is noted; it is answered whether it was recorded or not.
                self.script().answer(&asked, true);
                let Some(recorded) = self.housekeeping.get(operation.name()) else {
                    self.answered.fetch_add(1, Ordering::Relaxed);
                    return self.own(operation);
                };
                Some(*recorded)
            }
            _ => self.script().answer(&asked, parts.method == Method::GET),
        };
        let Some(index) = found else { return self.unmatched(&asked) };
        let change = match &asked.operation {
            Some(Operation::Login | Operation::Renew) => Change::Tokens,
            Some(Operation::Query | Operation::Result(_)) => {
                self.elsewhere(&parts, scheme).map_or(Change::Nothing, Change::Origin)
            }
            _ => Change::Nothing,
        };
        match self.recorded(index, &change, since).await {
            Ok(reaction) => {
                self.answered.fetch_add(1, Ordering::Relaxed);
                reaction
            }
            Err(error) => {
                self.unmatched.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, asked = ?asked.shown, "a recorded answer cannot be given");
                let refusal = Refusal::answer(format!("Snowfence cannot replay this answer: {error}"));
                refused(asked.operation.as_ref(), &refusal)
            }
        }
    }

    /// Where the client has found this server, if not at the account's own address.
    fn elsewhere(&self, parts: &Parts, scheme: &str) -> Option<String> {
        let host = parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let host = host.or_else(|| parts.uri.authority().map(hyper::http::uri::Authority::as_str))?;
        let is_the_account = host.strip_suffix(":443").unwrap_or(host) == self.session.session.account;
        (scheme != "https" || !is_the_account).then(|| format!("{scheme}://{host}"))
    }

    /// Says no to what was not recorded.
    fn unmatched(&self, asked: &Asked) -> Reaction {
        self.unmatched.fetch_add(1, Ordering::Relaxed);
        let next = self.script().to_come().next().map(|line| line.shown.clone());
        tracing::warn!(asked = ?asked.shown, next = ?next, "not in the recording");
        let next = next.map_or_else(
            || "all that was recorded has been asked".to_owned(),
            |next| format!("what comes next in it is: {next}"),
        );
        let message =
            format!("Snowfence replays a recording, and this is not in it: {}; {next}", asked.shown);
        refused(asked.operation.as_ref(), &Refusal::answer(message))
    }

    /// What is of the session itself and was not recorded.
    fn own(&self, operation: &Operation) -> Reaction {
        let tokens = ClientToken::random().zip(ClientToken::random());
        let Some((session, master)) = tokens else {
            return plain(StatusCode::SERVICE_UNAVAILABLE, "the system gives no random numbers");
        };
        let recorded = &self.session.session;
        let id = recorded.snowflake_session.parse::<u64>().unwrap_or_default();
        let data = match operation {
            Operation::Telemetry | Operation::SessionlessTelemetry => return json_answer(telemetry_answer()),
            Operation::Login => json!({
                "token": session.as_str(), "masterToken": master.as_str(), "sessionId": id,
                "validityInSeconds": 3600, "masterValidityInSeconds": 14400, "displayUserName": recorded.user,
                "parameters": [], "sessionInfo": { "roleName": recorded.role },
            }),
            Operation::Renew => json!({
                "sessionToken": session.as_str(), "masterToken": master.as_str(), "sessionId": id,
                "validityInSecondsST": 3600, "validityInSecondsMT": 14400,
            }),
            _ => Value::Null,
        };
        let body = json!({ "data": data, "code": null, "message": null, "success": true });
        json_answer(body.to_string().into_bytes())
    }

    /// The answer of a payload.
    async fn recorded(
        self: &Arc<Self>,
        index: usize,
        change: &Change,
        since: Instant,
    ) -> Result<Reaction, ReplayError> {
        let payload = self.session.payloads.get(index).ok_or(ReplayError::NoAnswer)?;
        let is_complete = payload.ending == Ending::Complete;
        let mut source = self.read(index);
        let Some(Piece::Head(at, head)) = source.recv().await.transpose()? else {
            return Err(ReplayError::NoAnswer);
        };
        let ahead = if matches!(change, Change::Nothing) { AHEAD } else { CHANGED };
        let (mut pieces, mut length, mut has_ended) = (Vec::new(), 0, false);
        while length <= ahead && pieces.len() < PIECES && !has_ended {
            match source.recv().await.transpose()? {
                Some(Piece::Body(at, bytes)) => {
                    length += bytes.len();
                    pieces.push((at, bytes));
                }
                Some(Piece::Head(..)) => {}
                None => has_ended = true,
            }
        }
        if !has_ended && !matches!(change, Change::Nothing) {
            return Err(ReplayError::TooLong);
        }
        self.wait(since, at).await;
        let at_once = pieces.iter().all(|(piece, _)| Some(piece) == pieces.first().map(|(first, _)| first));
        let mut headers = headers(&head);
        let body = if has_ended && is_complete && (at_once || !self.timing) {
            if let Some((last, _)) = pieces.last() {
                self.wait(since, *last).await;
            }
            let whole = pieces.iter().fold(Vec::with_capacity(length), |mut whole, (_, bytes)| {
                whole.extend_from_slice(bytes);
                whole
            });
            Either::Left(Full::new(change.apply(whole, &self.session.session.account, &mut headers).into()))
        } else {
            let (sender, body) = Channel::new(WAITING);
            tokio::spawn(Arc::clone(self).stream(pieces, source, sender, is_complete, since));
            Either::Right(body)
        };
        let mut reaction = Response::new(body);
        let status = head["status"].as_u64().and_then(|status| u16::try_from(status).ok());
        let status = status.and_then(|status| StatusCode::from_u16(status).ok());
        *reaction.status_mut() = status.ok_or(ReplayError::NoAnswer)?;
        *reaction.headers_mut() = headers;
        Ok(reaction)
    }

    /// Reads an answer piece by piece, as fast as it is taken.
    fn read(self: &Arc<Self>, index: usize) -> mpsc::Receiver<Result<Piece, ReadError>> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let server = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let Some(payload) = server.session.payloads.get(index) else { return };
            let read = server.session.frames(payload, |frame| {
                let piece = match frame.kind {
                    FrameKind::Answer => {
                        Piece::Head(frame.micros, serde_json::from_slice(frame.content).unwrap_or_default())
                    }
                    FrameKind::AnswerBody => Piece::Body(frame.micros, Bytes::copy_from_slice(frame.content)),
                    _ => return ControlFlow::Continue(()),
                };
                match sender.blocking_send(Ok(piece)) {
                    Ok(()) => ControlFlow::Continue(()),
                    // The client has left.
                    Err(_) => ControlFlow::Break(()),
                }
            });
            if let Err(error) = read {
                let _ = sender.blocking_send(Err(error));
            }
        });
        receiver
    }

    /// Sends what was read ahead, and the rest as it is read.
    async fn stream(
        self: Arc<Self>,
        ahead: Vec<(u64, Bytes)>,
        mut source: mpsc::Receiver<Result<Piece, ReadError>>,
        mut client: Sender<Bytes, io::Error>,
        is_complete: bool,
        since: Instant,
    ) {
        let mut ahead = ahead.into_iter();
        loop {
            let next = match ahead.next() {
                Some(piece) => Some(piece),
                None => match source.recv().await {
                    Some(Ok(Piece::Body(at, bytes))) => Some((at, bytes)),
                    Some(Ok(Piece::Head(..))) => continue,
                    Some(Err(error)) => {
                        tracing::error!(%error, "a recorded answer breaks off");
                        return client.abort(io::Error::other("it cannot be read"));
                    }
                    None => None,
                },
            };
            let Some((at, bytes)) = next else { break };
            self.wait(since, at).await;
            if client.send_data(bytes).await.is_err() {
                return;
            }
        }
        if !is_complete {
            client.abort(io::Error::other("here the recorded answer broke off, or what is kept of it ends"));
        }
    }

    /// Waits until it is as late as it was then.
    async fn wait(&self, since: Instant, micros: u64) {
        if self.timing
            && let Some(then) = since.checked_add(Duration::from_micros(micros))
        {
            sleep_until(then).await;
        }
    }
}

impl Change {
    fn apply(&self, body: Vec<u8>, account: &str, headers: &mut HeaderMap) -> Vec<u8> {
        let changed = match self {
            Self::Nothing => None,
            Self::Tokens => {
                let tokens = ClientToken::random().zip(ClientToken::random());
                tokens.and_then(|(session, master)| reissued(&body, &session, &master).ok())
            }
            Self::Origin(origin) => moved(&body, account, origin),
        };
        if changed.is_some() {
            headers.remove(CONTENT_LENGTH);
        }
        changed.unwrap_or(body)
    }
}

fn headers(head: &Value) -> HeaderMap {
    let pairs = head["headers"].as_array().into_iter().flatten();
    let pairs = pairs.filter_map(|pair| {
        let name = HeaderName::from_bytes(pair[0].as_str()?.as_bytes()).ok()?;
        Some((name, HeaderValue::from_str(pair[1].as_str()?).ok()?))
    });
    pairs.fold(HeaderMap::new(), |mut headers, (name, value)| {
        headers.append(name, value);
        headers
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::samples::{self, Exchange};

    /// The recording's files, and what answers with it.
    async fn kept(exchanges: &[Exchange<'_>]) -> (tempfile::TempDir, Arc<Server>) {
        let (directory, session) = samples::recorded(exchanges, |_| Vec::new()).await;
        let (server, failed) = Server::new(session, false);
        assert!(failed.is_none());
        (directory, Arc::new(server))
    }

    #[tokio::test]
    async fn an_answer_is_as_it_was_and_breaks_off_where_it_broke_off() {
        let long: Vec<u8> = (0..3_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let (_directory, server) = kept(&[
            ("/snowfence/parts/a", Some(b"whole"), Ending::Complete),
            ("/snowfence/parts/b", Some(&long), Ending::Complete),
            ("/snowfence/parts/c", Some(b"half"), Ending::Broken),
            ("/snowfence/parts/d", None, Ending::Lost),
        ])
        .await;
        assert_eq!(server.requests(), 4);
        let answer = async |index| server.recorded(index, &Change::Nothing, Instant::now()).await;
        for (index, bytes) in [(0, &b"whole"[..]), (1, &long)] {
            let reaction = answer(index).await.unwrap();
            assert_eq!(reaction.status(), StatusCode::ACCEPTED);
            let values: Vec<_> = reaction.headers().get_all("x-two").iter().collect();
            assert_eq!(values, ["1", "2"]);
            assert!(reaction.into_body().collect().await.unwrap().to_bytes() == bytes, "{index}");
        }
        assert!(answer(2).await.unwrap().into_body().collect().await.is_err(), "it broke off");
        assert!(matches!(answer(3).await, Err(ReplayError::NoAnswer)));
        assert!(matches!(answer(9).await, Err(ReplayError::NoAnswer)));
    }

    #[tokio::test]
    async fn what_no_recording_has_is_answered_for_a_session_of_its_own() {
        let (_directory, server) = kept(&[("/snowfence/parts/a", Some(b""), Ending::Complete)]).await;
        for operation in [Operation::Login, Operation::Renew, Operation::Heartbeat, Operation::Telemetry] {
            let body = server.own(&operation).into_body().collect().await.unwrap().to_bytes();
            let said: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(said["success"], true, "{operation:?}");
            if operation == Operation::Login {
                assert_eq!(
                    (&said["data"]["sessionId"], &said["data"]["sessionInfo"]["roleName"]),
                    (&77.into(), &"ANALYST".into())
                );
            }
        }
    }
}
