//! What a file in a stage says of itself: the digest of its content, and how the client encrypted it. Each provider's
//! storage has it under names of its own; the client, who believes that it talks to Google's, under Google's.

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};

use super::transfer::Storage;

const DIGEST: HeaderName = HeaderName::from_static("x-goog-meta-sfc-digest");
const ENCRYPTION: HeaderName = HeaderName::from_static("x-goog-meta-encryptiondata");
const DESCRIPTION: HeaderName = HeaderName::from_static("x-goog-meta-matdesc");
/// More than what a storage takes in all.
const LONGEST: usize = 8 * 1024;

/// A file's metadata, in the client's form.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// SHA-256 of what was encrypted, in base64, as the client says.
    pub digest: Option<String>,
    /// JSON with the file's key, wrapped by the stage's, and the initialisation vector.
    encryption: Option<String>,
    /// JSON that says which of the stage's keys it was.
    description: Option<String>,
}

/// The client's description of its encryption is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the description of the file's encryption cannot be read")]
pub struct UnreadableEncryption;

impl Metadata {
    /// Reads what a client sends along with a file.
    pub fn of_client(headers: &HeaderMap) -> Self {
        let text = |name: &HeaderName| {
            let value = headers.get(name)?.to_str().ok()?;
            (!value.is_empty() && value.len() <= LONGEST).then(|| value.to_owned())
        };
        Self { digest: text(&DIGEST), encryption: text(&ENCRYPTION), description: text(&DESCRIPTION) }
    }

    /// What the client is told of a file.
    pub fn for_client(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let told = [(DIGEST, &self.digest), (ENCRYPTION, &self.encryption), (DESCRIPTION, &self.description)];
        told.into_iter()
            .filter_map(|(name, value)| Some((name, HeaderValue::from_str(value.as_deref()?).ok()?)))
    }

    /// Reads what a storage says of a file; `find` finds a text by its name.
    pub fn of_storage(storage: &Storage, find: impl Fn(&str) -> Option<String>) -> Self {
        match storage {
            Storage::S3 { .. } => Self {
                digest: find("sfc-digest"),
                encryption: find("x-amz-key").zip(find("x-amz-iv")).map(|(key, iv)| encryption(&key, &iv)),
                description: find("x-amz-matdesc"),
            },
            Storage::Azure { .. } => Self {
                digest: find("sfcdigest"),
                encryption: find("encryptiondata"),
                description: find("matdesc"),
            },
            Storage::Gcs { .. } => Self {
                digest: find("sfc-digest"),
                encryption: find("encryptiondata"),
                description: find("matdesc"),
            },
        }
    }

    /// What a storage is told of a file: names and texts.
    pub fn for_storage(
        &self,
        storage: &Storage,
    ) -> Result<Vec<(&'static str, String)>, UnreadableEncryption> {
        let digest = if matches!(storage, Storage::Azure { .. }) { "sfcdigest" } else { "sfc-digest" };
        let mut told: Vec<(&str, Option<String>)> = vec![(digest, self.digest.clone())];
        if matches!(storage, Storage::S3 { .. }) {
            if let Some(encryption) = &self.encryption {
                let (key, iv) = key_and_iv(encryption).ok_or(UnreadableEncryption)?;
                told.extend([("x-amz-key", Some(key)), ("x-amz-iv", Some(iv))]);
            }
            told.push(("x-amz-matdesc", self.description.clone()));
        } else {
            told.push(("encryptiondata", self.encryption.clone()));
            told.push(("matdesc", self.description.clone()));
        }
        Ok(told.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
    }
}

/// The description as the drivers write it, for a file whose storage keeps key and vector apart.
fn encryption(key: &str, iv: &str) -> String {
    json!({
        "EncryptionMode": "FullBlob",
        "WrappedContentKey": { "KeyId": "symmKey1", "EncryptedKey": key, "Algorithm": "AES_CBC_256" },
        "EncryptionAgent": { "Protocol": "1.0", "EncryptionAlgorithm": "AES_CBC_256" },
        "ContentEncryptionIV": iv,
        "KeyWrappingMetadata": { "EncryptionLibrary": "Java 5.3.0" },
    })
    .to_string()
}

fn key_and_iv(encryption: &str) -> Option<(String, String)> {
    let encryption: Value = serde_json::from_str(encryption).ok()?;
    let key = encryption.get("WrappedContentKey")?.get("EncryptedKey")?.as_str()?;
    let iv = encryption.get("ContentEncryptionIV")?.as_str()?;
    Some((key.to_owned(), iv.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storages() -> [Storage; 3] {
        let text = || String::new();
        [
            Storage::S3 {
                endpoint: text(),
                region: text(),
                key: text(),
                secret: text().into(),
                token: text().into(),
            },
            Storage::Azure { endpoint: text(), account: text(), signature: text().into() },
            Storage::Gcs { endpoint: text(), token: text().into() },
        ]
    }

    #[test]
    fn what_a_client_said_comes_back_from_every_storage() {
        let mut headers = HeaderMap::new();
        headers.insert(DIGEST, HeaderValue::from_static("D="));
        headers.insert(ENCRYPTION, HeaderValue::try_from(encryption("K=", "I=")).unwrap());
        headers.insert(DESCRIPTION, HeaderValue::from_static(r#"{"smkId":"1"}"#));
        let said = Metadata::of_client(&headers);
        for storage in storages() {
            let kept = said.for_storage(&storage).unwrap();
            let find = |name: &str| kept.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
            assert_eq!(Metadata::of_storage(&storage, find), said);
            let told: HeaderMap = said.for_client().collect();
            assert_eq!(told, headers);
        }
    }

    #[test]
    fn each_storage_has_its_own_names() {
        let said = Metadata {
            digest: Some("D".to_owned()),
            encryption: Some(encryption("K", "I")),
            description: Some("M".to_owned()),
        };
        let names = |storage: &Storage| -> Vec<&str> {
            said.for_storage(storage).unwrap().iter().map(|(name, _)| *name).collect()
        };
        let [s3, azure, gcs] = storages();
        assert_eq!(names(&s3), ["sfc-digest", "x-amz-key", "x-amz-iv", "x-amz-matdesc"]);
        assert_eq!(names(&azure), ["sfcdigest", "encryptiondata", "matdesc"]);
        assert_eq!(names(&gcs), ["sfc-digest", "encryptiondata", "matdesc"]);
        let odd = Metadata { encryption: Some("{}".to_owned()), ..Metadata::default() };
        assert_eq!(odd.for_storage(&s3), Err(UnreadableEncryption));
        assert_eq!(Metadata::default().for_storage(&s3), Ok(Vec::new()), "a file that is not encrypted");
    }
}
