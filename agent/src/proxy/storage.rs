//! The storage behind Snowflake's stages, by the credentials that Snowflake gives for one: S3, Azure, Google Cloud Storage.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use http_body_util::{BodyExt, Collected, Limited};
use hyper::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use object_store::aws::AmazonS3Builder;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetResult, MultipartUpload, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, RetryConfig, StaticCredentialProvider,
};

use super::upstream::{Connector, innermost};
use crate::snowflake::{Stage, Storage};

/// A client waits about a minute for each answer, and tries again by itself.
const RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(40);
/// Until the storage begins to answer; a piece of a file is written in that time too.
const ANSWER_DEADLINE: Duration = Duration::from_mins(1);

/// What a storage says of an error is at most some kilobytes.
const ERROR_LIMIT: usize = 64 * 1024;

/// Why a file was not moved. It repeats nothing of what the storage was asked with.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("the file is not in the stage")]
    NotFound,
    #[error("there is a file of this name in the stage")]
    Exists,
    #[error("the credentials that Snowflake gave for the stage have expired")]
    Expired,
    #[error("the stage's storage refuses: HTTP {}", .0.as_u16())]
    Refused(StatusCode),
    #[error("the stage's storage does not answer as it should: {0}")]
    Unreachable(String),
    #[error("the stage's name is none that can be relayed")]
    Name,
}

/// A stage's storage, reached over the connections that everything else goes to Snowflake by.
pub struct Opened {
    store: Arc<dyn ObjectStore>,
    said: Arc<Mutex<Option<Said>>>,
}

/// What the storage said last of an error.
#[derive(Clone, Copy)]
struct Said {
    status: StatusCode,
    expired: bool,
}

/// Opens a stage's storage.
pub fn open(client: &Client<Connector, HttpRequestBody>, stage: &Stage) -> Result<Opened, StorageError> {
    let said = Arc::default();
    let client = StorageClient { client: client.clone(), said: Arc::clone(&said) };
    let retry =
        RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT };
    let store: Result<Arc<dyn ObjectStore>, _> = match &stage.storage {
        Storage::S3 { endpoint, region, key, secret, token } => AmazonS3Builder::new()
            .with_http_connector(client.clone())
            .with_retry(retry)
            .with_bucket_name(&stage.container)
            .with_region(if region.is_empty() { "us-east-1" } else { region })
            .with_endpoint(endpoint)
            .with_virtual_hosted_style_request(true)
            .with_access_key_id(key)
            .with_secret_access_key(secret.as_str())
            .with_token(token.as_str())
            .build()
            .map(|store| Arc::new(store) as _),
        Storage::Azure { endpoint, account, signature } => MicrosoftAzureBuilder::new()
            .with_http_connector(client.clone())
            .with_retry(retry)
            .with_account(account)
            .with_container_name(&stage.container)
            .with_endpoint(endpoint.clone())
            .with_config(AzureConfigKey::SasKey, signature.as_str())
            .build()
            .map(|store| Arc::new(store) as _),
        Storage::Gcs { endpoint, token } => GoogleCloudStorageBuilder::new()
            .with_http_connector(client.clone())
            .with_retry(retry)
            .with_bucket_name(&stage.container)
            .with_base_url(endpoint)
            .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential {
                bearer: token.as_str().to_owned(),
            })))
            .build()
            .map(|store| Arc::new(store) as _),
    };
    store.map(|store| Opened { store, said }).map_err(|_| StorageError::Name)
}

impl Opened {
    /// A file, or no more than what is known of it.
    pub async fn get(&self, path: &Path, head: bool) -> Result<GetResult, StorageError> {
        let found = self.store.get_opts(path, GetOptions::new().with_head(head)).await;
        found.map_err(|error| self.explain(&error))
    }

    /// Writes a file in one request.
    pub async fn put(
        &self,
        path: &Path,
        content: PutPayload,
        options: PutOptions,
    ) -> Result<(), StorageError> {
        let put = self.store.put_opts(path, content, options).await;
        put.map(drop).map_err(|error| self.explain(&error))
    }

    /// Begins to write a file in pieces.
    pub async fn begin(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>, StorageError> {
        let begun = self.store.put_multipart_opts(path, options).await;
        begun.map_err(|error| self.explain(&error))
    }

    /// Why the storage did not do what it was asked. What it says in words may repeat what it was asked with.
    pub fn explain(&self, error: &object_store::Error) -> StorageError {
        let said = *self.said.lock().unwrap_or_else(PoisonError::into_inner);
        match (error, said) {
            (object_store::Error::NotFound { .. }, _) => StorageError::NotFound,
            (object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }, _) => {
                StorageError::Exists
            }
            (_, Some(Said { expired: true, .. })) => StorageError::Expired,
            (_, Some(Said { status, .. })) => StorageError::Refused(status),
            (_, None) => StorageError::Unreachable("the connection cannot be made, or broke".to_owned()),
        }
    }
}

/// Carries requests, and remembers what is said of errors.
#[derive(Clone)]
struct StorageClient {
    client: Client<Connector, HttpRequestBody>,
    said: Arc<Mutex<Option<Said>>>,
}

impl fmt::Debug for StorageClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageClient")
    }
}

impl HttpConnector for StorageClient {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for StorageClient {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // To a question for the head of a file S3 says nothing else of credentials that have expired.
        let is_head = request.method() == Method::HEAD;
        let answered = tokio::time::timeout(ANSWER_DEADLINE, self.client.request(request)).await;
        let response = answered
            .map_err(|_| HttpError::new(HttpErrorKind::Timeout, io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(|error| {
                let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
                HttpError::new(kind, io::Error::other(innermost(&error)))
            })?;
        let broken = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        let (head, body) = response.into_parts();
        if head.status.is_success() {
            *self.said.lock().unwrap_or_else(PoisonError::into_inner) = None;
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body.map_err(broken))));
        }
        let body = Limited::new(body, ERROR_LIMIT).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let says = |code: &[u8]| memchr::memmem::find(&body, code).is_some();
        let expired = head.status == StatusCode::UNAUTHORIZED
            || (is_head && head.status == StatusCode::BAD_REQUEST)
            || says(b"ExpiredToken")
            || says(b"not valid in the specified time frame");
        let said = Said { status: head.status, expired };
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = Some(said);
        Ok(HttpResponse::from_parts(head, HttpResponseBody::from(body)))
    }
}
