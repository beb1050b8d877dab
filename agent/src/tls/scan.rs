//! Watches what a connection carries for the beginning of another, to a Snowflake name: in a tunnel through a proxy, or
//! after a change to TLS in the middle.
//!
//! Nothing is held back. A hello counts when it is whole, and what completes it has not been passed on by then: no server
//! has read it, so no connection can have come of it.

use super::names::{Peek, Peeker};

/// Beginnings that may be under way at a time. Whoever has more plays games.
const CANDIDATES: usize = 8;

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub enum Hit {
    /// A hello that asks for these names.
    Hello(Vec<String>),
    /// More beginnings at a time than any protocol has.
    TooMany,
}

/// Reads a stream piece by piece.
#[derive(Default)]
pub struct Scanner {
    /// What may become a hello.
    candidates: Vec<Peeker>,
}

impl Scanner {
    /// Takes what comes next; says what is whole by now, to be judged before the piece is passed on.
    pub fn feed(&mut self, piece: &[u8]) -> Vec<Hit> {
        let mut hits = Vec::new();
        // Most of any stream: nothing to remember.
        let begun = memchr::memchr_iter(HANDSHAKE, piece).map(|at| (Peeker::default(), at));
        let under_way = std::mem::take(&mut self.candidates).into_iter().map(|candidate| (candidate, 0));
        for (mut candidate, at) in under_way.chain(begun) {
            match candidate.feed(piece.get(at..).unwrap_or_default()) {
                Peek::Hello(names) => hits.push(Hit::Hello(names)),
                // What nobody can answer leads nowhere.
                Peek::Other | Peek::Malformed => {}
                Peek::Partial if self.candidates.len() < CANDIDATES => self.candidates.push(candidate),
                Peek::Partial => {
                    self.candidates.clear();
                    hits.push(Hit::TooMany);
                    break;
                }
            }
        }
        hits
    }
}

const HANDSHAKE: u8 = 22;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::names::tests::{cut, hello};
    use super::*;

    const NAME: &str = "acme.snowflakecomputing.com";

    fn found() -> Vec<Hit> {
        vec![Hit::Hello(vec![NAME.into()])]
    }

    /// What is found, and after how many bytes.
    fn feed(stream: &[u8], size: usize) -> Option<(usize, Vec<Hit>)> {
        let mut scanner = Scanner::default();
        let mut fed = 0;
        for piece in stream.chunks(size) {
            fed += piece.len();
            let hits = scanner.feed(piece);
            if !hits.is_empty() {
                return Some((fed, hits));
            }
        }
        None
    }

    #[test]
    fn a_hello_is_found_wherever_it_begins_before_its_last_byte_is_passed_on() {
        let connect = b"CONNECT proxy.example:443 HTTP/1.1\r\nHost: x\r\n\r\n";
        for hello in [hello(NAME), cut(&hello(NAME), 1), cut(&hello(NAME), 50)] {
            let stream = [&connect[..], &hello, b"after"].concat();
            let whole = connect.len() + hello.len();
            for size in [1, 3, 64, 1000, stream.len()] {
                let (fed, hits) = feed(&stream, size).unwrap();
                // In records of one byte, what is random in it may make a second one, with no name.
                assert!(hits.contains(&found()[0]), "{size}: {hits:?}");
                assert!(fed >= whole && fed < whole + size, "{size}");
            }
        }
    }

    #[test]
    fn a_false_beginning_hides_nothing() {
        // A record that announces sixteen kilobytes of hello, in which the real one lies.
        let mut stream = vec![22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc];
        stream.extend(hello(NAME));
        assert_eq!(feed(&stream, 10).map(|(_, hits)| hits), Some(found()));
    }

    #[test]
    fn many_false_beginnings_are_an_attack() {
        let stream = [22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc].repeat(CANDIDATES + 2);
        assert_eq!(feed(&stream, 9).map(|(_, hits)| hits), Some(vec![Hit::TooMany]));
    }

    #[test]
    fn ordinary_streams_are_not_remembered() {
        let mut scanner = Scanner::default();
        assert!(scanner.feed(&vec![b'x'; 100_000]).is_empty());
        assert!(scanner.feed(&[22, 3, 1, 0, 5, 2].repeat(30_000)).is_empty());
        assert!(scanner.candidates.is_empty());
        let mut noise = 1_u32;
        for _ in 0..200 {
            let piece: Vec<u8> = (0..4096)
                .map(|_| {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    noise.to_be_bytes()[0]
                })
                .collect();
            assert!(scanner.feed(&piece).is_empty());
            assert!(scanner.candidates.len() < 3, "{}", scanner.candidates.len());
        }
    }

    proptest! {
        #[test]
        fn a_hello_in_noise_is_found(
            before in proptest::collection::vec(any::<u8>(), 0..300),
            size in 1_usize..200,
        ) {
            let stream = [before, hello(NAME)].concat();
            prop_assert_eq!(feed(&stream, size).map(|(_, hits)| hits), Some(found()));
        }
    }
}
