//! Payloads: requests and answers as clients saw them, with the time of each piece, for replay.
//!
//! A payload is one request and its answer. Its pieces are sealed to the configured public keys and appended to the
//! [spool](spool::Spool) before the client gets what is in them; where they are is recorded in the journal when it ends.

mod archive;
mod entry;
mod frames;
mod lost;
mod reading;
mod seal;
mod segments;
mod shared;
mod spool;

use std::fmt::Write as _;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use self::entry::{Entry, Written};
use self::shared::Fingerprints;
use super::chain::Members;
use super::{AuditError, now};
use crate::config::{self, Files, WhenFull};

pub use archive::{Archive, Archived, Status as ArchiveStatus};
pub use entry::{Place, parse};
pub use frames::{Frame, FrameKind};
pub use lost::lost;
pub use reading::{Content, Identities, Kept, Message, Pieces, ReadError, frames, identities, read};
pub use spool::SpoolError;

/// What is sealed at once.
pub const PIECE: usize = 1 << 20;
/// Smaller pieces are sealed where they come up; larger ones would hold up others there.
const INLINE: usize = 32 * 1024;
/// Of a body, what is so long is a piece of its own, which is written once as long as it comes again.
const SHARED: usize = 32 * 1024;
/// A piece is at most one frame longer than [`PIECE`].
const LONGEST_PIECE: u64 = 4 * PIECE as u64;
/// How often it is looked for segments that are too old.
const CLEANING: Duration = Duration::from_mins(1);
/// How often it is looked for room.
const MAKING_ROOM: Duration = Duration::from_secs(1);

/// Where a payload is: a row of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Payload {
    pub id: Uuid,
    /// [`Session::id`](super::Session).
    pub session: Uuid,
    /// [`Statement::id`](super::Statement); nil for a request that carries none.
    pub statement: Uuid,
    /// Snowflake's identifier of the query that the request is about; empty where there is none.
    pub query_id: String,
    pub time: i64,
    /// Which operation the request is.
    pub operation: String,
    /// Of the content, as the client sent it, inflated.
    pub request_bytes: u64,
    /// Of the content, as the client got it.
    pub answer_bytes: u64,
    /// In the spool; of what was there already, the references to it.
    pub sealed_bytes: u64,
    pub duration_us: u64,
    pub ending: Ending,
    /// The folder of the spool.
    pub run: Uuid,
    pub places: Vec<Place>,
    /// SHA-256 of the digests of all pieces, in their order; hexadecimal.
    pub digest: String,
}

impl Payload {
    /// From its record, wherever that is kept.
    pub(super) fn of(record: &Members) -> Option<Self> {
        let mut members = record.clone();
        let places = serde_json::from_str(members.get("places")?.as_str()?).ok()?;
        members.insert("places".to_owned(), places);
        serde_json::from_value(Value::Object(members.into_iter().collect())).ok()
    }
}

/// How a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The client got all of the answer.
    Complete,
    /// It got all, and more than is kept.
    Truncated,
    /// The answer broke off, or the client left.
    Broken,
    /// The agent ended meanwhile.
    Lost,
}

impl Ending {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Truncated => "truncated",
            Self::Broken => "broken",
            Self::Lost => "lost",
        }
    }
}

/// What a payload is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    pub session: Uuid,
    /// Nil for none.
    pub statement: Uuid,
    /// Snowflake's identifier; empty for none.
    pub query_id: &'a str,
    pub operation: &'a str,
}

/// The agent's payloads, as they are written.
#[derive(Debug)]
pub struct Payloads {
    spool: spool::Spool,
    fingerprints: Fingerprints,
    settings: config::Payloads,
    archive: Mutex<ArchiveStatus>,
}

