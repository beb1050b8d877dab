//! Requests and their answers, kept as payloads where the configuration asks for it: each piece is in the spool before
//! the client gets it, and what cannot be kept is not passed on.

use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Collected, Either, Full};
use hyper::body::Frame as Piece;
use hyper::header::CONTENT_LENGTH;
use hyper::http::request::Parts;
use hyper::{HeaderMap, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc};
use uuid::Uuid;

use super::Proxy;
use super::connection::Peer;
use super::service::{Reaction, plain};
use crate::audit::EventKind;
use crate::audit::payload::{About, Ending, FrameKind, PIECE, Payload, Payloads, Recording, SpoolError};
use crate::snowflake::LEASE;

/// How long a piece waits for what comes right after it, to be sealed together.
const GATHER: Duration = Duration::from_millis(5);
/// The same for an answer whose length is known: who awaits it awaits its end.
const GATHER_BLOCK: Duration = Duration::from_millis(100);
/// Where an answer comes fast, its pieces end at multiples of this, so that the same answer has the same pieces again.
const BLOCK: usize = PIECE / 2;
/// Pieces that wait for the client.
const WAITING: usize = 2;
/// What is worthless without its workload, and yet nothing to keep: the client's tokens.
const LEFT_OUT: [&str; 4] = ["authorization", "cookie", "mcp-session-id", LEASE];

/// A request whose answer is awaited, with what its handler tells of it.
pub struct Noted {
    payloads: Arc<Payloads>,
    since: Instant,
    head: String,
    pub session: OnceLock<Uuid>,
    pub statement: OnceLock<Uuid>,
    pub operation: OnceLock<&'static str>,
    /// Snowflake's identifier.
    pub query: OnceLock<String>,
    pub body: OnceLock<Bytes>,
    /// A file that the client sends, and that is kept as it comes.
    file: Mutex<Option<Recording>>,
}

impl Noted {
    /// Begins with a request; `None` where nothing is kept.
    pub fn new(proxy: &Proxy, parts: &Parts) -> Option<Self> {
        let payloads = Arc::clone(proxy.payloads.as_ref()?);
        let head = json!({
            "method": parts.method.as_str(), "target": parts.uri.path_and_query().map_or("", |target| target.as_str()),
            "headers": headers(&parts.headers),
        });
        Some(Self {
            payloads,
            since: Instant::now(),
            head: head.to_string(),
            session: OnceLock::new(),
            statement: OnceLock::new(),
            operation: OnceLock::new(),
            query: OnceLock::new(),
            body: OnceLock::new(),
            file: Mutex::default(),
        })
    }

    /// Whether files are kept, and this one can be.
    pub fn keeps_file(&self) -> Result<bool, SpoolError> {
        let keeps = self.payloads.keeps_files();
        if keeps {
            self.payloads.ready()?;
        }
        Ok(keeps)
    }

    /// Keeps a piece of a file that the client sends.
    pub async fn take(&self, piece: Bytes) -> Result<(), SpoolError> {
        let mut file = self.file.lock().await;
        let recording = match &mut *file {
            Some(recording) => recording,
            none => none.insert(self.begin().await?.of_file()),
        };
        recording.add_body(FrameKind::RequestBody, vec![piece]).await?;
        recording.keep().await
    }

    /// Begins the payload, once it is told whose it is.
    async fn begin(&self) -> Result<Recording, SpoolError> {
        let about = About {
            session: self.session.get().copied().unwrap_or_default(),
            statement: self.statement.get().copied().unwrap_or_default(),
            query_id: self.query.get().map_or("", String::as_str),
            operation: self.operation.get().copied().unwrap_or_default(),
        };
        let mut recording = self.payloads.begin(&about, self.since);
        recording.add(FrameKind::Request, self.head.as_bytes()).await?;
        Ok(recording)
    }

