//! Netlink, the little of it that is needed: asking the kernel for lists, telling it to do one thing, and hearing of
//! changes. A socket belongs to the network namespace of the thread that opens it.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, bind,
    netlink::SocketAddrNetlink,
    recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel puts up to this much into one answer.
const BUFFER: usize = 64 * 1024;
/// An answer that does not come at once never does.
const DEADLINE: Duration = Duration::from_secs(2);

pub(super) struct Netlink {
    socket: OwnedFd,
}

/// One message of an answer.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) kind: u16,
    pub(super) body: Vec<u8>,
}

impl Netlink {
    /// A socket for questions. Without a protocol: those of devices and addresses.
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let netlink = Self::socket(protocol, SocketFlags::CLOEXEC)?;
        set_socket_timeout(&netlink.socket, Timeout::Recv, Some(DEADLINE))?;
        Ok(netlink)
    }

    /// A socket that hears of changes to devices, and never blocks.
    pub(super) fn watch(groups: u32) -> io::Result<Self> {
        let netlink = Self::socket(None, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        bind(&netlink.socket, &SocketAddrNetlink::new(0, groups))?;
        Ok(netlink)
    }

    fn socket(protocol: Option<Protocol>, flags: SocketFlags) -> io::Result<Self> {
        Ok(Self { socket: socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, protocol)? })
    }

    /// Asks for a list.
    pub(super) fn list(&self, kind: u16, body: &[u8]) -> io::Result<Vec<Message>> {
        self.send(kind, REQUEST | DUMP, body)?;
        let mut all = Vec::new();
        loop {
            for message in self.receive()? {
                match message.kind {
                    DONE => return Ok(all),
                    ERROR => {
                        return Err(error(&message.body).unwrap_or_else(|| io::ErrorKind::InvalidData.into()));
                    }
                    _ => all.push(message),
                }
            }
        }
    }

    /// Asks for one thing.
    pub(super) fn ask(&self, kind: u16, body: &[u8]) -> io::Result<Message> {
        self.send(kind, REQUEST, body)?;
        let message = self.receive()?.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
        match (message.kind, error(&message.body)) {
            (ERROR, failed) => Err(failed.unwrap_or_else(|| io::ErrorKind::InvalidData.into())),
            _ => Ok(message),
        }
    }

    /// Asks for something to be done.
    pub(super) fn tell(&self, kind: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, REQUEST | ACKNOWLEDGE, body)?;
        let messages = self.receive()?;
        let answer = messages.iter().find(|message| message.kind == ERROR);
        match answer.map(|answer| error(&answer.body)) {
            Some(None) => Ok(()),
            Some(Some(error)) => Err(error),
            None => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reads what has been heard; says whether there was anything, or would have been.
    pub(super) fn drain(&self) -> bool {
        let mut heard = false;
        loop {
            match self.receive() {
                Ok(messages) => heard |= !messages.is_empty(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
                // There was more than it had room for: told once, before what is left.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => heard = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "devices of a namespace are not heard of as they come");
                    return true;
                }
            }
        }
    }

    fn send(&self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(HEADER + body.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        // Sequence number and sender: there is one question at a time, and the kernel knows whose it is.
        message.extend([0; 8]);
        message.extend(body);
        send(&self.socket, &message, SendFlags::empty())?;
        Ok(())
    }

    fn receive(&self) -> io::Result<Vec<Message>> {
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let ((bytes, _), _) = recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())?;
        Ok(messages(bytes))
    }
}

impl AsFd for Netlink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Netlink {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// The attributes that a message, or another attribute, is made of.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    /// Two upper bits say something of the content.
    const KIND: u16 = 0x3fff;
    std::iter::from_fn(move || {
        let length = usize::from(half(bytes, 0)?);
        let kind = half(bytes, 2)? & KIND;
        let content = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Appends an attribute.
pub(super) fn put_attribute(message: &mut Vec<u8>, kind: u16, content: &[u8]) {
    let length = u16::try_from(content.len() + 4).unwrap_or(u16::MAX);
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(content);
    message.resize(message.len().next_multiple_of(4), 0);
}

pub(super) fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let (Some(length), Some(kind)) = (word(bytes, 0), half(bytes, 4)) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(body) = bytes.get(HEADER..length) else { break };
        messages.push(Message { kind, body: body.to_owned() });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    messages
}

/// The error in a message of that kind; none where it says that all went well.
fn error(body: &[u8]) -> Option<io::Error> {
    let number = word(body, 0)?.cast_signed();
    (number != 0).then(|| io::Error::from_raw_os_error(number.saturating_neg()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put_attribute(&mut bytes, 3, b"eth0\0");
        put_attribute(&mut bytes, 0x8012, &[1, 2, 3, 4]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(3, b"eth0\0".as_slice()), (18, &[1, 2, 3, 4])]);
        for end in 0..bytes.len() {
            assert!(attributes(&bytes[..end]).count() <= 2);
        }
        // A length that is too small must not lead round in a circle.
        assert_eq!(attributes(&[0, 0, 1, 0, 9, 9]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }

    #[test]
    fn an_answer_is_taken_apart() {
        let mut bytes = Vec::new();
        for (kind, body) in [(16_u16, &b"abcde"[..]), (DONE, &[0; 4])] {
            let length = u32::try_from(HEADER + body.len()).unwrap();
            bytes.extend(length.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend(body);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let read = messages(&bytes);
        assert_eq!((read.len(), read[0].kind, read[0].body.as_slice()), (2, 16, &b"abcde"[..]));
        assert_eq!(messages(&bytes[..20]).len(), 0);
        assert_eq!(messages(&[0; 64]).len(), 0);
    }

    #[test]
    fn errors_are_told_from_success() {
        assert!(error(&0_i32.to_ne_bytes()).is_none());
        assert_eq!(error(&(-2_i32).to_ne_bytes()).unwrap().kind(), io::ErrorKind::NotFound);
    }
}