impl Payloads {
    /// Begins to write below `root`. A thread brings what is written onto the disk and removes what is too old.
    pub fn open(root: &Path, settings: config::Payloads) -> Result<Arc<Self>, AuditError> {
        let spool = spool::Spool::open(root, settings.spool_limit, settings.archive.is_some())?;
        let fingerprints = Fingerprints::new().map_err(unsealable)?;
        let payloads = Arc::new(Self { spool, fingerprints, settings, archive: Mutex::default() });
        let kept = Arc::downgrade(&payloads);
        let thread = thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let (mut cleaned, mut looked): (Option<Instant>, Option<Instant>) = (None, None);
            while let Some(payloads) = kept.upgrade() {
                if let Err(error) = payloads.spool.sync() {
                    tracing::error!(%error, "payloads cannot be brought onto the disk: statements are refused");
                }
                if looked.is_none_or(|looked| looked.elapsed() >= MAKING_ROOM) {
                    looked = Some(Instant::now());
                    let even_the_only_ones = payloads.settings.when_full == WhenFull::RemoveOldest;
                    told(payloads.spool.remove_oldest(even_the_only_ones), "there is no more room");
                }
                if cleaned.is_none_or(|cleaned| cleaned.elapsed() >= CLEANING) {
                    cleaned = Some(Instant::now());
                    payloads.clean();
                }
                drop(payloads);
                thread::sleep(spool::SYNC);
            }
        });
        thread.map_err(|error| AuditError::Thread(Arc::new(error)))?;
        Ok(payloads)
    }

    /// Whether a payload that begins now can be kept.
    pub fn ready(&self) -> Result<(), SpoolError> {
        self.spool.ready()
    }

    /// Whether files of stages are payloads.
    pub fn keeps_files(&self) -> bool {
        self.settings.files == Files::Keep
    }

    /// Bytes in the spool.
    pub fn spooled(&self) -> u64 {
        self.spool.total()
    }

    /// Bytes that were not written since the agent started, as what is in them was in the spool already.
    pub fn deduplicated(&self) -> u64 {
        self.spool.saved()
    }

    /// Bytes that there may be in the spool.
    pub fn room(&self) -> u64 {
        self.settings.spool_limit
    }

    /// How far the archive is, where there is one.
    pub fn archive(&self) -> Option<ArchiveStatus> {
        let status = || self.archive.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.settings.archive.is_some().then(status)
    }

    /// Brings onto the disk what was written.
    pub fn sync(&self) -> Result<(), SpoolError> {
        self.spool.sync()
    }

    /// Begins a payload.
    pub fn begin(self: &Arc<Self>, about: &About<'_>, since: Instant) -> Recording {
        let record = Payload {
            id: Uuid::now_v7(),
            session: about.session,
            statement: about.statement,
            query_id: about.query_id.to_owned(),
            time: now() - i64::try_from(since.elapsed().as_micros()).unwrap_or_default(),
            operation: about.operation.to_owned(),
            request_bytes: 0,
            answer_bytes: 0,
            sealed_bytes: 0,
            duration_us: 0,
            ending: Ending::Complete,
            run: self.spool.run(),
            places: Vec::new(),
            digest: String::new(),
        };
        let digest = Context::new(&SHA256);
        let payloads = Arc::clone(self);
        Recording { payloads, record, since, is_file: false, waiting: Vec::new(), digest }
    }

    fn clean(&self) {
        let Some(before) = SystemTime::now().checked_sub(self.settings.keep) else { return };
        told(self.spool.remove_before(before), "they were kept for long enough");
        if let Err(error) = self.spool.count() {
            tracing::error!(%error, "the room that payloads take cannot be counted");
        }
    }

    fn keep(&self, entry: &Entry, plain: &[u8]) -> Result<Written, SpoolError> {
        let sealed = seal::seal(&self.settings.recipients, plain).map_err(unsealable)?;
        self.spool.append(entry, &sealed)
    }

    /// Keeps a piece by a reference, if the same is there already.
    fn keep_once(&self, entry: &Entry, plain: &[u8]) -> Result<Written, SpoolError> {
        let content = self.fingerprints.of(plain).map_err(unsealable)?;
        if let Some(written) = self.spool.refer(entry, &content)? {
            return Ok(written);
        }
        let written = self.keep(entry, plain)?;
        self.spool.share(content, written);
        Ok(written)
    }
}

fn unsealable(error: io::Error) -> SpoolError {
    SpoolError::Seal(Arc::new(error))
}

/// Says what came of removing payloads.
fn told(removed: Result<usize, SpoolError>, why: &str) {
    match removed {
        Ok(0) => {}
        Ok(segments) => tracing::info!(segments, why, "the oldest payloads were removed"),
        Err(error) => tracing::error!(%error, why, "the oldest payloads cannot be removed"),
    }
}

