//! The first bytes of a connection: a ClientHello, or not.

use std::io::Cursor;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Real hellos stay below 4 KiB even with post-quantum key shares; TLS allows 64 KiB.
const LIMIT: usize = 64 * 1024;
/// Time for the whole hello to arrive.
const DEADLINE: Duration = Duration::from_secs(10);

/// A ClientHello as it was read: what it asks for, and the bytes, which nothing has answered yet.
pub struct Hello {
    /// In lower case, without a trailing dot.
    pub server_name: Option<String>,
    pub bytes: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum HelloError {
    #[error("no ClientHello within {} s", DEADLINE.as_secs())]
    Slow,
    #[error("the connection was closed before a ClientHello")]
    Closed,
    #[error("not TLS: {0}")]
    NotTls(rustls::Error),
    /// TLS 1.1, for example, and what it is to be told.
    #[error("{error}")]
    Incompatible { error: rustls::Error, alert: Vec<u8> },
    #[error("a ClientHello of more than {LIMIT} bytes")]
    TooLarge,
    #[error("the connection failed: {0}")]
    Io(#[from] std::io::Error),
}

/// Reads until the ClientHello is whole. Nothing is sent.
pub async fn read_hello(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    tokio::time::timeout(DEADLINE, read(stream)).await.map_err(|_| HelloError::Slow)?
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Hello, HelloError> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(4096);
    let mut chunk = [0_u8; 4096];
    loop {
        let count = stream.read(&mut chunk).await?;
        let new = chunk.get(..count).unwrap_or_default();
        if new.is_empty() {
            return Err(HelloError::Closed);
        }
        bytes.extend_from_slice(new);
        if bytes.len() > LIMIT {
            return Err(HelloError::TooLarge);
        }
        let mut cursor = Cursor::new(new);
        while cursor.position() < count as u64 {
            if acceptor.read_tls(&mut cursor)? == 0 {
                break;
            }
            match acceptor.accept() {
                Ok(Some(accepted)) => {
                    let name = accepted
                        .client_hello()
                        .server_name()
                        .map(|name| name.trim_end_matches('.').to_ascii_lowercase());
                    return Ok(Hello { server_name: name, bytes });
                }
                Ok(None) => {}
                Err((error @ rustls::Error::PeerIncompatible(_), mut accepted)) => {
                    let mut alert = Vec::new();
                    accepted.write_all(&mut alert)?;
                    return Err(HelloError::Incompatible { error, alert });
                }
                Err((error, _alert)) => return Err(HelloError::NotTls(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::ClientConnection;

    use super::*;

    fn hello(name: &str) -> Vec<u8> {
        let config = crate::tls::client_config(None, &[]).unwrap();
        let mut client =
            ClientConnection::new(Arc::clone(&config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn the_name_is_found_however_the_bytes_arrive() {
        let bytes = hello("ACME.snowflakecomputing.com");
        let (mut client, mut server) = tokio::io::duplex(7);
        let sent = bytes.clone();
        let writer =
            tokio::spawn(async move { tokio::io::AsyncWriteExt::write_all(&mut client, &sent).await });
        let read = read_hello(&mut server).await.unwrap();
        assert_eq!(read.server_name.as_deref(), Some("acme.snowflakecomputing.com"));
        assert_eq!(read.bytes, bytes);
        writer.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_is_not_tls_is_told_apart() {
        let read = read_hello(&mut &b"GET / HTTP/1.1\r\n\r\n"[..]).await;
        assert!(matches!(read, Err(HelloError::NotTls(_))));
        let read = read_hello(&mut &b"\x16\x03\x01"[..]).await;
        assert!(matches!(read, Err(HelloError::Closed)));
    }

    #[tokio::test]
    async fn a_hello_without_end_is_cut_off() {
        // A handshake record that announces more than it carries, over and over.
        let mut endless = vec![1, 0xff, 0xff, 0xff];
        endless.resize(0x4000, 0);
        let record: Vec<u8> = [&[0x16, 3, 1, 0x40, 0][..], &endless].concat();
        let bytes = record.repeat(8);
        assert!(read_hello(&mut bytes.as_slice()).await.is_err());
    }
}
