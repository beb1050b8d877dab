//! The archive: an object store that the spool's segments are brought to, as they are, and read from once they have left the
//! spool.
//!
//! A segment's name there is `<run>/<segment>`, as in the spool, so that a record says where its payload is for good.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime};
use std::{fs, io};

use bytes::Bytes;
use moka::sync::Cache;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::entry::Place;
use super::segments::{Segment, segment_name};
use super::spool::{Spool, SpoolError};
use super::{Payloads, ReadError};
use crate::audit::delivery::delay;
use crate::config;
use crate::storage::{Bucket, BucketError, in_time};

/// What is sent in one request, and in memory at a time. No store takes parts of less than 5 MiB.
const PART: u64 = 8 << 20;
/// How often it is looked for segments, at most.
const INTERVAL: Duration = Duration::from_secs(5);
/// For what is left at the end.
const LAST: Duration = Duration::from_secs(10);
/// Of what was read of late, to be read again.
const REMEMBERED: u64 = 64 << 20;

/// How far an archive is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Bytes of payloads that are not there.
    pub pending_bytes: u64,
    /// Bytes that were brought there, since the agent started.
    pub archived_bytes: u64,
    /// Tries that failed, since the agent started.
    pub errors: u64,
    /// Why the last try failed; `None` after one that did not.
    pub error: Option<String>,
}

/// What brings segments to the archive.
pub struct Archive {
    payloads: Arc<Payloads>,
    bucket: Bucket,
    patience: Duration,
}

#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Bucket(#[from] BucketError),
    #[error("{0}")]
    Spool(#[from] SpoolError),
    #[error("{0}")]
    Read(#[from] io::Error),
}

impl Archive {
    pub fn new(payloads: &Arc<Payloads>, bucket: Bucket, settings: &config::Archive) -> Self {
        Self { payloads: Arc::clone(payloads), bucket, patience: settings.patience }
    }

    /// Brings segments there until `stop` is done, each as often as it takes, and then what there is by then, if that does not take
    /// long. May be dropped at any moment.
    pub async fn run(self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = self.go_on() => {}
            () = stop => {
                let last = timeout(LAST, self.step(SystemTime::now() + LAST)).await;
                let error = match last {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "there was no time".to_owned(),
                };
                tracing::warn!(error, "the last payloads are not archived: they wait in the spool for the next start");
            }
        }
    }

    async fn go_on(&self) {
        let mut tries = 0;
        loop {
            let before = SystemTime::now().checked_sub(self.patience).unwrap_or(SystemTime::UNIX_EPOCH);
            match self.step(before).await {
                Ok(()) => {
                    if tries > 0 {
                        tracing::info!(url = self.bucket.url(), "the archive takes payloads again");
                    }
                    tries = 0;
                    self.change(|status| status.error = None);
                    sleep(self.patience.min(INTERVAL)).await;
                }
                Err(error) => {
                    if tries == 0 {
                        tracing::warn!(
                            "payloads cannot be archived: {error}; the spool keeps them, and it is tried until it succeeds"
                        );
                    }
                    self.change(|status| {
                        status.errors += 1;
                        status.error = Some(error.to_string());
                    });
                    sleep(delay(tries)).await;
                    tries = tries.saturating_add(1);
                }
            }
        }
    }

    /// Brings there what is complete, or was begun before this time. What one segment fails by holds no other up.
    async fn step(&self, before: SystemTime) -> Result<(), Problem> {
        let mut done = Ok(());
        // What goes there is on the disk here, so that it is the same after a loss of power.
        let complete = move |spool: &Spool| spool.sync().and_then(|()| spool.unarchived(before));
        let (segments, pending) = self.in_spool(complete).await?;
        self.change(|status| status.pending_bytes = pending);
        for segment in segments {
            let seen = segment.length;
            match self.upload(&segment).await {
                Ok(length) => {
                    self.in_spool(move |_| segment.mark_archived()).await?;
                    self.change(|status| {
                        status.archived_bytes += length;
                        status.pending_bytes = status.pending_bytes.saturating_sub(seen);
                    });
                }
                Err(error) if done.is_ok() => done = Err(error),
                Err(_) => {}
            }
        }
        done
    }

    /// That a segment is there already changes nothing: it is the same. Returns its length, now that nobody writes to it.
    async fn upload(&self, segment: &Segment) -> Result<u64, Problem> {
        let name = name(segment.run, segment.number);
        let file = match fs::File::open(&segment.path) {
            Ok(file) => Arc::new(file),
            // It had to go before its time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(error.into()),
        };
        let length = file.metadata()?.len();
        let failed = |error: object_store::Error| self.bucket.failed(&error);
        if length <= PART {
            let content = part(&file, 0..length).await?;
            in_time(self.bucket.store().put(&name, content.into())).await.map_err(failed)?;
            return Ok(length);
        }
        let mut upload = in_time(self.bucket.store().put_multipart(&name)).await.map_err(failed)?;
        let sent = send(upload.as_mut(), &file, length, failed).await;
        if sent.is_err() {
            // What was sent of it costs room there until it is told so.
            let _ = in_time(upload.abort()).await;
        }
        sent.map(|()| length)
    }

    fn change(&self, change: impl FnOnce(&mut Status)) {
        change(&mut self.payloads.archive.lock().unwrap_or_else(PoisonError::into_inner));
    }

    async fn in_spool<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, Problem> {
        let payloads = Arc::clone(&self.payloads);
        let done = tokio::task::spawn_blocking(move || work(&payloads.spool)).await;
        Ok(done.map_err(io::Error::from)??)
    }
}

