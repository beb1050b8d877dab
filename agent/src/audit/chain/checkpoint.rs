//! Checkpoints: what is in them, how they are signed, and what is wrong with one.

use rusqlite::{Connection, Row};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use super::canonical::{self, Leaf, Members};
use super::key::{SigningKey, is_signed};
use super::tree::{self, Digest};
use super::{LONGEST, bytes, digest};
use crate::audit::now;
use crate::audit::payload::hexadecimal;

/// A signed step of a journal: a row of the table `checkpoints`. Digests, keys and signatures are hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Checkpoint {
    pub node: String,
    /// From 1, without gaps but where checkpoints may have been lost.
    pub number: u64,
    pub time: i64,
    /// The records that it covers.
    pub first_seq: i64,
    pub last_seq: i64,
    /// The root of their Merkle tree.
    pub root: String,
    /// The digest of what is signed of the checkpoint before; zeros for the first.
    pub previous: String,
    /// The public key (Ed25519).
    pub key: String,
    pub signature: String,
    /// The leaves of the tree, one after the other: they tell which record it is that was changed.
    pub digests: String,
}

impl Checkpoint {
    /// Signs records of a journal, which follow those of `before`.
    pub(super) fn sign(
        journal: Uuid,
        node: &str,
        number: u64,
        before: Option<&Self>,
        leaves: &[Leaf],
        key: &SigningKey,
    ) -> Option<Self> {
        let (first, last) = (leaves.first()?, leaves.last()?);
        let digests: Vec<Digest> = leaves.iter().map(|leaf| leaf.digest).collect();
        let mut checkpoint = Self {
            node: node.to_owned(),
            number,
            time: now(),
            first_seq: first.seq,
            last_seq: last.seq,
            root: hexadecimal(&tree::root(&digests)),
            previous: hexadecimal(&before.map_or(Digest::default(), |before| before.digest(journal))),
            key: key.public(),
            signature: String::new(),
            digests: hexadecimal(digests.as_flattened()),
        };
        checkpoint.signature = key.sign(&checkpoint.signed(journal));
        Some(checkpoint)
    }

    /// It as its row has it.
    pub(in crate::audit) fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            node: row.get("node")?,
            number: u64::try_from(row.get::<_, i64>("number")?).unwrap_or_default(),
            time: row.get("time")?,
            first_seq: row.get("first_seq")?,
            last_seq: row.get("last_seq")?,
            root: row.get("root")?,
            previous: row.get("previous")?,
            key: row.get("key")?,
            signature: row.get("signature")?,
            digests: row.get("digests")?,
        })
    }

    /// The last record that any covers; 0 for none.
    pub(in crate::audit) fn last_signed(connection: &Connection) -> rusqlite::Result<i64> {
        connection.query_row("SELECT coalesce(max(last_seq), 0) FROM checkpoints", [], |row| row.get(0))
    }

    /// Its row in the canonical form, without `seq`.
    pub(super) fn members(&self, journal: Uuid) -> Members {
        match serde_json::to_value(self) {
            Ok(Value::Object(row)) => canonical::members(journal, "checkpoints", row),
            _ => Members::new(),
        }
    }

    /// The other way round; without digests. `None` if they are not those of a checkpoint of this journal.
    pub(super) fn from_members(journal: Uuid, members: &Members) -> Option<Self> {
        let mut row: serde_json::Map<String, Value> = members.clone().into_iter().collect();
        row.insert("digests".to_owned(), Value::String(String::new()));
        let checkpoint: Self = serde_json::from_value(Value::Object(row)).ok()?;
        (checkpoint.members(journal) == *members).then_some(checkpoint)
    }

    /// What is signed: its row in the canonical form, without `seq` and `signature`.
    fn signed(&self, journal: Uuid) -> Vec<u8> {
        let mut members = self.members(journal);
        members.remove("signature");
        canonical::encode(&members)
    }

    /// The digest of what is signed.
    pub(in crate::audit) fn digest(&self, journal: Uuid) -> Digest {
        tree::sha256(&self.signed(journal))
    }

    /// How many records it covers.
    pub fn size(&self) -> u64 {
        u64::try_from(self.last_seq.saturating_sub(self.first_seq).saturating_add(1)).unwrap_or_default()
    }

    pub(super) fn is_signed(&self, journal: Uuid) -> bool {
        match (bytes(&self.key), bytes(&self.signature)) {
            (Some(key), Some(signature)) => is_signed(&key, &self.signed(journal), &signature),
            _ => false,
        }
    }

    /// The leaves, if they are those that its root stands for.
    pub(super) fn leaves(&self) -> Option<Vec<Digest>> {
        let bytes = bytes(&self.digests)?;
        let (leaves, rest) = bytes.as_chunks::<{ size_of::<Digest>() }>();
        let is_whole = rest.is_empty() && leaves.len() <= LONGEST && leaves.len() as u64 == self.size();
        (is_whole && Some(tree::root(leaves)) == digest(&self.root)).then(|| leaves.to_vec())
    }
}
