//! Places in object stores.

use std::collections::BTreeMap;
use std::path::PathBuf;

use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::AzureConfigKey;
use object_store::gcp::GoogleConfigKey;
use object_store::path::Path;
use object_store::{ClientConfigKey, ObjectStoreScheme};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::check::protected_url;
use super::document::Document;
use super::secret::SecretReference;

/// A place in an object store.
#[derive(Debug, Clone)]
pub struct Bucket {
    pub kind: BucketKind,
    pub url: Url,
    /// What all names there begin with.
    pub prefix: Path,
    /// By the names that the `object_store` crate has for them.
    pub options: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, SecretReference>,
    /// The system's roots where there is none.
    pub ca_bundle: Option<PathBuf>,
    pub allow_http: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketKind {
    Azure,
    Folder(PathBuf),
    Gcs,
    S3,
}

/// A place in an object store. What is not said of credentials comes from the environment or from the cloud (instance metadata,
/// workload identity), as with its own tools.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Bucket")]
pub struct Raw {
    /// `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, or `file:///FOLDER` for one that is mounted.
    pub url: String,
    /// Settings of the store, such as `region`, `endpoint` or `account_name`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// References to secrets, such as `secret_access_key = "file:/etc/snowfence/s3"`.
    #[serde(default)]
    pub secrets: BTreeMap<String, String>,
    /// Certificates to trust instead of the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Let `endpoint` be plain HTTP, in a network that you trust.
    #[serde(default)]
    pub allow_http: bool,
}

const EXPECTED: &str =
    "expected `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX` or `file:///FOLDER`";

impl Bucket {
    /// A place by its URL alone.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        let url: Url = url.parse().map_err(|_| EXPECTED)?;
        let is_plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|_| EXPECTED)?;
        let kind = match scheme {
            ObjectStoreScheme::AmazonS3 => BucketKind::S3,
            ObjectStoreScheme::GoogleCloudStorage => BucketKind::Gcs,
            ObjectStoreScheme::MicrosoftAzure => BucketKind::Azure,
            ObjectStoreScheme::Local => BucketKind::Folder(url.to_file_path().map_err(|()| EXPECTED)?),
            _ => return Err(EXPECTED),
        };
        if !is_plain {
            return Err("expected a URL without a user, a password or parameters: secrets go to `secrets`");
        }
        let (options, secrets) = <_>::default();
        Ok(Self { kind, url, prefix, options, secrets, ca_bundle: None, allow_http: false })
    }

    fn knows(&self, option: &str) -> bool {
        // How connections are made is none of the store's.
        if option.parse::<ClientConfigKey>().is_ok() {
            return false;
        }
        match self.kind {
            BucketKind::Azure => option.parse::<AzureConfigKey>().is_ok(),
            BucketKind::Folder(_) => false,
            BucketKind::Gcs => option.parse::<GoogleConfigKey>().is_ok(),
            BucketKind::S3 => option.parse::<AmazonS3ConfigKey>().is_ok(),
        }
    }
}

/// Checks the place that stands at a path.
pub(super) fn check(raw: Raw, at: &[&str], document: &mut Document) -> Option<Bucket> {
    let mut wrong = |keys: &[&str], message: &str| document.add_below(at, keys, message);
    let mut bucket = match Bucket::parse(&raw.url) {
        Ok(bucket) => bucket,
        Err(expected) => {
            wrong(&["url"], expected);
            return None;
        }
    };
    for (name, value) in &raw.options {
        if !bucket.knows(name) {
            wrong(&["options", name], "is no option of this kind of store");
        } else if is_secret(name) {
            wrong(
                &["options", name],
                "is a secret: put a reference to it (`file:PATH`, `env:NAME`) in `secrets`",
            );
        } else if value.starts_with("http")
            && let Err(expected) = protected_url(value, raw.allow_http)
        {
            wrong(&["options", name], expected);
        }
    }
    for (name, reference) in raw.secrets {
        match reference.parse() {
            Ok(_) if !bucket.knows(&name) => {
                wrong(&["secrets", &name], "is no option of this kind of store");
            }
            Ok(reference) => {
                bucket.secrets.insert(name, reference);
            }
            Err(expected) => wrong(&["secrets", &name], expected),
        }
    }
    Some(Bucket { options: raw.options, ca_bundle: raw.ca_bundle, allow_http: raw.allow_http, ..bucket })
}

/// By the names that these options have.
fn is_secret(option: &str) -> bool {
    let is_place = option.ends_with("_file") || option.ends_with("_path") || option.ends_with("_uri");
    let words = [
        "secret",
        "token",
        "sas",
        "password",
        "access_key",
        "master_key",
        "account_key",
        "encryption_key",
        "customer_key",
    ];
    !is_place && !option.ends_with("_id") && words.iter().any(|word| option.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_url_without_secrets() {
        let kind = |url: &str| Bucket::parse(url).map(|bucket| (bucket.kind, bucket.prefix.to_string()));
        assert_eq!(kind("s3://trail/eu/1"), Ok((BucketKind::S3, "eu/1".to_owned())));
        assert_eq!(kind("gs://trail"), Ok((BucketKind::Gcs, String::new())));
        assert_eq!(kind("az://trail/a"), Ok((BucketKind::Azure, "a".to_owned())));
        let folder = Bucket::parse("file:///mnt/trail").unwrap();
        assert_eq!(folder.kind, BucketKind::Folder("/mnt/trail".into()));
        for wrong in
            ["", "trail", "ftp://x/y", "https://x.example/y", "s3://key:secret@trail", "s3://trail?x=y"]
        {
            assert!(Bucket::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_told_from_other_options() {
        for secret in [
            "aws_secret_access_key",
            "azure_encryption_key",
            "aws_sse_customer_key_base64",
            "token",
            "azure_storage_sas_key",
            "access_key",
            "client_secret",
            "service_account_key",
        ] {
            assert!(is_secret(secret), "{secret}");
        }
        for other in [
            "access_key_id",
            "region",
            "endpoint",
            "account_name",
            "web_identity_token_file",
            "service_account_path",
        ] {
            assert!(!is_secret(other), "{other}");
        }
    }
}
