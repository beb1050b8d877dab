//! What need not be written twice: contents of entries that later payloads refer to.
//!
//! A reference is made as long as the entry's segment is written to, and stands in it: both leave the host together, as if
//! the content had been written again.

use std::collections::HashMap;
use std::{fmt, io};

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand;

use super::entry::Written;

/// About two megabytes.
const MOST: usize = 16 * 1024;

/// What a content is known by. On the disk it would tell whoever can guess a content that it was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 16]);

/// Makes fingerprints: GMAC, for a tenth of what SHA-256 costs, which all that is kept would pay. The one nonce is no
/// weakness, as no fingerprint leaves the memory: without the key nobody finds two contents with the same.
pub struct Fingerprints(LessSafeKey);

impl Fingerprints {
    pub fn new() -> io::Result<Self> {
        let key = || {
            let mut key = [0; 32];
            rand::fill(&mut key)?;
            UnboundKey::new(&AES_256_GCM, &key)
        };
        let failed = |_: Unspecified| io::Error::other("the system gives no random numbers");
        Ok(Self(LessSafeKey::new(key().map_err(failed)?)))
    }

    pub fn of(&self, content: &[u8]) -> io::Result<Fingerprint> {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        let tag = self.0.seal_in_place_separate_tag(nonce, Aad::from(content), &mut []);
        let tag = tag.ok().and_then(|tag| tag.as_ref().try_into().ok());
        tag.map(Fingerprint).ok_or_else(|| io::Error::other("it has no fingerprint"))
    }
}

impl fmt::Debug for Fingerprints {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Fingerprints")
    }
}

/// The entries of one segment whose contents are known.
#[derive(Debug, Default)]
pub struct Shared {
    segment: u32,
    entries: HashMap<Fingerprint, Written>,
}

impl Shared {
    /// The entry of that content in a segment.
    pub fn find(&self, segment: u32, content: &Fingerprint) -> Option<Written> {
        self.entries.get(content).filter(|_| self.segment == segment).copied()
    }

    pub fn note(&mut self, content: Fingerprint, written: Written) {
        if self.segment != written.place.segment || self.entries.len() >= MOST {
            self.entries.clear();
        }
        self.segment = written.place.segment;
        self.entries.insert(content, written);
    }

    pub fn forget(&mut self) {
        self.entries.clear();
    }
}