/// A payload that goes on.
pub struct Recording {
    payloads: Arc<Payloads>,
    record: Payload,
    since: Instant,
    /// The request's body is a file's content: as an answer's is, it may be too long.
    is_file: bool,
    /// Frames that are not kept yet.
    waiting: Vec<u8>,
    digest: Context,
}

impl Recording {
    /// A recording of a file that the client sends.
    #[must_use]
    pub fn of_file(self) -> Self {
        Self { is_file: true, ..self }
    }

    /// Adds what is no body. It is kept once [`Self::keep`] has returned, or as far as it did not fit into a piece.
    pub async fn add(&mut self, kind: FrameKind, content: &[u8]) -> Result<(), SpoolError> {
        let micros = self.elapsed();
        for content in content.chunks(PIECE) {
            self.add_frame(kind, micros, &[content]).await?;
        }
        Ok(())
    }

    /// Adds a part of a body, which came in pieces; kept as with [`Self::add`].
    pub async fn add_body(&mut self, kind: FrameKind, mut content: Vec<Bytes>) -> Result<(), SpoolError> {
        let (bytes, is_limited) = match kind {
            FrameKind::RequestBody => (&mut self.record.request_bytes, self.is_file),
            _ => (&mut self.record.answer_bytes, true),
        };
        let limit = self.payloads.settings.answer_limit.filter(|_| is_limited).unwrap_or(u64::MAX);
        let room = usize::try_from(limit.saturating_sub(*bytes)).unwrap_or(usize::MAX);
        let mut length: usize = content.iter().map(Bytes::len).sum();
        *bytes += length as u64;
        if length > room {
            self.record.ending = Ending::Truncated;
            content = split_to(&mut content, room);
            length = room;
        }
        if length == 0 {
            return Ok(());
        }
        let micros = self.elapsed();
        if length < SHARED {
            return self.add_frame(kind, micros, &content).await;
        }
        self.keep().await?;
        while length > 0 {
            let piece = split_to(&mut content, PIECE);
            let piece_length = length.min(PIECE);
            // Its time stands beside its place, so that equal contents are equal pieces.
            let plain = move || {
                let mut plain = Vec::new();
                frames::write(kind, 0, &piece, &mut plain);
                plain
            };
            self.write(plain, piece_length, Some(micros)).await?;
            length -= piece_length;
        }
        Ok(())
    }

    async fn add_frame(
        &mut self,
        kind: FrameKind,
        micros: u64,
        content: &[impl AsRef<[u8]>],
    ) -> Result<(), SpoolError> {
        frames::write(kind, micros, content, &mut self.waiting);
        if self.waiting.len() >= PIECE { self.keep().await } else { Ok(()) }
    }

