//! Sessions on disk, sealed, so that no client has to log in again when the agent restarts.
//!
//! One file a session. Losing one costs its client a login, so nothing is synced; what matters is that nobody reads
//! Snowflake's tokens from the disk: the key lies beside them, for root alone, and the files are worthless without it.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::sessions::TokenKind;

const KEY_BYTES: usize = 32;
/// A sealed session is about two kilobytes; its groups may make it more.
const FILE_LIMIT: u64 = 1024 * 1024;
const EXTENSION: &str = "session";

#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the session cannot be sealed")]
    Seal,
}

/// Where sessions lie while the agent is away.
pub struct Vault {
    directory: PathBuf,
    key: RandomizedNonceKey,
    boot: String,
}

/// What there is to know of a session.
#[derive(Serialize, Deserialize)]
pub struct Sealed {
    pub id: Uuid,
    pub issuer: String,
    pub subject: String,
    pub groups: Vec<String>,
    pub rule: String,
    pub account: String,
    pub role: String,
    pub cgroup: String,
    pub cgroup_id: u64,
    pub session_token: Zeroizing<String>,
    pub master_token: Zeroizing<String>,
    /// The hashes of the client's tokens, oldest first.
    pub tokens: Vec<([u8; 32], TokenKind)>,
}

impl Vault {
    /// Opens the vault, and makes its key at the first time.
    pub fn open(directory: &Path) -> Result<Self, VaultError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| VaultError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
        let path = directory.join("key");
        let found = match fs::read(&path) {
            // As the machine's fall may leave it: what it sealed is lost, and of that boot anyway.
            Ok(key) => Some(Zeroizing::new(key)).filter(|key| key.len() == KEY_BYTES),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(&path)(error)),
        };
        let key = if let Some(key) = found {
            key
        } else {
            let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
            rand::fill(&mut key).map_err(|_| VaultError::Seal)?;
            write(&path, &key).map_err(failed(&path))?;
            key
        };
        let key = RandomizedNonceKey::new(&AES_256_GCM, &key).map_err(|_| VaultError::Seal)?;
        // The ids of cgroups, which sessions are bound to, begin anew with each boot.
        let boot_id = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = fs::read_to_string(boot_id).map_err(failed(boot_id))?.trim().to_owned();
        Ok(Self { directory: directory.to_owned(), key, boot })
    }

    /// Seals a session, in the place of what was sealed of it before.
    pub fn store(&self, session: &Sealed) -> Result<(), VaultError> {
        let mut bytes = serde_json::to_vec(session).map_err(|_| VaultError::Seal)?;
        let nonce = self
            .key
            .seal_in_place_append_tag(self.associated(session.id), &mut bytes)
            .map_err(|_| VaultError::Seal)?;
        let path = self.path(session.id);
        write(&path, &[nonce.as_ref().as_slice(), &bytes].concat())
            .map_err(|source| VaultError::Io { path, source })
    }

    /// Seals something for a client to keep, who can use it for nothing but for what it is meant for.
    pub fn seal(&self, purpose: &str, mut bytes: Vec<u8>) -> Result<String, VaultError> {
        let nonce = self
            .key
            .seal_in_place_append_tag(self.meant_for(purpose), &mut bytes)
            .map_err(|_| VaultError::Seal)?;
        Ok(URL_SAFE_NO_PAD.encode([nonce.as_ref().as_slice(), &bytes].concat()))
    }

    /// What was sealed for this purpose, in this boot.
    pub fn open_sealed(&self, purpose: &str, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        let mut bytes = Zeroizing::new(URL_SAFE_NO_PAD.decode(sealed).ok()?);
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, self.meant_for(purpose), sealed).ok()?;
        Some(Zeroizing::new(plain.to_vec()))
    }

    fn meant_for(&self, purpose: &str) -> Aad<String> {
        Aad::from(format!("{} for a client: {purpose}", self.boot))
    }

    pub fn remove(&self, id: Uuid) {
        // Should it stay, the next agent has a session that Snowflake has closed.
        let _ = fs::remove_file(self.path(id));
    }

    /// The sessions of this boot. Files that cannot be opened are removed.
    pub fn load(&self) -> Vec<Sealed> {
        let Ok(entries) = fs::read_dir(&self.directory) else { return Vec::new() };
        let mut sessions = Vec::new();
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match self.unseal(&path) {
                Some(session) => sessions.push(session),
                None => drop(fs::remove_file(&path)),
            }
        }
        sessions
    }

    fn unseal(&self, path: &Path) -> Option<Sealed> {
        let id: Uuid = path.file_stem()?.to_str()?.parse().ok()?;
        let mut bytes = Vec::new();
        fs::File::open(path).ok()?.take(FILE_LIMIT).read_to_end(&mut bytes).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = self.key.open_in_place(nonce, self.associated(id), sealed).ok()?;
        serde_json::from_slice(plain).ok()
    }

    /// Binds a file to its name and to this boot.
    fn associated(&self, id: Uuid) -> Aad<String> {
        Aad::from(format!("{} {id}", self.boot))
    }

    fn path(&self, id: Uuid) -> PathBuf {
        self.directory.join(id.to_string()).with_extension(EXTENSION)
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("partial");
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&partial)?
        .write_all(bytes)?;
    fs::rename(&partial, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed() -> Sealed {
        Sealed {
            id: Uuid::now_v7(),
            issuer: "i".into(),
            subject: "s".into(),
            groups: vec!["g".into()],
            rule: "r".into(),
            account: "a".into(),
            role: String::new(),
            cgroup: "/c".into(),
            cgroup_id: 7,
            session_token: Zeroizing::new("real-token".into()),
            master_token: Zeroizing::new("real-master".into()),
            tokens: vec![([1; 32], TokenKind::Master)],
        }
    }

    #[test]
    fn sessions_come_back_and_the_disk_shows_nothing_of_them() {
        let directory = tempfile::tempdir().unwrap();
        let session = sealed();
        Vault::open(directory.path()).unwrap().store(&session).unwrap();
        let vault = Vault::open(directory.path()).unwrap();
        let loaded = vault.load();
        assert_eq!(loaded.len(), 1);
        assert_eq!(*loaded[0].master_token, "real-master");
        let file = fs::read(vault.path(session.id)).unwrap();
        assert!(!file.windows(4).any(|window| window == b"real"));
        vault.remove(session.id);
        assert!(vault.load().is_empty());
    }

    #[test]
    fn what_a_client_keeps_is_good_for_its_purpose_alone() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path()).unwrap();
        let sealed = vault.seal("this", b"secret".to_vec()).unwrap();
        assert!(!sealed.contains("secret"));
        assert_eq!(
            **Vault::open(directory.path()).unwrap().open_sealed("this", &sealed).unwrap(),
            *b"secret"
        );
        assert!(vault.open_sealed("that", &sealed).is_none());
        for broken in ["", "AAAA", "ä", &sealed[1..], &format!("{sealed}A")] {
            assert!(vault.open_sealed("this", broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn a_file_that_was_changed_or_renamed_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let vault = Vault::open(directory.path()).unwrap();
        let (changed, renamed) = (sealed(), sealed());
        vault.store(&changed).unwrap();
        vault.store(&renamed).unwrap();
        let path = vault.path(changed.id);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, bytes).unwrap();
        fs::rename(vault.path(renamed.id), vault.path(Uuid::now_v7())).unwrap();
        assert!(vault.load().is_empty());
        assert!(!path.exists());
    }

    #[test]
    fn a_key_that_the_machine_s_fall_has_cut_off_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let session = sealed();
        Vault::open(directory.path()).unwrap().store(&session).unwrap();
        for rest in [0, 31, 33] {
            fs::write(directory.path().join("key"), vec![7; rest]).unwrap();
            let vault = Vault::open(directory.path()).unwrap();
            assert!(vault.load().is_empty());
            vault.store(&session).unwrap();
            assert_eq!(Vault::open(directory.path()).unwrap().load().len(), 1);
        }
    }
}
