//! A connection to a sink, with TLS or without.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// What goes wrong between here and there: a cause in words.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub(super) struct Connection {
    pub stream: Box<dyn Stream>,
    /// The socket below, to be asked what became of it.
    pub socket: std::net::TcpStream,
    /// How long connecting took: a way there and back, and no less.
    pub round_trip: Duration,
}

pub(super) async fn connect(
    host: &str,
    port: u16,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Connection, Failure> {
    let began = Instant::now();
    let stream = TcpStream::connect((host, port)).await?;
    let round_trip = began.elapsed();
    stream.set_nodelay(true)?;
    let socket = stream.as_fd().try_clone_to_owned()?.into();
    let stream: Box<dyn Stream> = match tls {
        Some(config) => {
            let name = host.to_owned().try_into()?;
            Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
        }
        None => Box::new(stream),
    };
    Ok(Connection { stream, socket, round_trip })
}
