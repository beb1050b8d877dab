//! TCP sockets that exist already: found, and ended where they go around the agent.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd as _, BorrowedFd},
};

use rustix::net::netlink::SOCK_DIAG;

use super::netlink::{Netlink, attributes, put_attribute, word};

const LIST: u16 = 20;
const DESTROY: u16 = 21;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const TCP: u8 = 6;
/// Bytes of a socket's identity in the kernel's messages: ports, addresses, device, cookie.
const IDENTITY: usize = 48;
/// Bytes before the attributes in the kernel's answer.
const HEAD: usize = 72;
/// States that are asked for, by their bits: everything that has a peer and may still send.
const STATES: u32 = !(1 << LISTEN | 1 << TIME_WAIT | 1 << CLOSE);
const LISTEN: u32 = 10;
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;

const ASK_FOR_STORAGE: u16 = 2;
const STORAGE_MAP: u16 = 1;
const STORAGES: u16 = 20;
const CGROUP: u16 = 21;

/// A socket that has a peer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct TcpSocket {
    family: u8,
    identity: [u8; IDENTITY],
    pub(super) local: SocketAddr,
    pub(super) peer: SocketAddr,
    pub(super) uid: u32,
    /// Id of the cgroup that it was made in; none on a kernel that does not say.
    pub(super) cgroup_id: Option<u64>,
    /// The agent marked it as its own.
    pub(super) is_own: bool,
}

/// The sockets of the namespace of the calling thread. `own` is the map of the marks.
pub(super) fn list(own: BorrowedFd<'_>) -> io::Result<Vec<TcpSocket>> {
    let netlink = Netlink::open(Some(SOCK_DIAG))?;
    let mut found = Vec::new();
    for family in [AF_INET, AF_INET6] {
        let mut body = request(family, &[0; IDENTITY]);
        let mut map = Vec::new();
        put_attribute(&mut map, STORAGE_MAP, &own.as_raw_fd().to_ne_bytes());
        put_attribute(&mut body, ASK_FOR_STORAGE, &map);
        let messages = netlink.list(LIST, &body)?;
        found.extend(messages.iter().filter_map(|message| TcpSocket::read(&message.body)));
    }
    Ok(found)
}

/// Ends a socket of the namespace of the calling thread: its process sees that the connection was aborted.
pub(super) fn destroy(socket: &TcpSocket) -> io::Result<()> {
    Netlink::open(Some(SOCK_DIAG))?.tell(DESTROY, &request(socket.family, &socket.identity))
}

fn request(family: u8, identity: &[u8; IDENTITY]) -> Vec<u8> {
    let mut body = vec![family, TCP, 0, 0];
    body.extend(STATES.to_ne_bytes());
    body.extend(identity);
    body
}

impl TcpSocket {
    pub(super) fn cookie(&self) -> u64 {
        let half = |at| u64::from(word(&self.identity, at).unwrap_or_default());
        half(40) | half(44) << 32
    }

    fn read(body: &[u8]) -> Option<Self> {
        let family = *body.first()?;
        let identity: [u8; IDENTITY] = body.get(4..4 + IDENTITY)?.try_into().ok()?;
        let mut socket = Self {
            family,
            local: end(family, identity.get(0..2)?, identity.get(4..20)?)?,
            peer: end(family, identity.get(2..4)?, identity.get(20..36)?)?,
            identity,
            uid: word(body, 64)?,
            cgroup_id: None,
            is_own: false,
        };
        for (attribute, content) in attributes(body.get(HEAD..)?) {
            match attribute {
                CGROUP => socket.cgroup_id = Some(u64::from_ne_bytes(content.try_into().ok()?)),
                STORAGES => socket.is_own = !content.is_empty(),
                _ => {}
            }
        }
        Some(socket)
    }
}

fn end(family: u8, port: &[u8], address: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(port.try_into().ok()?);
    let address: [u8; 16] = address.try_into().ok()?;
    let address = match family {
        AF_INET => {
            let [a, b, c, d, ..] = address;
            IpAddr::from(Ipv4Addr::new(a, b, c, d))
        }
        AF_INET6 => IpAddr::from(Ipv6Addr::from(address)).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(own: bool) -> Vec<u8> {
        let mut body = vec![AF_INET, 1, 0, 0];
        body.extend(40_000_u16.to_be_bytes());
        body.extend(443_u16.to_be_bytes());
        for address in [[10, 0, 0, 1], [10, 0, 0, 2]] {
            body.extend(address);
            body.extend([0; 12]);
        }
        body.extend([0; 4]);
        body.extend(7_u32.to_ne_bytes());
        body.extend(1_u32.to_ne_bytes());
        body.extend([0; 12]);
        body.extend(1000_u32.to_ne_bytes());
        body.extend([0; 4]);
        put_attribute(&mut body, CGROUP, &99_u64.to_ne_bytes());
        if own {
            put_attribute(&mut body, STORAGES, &[0; 8]);
        }
        body
    }

    #[test]
    fn a_socket_is_read() {
        let socket = TcpSocket::read(&answer(false)).unwrap();
        assert_eq!(socket.local, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(socket.peer, "10.0.0.2:443".parse().unwrap());
        assert_eq!((socket.uid, socket.cgroup_id, socket.is_own), (1000, Some(99), false));
        assert_eq!(socket.cookie(), 7 | 1 << 32);
        assert!(TcpSocket::read(&answer(true)).unwrap().is_own);
    }

    #[test]
    fn what_is_cut_off_is_no_socket() {
        let whole = answer(true);
        for end in 0..HEAD {
            assert_eq!(TcpSocket::read(&whole[..end]), None);
        }
    }
}
