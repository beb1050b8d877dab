//! The names in a ClientHello, read with as little demand as any server might have.
//!
//! [`read_hello`](super::read_hello) reads hellos as the agent's own TLS does, strictly. This reads them to see whether a
//! connection that is passed on asks for a Snowflake name: what a strict reader would refuse must not pass for something
//! else here. It knows record and handshake framing (RFC 8446, 4.1.2 and 5.1) and the server name (RFC 6066, 3).

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// TLS allows 64 KiB for a hello; what frames it takes more, if it is cut into small records.
const LONGEST_HELLO: usize = 64 * 1024;
pub(super) const LONGEST: usize = 2 * LONGEST_HELLO;
/// The largest record: 16 KiB, and what TLS 1.2 allows on top.
const LONGEST_RECORD: usize = 16 * 1024 + 2048;

/// What some first bytes are.
#[derive(Debug, PartialEq, Eq)]
pub enum Peek {
    /// They may become a hello.
    Partial,
    /// They are none.
    Other,
    /// They are a hello that asks for these names, in lower case and without a dot at the end.
    Hello(Vec<String>),
    /// They begin a hello that nobody could answer.
    Malformed,
}

/// Looks at the first bytes of a connection.
pub fn peek(bytes: &[u8]) -> Peek {
    let mut hello = Vec::new();
    let mut rest = bytes;
    loop {
        match record(rest) {
            Record::Partial(payload) => {
                hello.extend_from_slice(payload);
                return match message(&hello) {
                    Message::Whole(body) => names(body).map_or(Peek::Malformed, Peek::Hello),
                    Message::Other => Peek::Other,
                    Message::TooLong => Peek::Malformed,
                    Message::Partial if bytes.len() > LONGEST => Peek::Malformed,
                    Message::Partial => Peek::Partial,
                };
            }
            // What comes between the parts of a message is an error.
            Record::Other if hello.is_empty() => return Peek::Other,
            Record::Other => return Peek::Malformed,
            Record::Whole(payload, after) => {
                hello.extend_from_slice(payload);
                rest = after;
            }
        }
        match message(&hello) {
            Message::Whole(body) => return names(body).map_or(Peek::Malformed, Peek::Hello),
            Message::Other => return Peek::Other,
            Message::TooLong => return Peek::Malformed,
            Message::Partial => {}
        }
    }
}

enum Record<'a> {
    /// A handshake record, and what comes after it.
    Whole(&'a [u8], &'a [u8]),
    /// What there is of its payload.
    Partial(&'a [u8]),
    Other,
}

fn record(bytes: &[u8]) -> Record<'_> {
    let is_handshake = bytes.first().is_none_or(|kind| *kind == HANDSHAKE)
        && bytes.get(1).is_none_or(|major| *major == 3)
        && bytes.get(2).is_none_or(|minor| *minor <= 4);
    if !is_handshake {
        return Record::Other;
    }
    let Some((header, rest)) = bytes.split_first_chunk::<5>() else { return Record::Partial(&[]) };
    let [.., high, low] = *header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > LONGEST_RECORD {
        return Record::Other;
    }
    match rest.split_at_checked(length) {
        Some((payload, after)) => Record::Whole(payload, after),
        None => Record::Partial(rest),
    }
}

enum Message<'a> {
    Whole(&'a [u8]),
    Partial,
    TooLong,
    Other,
}

fn message(bytes: &[u8]) -> Message<'_> {
    if bytes.first().is_some_and(|kind| *kind != CLIENT_HELLO) {
        return Message::Other;
    }
    let Some(([_, high, middle, low], body)) = bytes.split_first_chunk::<4>() else {
        return Message::Partial;
    };
    let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
    if length > LONGEST_HELLO {
        return Message::TooLong;
    }
    body.get(..length).map_or(Message::Partial, Message::Whole)
}