    /// Keeps the request and what comes of it. What belongs to no session is not kept: it reached nothing.
    pub async fn answered(self, proxy: &Arc<Proxy>, peer: &Peer, reaction: Reaction) -> Reaction {
        if self.session.get().is_none() {
            return reaction;
        }
        let (head, body) = reaction.into_parts();
        let answer = json!({ "status": head.status.as_u16(), "headers": headers(&head.headers) }).to_string();
        let kept = async {
            let file = self.file.lock().await.take();
            let mut recording = match file {
                Some(recording) => recording,
                None => self.begin().await?,
            };
            recording
                .add_body(FrameKind::RequestBody, self.body.get().cloned().into_iter().collect())
                .await?;
            recording.add(FrameKind::Answer, answer.as_bytes()).await?;
            match body {
                Either::Left(whole) => {
                    // It is there already, so nothing fails.
                    let whole = whole.collect().await.map(Collected::to_bytes).unwrap_or_default();
                    recording.add_body(FrameKind::AnswerBody, vec![whole.clone()]).await?;
                    note(proxy, recording.end(Ending::Complete, "").await?);
                    Ok::<_, SpoolError>(Either::Left(Full::new(whole)))
                }
                Either::Right(source) => {
                    recording.keep().await?;
                    let has_length = head.headers.contains_key(CONTENT_LENGTH);
                    let source = Source::new(source, if has_length { GATHER_BLOCK } else { GATHER });
                    let (sender, body) = Channel::new(WAITING);
                    let proxy = Arc::clone(proxy);
                    let (workload, account) = (peer.flow.workload.clone(), peer.server_name.clone());
                    proxy.tasks.clone().spawn(async move {
                        if let Err(error) = relay(&proxy, source, sender, recording).await {
                            let (kind, detail) = (EventKind::PayloadNotKept, error.to_string());
                            proxy.event(kind, Some(&workload), None, &account, detail).await;
                        }
                    });
                    Ok(Either::Right(body))
                }
            }
        };
        match kept.await {
            Ok(body) => Response::from_parts(head, body),
            Err(error) => {
                let (workload, kind) = (&peer.flow.workload, EventKind::PayloadNotKept);
                proxy.event(kind, Some(workload), None, &peer.server_name, error.to_string()).await;
                plain(StatusCode::SERVICE_UNAVAILABLE, &unkept(&error))
            }
        }
    }
}

/// What a client is told when payloads cannot be kept.
pub fn unkept(error: &SpoolError) -> String {
    tracing::error!(%error, "a payload cannot be kept");
    "Snowfence cannot keep what is asked and answered at the moment, and what is not kept is not let through: try again later"
        .to_owned()
}

/// What came of an answer within a moment.
struct Part {
    pieces: Vec<Bytes>,
    /// How the answer ended, if it did.
    end: Option<Result<(), io::Error>>,
}

/// Carries an answer to the client as it comes. While one part of it is kept, the next is read and the one before is sent.
async fn relay(
    proxy: &Arc<Proxy>,
    source: Source,
    client: Sender<Bytes, io::Error>,
    mut recording: Recording,
) -> Result<(), SpoolError> {
    let (read_parts, parts) = mpsc::channel(1);
    let (kept_parts, to_send) = mpsc::channel(1);
    let keeping = async {
        tokio::select! {
            last = keep(&mut recording, parts, kept_parts) => last,
            never = read(source, read_parts) => match never {},
        }
    };
    let (last, client) = tokio::join!(keeping, send_all(client, to_send));
    let not_kept = |client: Option<Sender<Bytes, io::Error>>, error| {
        if let Some(client) = client {
            client.abort(io::Error::other("the answer cannot be kept"));
        }
        Err(error)
    };
    let Part { pieces, end } = match last {
        Ok(last) => last,
        Err(error) => return not_kept(client, error),
    };
    let (Some(end), Some(mut client)) = (end, client) else {
        note(proxy, recording.end(Ending::Broken, "the client left").await?);
        return Ok(());
    };
    let (ending, reason) = match &end {
        Ok(()) => (Ending::Complete, String::new()),
        Err(error) => (Ending::Broken, error.to_string()),
    };
    match recording.end(ending, &reason).await {
        Ok(payload) => note(proxy, payload),
        Err(error) => return not_kept(Some(client), error),
    }
    // Its end is the end of the answer; that the client is gone changes nothing any more.
    send(&mut client, pieces).await;
    if let Err(error) = end {
        client.abort(error);
    }
    Ok(())
}

