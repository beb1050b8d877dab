//! A connection to a sink, with TLS or without.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What goes wrong between here and there: a cause in words.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Box<dyn Stream>, Failure> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(match tls {
        Some(config) => {
            let name = host.to_owned().try_into()?;
            Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
        }
        None => Box::new(stream),
    })
}
