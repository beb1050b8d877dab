//! The names in a ClientHello, read with as little demand as any server might have.
//!
//! [`read_hello`](super::read_hello) reads hellos as the agent's own TLS does, strictly. This reads them to see whether a
//! connection that is passed on asks for a Snowflake name: what a strict reader would refuse must not pass for something
//! else here. It knows record and handshake framing (RFC 8446, 4.1.2 and 5.1) and the server name (RFC 6066, 3).

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const MAJOR: u8 = 3;
/// Set in the first byte of a hello of SSL 2, by which later versions may be asked for too.
const SSL2: u8 = 0x80;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;
/// TLS allows 64 KiB for a hello; what frames it takes more, if it is cut into small records.
const LONGEST_HELLO: usize = 64 * 1024;
const LONGEST: usize = 2 * LONGEST_HELLO;
/// Bytes of a record's header.
const HEADER: usize = 5;
/// The largest record: 16 KiB, and what TLS 1.2 allows on top.
const LONGEST_RECORD: usize = 16 * 1024 + 2048;
/// What may stand before a hello, and servers read over, is shorter.
const LONGEST_PREFACE: usize = 16;

/// What some first bytes are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Peek {
    /// They may become a hello.
    #[default]
    Partial,
    /// They are none.
    Other,
    /// They are a hello that asks for these names, in lower case and without a dot at the end.
    Hello(Vec<String>),
    /// They begin a hello that nobody could answer.
    Malformed,
}

/// Looks at the first bytes of a connection as they come, at each of them once.
#[derive(Debug, Default)]
pub struct Peeker {
    /// Of the record under way, as far as it has come: most streams have bytes that look like the first.
    header: [u8; HEADER],
    read: usize,
    /// What is still to come of its payload.
    left: usize,
    /// The payloads of handshake records.
    hello: Vec<u8>,
    /// How many bytes there were.
    total: usize,
    peek: Peek,
}

impl Peeker {
    /// Takes what comes next; says what it is, with what came before.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Peek {
        while self.peek == Peek::Partial && !bytes.is_empty() {
            let taken = if self.left == 0 { self.take_header(bytes) } else { self.take_payload(bytes) };
            self.total += taken;
            bytes = bytes.get(taken..).unwrap_or_default();
            if self.peek == Peek::Partial && self.total > LONGEST {
                self.peek = Peek::Malformed;
            }
        }
        self.peek.clone()
    }

    /// Takes a byte of a record's header; returns how many.
    fn take_header(&mut self, bytes: &[u8]) -> usize {
        let Some(byte) = bytes.first() else { return 0 };
        if let Some(next) = self.header.get_mut(self.read) {
            *next = *byte;
            self.read += 1;
        }
        let begun = !self.hello.is_empty();
        match *self.header.get(..self.read).unwrap_or_default() {
            [HANDSHAKE] | [HANDSHAKE, MAJOR, ..] if self.read < HEADER => {}
            [CHANGE_CIPHER_SPEC | ALERT] | [CHANGE_CIPHER_SPEC | ALERT, MAJOR, ..]
                if self.read < HEADER && !begun => {}
            [first] | [first, _] | [first, _, CLIENT_HELLO] if first & SSL2 != 0 && self.total < 3 => {}
            // That of SSL 2 has no names.
            [first, length, CLIENT_HELLO, MAJOR] if first & SSL2 != 0 && self.total < 4 => {
                self.left = usize::from(u16::from_be_bytes([first & !SSL2, length])).saturating_sub(2).max(1);
            }
            [kind @ (HANDSHAKE | CHANGE_CIPHER_SPEC | ALERT), MAJOR, _, high, low] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                let longest = if kind == HANDSHAKE { LONGEST_RECORD } else { LONGEST_PREFACE };
                if length > longest {
                    self.peek = self.not_a_record();
                } else if length == 0 {
                    self.read = 0;
                } else {
                    self.left = length;
                }
            }
            _ => self.peek = self.not_a_record(),
        }
        1
    }

    /// What comes between the parts of a message is an error; before the first it is another protocol.
    fn not_a_record(&self) -> Peek {
        if self.hello.is_empty() { Peek::Other } else { Peek::Malformed }
    }

    fn take_payload(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.left);
        self.left -= taken;
        match self.header.first() {
            Some(&HANDSHAKE) => {
                self.hello.extend_from_slice(bytes.get(..taken).unwrap_or_default());
                self.peek = match message(&self.hello) {
                    Message::Whole(body) => names(body).map_or(Peek::Malformed, Peek::Hello),
                    Message::Other => Peek::Other,
                    Message::TooLong => Peek::Malformed,
                    Message::Partial => Peek::Partial,
                };
            }
            Some(first) if first & SSL2 != 0 && self.left == 0 => self.peek = Peek::Hello(Vec::new()),
            _ => {}
        }
        if self.left == 0 {
            self.read = 0;
        }
        taken
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

    fn peek(bytes: &[u8]) -> Peek {
        Peeker::default().feed(bytes)
    }

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
            let mut peeker = Peeker::default();
            let told: Vec<Peek> = parts.iter().map(|byte| peeker.feed(&[*byte])).collect();
            assert_eq!(told.last(), Some(&expected));
            assert!(told[..told.len() - 1].iter().all(|peek| *peek == Peek::Partial));
        }
    }

    #[test]
    fn what_servers_read_over_hides_nothing() {
        let expected = Peek::Hello(vec![NAME.into()]);
        // Versions that nobody has heard of, a warning, a change of ciphers, an empty record.
        for before in [&[][..], b"\x15\x03\x01\0\x02\x01\x5a", b"\x14\x03\x03\0\x01\x01", b"\x16\x03\x01\0\0"]
        {
            for minor in [0, 1, 5, 9, 0xff] {
                let mut whole = hello(NAME);
                whole[2] = minor;
                assert_eq!(peek(&[before, &whole].concat()), expected, "{before:?} {minor}");
            }
        }
        // A hello of SSL 2, which asks for TLS by no name.
        let mut old = vec![0x80, 0x2e, 1, 3, 1, 0, 21, 0, 0, 0, 16];
        old.resize(0x2e + 2, 7);
        assert_eq!(peek(&old), Peek::Hello(Vec::new()));
        assert_eq!(peek(&old[..old.len() - 1]), Peek::Partial);
    }

    #[test]
    fn other_protocols_are_told_at_once() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"SSH-2.0-",
            b"\x16\x02",
            b"\x15\x03\x01\0\xff",
            b"\x17\x03\x03",
            b"\x80\x10\x02",
            b"\x80\x10\x01\x02",
            b"\x16\x03\x01\0\x05\x02",
        ] {
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
            let begun = [&[22, 3, 1, 0, 200, 1, 0, 0, 196, 3, 3][..], &bytes].concat();
            let mut peeker = Peeker::default();
            let mut told = Peek::Partial;
            for byte in &begun {
                told = peeker.feed(&[*byte]);
            }
            prop_assert_eq!(told, peek(&begun));
        }
    }
}
