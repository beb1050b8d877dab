//! The storage behind Snowflake's stages, by the credentials that Snowflake gives for one: S3, Azure, Google Cloud Storage.

use std::sync::Arc;

use hyper::StatusCode;
use hyper_util::client::legacy::Client;
use object_store::aws::AmazonS3Builder;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::HttpRequestBody;
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder};
use object_store::path::Path;
use object_store::{
    GetOptions, GetResult, MultipartUpload, ObjectStore, PutMultipartOptions, PutOptions, PutPayload,
    StaticCredentialProvider,
};

use super::upstream::Connector;
use crate::snowflake::{Stage, Storage};
use crate::storage::{Carrier, Said, retry};

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
    carrier: Carrier<Connector>,
}

/// Opens a stage's storage.
pub fn open(client: &Client<Connector, HttpRequestBody>, stage: &Stage) -> Result<Opened, StorageError> {
    let carrier = Carrier::new(client.clone(), false);
    let store: Result<Arc<dyn ObjectStore>, _> = match &stage.storage {
        Storage::S3 { endpoint, region, key, secret, token } => AmazonS3Builder::new()
            .with_http_connector(carrier.clone())
            .with_retry(retry())
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
            .with_http_connector(carrier.clone())
            .with_retry(retry())
            .with_account(account)
            .with_container_name(&stage.container)
            .with_endpoint(endpoint.clone())
            .with_config(AzureConfigKey::SasKey, signature.as_str())
            .build()
            .map(|store| Arc::new(store) as _),
        Storage::Gcs { endpoint, token } => GoogleCloudStorageBuilder::new()
            .with_http_connector(carrier.clone())
            .with_retry(retry())
            .with_bucket_name(&stage.container)
            .with_base_url(endpoint)
            .with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential {
                bearer: token.as_str().to_owned(),
            })))
            .build()
            .map(|store| Arc::new(store) as _),
    };
    store.map(|store| Opened { store, carrier }).map_err(|_| StorageError::Name)
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
        match (error, self.carrier.said()) {
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