async fn send(
    upload: &mut dyn MultipartUpload,
    file: &Arc<fs::File>,
    length: u64,
    failed: impl Fn(object_store::Error) -> BucketError,
) -> Result<(), Problem> {
    let mut sent = 0;
    while sent < length {
        let end = length.min(sent + PART);
        let content = part(file, sent..end).await?;
        in_time(upload.put_part(PutPayload::from(content))).await.map_err(&failed)?;
        sent = end;
    }
    in_time(upload.complete()).await.map_err(failed)?;
    Ok(())
}

async fn part(file: &Arc<fs::File>, range: Range<u64>) -> io::Result<Bytes> {
    let file = Arc::clone(file);
    let read = move || {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap_or_default()];
        file.read_exact_at(&mut bytes, range.start)?;
        Ok(bytes.into())
    };
    tokio::task::spawn_blocking(read).await?
}

fn name(run: Uuid, segment: u32) -> Path {
    Path::from_iter([run.to_string(), segment_name(segment)])
}

/// An archive, to be read.
pub struct Archived {
    bucket: Bucket,
    runtime: Runtime,
    /// By run, segment and offset.
    read: Cache<(Uuid, u32, u64), Arc<[u8]>>,
}

impl Archived {
    pub fn open(settings: &config::Bucket) -> Result<Self, BucketError> {
        let bucket = Bucket::open(settings)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(BucketError::Runtime)?;
        let length = |_: &_, entry: &Arc<[u8]>| u32::try_from(entry.len()).unwrap_or(u32::MAX);
        let read = Cache::builder().weigher(length).max_capacity(REMEMBERED).build();
        Ok(Self { bucket, runtime, read })
    }

