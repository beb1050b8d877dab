//! Opens listeners inside a network namespace.

use std::{
    fs::{self, File},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    thread,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use socket2::{Domain, Protocol, Socket, Type};

use super::{CaptureError, sys};

/// Connections that wait to be accepted; the kernel caps it at the namespace's `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// A network namespace, kept alive by this handle.
#[derive(Debug)]
pub struct Namespace {
    pub(super) file: File,
    /// Of no other namespace as long as this one is alive.
    pub(super) inode: u64,
    /// The task by which it was found.
    pub(super) task: u32,
}

/// Listeners on the loopback addresses of one namespace. They keep it alive.
pub(super) struct Opened {
    pub(super) cookie: u64,
    pub(super) v4: TcpListener,
    /// None where there is no IPv6.
    pub(super) v6: Option<TcpListener>,
}

impl Opened {
    /// Of listeners that another process opened. An error if they are none.
    pub(super) fn inherit(v4: OwnedFd, v6: Option<OwnedFd>) -> io::Result<Self> {
        let cookie = sys::netns_cookie(v4.as_fd())?;
        Ok(Self { cookie, v4: v4.into(), v6: v6.map(TcpListener::from) })
    }
}

/// The inode number of the network namespace of a task.
pub(super) fn inode_of(task: u32) -> io::Result<u64> {
    Ok(fs::metadata(path_of(task))?.ino())
}

impl Namespace {
    pub(super) fn of(task: u32) -> io::Result<Self> {
        let file = File::open(path_of(task))?;
        let inode = file.metadata()?.ino();
        Ok(Self { file, inode, task })
    }

    /// Does `work` in this namespace: the sockets that it makes belong here. Blocks for some tens of microseconds more
    /// than the work takes.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        // A thread of its own, which ends right away: no thread that does anything else is ever in a foreign namespace,
        // and none keeps a namespace alive.
        thread::scope(|scope| {
            let worker = thread::Builder::new().name("namespace".to_owned()).spawn_scoped(scope, || {
                move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(work())
            })?;
            worker.join().unwrap_or_else(|_| Err(io::Error::other("a panic")))
        })
    }

    /// A TCP socket of this namespace that is not connected yet.
    pub fn socket(&self, domain: Domain) -> io::Result<Socket> {
        self.inside(|| Socket::new(domain, Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP)))?
    }

    /// Opens the listeners.
    pub(super) fn listen(&self, port: u16) -> Result<Opened, CaptureError> {
        self.inside(|| self.listen_here(port)).unwrap_or_else(|error| Err(self.failed(error)))
    }

    fn listen_here(&self, port: u16) -> Result<Opened, CaptureError> {
        let v4 = self.bind(IpAddr::V4(Ipv4Addr::LOCALHOST), port)?;
        let v6 = match self.bind(IpAddr::V6(Ipv6Addr::LOCALHOST), port) {
            Ok(listener) => Some(listener),
            Err(CaptureError::Io { source, .. }) if is_absent(&source) => None,
            Err(error) => return Err(error),
        };
        let cookie = sys::netns_cookie(v4.as_fd()).map_err(|error| self.failed(error))?;
        Ok(Opened { cookie, v4, v6 })
    }

    fn bind(&self, address: IpAddr, port: u16) -> Result<TcpListener, CaptureError> {
        listener(SocketAddr::new(address, port)).map_err(|error| {
            if error.kind() == io::ErrorKind::AddrInUse {
                CaptureError::PortTaken { port, address, pid: self.task, owner: owner(self.task, port) }
            } else {
                self.failed(error)
            }
        })
    }

    fn failed(&self, source: io::Error) -> CaptureError {
        CaptureError::Io { what: format!("listen in the network namespace of process {}", self.task), source }
    }
}

fn path_of(task: u32) -> String {
    format!("/proc/{task}/ns/net")
}

fn listener(address: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
    // Never SO_REUSEPORT: with it, root inside a container could share the port and take its neighbours' connections.
    // This one only skips the wait for old connections after a restart.
    socket.set_reuse_address(true)?;
    // A namespace that is being set up has its loopback addresses a moment later.
    if address.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    // Accepted connections have it from here: urgent data is read in its place, so that nobody hides a byte.
    socket.set_out_of_band_inline(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// Who listens on this port in the network namespace of a task, for people.
fn owner(task: u32, port: u16) -> String {
    let sockets = ["tcp", "tcp6"]
        .map(|table| fs::read_to_string(format!("/proc/{task}/net/{table}")).unwrap_or_default());
    let Some((uid, inode)) = sockets.iter().find_map(|table| listening(table, port)) else {
        return "an unknown process".to_owned();
    };
    match holder(&format!("socket:[{inode}]")) {
        Some((pid, name)) => format!("process {pid} ({name}) of user {uid}"),
        None => format!("a process of user {uid}"),
    }
}

/// User id and inode number of the socket that listens on the port, in a table of /proc/net.
fn listening(table: &str, port: u16) -> Option<(&str, &str)> {
    const LISTEN: &str = "0A";
    let suffix = format!(":{port:04X}");
    table.lines().find_map(|line| {
        let mut fields = line.split_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let uid = fields.nth(3)?;
        let inode = fields.nth(1)?;
        (local.ends_with(&suffix) && state == LISTEN).then_some((uid, inode))
    })
}

/// A process that has a descriptor of this link text, and its name.
fn holder(link: &str) -> Option<(String, String)> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    processes
        .filter(|process| process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit))
        .find_map(|process| {
            let mut descriptors = fs::read_dir(process.path().join("fd")).ok()?.flatten();
            descriptors.find(|descriptor| {
                fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == link)
            })?;
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            Some((process.file_name().to_string_lossy().into_owned(), name.trim().to_owned()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_the_port_is_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:3C53 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 11 1 0 20 0\n\
            1: 00000000:3C53 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 4242 1 0 100 0\n";
        assert_eq!(listening(table, 15443), Some(("1000", "4242")));
        assert_eq!(listening(table, 15444), None);
        assert_eq!(listening("garbage", 15443), None);
    }

    #[test]
    fn a_taken_port_names_the_process_that_has_it() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let pid = std::process::id();
        let owner = owner(pid, port);
        assert!(owner.starts_with(&format!("process {pid} (")), "{owner}");
        let again = listener(socket.local_addr().unwrap()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
    }
}
