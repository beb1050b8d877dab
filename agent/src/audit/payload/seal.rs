//! Payloads are compressed (zstd) and encrypted (age) to public keys before they touch the disk, so that the host that
//! records them cannot read them back.

use std::cell::{OnceCell, RefCell};
use std::collections::HashSet;
use std::io::{self, Read};

use age::x25519::Recipient;
use age::{DecryptError, Decryptor, EncryptError, Encryptor, Identity};
use age_core::format::{FileKey, Stanza};
use age_core::secrecy::ExposeSecret;
use aws_lc_rs::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use zeroize::Zeroizing;
use zstd::bulk::Compressor;

/// The fastest: what is recorded waits for it.
const LEVEL: i32 = 1;
/// What age encrypts at once.
const CHUNK: usize = 64 * 1024;
/// Longer than a header to a few recipients, and the nonce after it.
const HEADER: usize = 1024;

thread_local! {
    /// To make one costs as much as to compress a few kilobytes.
    static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
}

/// Seals a piece to all of the recipients, each of whom can open it alone.
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> io::Result<Vec<u8>> {
    let compressed = compress(plain)?;
    let chunks = compressed.len() / CHUNK + 1;
    let mut sealed = Vec::with_capacity(HEADER + compressed.len() + chunks * CHACHA20_POLY1305.tag_len());
    let key = header(recipients, &mut sealed)?;
    encrypt(&key, &compressed, &mut sealed).map_err(|_| io::Error::other("it cannot be encrypted"))?;
    Ok(sealed)
}

fn compress(plain: &[u8]) -> io::Result<Vec<u8>> {
    COMPRESSOR.with_borrow_mut(|compressor| {
        let compressor = match compressor {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(LEVEL)?),
        };
        compressor.compress(plain)
    })
}

/// Has age write the beginning of a file, and returns the key of what follows. What follows is encrypted here: AWS-LC
/// takes half the time of what age uses.
fn header(recipients: &[Recipient], to: &mut Vec<u8>) -> io::Result<LessSafeKey> {
    let watched: Vec<Watched<'_>> =
        recipients.iter().map(|recipient| Watched { recipient, key: OnceCell::new() }).collect();
    let all = watched.iter().map(|watched| -> &dyn age::Recipient { watched });
    let encryptor = Encryptor::with_recipients(all).map_err(io::Error::other)?;
    drop(encryptor.wrap_output(&mut *to)?);
    let file_key = watched.first().and_then(|watched| watched.key.get());
    let key = file_key.zip(to.last_chunk::<16>()).and_then(|(file_key, nonce)| {
        let secret = Salt::new(HKDF_SHA256, nonce).extract(file_key.as_slice());
        Some(LessSafeKey::new(UnboundKey::from(secret.expand(&[b"payload"], &CHACHA20_POLY1305).ok()?)))
    });
    key.ok_or_else(|| io::Error::other("age makes no key"))
}

/// A recipient that remembers the key of the file that is sealed to it.
struct Watched<'r> {
    recipient: &'r Recipient,
    key: OnceCell<Zeroizing<[u8; 16]>>,
}

impl age::Recipient for Watched<'_> {
    fn wrap_file_key(&self, key: &FileKey) -> Result<(Vec<Stanza>, HashSet<String>), EncryptError> {
        self.key.get_or_init(|| Zeroizing::new(*key.expose_secret()));
        self.recipient.wrap_file_key(key)
    }
}

/// Appends the content of an age file (<https://age-encryption.org/v1>, "Payload"): chunks, each with its tag. A nonce is the
/// number of the chunk (11 bytes, big-endian), and whether it is the last (1).
fn encrypt(key: &LessSafeKey, plain: &[u8], to: &mut Vec<u8>) -> Result<(), Unspecified> {
    let mut chunks = plain.chunks(CHUNK).enumerate().peekable();
    while let Some((number, chunk)) = chunks.next() {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&(number as u64).to_be_bytes());
        nonce[11] = u8::from(chunks.peek().is_none());
        let begin = to.len();
        to.extend_from_slice(chunk);
        let content = to.get_mut(begin..).unwrap_or_default();
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::empty(), content)?;
        to.extend_from_slice(tag.as_ref());
    }
    Ok(())
}

/// Why a piece could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("none of the identities is one that it was sealed to")]
    OtherIdentity,
    #[error("it is damaged: {0}")]
    Damaged(String),
}

/// Opens a piece that is at most `limit` bytes long.
pub fn open(
    identities: &[Box<dyn Identity + Send + Sync>],
    sealed: &[u8],
    limit: u64,
) -> Result<Vec<u8>, OpenError> {
    let damaged = |error: io::Error| OpenError::Damaged(error.to_string());
    let decryptor = Decryptor::new_buffered(sealed).map_err(|error| OpenError::Damaged(error.to_string()))?;
    let identities = identities.iter().map(|identity| -> &dyn Identity { identity.as_ref() });
    let reader = decryptor.decrypt(identities).map_err(|error| match error {
        DecryptError::NoMatchingKeys => OpenError::OtherIdentity,
        error => OpenError::Damaged(error.to_string()),
    })?;
    let mut plain = Vec::new();
    let decoder = zstd::Decoder::new(reader).map_err(damaged)?;
    decoder.take(limit + 1).read_to_end(&mut plain).map_err(damaged)?;
    if plain.len() as u64 > limit {
        return Err(OpenError::Damaged(format!("it is longer than {limit} bytes")));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use age::x25519;

    use super::*;

    #[test]
    fn each_recipient_opens_it_and_nobody_else() {
        let identities: Vec<x25519::Identity> = (0..3).map(|_| x25519::Identity::generate()).collect();
        let recipients: Vec<Recipient> = identities[..2].iter().map(x25519::Identity::to_public).collect();
        let plain = b"select name from customers".repeat(1000);
        let sealed = seal(&recipients, &plain).unwrap();
        assert!(!sealed.windows(9).any(|window| window == b"customers"));
        let open = |identity: &x25519::Identity, sealed: &[u8]| {
            super::open(&[Box::new(identity.clone())], sealed, plain.len() as u64)
        };
        assert_eq!(open(&identities[0], &sealed).unwrap(), plain);
        assert_eq!(open(&identities[1], &sealed).unwrap(), plain);
        assert!(matches!(open(&identities[2], &sealed), Err(OpenError::OtherIdentity)));
        let mut changed = sealed.clone();
        let last = changed.len() - 1;
        changed[last] ^= 1;
        assert!(matches!(open(&identities[0], &changed), Err(OpenError::Damaged(_))));
        assert!(matches!(open(&identities[0], b"no age file"), Err(OpenError::Damaged(_))));
        let limit = plain.len() as u64 - 1;
        assert!(matches!(
            super::open(&[Box::new(identities[0].clone())], &sealed, limit),
            Err(OpenError::Damaged(_))
        ));
    }

    #[test]
    fn nothing_is_sealed_to_nobody() {
        assert!(seal(&[], b"x").is_err());
    }
}
