//! Reads a TCP stream to its very end. The kernel does not read past the place of urgent data in one go, and tokio takes a
//! short read for a sign that there is nothing more: what follows would lie there unread until more comes.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

pub struct Reading<'a>(pub &'a TcpStream);

impl AsyncRead for Reading<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buf.initialize_unfilled()) {
                Ok(count) => {
                    buf.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{SendFlags, send};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn nothing_is_left_behind_urgent_data() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        socket2::SockRef::from(&stream).set_out_of_band_inline(true).unwrap();
        send(&mut client, b"before!", SendFlags::OOB).unwrap();
        send(&mut client, b" after", SendFlags::empty()).unwrap();
        // All of it has arrived before any is read.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let mut reading = Reading(&stream);
        let mut received = Vec::new();
        let mut piece = [0; 64];
        while received.len() < 13 {
            let read = reading.read(&mut piece);
            let count = tokio::time::timeout(std::time::Duration::from_secs(5), read).await.unwrap().unwrap();
            received.extend_from_slice(&piece[..count]);
        }
        assert_eq!(received, b"before! after");
    }
}
