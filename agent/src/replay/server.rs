//! Answers a driver with what was recorded, byte for byte.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::request::Parts;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::answers::{Answers, Change};
use super::asked::Asked;
use super::script::Script;
use super::told::head;
use crate::audit::RecordedSession;
use crate::audit::payload::{Ending, ReadError};
use crate::proxy::{Reaction, inflated, json_answer, plain, refused};
use crate::snowflake::{ClientToken, Operation, Refusal, telemetry_answer};

/// Connections at a time.
const CONNECTIONS: usize = 256;
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request's head may take.
const HEAD_DEADLINE: Duration = Duration::from_mins(5);
/// A request's body, as it comes and inflated.
const REQUEST: usize = 32 << 20;
const PAUSE: Duration = Duration::from_secs(1);

/// A session that answers.
pub struct Server {
    answers: Arc<Answers>,
    script: Mutex<Script>,
    /// The last answers to what is of the session itself, by operation.
    housekeeping: HashMap<&'static str, usize>,
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
            answers: Arc::new(Answers { session, timing }),
            script: Mutex::new(script),
            housekeeping,
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
        match self.answers.give(index, &change, since).await {
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
        let is_the_account =
            host.strip_suffix(":443").unwrap_or(host) == self.answers.session.session.account;
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
        let recorded = &self.answers.session.session;
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::samples;

    #[tokio::test]
    async fn what_no_recording_has_is_answered_for_a_session_of_its_own() {
        let part = ("/snowfence/parts/a", Some(&b""[..]), Ending::Complete);
        let (_directory, session) = samples::recorded(&[part], |_| Vec::new()).await;
        let (server, failed) = Server::new(session, false);
        assert!(failed.is_none());
        assert_eq!(server.requests(), 1);
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