    /// Seals and writes what was added.
    pub async fn keep(&mut self) -> Result<(), SpoolError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let plain = std::mem::take(&mut self.waiting);
        let length = plain.len();
        self.write(|| plain, length, None).await
    }

    /// Writes a piece of about this length: as one that may be there already, if it says when it passed.
    async fn write(
        &mut self,
        plain: impl FnOnce() -> Vec<u8> + Send + 'static,
        length: usize,
        micros: Option<u64>,
    ) -> Result<(), SpoolError> {
        let entry = Entry {
            payload: self.record.id,
            session: self.record.session,
            statement: self.record.statement,
            piece: u32::try_from(self.record.places.len()).unwrap_or(u32::MAX),
            time: now(),
        };
        let keep = if micros.is_some() { Payloads::keep_once } else { Payloads::keep };
        let written = if length <= INLINE {
            keep(&self.payloads, &entry, &plain())?
        } else {
            let payloads = Arc::clone(&self.payloads);
            let kept = tokio::task::spawn_blocking(move || keep(&payloads, &entry, &plain())).await;
            kept.map_err(|error| unsealable(error.into()))??
        };
        self.record.sealed_bytes += u64::from(written.bytes);
        self.record.places.push(Place { micros, ..written.place });
        self.digest.update(&written.digest);
        Ok(())
    }

    /// Ends it. The record says where it is.
    pub async fn end(mut self, ending: Ending, reason: &str) -> Result<Payload, SpoolError> {
        if ending != Ending::Complete {
            self.record.ending = ending;
            let said = serde_json::json!({ "reason": reason }).to_string();
            self.add(FrameKind::End, said.as_bytes()).await?;
        }
        self.keep().await?;
        self.record.duration_us = self.elapsed();
        self.record.digest = hexadecimal(self.digest.finish().as_ref());
        Ok(self.record)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Takes the first bytes off what came in pieces.
fn split_to(pieces: &mut Vec<Bytes>, length: usize) -> Vec<Bytes> {
    let mut room = length;
    let whole = pieces.iter().take_while(|piece| {
        let fits = piece.len() <= room;
        room -= if fits { piece.len() } else { 0 };
        fits
    });
    let mut first: Vec<Bytes> = pieces.drain(..whole.count()).collect();
    if let Some(piece) = pieces.first_mut().filter(|_| room > 0) {
        first.push(piece.split_to(room));
    }
    first
}

/// Bytes as text.
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use age::x25519;

    use super::*;
    use crate::audit::Journal;

    /// A body that came at once.
    fn whole(content: &[u8]) -> Vec<Bytes> {
        vec![Bytes::copy_from_slice(content)]
    }

    struct Scene {
        directory: tempfile::TempDir,
        identity: x25519::Identity,
    }

    impl Scene {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), identity: x25519::Identity::generate() }
        }

        fn open(&self, answer_limit: Option<u64>) -> Arc<Payloads> {
            let settings =
                config::Payloads { answer_limit, ..config::Payloads::sample(self.identity.to_public()) };
            Payloads::open(&self.spool(), settings).unwrap()
        }

        fn spool(&self) -> std::path::PathBuf {
            self.directory.path().join("spool")
        }

        fn content(&self, payload: &Payload) -> Content {
            read(&Kept::new(self.spool(), None), payload, &[Box::new(self.identity.clone())], usize::MAX)
                .unwrap()
        }
    }

    #[tokio::test]
    async fn a_payload_of_any_length_comes_back_as_it_was() {
        let kept = Scene::new();
        let payloads = kept.open(None);
        let long: Vec<u8> = (0..3 * PIECE + 7).map(|index| u8::try_from(index % 251).unwrap()).collect();
        for answer in [&b""[..], b"{}", &long] {
            let mut recording = payloads.begin(&About::default(), Instant::now());
            recording.add_body(FrameKind::RequestBody, whole(b"select 1")).await.unwrap();
            for part in answer.chunks(100_000) {
                recording.add_body(FrameKind::AnswerBody, whole(part)).await.unwrap();
            }
            let payload = recording.end(Ending::Complete, "").await.unwrap();
            let content = kept.content(&payload);
            assert_eq!(content.request.body, b"select 1");
            assert!(content.answer.body == *answer, "{} bytes", answer.len());
            let short = read(&Kept::new(kept.spool(), None), &payload, &[Box::new(kept.identity.clone())], 3);
            let short = short.unwrap().answer;
            assert_eq!((short.body.len(), short.length), (answer.len().min(3), answer.len() as u64));
            assert_eq!((payload.request_bytes, payload.answer_bytes), (8, answer.len() as u64));
            assert_eq!(payload.ending, Ending::Complete);
        }
    }

    /// What does not compress.
    pub(super) fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(length).collect()
    }

    #[tokio::test]
    async fn what_comes_again_takes_its_room_once() {
        let kept = Scene::new();
        let payloads = kept.open(None);
        let body = noise(PIECE + SHARED + 1);
        let mut all = Vec::new();
        for session in [Uuid::now_v7(), Uuid::now_v7()] {
            tokio::time::sleep(Duration::from_millis(2)).await;
            let since = Instant::now().checked_sub(Duration::from_secs(all.len() as u64 + 1)).unwrap();
            let mut recording = payloads.begin(&About { session, ..About::default() }, since);
            recording.add(FrameKind::Request, b"{}").await.unwrap();
            recording.add_body(FrameKind::AnswerBody, whole(&body)).await.unwrap();
            recording.add_body(FrameKind::AnswerBody, whole(b"and the end")).await.unwrap();
            all.push(recording.end(Ending::Complete, "").await.unwrap());
        }
        let [first, second] = &all[..] else { unreachable!() };
        assert!(first.sealed_bytes > body.len() as u64, "{}", first.sealed_bytes);
        assert!(second.sealed_bytes < 2000, "{}", second.sealed_bytes);
        let offsets = |payload: &Payload| payload.places.iter().map(|it| it.offset).collect::<Vec<_>>();
        assert_eq!(offsets(first)[1..3], offsets(second)[1..3]);
        assert_ne!(first.digest, second.digest);
        assert!(payloads.deduplicated() >= body.len() as u64, "{}", payloads.deduplicated());
        for (payload, second) in all.iter().zip(1..) {
            let answer = kept.content(payload).answer;
            assert!(answer.body == [&body[..], b"and the end"].concat(), "{} bytes", answer.length);
            let range = second * 1_000_000..(second + 1) * 1_000_000;
            assert!(answer.pieces.iter().all(|(micros, _)| range.contains(micros)), "{:?}", answer.pieces);
        }
        // What another payload has is not taken for this one's.
        let forged = Payload { places: first.places.clone(), ..second.clone() };
        let read = read(&Kept::new(kept.spool(), None), &forged, &[Box::new(kept.identity.clone())], 0);
        assert!(matches!(read, Err(ReadError::Foreign(_))), "{read:?}");
    }

    #[tokio::test]
    async fn what_is_longer_than_the_limit_is_marked() {
        let kept = Scene::new();
        let mut recording = kept.open(Some(10)).begin(&About::default(), Instant::now());
        for part in [&b"first"[..], b"second", b"third"] {
            recording.add_body(FrameKind::AnswerBody, whole(part)).await.unwrap();
        }
        let payload = recording.end(Ending::Complete, "").await.unwrap();
        assert_eq!((payload.ending, payload.answer_bytes), (Ending::Truncated, 16));
        assert_eq!(kept.content(&payload).answer.body, b"firstsecon");
    }

    #[tokio::test]
    async fn what_was_under_way_when_the_agent_died_is_found_once() {
        let kept = Scene::new();
        let path = kept.directory.path().join("journal.db");
        let journal = Journal::open(&path, "node").unwrap();
        let payloads = kept.open(None);
        let session = Uuid::now_v7();
        let mut ended = payloads.begin(&About { session, ..About::default() }, Instant::now());
        let body = noise(SHARED);
        ended.add_body(FrameKind::AnswerBody, whole(&body)).await.unwrap();
        let ended = ended.end(Ending::Complete, "").await.unwrap();
        let shared = ended.places[0];
        journal.append(vec![ended.into()]).await.unwrap();
        let mut cut_off = payloads.begin(&About { session, ..About::default() }, Instant::now());
        cut_off.add_body(FrameKind::AnswerBody, whole(b"one, ")).await.unwrap();
        cut_off.keep().await.unwrap();
        cut_off.add_body(FrameKind::AnswerBody, whole(&body)).await.unwrap();
        cut_off.add_body(FrameKind::AnswerBody, whole(b", two")).await.unwrap();
        cut_off.keep().await.unwrap();
        cut_off.add_body(FrameKind::AnswerBody, whole(b"never kept")).await.unwrap();
        assert!(lost(&kept.spool(), &path).unwrap().0.is_empty(), "its agent lives");
        drop(cut_off);
        drop(payloads);
        // The thread holds it for a moment.
        let found = loop {
            let (found, settle) = lost(&kept.spool(), &path).unwrap();
            if !found.is_empty() {
                journal.append(found.iter().cloned().map(Into::into).collect()).await.unwrap();
                settle();
                break found;
            }
            tokio::time::sleep(spool::SYNC).await;
        };
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].ending, found[0].session), (Ending::Lost, session));
        let places = &found[0].places;
        assert_eq!(
            (places.len(), places[1].offset),
            (3, shared.offset),
            "what it referred to is its own too"
        );
        assert!(found[0].sealed_bytes < 2000, "{}", found[0].sealed_bytes);
        let answer = kept.content(&found[0]).answer;
        assert!(answer.body == [&b"one, "[..], &body, b", two"].concat(), "{} bytes", answer.length);
        assert!(lost(&kept.spool(), &path).unwrap().0.is_empty());
    }
}
