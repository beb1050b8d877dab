//! Where a client asks a proxy to be led to: HTTP CONNECT, SOCKS 4, 4a and 5.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest beginning that is looked at: a request with the longest name, user and password.
pub const LONGEST: usize = 1024;

#[derive(Debug, PartialEq, Eq)]
pub enum Target {
    /// In lower case, without a dot at its end.
    Name(String),
    Address(IpAddr),
}

/// Reads what a client has said so far; none as long as that names no target, or is no such request at all.
pub fn target(said: &[u8]) -> Option<Target> {
    let mut bytes = Bytes(said);
    match said.first()? {
        4 => socks4(&mut bytes),
        5 => socks5(&mut bytes),
        b'C' => http(said),
        _ => None,
    }
}

fn http(said: &[u8]) -> Option<Target> {
    let end = |byte: &u8| matches!(byte, b' ' | b'\r' | b'\n');
    let rest = said.strip_prefix(b"CONNECT ")?;
    let authority = rest.get(..rest.iter().position(end)?)?;
    let authority = std::str::from_utf8(authority).ok()?;
    let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
    Some(named(host.trim_start_matches('[').trim_end_matches(']')))
}

fn socks4(bytes: &mut Bytes<'_>) -> Option<Target> {
    // Version, command, port.
    bytes.take(4)?;
    let address: [u8; 4] = bytes.take(4)?.try_into().ok()?;
    bytes.until_zero()?;
    match address {
        // An address that is none: a name follows.
        [0, 0, 0, last] if last != 0 => Some(named(std::str::from_utf8(bytes.until_zero()?).ok()?)),
        address => Some(Target::Address(Ipv4Addr::from(address).into())),
    }
}

fn socks5(bytes: &mut Bytes<'_>) -> Option<Target> {
    const BY_PASSWORD: u8 = 1;
    const IPV4: u8 = 1;
    const NAME: u8 = 3;
    const IPV6: u8 = 4;
    // The methods that the client offers.
    bytes.byte()?;
    bytes.counted()?;
    if *bytes.0.first()? == BY_PASSWORD {
        bytes.byte()?;
        bytes.counted()?;
        bytes.counted()?;
    }
    // Version, command, nothing.
    bytes.take(3)?;
    match bytes.byte()? {
        IPV4 => Some(Target::Address(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.take(4)?).ok()?).into())),
        IPV6 => Some(Target::Address(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.take(16)?).ok()?).into())),
        NAME => Some(named(std::str::from_utf8(bytes.counted()?).ok()?)),
        _ => None,
    }
}

/// Clients write addresses as names too.
fn named(host: &str) -> Target {
    match host.parse() {
        Ok(address) => Target::Address(address),
        Err(_) => Target::Name(host.trim_end_matches('.').to_ascii_lowercase()),
    }
}

/// What is left to read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    /// As many bytes as the first one says.
    fn counted(&mut self) -> Option<&'a [u8]> {
        let count = self.byte()?;
        self.take(usize::from(count))
    }

    /// Up to a zero, which is read too.
    fn until_zero(&mut self) -> Option<&'a [u8]> {
        let taken = self.take(self.0.iter().position(|byte| *byte == 0)?)?;
        self.byte()?;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> Target {
        Target::Name(text.into())
    }

    fn address(text: &str) -> Target {
        Target::Address(text.parse().unwrap())
    }

    #[test]
    fn targets_are_read_in_every_protocol() {
        for (said, expected) in [
            (&b"CONNECT A.Example:443 HTTP/1.1\r\n"[..], Some(name("a.example"))),
            (b"CONNECT a.example.:443\r\n", Some(name("a.example"))),
            (b"CONNECT [fd00::1]:443 HTTP/1.1", Some(address("fd00::1"))),
            (b"CONNECT 10.0.0.1:443 HTTP/1.1", Some(address("10.0.0.1"))),
            (b"CONNECT a.exam", None),
            (b"COPY a.example:443 HTTP/1.1", None),
            (b"GET / HTTP/1.1\r\n", None),
            (b"\x04\x01\x01\xbb\x0a\x00\x00\x01me\0", Some(address("10.0.0.1"))),
            (b"\x04\x01\x01\xbb\x0a\x00\x00\x01me", None),
            (b"\x04\x01\x01\xbb\0\0\0\x01me\0a.example\0", Some(name("a.example"))),
            (b"\x05\x01\x00", None),
            (b"\x05\x01\x00\x05\x01\x00\x03\x09a.example\x01\xbb", Some(name("a.example"))),
            (
                b"\x05\x02\x00\x02\x01\x02me\x02pw\x05\x01\x00\x03\x09a.example\x01\xbb",
                Some(name("a.example")),
            ),
            (b"\x05\x01\x00\x05\x01\x00\x01\x0a\x00\x00\x01\x01\xbb", Some(address("10.0.0.1"))),
            (b"\x05\x01\x00\x05\x01\x00\x03\x0810.0.0.1\x01\xbb", Some(address("10.0.0.1"))),
            (b"", None),
        ] {
            assert_eq!(target(said), expected, "{said:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(first in prop_oneof![Just(4_u8), Just(5), Just(b'C')], rest: Vec<u8>) {
            let _ = target(&[vec![first], rest].concat());
        }
    }
}
