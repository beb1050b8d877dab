//! Bodies of requests: read whole, with a limit on what arrives and on what it inflates to.

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::HeaderMap;
use hyper::body::Incoming;
use hyper::header::CONTENT_ENCODING;

/// A login is a few kilobytes.
pub const LOGIN: usize = 1024 * 1024;
/// A statement is at most a megabyte; bound values come on top.
pub const QUERY: usize = 32 * 1024 * 1024;
/// Everything else that drivers send.
pub const OTHER: usize = 1024 * 1024;

/// Time for a whole body to arrive.
const DEADLINE: Duration = Duration::from_mins(1);

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the body did not arrive within {} s", DEADLINE.as_secs())]
    Slow,
    #[error("the body is not valid gzip")]
    Gzip,
    #[error("the body's encoding is not supported: use gzip or none")]
    Encoding,
    #[error("the body ended early")]
    Broken,
}

/// Reads a body and inflates it. Gzip is recognised by its first bytes, as drivers do not always declare it.
pub async fn read(headers: &HeaderMap, body: Incoming, limit: usize) -> Result<Bytes, BodyError> {
    match headers.get(CONTENT_ENCODING).map(|encoding| encoding.to_str().unwrap_or("?")) {
        None | Some("" | "identity" | "gzip") => {}
        Some(_) => return Err(BodyError::Encoding),
    }
    let collected = tokio::time::timeout(DEADLINE, Limited::new(body, limit).collect());
    let bytes = match collected.await {
        Err(_) => return Err(BodyError::Slow),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(BodyError::TooLarge(limit)),
        Ok(Err(_)) => return Err(BodyError::Broken),
        Ok(Ok(collected)) => collected.to_bytes(),
    };
    if bytes.starts_with(&[0x1f, 0x8b]) { inflate(&bytes, limit) } else { Ok(bytes) }
}

fn inflate(bytes: &[u8], limit: usize) -> Result<Bytes, BodyError> {
    let mut inflated = Vec::new();
    let capped = limit as u64 + 1;
    MultiGzDecoder::new(bytes).take(capped).read_to_end(&mut inflated).map_err(|_| BodyError::Gzip)?;
    if inflated.len() > limit { Err(BodyError::TooLarge(limit)) } else { Ok(inflated.into()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn a_bomb_is_cut_off_at_the_limit() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![b' '; 10 * LOGIN]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < LOGIN / 50);
        assert!(matches!(inflate(&bomb, LOGIN), Err(BodyError::TooLarge(_))));
        assert_eq!(inflate(&bomb, 10 * LOGIN).unwrap().len(), 10 * LOGIN);
        assert!(matches!(inflate(&bomb[..bomb.len() / 2], 10 * LOGIN), Err(BodyError::Gzip)));
    }
}