/// Reads an answer part by part, one ahead of what is kept.
async fn read(mut source: Source, parts: mpsc::Sender<Part>) -> Infallible {
    while let Ok(place) = parts.reserve().await {
        let part = source.part().await;
        let is_last = part.end.is_some();
        place.send(part);
        if is_last {
            break;
        }
    }
    pending().await
}

/// Keeps what is read and hands it on, but for the last part, which is added and returned. A part without an end: the
/// client has left.
async fn keep(
    recording: &mut Recording,
    mut parts: mpsc::Receiver<Part>,
    kept_parts: mpsc::Sender<Vec<Bytes>>,
) -> Result<Part, SpoolError> {
    while let Some(Part { pieces, end }) = parts.recv().await {
        recording.add_body(FrameKind::AnswerBody, pieces.clone()).await?;
        if end.is_some() {
            return Ok(Part { pieces, end });
        }
        recording.keep().await?;
        if kept_parts.send(pieces).await.is_err() {
            break;
        }
    }
    Ok(Part { pieces: Vec::new(), end: None })
}

/// Where an answer comes from.
struct Source {
    channel: Channel<Bytes, io::Error>,
    patience: Duration,
    /// What came beyond the end of a block.
    rest: Option<Bytes>,
    /// Of what the parts until now had, in its block.
    offset: usize,
}

impl Source {
    fn new(channel: Channel<Bytes, io::Error>, patience: Duration) -> Self {
        Self { channel, patience, rest: None, offset: 0 }
    }

    /// What comes within a moment, up to the end of the block.
    async fn part(&mut self) -> Part {
        let mut pieces = Vec::new();
        let mut deadline = None;
        while self.offset < BLOCK {
            let next = match (self.rest.take(), deadline) {
                (Some(rest), _) => Some(Ok(Piece::data(rest))),
                (None, None) => self.channel.frame().await,
                (None, Some(deadline)) => {
                    match tokio::time::timeout_at(deadline, self.channel.frame()).await {
                        Ok(next) => next,
                        Err(_) => return Part { pieces, end: None },
                    }
                }
            };
            match next.map(|frame| frame.map(Piece::into_data)) {
                None => return Part { pieces, end: Some(Ok(())) },
                Some(Err(error)) => return Part { pieces, end: Some(Err(error)) },
                Some(Ok(Ok(mut piece))) => {
                    let room = BLOCK - self.offset;
                    if piece.len() > room {
                        self.rest = Some(piece.split_off(room));
                    }
                    self.offset += piece.len();
                    pieces.push(piece);
                }
                // The agent sends no trailers.
                Some(Ok(Err(_))) => {}
            }
            deadline.get_or_insert_with(|| tokio::time::Instant::now() + self.patience);
        }
        self.offset = 0;
        Part { pieces, end: None }
    }
}

/// Sends what was kept; `None` if the client does not take all of it.
async fn send_all(
    mut client: Sender<Bytes, io::Error>,
    mut kept_parts: mpsc::Receiver<Vec<Bytes>>,
) -> Option<Sender<Bytes, io::Error>> {
    while let Some(pieces) = kept_parts.recv().await {
        if !send(&mut client, pieces).await {
            return None;
        }
    }
    Some(client)
}

/// Whether the client takes it.
async fn send(client: &mut Sender<Bytes, io::Error>, pieces: Vec<Bytes>) -> bool {
    for piece in pieces {
        if client.send_data(piece).await.is_err() {
            return false;
        }
    }
    true
}

/// Records where a payload is. The client need not wait for it: after a crash the spool says so itself.
fn note(proxy: &Arc<Proxy>, payload: Payload) {
    let journal = proxy.journal.clone();
    proxy.tasks.spawn(async move {
        if let Err(error) = journal.append(vec![payload.into()]).await {
            tracing::error!(%error, "where a payload is could not be recorded: the next start finds it");
        }
    });
}

fn headers(headers: &HeaderMap) -> Vec<(String, Value)> {
    headers
        .iter()
        .filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()))
        .map(|(name, value)| (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect()
}