    /// The entry at a place of a run.
    pub fn read(&self, run: Uuid, place: Place) -> Result<Vec<u8>, ReadError> {
        let key = (run, place.segment, place.offset);
        if let Some(entry) = self.read.get(&key) {
            return Ok(entry.to_vec());
        }
        if !place.is_possible() {
            return Err(ReadError::Foreign("no piece is so long"));
        }
        let name = name(run, place.segment);
        let entry = self.runtime.block_on(in_time(self.bucket.store().get_range(&name, place.range())));
        let entry = entry.map_err(|error| match self.bucket.failed(&error) {
            BucketError::Request { is_missing: true, .. } => ReadError::Removed,
            error => ReadError::Archive(error),
        })?;
        self.read.insert(key, entry.as_ref().into());
        Ok(entry.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use age::x25519;

    use super::*;
    use crate::audit::payload::tests::noise;
    use crate::audit::payload::{self, About, Ending, FrameKind, Kept, Payload};

    struct Scene {
        directory: tempfile::TempDir,
        identity: x25519::Identity,
        payloads: Arc<Payloads>,
        settings: config::Archive,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let bucket = directory.path().join("bucket");
            fs::create_dir(&bucket).unwrap();
            let bucket = config::Bucket::parse(&format!("file://{}", bucket.display())).unwrap();
            let settings = config::Archive { bucket, patience: Duration::from_nanos(1) };
            let identity = x25519::Identity::generate();
            let kept = config::Payloads {
                archive: Some(settings.clone()),
                ..config::Payloads::sample(identity.to_public())
            };
            let payloads = Payloads::open(&directory.path().join("spool"), kept).unwrap();
            Self { directory, identity, payloads, settings }
        }

        fn archive(&self) -> Archive {
            Archive::new(&self.payloads, Bucket::open(&self.settings.bucket).unwrap(), &self.settings)
        }

        async fn keep(&self, length: usize) -> Payload {
            let mut recording = self.payloads.begin(&About::default(), Instant::now());
            let body = noise(length);
            recording.add_body(FrameKind::AnswerBody, vec![Bytes::copy_from_slice(&body)]).await.unwrap();
            recording.end(Ending::Complete, "").await.unwrap()
        }

        /// As many bytes as the answer had; the error's text where it cannot be read.
        fn read(&self, payload: &Payload) -> Result<u64, String> {
            let archive = Archived::open(&self.settings.bucket).unwrap();
            let kept = Kept::new(self.directory.path().join("spool"), Some(archive));
            let content = payload::read(&kept, payload, &[Box::new(self.identity.clone())], usize::MAX);
            content.map(|content| content.answer.length).map_err(|error| error.to_string())
        }

        /// The files below a folder that end so.
        fn files(&self, folder: &str, end: &str) -> Vec<std::path::PathBuf> {
            let mut files = Vec::new();
            for run in fs::read_dir(self.directory.path().join(folder)).unwrap() {
                files.extend(fs::read_dir(run.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
            }
            files.retain(|file| file.to_string_lossy().ends_with(end));
            files
        }
    }

    fn wait(work: impl Future<Output = ()>) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    }

    #[test]
    fn what_has_left_the_host_is_read_from_the_archive() {
        let scene = Scene::new();
        let mut kept = Vec::new();
        wait(async {
            // The second one is longer than what is sent at once.
            for length in [100, 10_000_000] {
                kept.push((scene.keep(length).await, length as u64));
                scene.archive().step(SystemTime::now()).await.unwrap();
            }
            // The one that was written to a moment ago is complete after the patience.
            scene.archive().step(SystemTime::now()).await.unwrap();
        });
        assert_eq!(scene.payloads.archive().unwrap().pending_bytes, 0);
        assert_eq!(scene.files("bucket", ".segment").len(), scene.files("spool", ".archived").len());
        for segment in scene.files("spool", ".segment") {
            fs::remove_file(segment).unwrap();
        }
        for (payload, length) in &kept {
            assert_eq!(scene.read(payload), Ok(*length));
        }
        // Anybody can seal something to a public key: it is looked at before it is shown.
        let (payload, _) = &kept[0];
        let forged = Scene { identity: scene.identity.clone(), ..Scene::new() };
        let mut other = None;
        wait(async { other = Some(forged.keep(100).await) });
        let segment = fs::read(&forged.files("spool", ".segment")[0]).unwrap();
        let name = scene.directory.path().join("bucket").join(name(payload.run, 1).as_ref());
        fs::write(&name, segment).unwrap();
        assert!(scene.read(payload).is_err_and(|error| error.starts_with("it is not what the record")));
        fs::remove_file(&name).unwrap();
        assert!(scene.read(payload).is_err_and(|error| error.contains("no longer in the spool")));
    }

    #[test]
    fn a_segment_is_archived_as_long_as_it_has_become() {
        let scene = Scene::new();
        let archive = scene.archive();
        wait(async {
            scene.keep(100).await;
            let seen = scene.payloads.spool.unarchived(SystemTime::now()).unwrap().0.remove(0);
            let length = seen.length;
            let more = fs::OpenOptions::new().append(true).open(&seen.path).unwrap();
            more.write_all_at(&[0; 10], length).unwrap();
            assert_eq!(archive.upload(&seen).await.unwrap(), length + 10);
        });
        let archived = fs::metadata(&scene.files("bucket", ".segment")[0]).unwrap();
        let kept = fs::metadata(&scene.files("spool", ".segment")[0]).unwrap();
        assert_eq!(archived.len(), kept.len());
    }

    #[test]
    fn a_segment_that_cannot_be_read_holds_no_other_up() {
        let scene = Scene::new();
        wait(async {
            let lost = scene.keep(100).await;
            let path = scene.files("spool", ".segment").remove(0);
            // The next one is in another file.
            scene.payloads.spool.unarchived(SystemTime::now()).unwrap();
            let kept = scene.keep(100).await;
            fs::remove_file(&path).unwrap();
            fs::create_dir(&path).unwrap();
            assert!(scene.archive().step(SystemTime::now()).await.is_err());
            assert_ne!(lost.places, kept.places);
        });
        let archived = scene.files("bucket", ".segment");
        assert_eq!(archived.len(), 1);
        assert!(archived[0].ends_with("00000002.segment"), "{archived:?}");
    }

    #[test]
    fn nothing_goes_before_it_is_archived() {
        let scene = Scene::new();
        let (archive, bucket) = (scene.archive(), scene.directory.path().join("bucket"));
        wait(async {
            scene.keep(100).await;
            fs::remove_dir(&bucket).unwrap();
            fs::write(&bucket, "no folder").unwrap();
            assert!(archive.step(SystemTime::now()).await.is_err());
            let late = SystemTime::now() + Duration::from_hours(24);
            assert_eq!(scene.payloads.spool.remove_before(late).unwrap(), 0);
            fs::remove_file(&bucket).unwrap();
            archive.step(SystemTime::now()).await.unwrap();
            assert_eq!(scene.payloads.spool.remove_before(late).unwrap(), 1);
        });
        assert!(scene.files("spool", "segment").is_empty());
    }
}
