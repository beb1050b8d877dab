//! What one workload may take of the agent at a time, so that none can keep the others out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one workload.
const CONNECTIONS: usize = 512;
/// Bytes of requests that are in memory, in KiB: of one workload, and of all.
const WORKLOAD_KIB: usize = 64 * 1024;
const ALL_KIB: usize = 256 * 1024;

/// The shares of all workloads that have connections.
pub struct Shares {
    by_cgroup: Mutex<HashMap<u64, Weak<Share>>>,
    all: Arc<Semaphore>,
}

/// The share of one workload.
pub struct Share {
    connections: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    all: Arc<Semaphore>,
}

/// Memory that is taken from a share until this is dropped.
#[derive(Default)]
pub struct Held(Vec<OwnedSemaphorePermit>);

impl Default for Shares {
    fn default() -> Self {
        Self { by_cgroup: Mutex::default(), all: Arc::new(Semaphore::new(ALL_KIB)) }
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

impl Share {
    /// Waits for room for so many bytes more; the requests of a workload wait in turn.
    pub async fn wait(&self, bytes: usize, held: &mut Held) {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        for semaphore in [&self.bytes, &self.all] {
            // They are never closed.
            held.0.extend(Arc::clone(semaphore).acquire_many_owned(kib).await.ok());
        }
    }
}

#[cfg(test)]
mod tests {
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
        drop((greedy, connections));
        assert!(shares.of(1).connection().is_some(), "a share is forgotten with its last connection");
    }
}
