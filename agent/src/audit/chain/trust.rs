//! The keys that checkpoints may be signed with.

use uuid::Uuid;

use super::checkpoint::Checkpoint;
use super::verify::Problem;

pub(super) struct Trust {
    /// Those that are trusted. Where nobody has said which, the first checkpoint's is.
    trusted: Vec<String>,
    is_known: bool,
    /// Those of the checkpoints so far.
    seen: Vec<String>,
}

impl Trust {
    pub(super) fn new(trusted: &[String]) -> Self {
        Self { trusted: trusted.to_vec(), is_known: !trusted.is_empty(), seen: Vec::new() }
    }

    /// What is wrong with the signature of a checkpoint.
    pub(super) fn problem(&mut self, journal: Uuid, checkpoint: &Checkpoint) -> Option<Problem> {
        let Checkpoint { number, key, .. } = checkpoint;
        if self.trusted.is_empty() {
            self.trusted.push(key.clone());
        }
        if !self.seen.contains(key) {
            self.seen.push(key.clone());
        }
        if !checkpoint.is_signed(journal) {
            return Some(Problem::CheckpointForged { number: *number });
        }
        let is_foreign = !self.trusted.contains(key);
        is_foreign.then(|| Problem::CheckpointOfAnotherKey { number: *number, key: key.clone() })
    }

    /// The keys of the checkpoints, and whether somebody has said which are the node's.
    pub(super) fn into_keys(self) -> (Vec<String>, bool) {
        (self.seen, self.is_known)
    }
}