/// All names in the body of a hello. None if it is none.
fn names(body: &[u8]) -> Option<Vec<String>> {
    const VERSION_AND_RANDOM: usize = 34;
    let mut rest = body.get(VERSION_AND_RANDOM..)?;
    let _session = take(&mut rest, 1)?;
    let _ciphers = take(&mut rest, 2)?;
    let _compression = take(&mut rest, 1)?;
    let mut found = Vec::new();
    if rest.is_empty() {
        return Some(found);
    }
    let mut extensions = take(&mut rest, 2)?;
    while let Some((kind, after)) = extensions.split_first_chunk::<2>() {
        extensions = after;
        let content = take(&mut extensions, 2)?;
        if u16::from_be_bytes(*kind) == SERVER_NAME {
            let mut content = content;
            let mut list = take(&mut content, 2)?;
            while let Some((kind, after)) = list.split_first() {
                list = after;
                let name = take(&mut list, 2)?;
                if *kind == HOST_NAME {
                    let name = String::from_utf8_lossy(name);
                    found.push(name.trim_end_matches('.').to_ascii_lowercase());
                }
            }
        }
    }
    Some(found)
}

/// Takes what has its length, of so many bytes, before it.
fn take<'a>(rest: &mut &'a [u8], size: usize) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(size)?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (content, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(content)
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::ClientConnection;

    use super::*;

    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let config = crate::tls::client_config(None, &[]).unwrap();
        let mut client =
            ClientConnection::new(Arc::clone(&config), name.to_owned().try_into().unwrap()).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    /// The same hello in records of so many bytes.
    pub(crate) fn cut(hello: &[u8], size: usize) -> Vec<u8> {
        let parts = hello[5..].chunks(size);
        parts
            .flat_map(|part| {
                let length = u16::try_from(part.len()).unwrap().to_be_bytes();
                [&[22, 3, 1], &length[..], part].concat()
            })
            .collect()
    }

    const NAME: &str = "acme.snowflakecomputing.com";

    #[test]
    fn the_name_is_found_however_the_hello_is_cut() {
        let whole = hello(NAME);
        let expected = Peek::Hello(vec![NAME.into()]);
        assert_eq!(peek(&whole), expected);
        for size in [1, 2, 7, 100] {
            let parts = cut(&whole, size);
            assert_eq!(peek(&parts), expected, "{size}");
            for end in 0..parts.len() {
                assert_eq!(peek(&parts[..end]), Peek::Partial, "{size} {end}");
            }
        }
    }

    #[test]
    fn other_protocols_are_told_at_once() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-", b"\x16\x02", b"\x16\x03\x09", b"\x16\x03\x01\0\x05\x02"]
        {
            assert_eq!(peek(bytes), Peek::Other, "{bytes:?}");
        }
        assert_eq!(peek(b""), Peek::Partial);
        assert_eq!(peek(b"\x16\x03"), Peek::Partial);
    }

    #[test]
    fn a_hello_that_nobody_could_answer_is_no_other_protocol() {
        let mut whole = hello(NAME);
        let end = whole.len();
        whole[5 + 4 + 34] = 0xff;
        assert_eq!(peek(&whole), Peek::Malformed);
        // Another kind of record in the middle of it.
        let mut parts = cut(&hello(NAME), end / 2);
        let second = 5 + end / 2;
        parts[second] = 23;
        assert_eq!(peek(&parts), Peek::Malformed);
        // A length that never comes.
        assert_eq!(peek(b"\x16\x03\x01\0\x04\x01\xff\xff\xff"), Peek::Malformed);
        // One that never ends, in the smallest records.
        let mut endless = vec![0; 60_000];
        endless.splice(..9, [22, 3, 1, 0, 0, 1, 0, 0xff, 0xff]);
        assert_eq!(peek(&cut(&endless, 1)), Peek::Malformed);
    }

    #[test]
    fn every_name_counts() {
        let mut list = Vec::new();
        for name in ["www.example.com", "ACME.snowflakecomputing.com."] {
            list.push(0);
            list.extend(u16::try_from(name.len()).unwrap().to_be_bytes());
            list.extend(name.bytes());
        }
        let mut extension = u16::try_from(list.len()).unwrap().to_be_bytes().to_vec();
        extension.extend(list);
        let mut extensions = vec![0, 0];
        extensions.extend(u16::try_from(extension.len()).unwrap().to_be_bytes());
        extensions.extend(extension);
        let mut body = vec![3, 3];
        body.extend([0; 32]);
        body.extend([0, 0, 2, 0x13, 1, 1, 0]);
        body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
        body.extend(extensions);
        assert_eq!(names(&body), Some(vec!["www.example.com".into(), NAME.into()]));
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = peek(&bytes);
            let _ = peek(&[&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &bytes].concat());
        }
    }
}
