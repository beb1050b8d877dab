//! One GET of a small document.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::KeyError;
use crate::tls;

const DEADLINE: Duration = Duration::from_secs(10);
const LIMIT: usize = 1024 * 1024;

pub struct Fetcher {
    url: Uri,
    tls: Option<Arc<ClientConfig>>,
}

impl Fetcher {
    pub fn new(url: Uri, ca_bundle: Option<&Path>) -> Result<Self, KeyError> {
        let tls = match url.scheme_str() {
            Some("https") => Some(tls::client_config(ca_bundle, &[b"http/1.1"])?),
            _ => None,
        };
        Ok(Self { url, tls })
    }

    pub fn place(&self) -> String {
        self.url.to_string()
    }

    pub async fn fetch(&self) -> Result<Bytes, KeyError> {
        let failed = |reason: String| KeyError::Fetch { place: self.place(), reason };
        match tokio::time::timeout(DEADLINE, self.connect_and_get()).await {
            Ok(result) => result.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer within {} s", DEADLINE.as_secs()))),
        }
    }

    async fn connect_and_get(&self) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>> {
        let host = self.url.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
        let port = self.url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let stream = TcpStream::connect((host, port)).await?;
        match &self.tls {
            Some(config) => {
                let name = host.to_owned().try_into()?;
                self.get(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?).await
            }
            None => self.get(stream).await,
        }
    }

    async fn get<S>(&self, stream: S) -> Result<Bytes, Box<dyn std::error::Error + Send + Sync>>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The connection drives the exchange and ends once the sender is dropped.
        let exchange = async move {
            let request = Request::get(self.url.path_and_query().map_or("/", |path| path.as_str()))
                .header(header::HOST, self.url.authority().map_or("", |authority| authority.as_str()))
                .header(header::ACCEPT, "application/json")
                .body(Empty::<Bytes>::new())?;
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(format!("the answer is HTTP {}", response.status()).into());
            }
            Ok(Limited::new(response.into_body(), LIMIT).collect().await?.to_bytes())
        };
        let (document, _) = tokio::join!(exchange, connection);
        document
    }
}
