//! A place in an object store that the operator has named.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use tokio::time::timeout;

use super::carrier::{Carrier, innermost, retry};
use crate::config::{self, BucketKind, Secret, SecretError};
use crate::tls::{self, TlsError};

const CONNECT: Duration = Duration::from_secs(10);
/// For a part of a file, all tries included.
const DEADLINE: Duration = Duration::from_mins(3);

/// Why a place in an object store cannot be used. It repeats no secret.
#[derive(Debug, thiserror::Error)]
pub enum BucketError {
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("{0}")]
    Tls(Arc<TlsError>),
    #[error("{}: {source}", path.display())]
    Folder { path: PathBuf, source: std::io::Error },
    #[error("{url}: {problem}")]
    Settings { url: String, problem: String },
    #[error("{0}")]
    Runtime(std::io::Error),
    #[error("{url}: {problem}")]
    Request { url: String, problem: String, is_missing: bool },
}

/// A place in an object store: all names are below it.
#[derive(Clone, Debug)]
pub struct Bucket {
    url: String,
    store: Arc<dyn ObjectStore>,
}

impl Bucket {
    /// Checks the settings and reads the secrets. Sends nothing yet.
    pub fn open(settings: &config::Bucket) -> Result<Self, BucketError> {
        let url = settings.url.to_string();
        let wrong = |error: object_store::Error| BucketError::Settings {
            url: url.clone(),
            problem: innermost(&error),
        };
        let secrets = settings.secrets.iter().map(|(name, reference)| Ok((name, reference.read()?)));
        let secrets = secrets.collect::<Result<Vec<_>, SecretError>>()?;
        let options = || {
            let plain = settings.options.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            plain.chain(secrets.iter().map(|(name, secret)| (name.as_str(), Secret::expose(secret))))
        };
        // The builders are alike and have no trait in common.
        macro_rules! cloud {
            ($builder:expr) => {{
                let builder =
                    $builder.with_url(&url).with_http_connector(carrier(settings)?).with_retry(retry());
                let builder = options().fold(builder, |builder, (name, value)| match name.parse() {
                    Ok(key) => builder.with_config(key, value),
                    // It was found when the configuration was read.
                    Err(_) => builder,
                });
                Arc::new(PrefixStore::new(builder.build().map_err(wrong)?, settings.prefix.clone()))
            }};
        }
        let store: Arc<dyn ObjectStore> = match &settings.kind {
            BucketKind::Azure => cloud!(MicrosoftAzureBuilder::from_env()),
            BucketKind::Gcs => cloud!(GoogleCloudStorageBuilder::from_env()),
            BucketKind::S3 => {
                cloud!(AmazonS3Builder::from_env().with_checksum_algorithm(Checksum::SHA256))
            }
            BucketKind::Folder(path) => {
                // It is not made here: where a mount is missing, that would hide it.
                let failed = |source| BucketError::Folder { path: path.clone(), source };
                path.read_dir().map_err(failed)?;
                Arc::new(LocalFileSystem::new_with_prefix(path).map_err(wrong)?.with_fsync(true))
            }
        };
        Ok(Self { url, store })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    pub fn store(&self) -> &dyn ObjectStore {
        self.store.as_ref()
    }

    /// What the store did not do, in one line.
    pub fn failed(&self, error: &object_store::Error) -> BucketError {
        BucketError::Request {
            url: self.url.clone(),
            problem: in_one_line(&innermost(error)),
            is_missing: matches!(error, object_store::Error::NotFound { .. })
                && !is_of_bucket(&innermost(error)),
        }
    }
}

/// It is the bucket that is not there.
fn is_of_bucket(text: &str) -> bool {
    ["NoSuchBucket", "ContainerNotFound", "specified bucket"].iter().any(|code| text.contains(code))
}

/// An error in a line. What stores say of one is XML with a code and a message.
fn in_one_line(text: &str) -> String {
    let within = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        Some(rest.split_once("</")?.0)
    };
    let line = match (text.split_once('<'), within("Code"), within("Message")) {
        (Some((status, _)), Some(code), Some(message)) => format!("{status}{code}: {message}"),
        _ => text.lines().next().unwrap_or_default().to_owned(),
    };
    line.chars().filter(|character| !character.is_control()).take(300).collect()
}

/// Waits for a store no longer than it may take, as connections can die without a word.
pub async fn in_time<T>(asked: impl Future<Output = object_store::Result<T>>) -> object_store::Result<T> {
    let late = |_| Err(object_store::Error::Generic { store: "", source: "it does not answer".into() });
    timeout(DEADLINE, asked).await.unwrap_or_else(late)
}

/// HTTP without TLS is what clouds give credentials by, on the machine itself: the carrier lets no more be asked by it.
fn carrier(settings: &config::Bucket) -> Result<Carrier<HttpsConnector<HttpConnector>>, BucketError> {
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(Duration::from_mins(1)));
    connector.enforce_http(false);
    let tls = tls::client_config(settings.ca_bundle.as_deref(), &[])
        .map_err(|error| BucketError::Tls(Arc::new(error)))?;
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(Arc::unwrap_or_clone(tls))
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(Carrier::new(Client::builder(TokioExecutor::new()).build(connector), settings.allow_http))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_store_says_is_one_line() {
        let said = "Server returned 403 Forbidden: <?xml version=\"1.0\"?>\n<Error>\n<Code>AccessDenied</Code>\n<Message>No.</Message></Error>";
        assert_eq!(in_one_line(said), "Server returned 403 Forbidden: AccessDenied: No.");
        assert_eq!(in_one_line("first\nsecond"), "first");
        assert_eq!(in_one_line("<Code>x"), "<Code>x");
    }
}
