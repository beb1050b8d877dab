//! Bodies of requests: read whole, with a limit on what arrives and on what it inflates to.

use std::borrow::Cow;
use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::Incoming;
use hyper::header::CONTENT_ENCODING;

use super::share::{Held, Share};

/// A login is a few kilobytes.
pub const LOGIN: usize = 1024 * 1024;
/// A statement is at most a megabyte; bound values come on top.
pub const QUERY: usize = 32 * 1024 * 1024;
/// Everything else that drivers send.
pub const OTHER: usize = 1024 * 1024;

/// What gzip begins with.
pub const GZIP: [u8; 2] = [0x1f, 0x8b];

/// Time for a whole body to arrive.
const DEADLINE: Duration = Duration::from_mins(1);
/// Time for what nobody reads.
const PASSING_BY: Duration = Duration::from_secs(10);

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
    #[error("there are too many large requests at once: try again later")]
    Busy,
}

/// A body that was read, and the memory that it takes of its workload's share.
pub struct Body {
    pub bytes: Bytes,
    _held: Held,
}

/// Reads a body and inflates it. Gzip is recognised by its first bytes, as drivers do not always declare it.
pub async fn read(
    headers: &HeaderMap,
    body: &mut Incoming,
    limit: usize,
    share: &Share,
) -> Result<Body, BodyError> {
    match headers.get(CONTENT_ENCODING).map(|encoding| encoding.to_str().unwrap_or("?")) {
        None | Some("" | "identity" | "gzip") => {}
        Some(_) => return Err(BodyError::Encoding),
    }
    let mut held = Held::default();
    let collected = tokio::time::timeout(DEADLINE, collect(body, limit, share, &mut held));
    let bytes = collected.await.map_err(|_| BodyError::Slow)??;
    let bytes = if bytes.starts_with(&GZIP) {
        let mut inflated = Vec::new();
        inflate(&bytes, |data| append(&mut inflated, data, limit, share, &mut held))?;
        inflated
    } else {
        bytes
    };
    Ok(Body { bytes: bytes.into(), _held: held })
}

/// An answer as it can be read, whether it came compressed or not.
pub fn inflated(answer: &[u8], limit: usize) -> Result<Cow<'_, [u8]>, BodyError> {
    if !answer.starts_with(&GZIP) {
        return Ok(answer.into());
    }
    let mut inflated = Vec::new();
    inflate(answer, |data| {
        if inflated.len() + data.len() > limit {
            return Err(BodyError::TooLarge(limit));
        }
        inflated.extend_from_slice(data);
        Ok(())
    })?;
    Ok(inflated.into())
}

/// Lets a body pass by that nobody reads, so that the connection stays usable; one that is too long ends it.
pub async fn skip(body: &mut Incoming) {
    let mut left = OTHER;
    let pass_by = async {
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Bytes::len);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    };
    // A slow one ends the connection too.
    let _ = tokio::time::timeout(PASSING_BY, pass_by).await;
}

async fn collect(
    body: &mut Incoming,
    limit: usize,
    share: &Share,
    held: &mut Held,
) -> Result<Vec<u8>, BodyError> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        append(&mut bytes, &data, limit, share, held)?;
    }
    Ok(bytes)
}

/// Hands over what gzip inflates to, piece by piece, until that is refused.
fn inflate(bytes: &[u8], mut append: impl FnMut(&[u8]) -> Result<(), BodyError>) -> Result<(), BodyError> {
    let mut decoder = MultiGzDecoder::new(bytes);
    let mut chunk = vec![0; 64 * 1024];
    loop {
        let count = decoder.read(&mut chunk).map_err(|_| BodyError::Gzip)?;
        match chunk.get(..count) {
            None | Some([]) => return Ok(()),
            Some(data) => append(data)?,
        }
    }
}

fn append(
    bytes: &mut Vec<u8>,
    data: &[u8],
    limit: usize,
    share: &Share,
    held: &mut Held,
) -> Result<(), BodyError> {
    if bytes.len() + data.len() > limit {
        return Err(BodyError::TooLarge(limit));
    }
    if !share.take(data.len(), held) {
        return Err(BodyError::Busy);
    }
    bytes.extend_from_slice(data);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;
    use crate::proxy::share::Shares;

    #[test]
    fn a_bomb_is_cut_off_at_the_limit() {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(&vec![b' '; 10 * LOGIN]).unwrap();
        let bomb = encoder.finish().unwrap();
        assert!(bomb.len() < LOGIN / 50);
        let share = Shares::default().of(1);
        let inflate = |bytes, limit| {
            let (mut inflated, mut held) = (Vec::new(), Held::default());
            super::inflate(bytes, |data| append(&mut inflated, data, limit, &share, &mut held))?;
            Ok::<_, BodyError>(inflated)
        };
        assert!(matches!(inflate(&bomb, LOGIN), Err(BodyError::TooLarge(_))));
        assert_eq!(inflate(&bomb, 10 * LOGIN).unwrap().len(), 10 * LOGIN);
        assert!(matches!(inflate(&bomb[..bomb.len() / 2], 10 * LOGIN), Err(BodyError::Gzip)));
        assert!(matches!(inflated(&bomb, LOGIN), Err(BodyError::TooLarge(_))));
        assert_eq!(inflated(&bomb, 10 * LOGIN).unwrap().len(), 10 * LOGIN);
        assert_eq!(*inflated(b"{}", 2).unwrap(), *b"{}");
    }
}
