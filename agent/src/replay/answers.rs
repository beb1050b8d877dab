//! Recorded answers, as they are given once more.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{Either, Full};
use hyper::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::audit::RecordedSession;
use crate::audit::payload::{Ending, FrameKind, ReadError};
use crate::proxy::Reaction;
use crate::snowflake::{ClientToken, moved, reissued};

/// An answer in which addresses or tokens are replaced: no longer ones reach a client.
const CHANGED: usize = 160 << 20;
/// What is read ahead of an answer.
const AHEAD: usize = 1 << 20;
/// No honest answer has so many pieces in that.
const PIECES: usize = 1 << 16;
/// Frames that wait for the client.
const WAITING: usize = 2;

/// The answers of a session.
pub struct Answers {
    pub session: RecordedSession,
    /// They take the time that they took.
    pub timing: bool,
}

/// Why a recorded answer cannot be given.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
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
pub enum Change {
    Nothing,
    /// The tokens, which nobody needs any more.
    Tokens,
    /// The address of parts, to a server that is not the account's host.
    Origin(String),
}

impl Answers {
    /// The answer of a payload.
    pub async fn give(
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
        let answers = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let Some(payload) = answers.session.payloads.get(index) else { return };
            let read = answers.session.frames(payload, |frame| {
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
    use http_body_util::BodyExt;

    use super::*;
    use crate::replay::samples;

    #[tokio::test]
    async fn an_answer_is_as_it_was_and_breaks_off_where_it_broke_off() {
        let long: Vec<u8> = (0..3_000_000_u32).map(|index| u8::try_from(index % 251).unwrap()).collect();
        let (_directory, session) = samples::recorded(
            &[
                ("/snowfence/parts/a", Some(b"whole"), Ending::Complete),
                ("/snowfence/parts/b", Some(&long), Ending::Complete),
                ("/snowfence/parts/c", Some(b"half"), Ending::Broken),
                ("/snowfence/parts/d", None, Ending::Lost),
            ],
            |_| Vec::new(),
        )
        .await;
        let answers = Arc::new(Answers { session, timing: false });
        let answer = async |index| answers.give(index, &Change::Nothing, Instant::now()).await;
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
}
