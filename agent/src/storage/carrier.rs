//! What carries requests to an object store.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use async_trait::async_trait;
use http_body_util::{BodyExt, Collected, Limited};
use hyper::{Method, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::Connect;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

/// Until the storage begins to answer; a piece of a file is written in that time too.
const ANSWER_DEADLINE: Duration = Duration::from_mins(1);
const RETRIES: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(40);
/// What a storage says of an error is at most some kilobytes.
const ERROR_LIMIT: usize = 64 * 1024;

/// Carries requests, and remembers what is said of errors.
pub struct Carrier<C> {
    client: Client<C, HttpRequestBody>,
    said: Arc<Mutex<Option<Said>>>,
    /// Whether requests may go anywhere without TLS, and not only to what tells credentials on the machine itself.
    plain: bool,
}

/// What a storage said last of an error.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    pub status: StatusCode,
    pub expired: bool,
}

impl<C> Carrier<C> {
    pub fn new(client: Client<C, HttpRequestBody>, plain: bool) -> Self {
        Self { client, said: Arc::default(), plain }
    }

    /// What was said last of an error, unless all has gone well since.
    pub fn said(&self) -> Option<Said> {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, said: Option<Said>) {
        *self.said.lock().unwrap_or_else(PoisonError::into_inner) = said;
    }
}

impl<C: Clone> Clone for Carrier<C> {
    fn clone(&self) -> Self {
        Self { client: self.client.clone(), said: Arc::clone(&self.said), plain: self.plain }
    }
}

impl<C> fmt::Debug for Carrier<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Carrier")
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> HttpConnector for Carrier<C> {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl<C: Connect + Clone + Send + Sync + 'static> HttpService for Carrier<C> {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        if !self.plain && request.uri().scheme_str() != Some("https") && !is_near(request.uri()) {
            let problem = "it would be asked over plain HTTP: `allow_http = true` lets that be, in a network that you trust";
            return Err(HttpError::new(HttpErrorKind::Request, io::Error::other(problem)));
        }
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
            self.note(None);
            return Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body.map_err(broken))));
        }
        let body = Limited::new(body, ERROR_LIMIT).collect().await;
        let body = body.map(Collected::to_bytes).unwrap_or_default();
        let says = |code: &[u8]| memchr::memmem::find(&body, code).is_some();
        let expired = head.status == StatusCode::UNAUTHORIZED
            || (is_head && head.status == StatusCode::BAD_REQUEST)
            || says(b"ExpiredToken")
            || says(b"not valid in the specified time frame");
        self.note(Some(Said { status: head.status, expired }));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::from(body)))
    }
}

/// How often a store is asked again. Who asks waits about a minute for an answer, and tries again by itself.
pub fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: RETRY_TIMEOUT }
}

/// On this machine, or what clouds tell it its credentials by.
fn is_near(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        // fd00:ec2::254 and its like are Amazon's.
        Ok(IpAddr::V6(address)) => address.is_loopback() || address.segments().starts_with(&[0xfd00, 0x0ec2]),
        Err(_) => matches!(host, "localhost" | "metadata.google.internal"),
    }
}

/// The reason at the end of a chain of errors.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_only_the_machine_itself_is_asked() {
        let is_near = |uri: &str| is_near(&uri.parse().unwrap());
        for near in [
            "http://127.0.0.1:9000/x",
            "http://169.254.169.254/latest",
            "http://[fd00:ec2::254]/",
            "http://[::1]/",
            "http://localhost/",
        ] {
            assert!(is_near(near), "{near}");
        }
        for far in
            ["http://10.0.0.1/", "http://s3.amazonaws.com/", "http://[fd00::1]/", "http://169.254.example/"]
        {
            assert!(!is_near(far), "{far}");
        }
    }
}
