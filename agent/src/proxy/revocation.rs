//! Port 80 of Snowflake's addresses. Before they trust a certificate, some drivers ask there for a cache of what the public
//! CAs say of theirs (OCSP). The internal CA's are not in it; told so at once a driver goes on, and kept waiting it
//! would hold up each connection for up to 40 s.
//!
//! Where leaves name a list of revoked certificates it is served here too.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::Proxy;
use super::reading::Reading;
use super::share::Share;
use super::splice::{self, Client};
use crate::audit::EventKind;
use crate::capture::{EndpointClass, Flow};
use crate::tls::LIST;

pub const PORT: u16 = 80;
/// The label before the domain, or the account's host, under which the cache is.
const CACHE: &str = "ocsp";
/// A longer head of a request is none of a driver's.
const LONGEST: usize = 8 * 1024;
/// Where the server is not Snowflake's it may be the one to speak first.
const PATIENCE: Duration = Duration::from_secs(2);
const NOT_FOUND: &[u8] = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// What a client asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Asked {
    host: String,
    target: String,
}

/// Serves a connection to port 80.
pub async fn serve(proxy: Arc<Proxy>, mut stream: TcpStream, flow: Flow, share: Arc<Share>) {
    let mut said = Vec::new();
    let asked = tokio::time::timeout(PATIENCE, read(&stream, &mut said)).await.ok().flatten();
    let is_certain = flow.class.is_some_and(EndpointClass::is_certain);
    let asked = match asked {
        Some(asked) if is_certain || proxy.config.is_snowflake(&asked.host) => asked,
        _ if is_certain => Asked::default(),
        _ => return splice::serve(proxy, Client::new(stream, said), flow, share).await,
    };
    let list = list(&proxy, &asked);
    // That it may be gone already makes no difference.
    let _ = stream.write_all(list.as_deref().unwrap_or(NOT_FOUND)).await;
    let _ = stream.shutdown().await;
    if list.is_none() && asked.host.split('.').next() != Some(CACHE) {
        let target: String = asked.target.chars().take(200).collect();
        let detail = format!("to {}: plain HTTP to `{}`: {target}", flow.destination, asked.host);
        proxy.event(EventKind::NotTls, Some(&flow.workload), None, "", detail).await;
    }
}

/// The answer with the list of revoked certificates, where that is asked for and leaves name it.
fn list(proxy: &Proxy, asked: &Asked) -> Option<Vec<u8>> {
    if !proxy.config.revocation_list || asked.target != LIST || !proxy.config.is_snowflake(&asked.host) {
        return None;
    }
    let list = proxy.authority.revocation_list();
    let list = list.inspect_err(|error| tracing::error!(%error, "no list of revoked certificates")).ok()?;
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/pkix-crl\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        list.len()
    );
    Some([head.as_bytes(), &list].concat())
}

/// Reads the head of a request; `None` where there is none.
async fn read(stream: &TcpStream, said: &mut Vec<u8>) -> Option<Asked> {
    let mut piece = [0; 1024];
    while said.len() < LONGEST {
        let count = Reading(stream).read(&mut piece).await.ok().filter(|count| *count > 0)?;
        said.extend_from_slice(piece.get(..count)?);
        match parse(said) {
            Ok(None) => {}
            Ok(asked) => return asked,
            Err(_) => return None,
        }
    }
    None
}

fn parse(head: &[u8]) -> Result<Option<Asked>, httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    if request.parse(head)?.is_partial() {
        return Ok(None);
    }
    let host = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("host"));
    let host = host.map(|host| String::from_utf8_lossy(host.value).to_ascii_lowercase()).unwrap_or_default();
    let host = host.strip_suffix(":80").unwrap_or(&host).trim_end_matches('.').to_owned();
    Ok(Some(Asked { host, target: request.path.unwrap_or_default().to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_is_read_when_it_is_whole() {
        let head = b"GET /ocsp_response_cache.json HTTP/1.1\r\nHost: OCSP.snowflakecomputing.com:80\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(parse(&head[..end]), Ok(None), "{end}");
        }
        let asked = parse(head).unwrap().unwrap();
        assert_eq!(asked.host, "ocsp.snowflakecomputing.com");
        assert_eq!(asked.target, "/ocsp_response_cache.json");
        assert!(parse(b"\x16\x03\x01\x02\x00").is_err());
    }
}
