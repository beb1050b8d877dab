//! Clients of ClickHouse's HTTP interface, one for each endpoint, and which of them is in use.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ::clickhouse::Client;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::time::timeout;

use super::{AuditError, Settings};
use crate::tls;

const CONNECT: Duration = Duration::from_secs(10);

/// The endpoints of one ClickHouse, of which one is in use.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) endpoints: Vec<Endpoint>,
    current: AtomicUsize,
    request: Duration,
}

#[derive(Debug)]
pub(super) struct Endpoint {
    pub url: String,
    /// For statements that name the database, as it may not be there yet.
    pub server: Client,
    /// For inserts.
    pub database: Client,
}

impl Connection {
    /// Checks the settings. Sends nothing yet.
    pub(super) fn new(settings: &Settings) -> Result<Self, AuditError> {
        let wrong = |url: &str, problem| AuditError::ClickHouseUrl { url: url.to_owned(), problem };
        let endpoint = |url: &String| {
            let client = client(url, settings)?;
            let database = client.clone().with_database(&settings.database);
            Ok(Endpoint { url: url.clone(), server: client, database })
        };
        let endpoints = settings.urls.iter().map(endpoint).collect::<Result<Vec<_>, AuditError>>()?;
        if endpoints.is_empty() {
            return Err(wrong("", "there is none"));
        }
        Ok(Self { endpoints, current: AtomicUsize::new(0), request: settings.request })
    }

    /// The endpoint in use.
    pub(super) fn endpoint(&self) -> &Endpoint {
        // `current` is below the length, which is not zero.
        &self.endpoints[self.current.load(Ordering::Relaxed)]
    }

    /// Leaves the endpoint in use for the next one. Says whether all had their turn.
    pub(super) fn next(&self) -> bool {
        let next = (self.current.load(Ordering::Relaxed) + 1) % self.endpoints.len();
        self.current.store(next, Ordering::Relaxed);
        next == 0
    }

    /// The answer of the endpoint in use, in the time that it has for one.
    pub(super) async fn answered<T>(
        &self,
        request: impl Future<Output = ::clickhouse::error::Result<T>>,
    ) -> Result<T, AuditError> {
        let answer =
            timeout(self.request, request).await.unwrap_or(Err(::clickhouse::error::Error::TimedOut));
        answer.map_err(|error| AuditError::ClickHouse {
            url: self.endpoint().url.clone(),
            cause: one_line(&error),
        })
    }

    pub(super) async fn execute(&self, sql: &str) -> Result<(), AuditError> {
        self.answered(self.endpoint().server.query(&sql.replace('?', "??")).execute()).await
    }

    /// The rows of a query, each of as many texts as it has columns.
    pub(super) async fn rows<const COLUMNS: usize>(
        &self,
        sql: &str,
    ) -> Result<Vec<[String; COLUMNS]>, AuditError> {
        let query = self.endpoint().server.query(&sql.replace('?', "??"));
        let bytes = self.answered(async { query.fetch_bytes("JSONCompactStringsEachRow")?.collect().await });
        let bytes = bytes.await?;
        let rows = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(|line| {
            let cells: Vec<String> = serde_json::from_slice(line).ok()?;
            <[String; COLUMNS]>::try_from(cells).ok()
        });
        rows.collect::<Option<_>>().ok_or_else(|| self.unintelligible())
    }

    /// The error for an answer that ClickHouse would not give.
    pub(super) fn unintelligible(&self) -> AuditError {
        AuditError::ClickHouse {
            url: self.endpoint().url.clone(),
            cause: "what answers there is not ClickHouse, or something on the way changes its answers"
                .to_owned(),
        }
    }
}

fn client(url: &str, settings: &Settings) -> Result<Client, AuditError> {
    let wrong = |problem| AuditError::ClickHouseUrl { url: url.to_owned(), problem };
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(wrong("it has no http:// or https://"));
    };
    if rest.contains(['@', '?', '#']) {
        return Err(wrong(
            "it must be a scheme, a host and a port only; user and password have keys of their own",
        ));
    }
    let mut connector = HttpConnector::new();
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_keepalive(Some(Duration::from_mins(1)));
    // ClickHouse closes idle connections after three seconds.
    let idle = Duration::from_secs(2);
    let mut builder = HttpClient::builder(TokioExecutor::new());
    builder.pool_idle_timeout(idle);
    let client = match scheme {
        "http" => Client::with_http_client(builder.build(connector)),
        "https" => {
            connector.enforce_http(false);
            let tls = client_tls(settings.ca_bundle.as_deref())?;
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(tls)
                .https_only()
                .enable_http1()
                .wrap_connector(connector);
            Client::with_http_client(builder.build(connector))
        }
        _ => return Err(wrong("its scheme is neither http nor https")),
    };
    let mut client = client
        .with_url(url)
        .with_product_info("snowfence", env!("CARGO_PKG_VERSION"))
        .with_setting("async_insert", "0")
        .with_setting("insert_deduplicate", "1")
        // An error comes as the status, and not after a beginning that looks well.
        .with_setting("wait_end_of_query", "1")
        // A clock that jumped must not make a batch that can never be delivered.
        .with_setting("max_partitions_per_insert_block", "0")
        // No two records have the same key: there is nothing to merge in a batch.
        .with_setting("optimize_on_insert", "0");
    if settings.cluster.is_some() {
        client = client
            // The answer means that the shard has the rows, and not that they wait to be sent there.
            .with_setting("distributed_foreground_insert", "1")
            // What one replica has may die with it.
            .with_setting("insert_quorum", "auto");
    }
    if let Some(user) = &settings.user {
        client = client.with_user(user);
    }
    if let Some(password) = &settings.password {
        client = client.with_password(password.expose());
    }
    Ok(client)
}

fn client_tls(ca_bundle: Option<&Path>) -> Result<rustls::ClientConfig, AuditError> {
    let config =
        tls::client_config(ca_bundle, &[]).map_err(|error| AuditError::ClickHouseTls(Arc::new(error)))?;
    Ok(Arc::unwrap_or_clone(config))
}

/// ClickHouse's errors have many lines; the log gets the beginning of the first one.
fn one_line(error: &::clickhouse::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().chars().take(300).collect()
}
