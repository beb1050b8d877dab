//! The key that this node signs its checkpoints with: made at the first start, kept in the state directory.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};

use crate::audit::payload::hexadecimal;

#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    #[error("the signing key {}: {source}", path.display())]
    Io { path: PathBuf, source: Arc<io::Error> },
    #[error("the signing key {} is damaged: bring back the one of a backup, or move it away to begin with a new one, which whoever verifies must be told of", .0.display())]
    Damaged(PathBuf),
    #[error("others may read the signing key {} (mode {mode:o}): chmod 600 it, and think about a new one", path.display())]
    Exposed { path: PathBuf, mode: u32 },
}

/// Signs checkpoints (Ed25519).
#[derive(Clone, Debug)]
pub struct SigningKey {
    pair: Arc<Ed25519KeyPair>,
}

impl SigningKey {
    /// Reads the key (PKCS #8), or makes one.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |source| KeyError::Io { path: path.to_owned(), source: Arc::new(source) };
        let encoded = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            read => read.map_err(failed)?,
        };
        let mode = std::fs::metadata(path).map_err(failed)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let pair = Ed25519KeyPair::from_pkcs8(&encoded).map_err(|_| KeyError::Damaged(path.to_owned()))?;
        Ok(Self { pair: Arc::new(pair) })
    }

    /// The public key, hexadecimal.
    pub fn public(&self) -> String {
        hexadecimal(self.pair.public_key().as_ref())
    }

    /// A signature, hexadecimal.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        hexadecimal(self.pair.sign(message).as_ref())
    }
}

/// Whether a signature is this key's, of this message.
pub(super) fn is_signed(key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

/// Another start that makes one at the same time wins or loses as a whole.
fn create(path: &Path) -> Result<Vec<u8>, KeyError> {
    let failed = |source| KeyError::Io { path: path.to_owned(), source: Arc::new(source) };
    let unmade = |_| failed(io::Error::other("no key can be made"));
    let encoded = Ed25519KeyPair::generate().map_err(unmade)?;
    let encoded = encoded.to_pkcs8().map_err(unmade)?;
    let made = path.with_extension(format!("{}.new", std::process::id()));
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&made).map_err(failed)?;
    file.write_all(encoded.as_ref()).and_then(|()| file.sync_all()).map_err(failed)?;
    match std::fs::hard_link(&made, path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
        _ => {}
    }
    std::fs::remove_file(&made).map_err(failed)?;
    if let Some(directory) = path.parent() {
        std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_stays_what_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.key");
        let key = SigningKey::open(&path).unwrap();
        let again = SigningKey::open(&path).unwrap();
        assert_eq!(key.public(), again.public());
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        let public = key.pair.public_key().as_ref();
        let signature = again.pair.sign(b"message");
        assert!(is_signed(public, b"message", signature.as_ref()));
        assert!(!is_signed(public, b"massage", signature.as_ref()));
        assert!(!is_signed(b"short", b"message", signature.as_ref()));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(SigningKey::open(&path), Err(KeyError::Exposed { mode: 0o644, .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, b"no key").unwrap();
        assert!(matches!(SigningKey::open(&path), Err(KeyError::Damaged(_))));
    }
}
