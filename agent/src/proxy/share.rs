//! What one workload may take of the agent at a time, so that none can keep the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one workload.
const CONNECTIONS: usize = 512;
/// Bytes of requests that are in memory, in KiB: of one workload, and of all.
const WORKLOAD_KIB: usize = 64 * 1024;
const ALL_KIB: usize = 256 * 1024;
/// Files that are taken from clients at a time, of which each has a piece in memory: of one workload, and of all. They
/// have nothing of the above, as a slow one could keep it for long.
const UPLOADS: usize = 4;
const ALL_UPLOADS: usize = 16;

/// The shares of all workloads that have connections.
pub struct Shares {
    by_cgroup: Mutex<HashMap<u64, Weak<Share>>>,
    all: Arc<Semaphore>,
    all_uploads: Arc<Semaphore>,
}

/// The share of one workload.
pub struct Share {
    connections: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all: Arc<Semaphore>,
    uploads: Arc<Semaphore>,
    all_uploads: Arc<Semaphore>,
}

/// Room for one upload, until this is dropped.
pub struct Upload {
    _of_workload: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

/// Memory that is taken from a share until this is dropped.
#[derive(Default)]
pub struct Held(Vec<OwnedSemaphorePermit>);

impl Default for Shares {
    fn default() -> Self {
        Self {
            by_cgroup: Mutex::default(),
            all: Arc::new(Semaphore::new(ALL_KIB)),
            all_uploads: Arc::new(Semaphore::new(ALL_UPLOADS)),
        }
    }
}

impl Shares {
    /// The share of the workload in a cgroup.
    pub fn of(&self, cgroup_id: u64) -> Arc<Share> {
        let mut shares = self.by_cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&cgroup_id).and_then(Weak::upgrade) {
            return share;
        }
        shares.retain(|_, share| share.strong_count() > 0);
        let share = Arc::new(Share {
            connections: Arc::new(Semaphore::new(CONNECTIONS)),
            bytes: Arc::new(Semaphore::new(WORKLOAD_KIB)),
            all: Arc::clone(&self.all),
            uploads: Arc::new(Semaphore::new(UPLOADS)),
            all_uploads: Arc::clone(&self.all_uploads),
        });
        shares.insert(cgroup_id, Arc::downgrade(&share));
        share
    }
}

impl Share {
    /// Room for one more connection; `None` where the workload has all that it may have.
    pub fn connection(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.connections).try_acquire_owned().ok()
    }

    /// Waits for its turn to upload a file; those of a workload wait for each other first.
    pub async fn upload(&self) -> Option<Upload> {
        let of_workload = Arc::clone(&self.uploads).acquire_owned().await.ok()?;
        let of_all = Arc::clone(&self.all_uploads).acquire_owned().await.ok()?;
        Some(Upload { _of_workload: of_workload, _of_all: of_all })
    }

    /// Room for so many bytes more; false where there is none.
    pub fn take(&self, bytes: usize, held: &mut Held) -> bool {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let mut taken = Vec::with_capacity(2);
        for semaphore in [&self.bytes, &self.all] {
            match Arc::clone(semaphore).try_acquire_many_owned(kib) {
                Ok(permit) => taken.push(permit),
                Err(_) => return false,
            }
        }
        for (index, permit) in taken.into_iter().enumerate() {
            match held.0.get_mut(index) {
                Some(known) => known.merge(permit),
                None => held.0.push(permit),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_workload_takes_no_more_than_its_share() {
        let shares = Shares::default();
        let (greedy, modest) = (shares.of(1), shares.of(2));
        let mut held = Held::default();
        while greedy.take(1 << 20, &mut held) {}
        assert!(!greedy.take(1, &mut held));
        assert!(modest.take(1 << 20, &mut Held::default()), "the others have theirs");
        drop(held);
        assert!(greedy.take(1 << 20, &mut Held::default()));
        let connections: Vec<_> = std::iter::from_fn(|| greedy.connection()).collect();
        assert_eq!(connections.len(), CONNECTIONS);
        assert!(modest.connection().is_some());
        let uploads: Vec<_> = std::iter::from_fn(|| greedy.upload().now_or_never().flatten()).collect();
        assert_eq!(uploads.len(), UPLOADS);
        assert!(modest.upload().now_or_never().flatten().is_some());
        drop((greedy, connections, uploads));
        assert!(shares.of(1).connection().is_some(), "a share is forgotten with its last connection");
    }
}
