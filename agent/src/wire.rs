//! Messages between processes of one host: JSON, with its length before it, over a Unix socket, and descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A message is no longer than this.
const LONGEST: usize = 256 << 20;
/// Descriptors that go at once; the kernel takes 253.
pub const DESCRIPTORS: usize = 128;

/// Sends a message.
pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    stream.write_all(&frame(message)?)
}

/// Receives a message. None if the other side has ended in between two.
pub fn receive<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<Option<T>> {
    let mut length = [0; 4];
    match stream.read(&mut length)? {
        0 => return Ok(None),
        read => stream.read_exact(length.get_mut(read..).unwrap_or_default())?,
    }
    read_body(stream, length).map(Some)
}

/// Sends a message with no more than [`DESCRIPTORS`] descriptors.
pub fn send_with(
    stream: &mut UnixStream,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let frame = frame(message)?;
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors in one message"));
    }
    let sent = sendmsg(stream.as_fd(), &[IoSlice::new(&frame)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(frame.get(sent..).unwrap_or_default())
}

/// Receives a message that was sent with descriptors.
pub fn receive_with<T: DeserializeOwned>(stream: &mut UnixStream) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received =
        recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut length)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(length.get_mut(received.bytes..).unwrap_or_default())?;
    Ok((read_body(stream, length)?, descriptors))
}

fn frame(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut frame = vec![0; 4];
    serde_json::to_writer(&mut frame, message)?;
    let length = frame.len() - 4;
    if length > LONGEST {
        return Err(io::Error::other("a message is too long"));
    }
    let length = u32::try_from(length).map_err(io::Error::other)?.to_be_bytes();
    for (to, from) in frame.iter_mut().zip(length) {
        *to = from;
    }
    Ok(frame)
}

fn read_body<T: DeserializeOwned>(stream: &mut UnixStream, length: [u8; 4]) -> io::Result<T> {
    let length = u32::from_be_bytes(length);
    if length as usize > LONGEST {
        return Err(io::Error::other("a message is too long"));
    }
    let mut body = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn messages_arrive_as_they_were_sent_and_the_end_is_no_error() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let long = json!({ "text": "x".repeat(1 << 20) });
        let sent = long.clone();
        let sender = thread::spawn(move || {
            send(&mut there, &json!({ "number": 1 })).unwrap();
            send(&mut there, &sent).unwrap();
        });
        assert_eq!(receive::<Value>(&mut here).unwrap(), Some(json!({ "number": 1 })));
        assert_eq!(receive::<Value>(&mut here).unwrap(), Some(long));
        sender.join().unwrap();
        assert_eq!(receive::<Value>(&mut here).unwrap(), None);
    }

    #[test]
    fn descriptors_come_with_their_message() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let (mut inner, outer) = UnixStream::pair().unwrap();
        send_with(&mut there, &json!(["listener"]), &[outer.as_fd(), outer.as_fd()]).unwrap();
        drop(outer);
        let (message, descriptors) = receive_with::<Value>(&mut here).unwrap();
        assert_eq!((message, descriptors.len()), (json!(["listener"]), 2));
        let mut received = UnixStream::from(descriptors.into_iter().next().unwrap());
        received.write_all(b"hello").unwrap();
        let mut bytes = [0; 5];
        inner.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&[0xff; 4][..], &[0, 0, 0, 9, b'{'], &[0, 0], &[0, 0, 0, 1, b'x']] {
            let (mut here, mut there) = UnixStream::pair().unwrap();
            there.write_all(bytes).unwrap();
            drop(there);
            assert!(receive::<Value>(&mut here).is_err(), "{bytes:?}");
        }
    }
}
