//! One agent takes the place of another that still runs, without a gap.
//!
//! The successor asks. It gets the right to the pins and copies of the listeners, puts its own kernel programs in the
//! place of the others, and gets ready, while the predecessor goes on. Then it takes the journal, which from then on
//! writes what the predecessor appends as well, and what is known of queries. When it accepts, it says so; the predecessor
//! stops accepting, sees what it has begun to its end, and ends. If the successor fails before that, the predecessor goes on.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::{AdminError, Request};
use crate::capture::{HandedListener, Inheritance};
use crate::proxy::Legacy;
use crate::wire::{self, DESCRIPTORS};

/// How long a predecessor may take to say that it is relieved.
const RELIEF: Duration = Duration::from_secs(5);

/// What the successor says after the first request; the last, it is told in return.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// It is ready for the journal.
    Journal,
    /// It accepts connections.
    Done,
}

/// What the predecessor begins with. The right to the pins comes with it.
#[derive(Serialize, Deserialize)]
pub(super) struct Offer {
    version: String,
    pid: u32,
    listeners: usize,
}

/// Some of the listeners, which come with it.
#[derive(Serialize, Deserialize)]
struct Listeners {
    namespaces: Vec<Handed>,
}

#[derive(Serialize, Deserialize)]
struct Handed {
    inode: u64,
    has_v6: bool,
}

/// Two streams come with it: for the journal and for what is known of queries.
#[derive(Serialize, Deserialize)]
struct Streams {}

/// The agent whose place is taken.
pub struct Predecessor {
    stream: UnixStream,
    pub pid: u32,
    pub version: String,
}

/// What the predecessor sends until it ends.
pub struct Remains {
    pub journal: UnixStream,
    pub legacy: UnixStream,
}

impl Predecessor {
    /// Asks the agent that runs to hand over. None if there is none.
    pub fn ask(path: &Path) -> Result<Option<(Self, Inheritance)>, AdminError> {
        let mut stream = match Client::connect(path) {
            Ok(client) => client.stream,
            Err(AdminError::NotRunning(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let request =
            Request::TakeOver { version: env!("CARGO_PKG_VERSION").to_owned(), pid: std::process::id() };
        let receive = || -> io::Result<(Self, Inheritance)> {
            wire::send(&mut stream, &request)?;
            let (offer, descriptors) = wire::receive_with::<Offer>(&mut stream)?;
            let lock = descriptors.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
            let mut listeners = Vec::new();
            while listeners.len() < offer.listeners {
                let (part, descriptors) = wire::receive_with::<Listeners>(&mut stream)?;
                if part.namespaces.is_empty() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                listeners.extend(join(part, descriptors)?);
            }
            let predecessor = Self { stream, pid: offer.pid, version: offer.version };
            Ok((predecessor, Inheritance { lock, listeners }))
        };
        receive().map(Some).map_err(|source| AdminError::Socket { path: path.to_owned(), source })
    }

    /// Takes the journal: its file is closed when this returns.
    pub fn take_journal(&mut self) -> io::Result<Remains> {
        wire::send(&mut self.stream, &Step::Journal)?;
        let (Streams {}, descriptors) = wire::receive_with(&mut self.stream)?;
        let mut streams = descriptors.into_iter().map(UnixStream::from);
        match (streams.next(), streams.next()) {
            (Some(journal), Some(legacy)) => Ok(Remains { journal, legacy }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Tells it to stop accepting, and waits until it knows: whatever it is told next must not pass for a stop.
    pub fn relieve(mut self) -> io::Result<()> {
        wire::send(&mut self.stream, &Step::Done)?;
        self.stream.set_read_timeout(Some(RELIEF))?;
        if let Err(error) = wire::receive::<Step>(&mut self.stream) {
            tracing::warn!(%error, "the agent before this one does not say that it is relieved");
        }
        Ok(())
    }
}

/// Sends what a successor begins with.
pub(super) fn send_inheritance(stream: &mut UnixStream, inheritance: &Inheritance) -> io::Result<()> {
    let offer = Offer {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        listeners: inheritance.listeners.len(),
    };
    wire::send_with(stream, &offer, &[inheritance.lock.as_fd()])?;
    for part in inheritance.listeners.chunks(DESCRIPTORS / 2) {
        let handed =
            |listener: &HandedListener| Handed { inode: listener.inode, has_v6: listener.v6.is_some() };
        let message = Listeners { namespaces: part.iter().map(handed).collect() };
        let descriptors = part.iter().flat_map(|listener| std::iter::once(&listener.v4).chain(&listener.v6));
        let descriptors: Vec<_> = descriptors.map(AsFd::as_fd).collect();
        wire::send_with(stream, &message, &descriptors)?;
    }
    Ok(())
}

/// Sends the streams for the journal and for what is known of queries; returns this side of the second.
pub(super) fn send_streams(stream: &mut UnixStream, journal: &UnixStream) -> io::Result<UnixStream> {
    let (legacy, their_legacy) = UnixStream::pair()?;
    wire::send_with(stream, &Streams {}, &[journal.as_fd(), their_legacy.as_fd()])?;
    Ok(legacy)
}

/// What the predecessor tells of queries, until it ends. Blocks.
pub fn receive_legacy(mut stream: UnixStream, mut take: impl FnMut(Legacy)) {
    while let Ok(Some(legacy)) = wire::receive(&mut stream) {
        take(legacy);
    }
}

fn join(part: Listeners, descriptors: Vec<OwnedFd>) -> io::Result<Vec<HandedListener>> {
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or(io::ErrorKind::InvalidData);
    let join = |handed: Handed| {
        let v4 = next()?;
        let v6 = if handed.has_v6 { Some(next()?) } else { None };
        Ok(HandedListener { inode: handed.inode, v4, v6 })
    };
    part.namespaces.into_iter().map(join).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn an_inheritance_arrives_whole_however_many_namespaces_there_are() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let socket = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let listeners =
            (0..150).map(|inode| HandedListener { inode, v4: socket(), v6: (inode % 3 != 0).then(socket) });
        let inheritance = Inheritance { lock: socket(), listeners: listeners.collect() };
        let sender = thread::spawn(move || send_inheritance(&mut there, &inheritance).unwrap());
        let (offer, lock) = wire::receive_with::<Offer>(&mut here).unwrap();
        assert_eq!((offer.listeners, lock.len()), (150, 1));
        let mut received = Vec::new();
        while received.len() < offer.listeners {
            let (part, descriptors) = wire::receive_with::<Listeners>(&mut here).unwrap();
            received.extend(join(part, descriptors).unwrap());
        }
        sender.join().unwrap();
        assert!(received.iter().enumerate().all(|(index, handed)| {
            handed.inode == index as u64 && handed.v6.is_some() == (index % 3 != 0)
        }));
    }
}
