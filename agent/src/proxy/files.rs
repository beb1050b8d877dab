//! The files of a stage: moved between the client, who knows of a stage at the account's own host, and the storage where
//! Snowflake keeps it. What is moved is recorded before the storage, or the client, has all of it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body_util::channel::{Channel, Sender};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderValue};
use hyper::{HeaderMap, Response, StatusCode};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetResult, MultipartUpload, PutMode, PutMultipartOptions, PutOptions,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::lease::{Bound, LeaseError};
use super::payload::Noted;
use super::service::{Exchange, Reaction, plain};
use super::sessions::Session;
use super::storage::{Opened, StorageError};
use super::{Proxy, workload};
use crate::audit::payload::{SpoolError, hexadecimal};
use crate::audit::{Caller, Event, EventKind};
use crate::snowflake::{Access, Direction, Metadata, Stage, Transfer, TransferError};

/// A file is written in pieces of this size; storage wants five mebibytes at least.
const PIECE: usize = 8 * 1024 * 1024;
/// Between two frames of a file.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long an upload waits for its turn.
const TURN: Duration = Duration::from_secs(30);
/// Frames of a file that wait for the client.
const WAITING: usize = 2;
/// What no driver tries again by itself.
const REFUSED: StatusCode = StatusCode::UNPROCESSABLE_ENTITY;
/// What seals the right to a stage, and to one file of it: to get, or to put.
const STAGE: &str = "stage";
const FILE: &str = "file";
const NEW_FILE: &str = "new file";

