//! Payloads are compressed (zstd) and encrypted (age) to public keys before they touch the disk, so that the host that
//! records them cannot read them back.

use std::io::{self, Read, Write};

use age::x25519::Recipient;
use age::{DecryptError, Decryptor, Encryptor, Identity};

/// The fastest: what is recorded waits for it.
const LEVEL: i32 = 1;

/// Seals a piece to all of the recipients, each of whom can open it alone.
pub fn seal(recipients: &[Recipient], plain: &[u8]) -> io::Result<Vec<u8>> {
    let compressed = zstd::bulk::compress(plain, LEVEL)?;
    let recipients = recipients.iter().map(|recipient| -> &dyn age::Recipient { recipient });
    let encryptor = Encryptor::with_recipients(recipients).map_err(io::Error::other)?;
    let mut sealed = Vec::with_capacity(compressed.len() + 512);
    let mut writer = encryptor.wrap_output(&mut sealed)?;
    writer.write_all(&compressed)?;
    writer.finish()?;
    Ok(sealed)
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