/// Who may move files to or from a stage.
#[derive(Serialize, Deserialize)]
struct Lease {
    bound: Bound,
    caller: Caller,
    statement: Uuid,
    query: String,
    stage: Stage,
    /// The one file that it is for, below the stage; an upload by token may be of any that lies in the stage itself.
    file: Option<String>,
    /// Whether that file must not be there yet.
    #[serde(default)]
    only_new: bool,
}

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error(transparent)]
    Lease(#[from] LeaseError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the file's name is none that can be relayed: {0}")]
    Name(#[from] object_store::path::Error),
    #[error("{0}")]
    Metadata(#[from] crate::snowflake::UnreadableEncryption),
    #[error("the file broke off on its way from the client")]
    BrokenOff,
    #[error("this workload moves too many files at once: try again")]
    Busy,
    #[error("it cannot be recorded at the moment, and what is not recorded is not let through")]
    Unrecorded,
}

/// The answer to a `PUT` or `GET`, for the client. `local` is what the statement said of local files.
pub fn lease(
    exchange: &Exchange<'_>,
    session: &Session,
    statement: Uuid,
    query: &str,
    local: &str,
    answer: &[u8],
) -> Result<Vec<u8>, TransferError> {
    let transfer = Transfer::parse(answer, local)?;
    let seal = |purpose, file| -> Option<String> {
        let lease = Lease {
            bound: Bound::new(exchange, session),
            caller: session.principal.caller().clone(),
            statement,
            query: query.to_owned(),
            stage: transfer.stage.clone(),
            only_new: purpose == NEW_FILE && !transfer.overwrites,
            file,
        };
        exchange.proxy.sessions.vault().seal(purpose, serde_json::to_vec(&lease).ok()?).ok()
    };
    let access = match transfer.direction {
        Direction::Upload if Access::is_by_address(&exchange.user_agent()) => match transfer.names.first() {
            Some(name) => seal(NEW_FILE, Some(name.clone())).map(|name| Access::Address(Some(name))),
            None => Some(Access::Address(None)),
        },
        Direction::Upload => seal(STAGE, None).map(Access::Token),
        Direction::Download => transfer
            .names
            .iter()
            .map(|name| seal(FILE, Some(name.clone())))
            .collect::<Option<_>>()
            .map(Access::Addresses),
    };
    let access = access.ok_or(TransferError::Sealing)?;
    Ok(transfer.for_client(exchange.account(), &access))
}

/// Takes a file from the client.
pub async fn upload(exchange: &Exchange<'_>, name: &str, body: &mut Incoming) -> Reaction {
    match store(exchange, name, body).await {
        Ok(()) => {
            let mut done = Response::new(Either::Left(Full::default()));
            done.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            done
        }
        Err(error) => exchange.not_moved(name, &error).await,
    }
}

/// Tells the client of a file that it wants to put, if it is there already, or to get: then the name is a sealed one.
pub async fn head(exchange: &Exchange<'_>, name: &str) -> Reaction {
    let asked_for = if exchange.parts.headers.contains_key(AUTHORIZATION) {
        to_upload(exchange, name)
    } else {
        to_download(exchange, name)
    };
    let looked_for = async {
        let (lease, path, store) = asked_for?;
        let found = store.get(&path, true).await?;
        Ok::<_, FileError>((lease, found))
    };
    match looked_for.await {
        Ok((lease, found)) => described(&lease.stage, &found, Either::Left(Full::default())),
        // Nothing that anybody need hear of.
        Err(FileError::Storage(StorageError::NotFound)) => {
            plain(StatusCode::NOT_FOUND, "there is no such file")
        }
        Err(error) => exchange.not_moved(name, &error).await,
    }
}

/// Gives the client a file.
pub async fn download(exchange: &Exchange<'_>, sealed: &str) -> Reaction {
    let asked_for = async {
        let (lease, path, store) = to_download(exchange, sealed)?;
        let found = store.get(&path, false).await?;
        Ok::<_, FileError>((lease, path, store, found))
    };
    let (lease, path, store, found) = match asked_for.await {
        Ok(found) => found,
        Err(error) => return exchange.not_moved("a file", &error).await,
    };
    let (sender, body) = Channel::new(WAITING);
    let reaction = described(&lease.stage, &found, Either::Right(body));
    let moved = Moved::new(exchange, EventKind::FileDownloaded, &lease, &path);
    // Whoever keeps answers keeps this one, once it is told whose it is.
    if let Err(error) = keeps(exchange, &lease) {
        return exchange.not_moved("a file", &error).await;
    }
    let size = found.meta.size;
    exchange.proxy.tasks.spawn(relay(moved, store, size, found.into_stream(), sender));
    reaction
}

/// Where the content of the file is kept, if it is.
fn keeps<'e>(exchange: &'e Exchange<'_>, lease: &Lease) -> Result<Option<&'e Noted>, FileError> {
    let Some(noted) = exchange.noted else { return Ok(None) };
    if !noted.keeps_file().map_err(|error| unkept(&error))? {
        return Ok(None);
    }
    exchange.is_on(lease.bound.session);
    exchange.is_about(&lease.query);
    let _ = noted.statement.set(lease.statement);
    Ok(Some(noted))
}

fn unkept(error: &SpoolError) -> FileError {
    tracing::error!(%error, "a file cannot be kept");
    FileError::Unrecorded
}

/// The file that a sealed name stands for.
fn to_download(exchange: &Exchange<'_>, sealed: &str) -> Result<(Lease, Path, Opened), FileError> {
    located(exchange, open(exchange, FILE, sealed)?, "")
}

/// The file that an upload is of: the one that a sealed name stands for, or one of a stage, to which there is a token.
fn to_upload(exchange: &Exchange<'_>, name: &str) -> Result<(Lease, Path, Opened), FileError> {
    let lease = match exchange.parts.headers.get(AUTHORIZATION) {
        None => open(exchange, NEW_FILE, name)?,
        Some(header) => {
            let token = header.to_str().ok().and_then(|header| header.split_once(' '));
            let (scheme, token) = token.ok_or(LeaseError::Missing)?;
            if !scheme.eq_ignore_ascii_case("bearer") {
                return Err(LeaseError::Missing.into());
            }
            open(exchange, STAGE, token)?
        }
    };
    located(exchange, lease, name)
}

/// Where the file of a lease is: the one that it is for, or else that of a name in its stage.
fn located(exchange: &Exchange<'_>, lease: Lease, name: &str) -> Result<(Lease, Path, Opened), FileError> {
    let store = exchange.proxy.upstream.open(&lease.stage)?;
    let path = path(&lease.stage, lease.file.as_deref().unwrap_or(name))?;
    Ok((lease, path, store))
}

fn open(exchange: &Exchange<'_>, purpose: &str, sealed: &str) -> Result<Lease, LeaseError> {
    let vault = exchange.proxy.sessions.vault();
    let lease = vault.open_sealed(purpose, sealed).ok_or(LeaseError::Unknown)?;
    let lease: Lease = serde_json::from_slice(&lease).map_err(|_| LeaseError::Unknown)?;
    lease.bound.check(exchange)?;
    Ok(lease)
}

/// Where a file of a stage lies.
fn path(stage: &Stage, name: &str) -> Result<Path, object_store::path::Error> {
    Path::parse(format!("{}{}", stage.prefix, name.strip_prefix('/').unwrap_or(name)))
}

/// Writes a file: in one request if it is small, else in pieces, of which the storage makes a file when all are there.
async fn store(exchange: &Exchange<'_>, name: &str, body: &mut Incoming) -> Result<(), FileError> {
    let (lease, path, store) = to_upload(exchange, name)?;
    let metadata = Metadata::of_client(&exchange.parts.headers);
    let attributes: Attributes = metadata
        .for_storage(&lease.stage.storage)?
        .into_iter()
        .map(|(name, value)| (Attribute::Metadata(name.into()), value))
        .collect();
    let only_new = lease.only_new || only_new(&exchange.parts.headers);
    let turn = tokio::time::timeout(TURN, exchange.peer.share.upload()).await;
    let kept = keeps(exchange, &lease)?;
    let _turn = turn.ok().flatten().ok_or(FileError::Busy)?;
    let mut moved = Moved::new(exchange, EventKind::FileUploaded, &lease, &path);
    moved.digest_of_client = metadata.digest;
    let mut pieces: Option<Box<dyn MultipartUpload>> = None;
    let written = async {
        loop {
            let (piece, is_last) = piece(body).await?;
            moved.take(&piece);
            if let Some(kept) = kept {
                kept.take(piece.clone()).await.map_err(|error| unkept(&error))?;
            }
            if is_last && pieces.is_none() {
                moved.record().await?;
                let mode = if only_new { PutMode::Create } else { PutMode::Overwrite };
                let options = PutOptions { attributes, mode, ..PutOptions::default() };
                store.put(&path, piece.into(), options).await?;
                return Ok(());
            }
            let pieces = if let Some(pieces) = &mut pieces {
                pieces
            } else {
                // Of a file in pieces no storage says whether it is new until it is done.
                if only_new && store.get(&path, true).await.is_ok() {
                    return Err(StorageError::Exists.into());
                }
                let attributes = attributes.clone();
                let options = PutMultipartOptions { attributes, ..PutMultipartOptions::default() };
                pieces.insert(store.begin(&path, options).await?)
            };
            if !piece.is_empty() {
                pieces.put_part(piece.into()).await.map_err(|error| store.explain(&error))?;
            }
            if is_last {
                moved.record().await?;
                pieces.complete().await.map_err(|error| store.explain(&error))?;
                return Ok(());
            }
        }
    };
    let written: Result<(), FileError> = written.await;
    if written.is_err()
        && let Some(mut pieces) = pieces
        && let Err(error) = pieces.abort().await
    {
        // The storage removes the pieces of what was never finished by itself.
        tracing::debug!(error = %store.explain(&error), "the pieces of a file that broke off stay for now");
    }
    written
}

/// Whether a file is to be written only where there is none: as HTTP says it, or as Google's storage does.
fn only_new(headers: &HeaderMap) -> bool {
    let is =
        |name: &str, value: &str| headers.get(name).is_some_and(|given| given.as_bytes() == value.as_bytes());
    is("if-none-match", "*") || is("x-goog-if-generation-match", "0")
}

/// The next piece of a body, and whether it is the last.
async fn piece(body: &mut Incoming) -> Result<(Bytes, bool), FileError> {
    let mut piece = BytesMut::new();
    while piece.len() < PIECE {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.map_err(|_| FileError::BrokenOff)?;
        let Some(frame) = frame else { return Ok((piece.freeze(), true)) };
        if let Ok(data) = frame.map_err(|_| FileError::BrokenOff)?.into_data() {
            piece.extend_from_slice(&data);
        }
    }
    Ok((piece.freeze(), false))
}

/// An answer with what there is to know of a file.
fn described(
    stage: &Stage,
    found: &GetResult,
    body: Either<Full<Bytes>, Channel<Bytes, io::Error>>,
) -> Reaction {
    let find = |name: &str| {
        let value = found.attributes.get(&Attribute::Metadata(name.to_owned().into()))?;
        Some(value.as_ref().to_owned())
    };
    let mut answer = Response::new(body);
    let headers = answer.headers_mut();
    headers.extend(Metadata::of_storage(&stage.storage, find).for_client());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(CONTENT_LENGTH, found.meta.size.into());
    if let Some(etag) = found.meta.e_tag.as_deref().and_then(|etag| HeaderValue::from_str(etag).ok()) {
        headers.insert(ETAG, etag);
    }
    answer
}

/// Carries a file from the storage to the client, who gets the end of it when it is recorded.
async fn relay(
    mut moved: Moved,
    store: Opened,
    size: u64,
    mut source: BoxStream<'static, object_store::Result<Bytes>>,
    mut client: Sender<Bytes, io::Error>,
) {
    let mut held = Bytes::new();
    let ending = loop {
        let next = tokio::time::timeout(PATIENCE, source.next()).await;
        match next {
            Ok(Some(Ok(piece))) => {
                moved.take(&piece);
                let earlier = std::mem::replace(&mut held, piece);
                if !earlier.is_empty() && client.send_data(earlier).await.is_err() {
                    // The client is gone.
                    break Ok(false);
                }
            }
            Ok(None) if moved.bytes == size => break moved.record().await.map(|()| true),
            Ok(None) => break Err(StorageError::Unreachable("the file ended early".to_owned()).into()),
            Ok(Some(Err(error))) => break Err(store.explain(&error).into()),
            Err(_) => break Err(StorageError::Unreachable("it sends nothing any more".to_owned()).into()),
        }
    };
    match ending {
        Ok(true) if held.is_empty() => {}
        Ok(true) => drop(client.send_data(held).await),
        Ok(false) => moved.broke_off("the client went away").await,
        Err(error) => {
            // An end without the end: no driver takes half a file for a whole one.
            client.abort(io::Error::other("the file broke off"));
            moved.broke_off(&error.to_string()).await;
        }
    }
}

/// A file on its way.
struct Moved {
    proxy: Arc<Proxy>,
    event: Event,
    what: String,
    query: String,
    hash: Context,
    bytes: u64,
    /// SHA-256 of the content before the client encrypted it, in base64, as the client says.
    digest_of_client: Option<String>,
}

impl Moved {
    fn new(exchange: &Exchange<'_>, kind: EventKind, lease: &Lease, path: &Path) -> Self {
        let event = Event {
            workload: Some(workload(&exchange.peer.flow.workload)),
            caller: Some(lease.caller.clone()),
            account: exchange.account().to_owned(),
            ..Event::new(kind, String::new())
        };
        let below = path.as_ref().strip_prefix(lease.stage.prefix.as_str()).unwrap_or(path.as_ref());
        Self {
            proxy: Arc::clone(exchange.proxy),
            event,
            what: format!("{}{below}", lease.stage),
            query: format!("query {}, statement {}", lease.query, lease.statement),
            hash: Context::new(&SHA256),
            bytes: 0,
            digest_of_client: None,
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.hash.update(piece);
        self.bytes += piece.len() as u64;
    }

    /// Records it. Unlike other events, each of these counts, so that none is left out.
    async fn record(&mut self) -> Result<(), FileError> {
        let hash = self.hash.clone().finish();
        let hash = hexadecimal(hash.as_ref());
        let content = self.digest_of_client.as_ref().map_or_else(String::new, |digest| {
            let digest: String = digest.chars().take(64).filter(char::is_ascii_graphic).collect();
            format!(" (the content's, says the client: {digest})")
        });
        self.event.detail =
            format!("{}: {} bytes, SHA-256 {hash}{content}; {}", self.what, self.bytes, self.query);
        self.append().await
    }

    async fn broke_off(mut self, reason: &str) {
        self.event.kind = EventKind::TransferFailed;
        self.event.detail = format!("{}: after {} bytes: {reason}; {}", self.what, self.bytes, self.query);
        // It has failed either way.
        let _ = self.append().await;
    }

    async fn append(&self) -> Result<(), FileError> {
        self.proxy.counts.events(self.event.kind, 1);
        self.proxy.journal.append(vec![self.event.clone().into()]).await.map_err(|error| {
            tracing::error!(%error, "a file's transfer could not be recorded");
            FileError::Unrecorded
        })
    }
}

impl Exchange<'_> {
    /// Says why a file was not moved, in a status that the driver makes the best of.
    async fn not_moved(&self, name: &str, error: &FileError) -> Reaction {
        let kind = match error {
            FileError::Lease(_) => EventKind::SessionRefused,
            _ => EventKind::TransferFailed,
        };
        // That a file is there already is what the client wanted to know.
        if !matches!(error, FileError::Storage(StorageError::Exists)) {
            let name: String = name.chars().take(200).collect();
            self.event(kind, None, format!("{name}: {error}")).await;
        }
        let status = match error {
            // The driver runs the statement again for new ones.
            FileError::Storage(StorageError::Expired) | FileError::Lease(LeaseError::Expired) => {
                StatusCode::UNAUTHORIZED
            }
            FileError::Storage(StorageError::NotFound) => StatusCode::NOT_FOUND,
            FileError::Storage(StorageError::Exists) => StatusCode::PRECONDITION_FAILED,
            FileError::Storage(StorageError::Refused(status)) if status.is_server_error() => *status,
            FileError::Storage(StorageError::Unreachable(_)) | FileError::Busy | FileError::Unrecorded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => REFUSED,
        };
        plain(status, &error.to_string())
    }
}
