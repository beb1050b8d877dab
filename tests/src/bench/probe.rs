//! The client of a bench: a process that does one thing again and again, in the pod of one sandbox and of another by
//! turns, and says how long it took. It is one process for both, so that whatever else makes processes differ is the same.

use std::{
    fs::{self, File},
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use rustix::{
    net::sockopt::set_socket_linger,
    thread::{CpuSet, LinkNameSpaceType, move_into_link_name_space, sched_setaffinity},
};

use super::pairs::{Pairs, Spread};
use crate::{Pod, network, state::State};

/// An address outside that is not Snowflake's, and a port at which Snowflake could be.
const TARGET: &str = "10.77.1.4:443";
/// The pod.
pub const POD: &str = "bench";
/// Connections that wait to be taken.
const BACKLOG: i32 = 4096;
/// What a stream sends at once: as much as the kernel puts into one packet of its own.
const CHUNK: usize = 64 * 1024;
const DATAGRAM: [u8; 64] = [0; 64];
/// Operations, or the time, of one measurement.
const CONNECTS: u32 = 200;
const SENDS: u32 = 2_000;
const STREAM: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Probe {
    /// Nanoseconds of a connect().
    Connect,
    /// Nanoseconds of a sendto() of a datagram.
    Send,
    /// Bytes per second of a stream.
    Stream,
}

impl Probe {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Send => "send",
            Self::Stream => "stream",
        }
    }

    /// Measures in the two sandboxes of these ids.
    pub fn run(self, pairs: usize, without: &str, with: &str) -> Result<Pairs> {
        stay_on(0..1)?;
        let (without, with) = (Place::open(without)?, Place::open(with)?);
        Pairs::measure(pairs, || self.measure(&without), || self.measure(&with))
    }

    fn measure(self, place: &Place) -> Result<f64> {
        place.enter()?;
        match self {
            Self::Connect => place.connect(),
            Self::Send => place.send(),
            Self::Stream => place.stream(),
        }
    }
}

/// One of the two sandboxes, with something in it that can be connected to.
struct Place {
    network: File,
    cgroup: PathBuf,
    target: SocketAddr,
    listener: TcpListener,
    /// Takes what is sent, as far as it has room.
    _datagrams: UdpSocket,
}

impl Place {
    fn open(id: &str) -> Result<Self> {
        let pod = Pod::open(&State::open(id)?, POD)?;
        let network = network::pod(id, POD);
        let target: SocketAddr = TARGET.parse().context("read the address")?;
        let (listener, datagrams) = network::inside(&network::outside(id), || {
            let listener = TcpListener::bind(target).with_context(|| format!("listen on {target}"))?;
            rustix::net::listen(&listener, BACKLOG).context("listen for many")?;
            Ok((listener, UdpSocket::bind(target).with_context(|| format!("receive on {target}"))?))
        })?;
        Ok(Self {
            network: File::open(&network).with_context(|| format!("open {}", network.display()))?,
            cgroup: pod.cgroup().to_owned(),
            target,
            listener,
            _datagrams: datagrams,
        })
    }

    /// Makes this process one of the pod.
    fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.network.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the pod's network")?;
        let processes = self.cgroup.join("cgroup.procs");
        fs::write(&processes, "0").with_context(|| format!("write {}", processes.display()))
    }

    /// Nanoseconds of a connect().
    fn connect(&self) -> Result<f64> {
        let mut times = Vec::new();
        for number in 0..CONNECTS {
            let began = Instant::now();
            let stream = TcpStream::connect(self.target).context("connect")?;
            let time = began.elapsed();
            // Ends with a reset, so that nothing is left of it that could be in the way of the next.
            set_socket_linger(&stream, Some(Duration::ZERO)).context("ask for a reset")?;
            // The first ones find nothing in the caches.
            if number >= CONNECTS / 10 {
                times.push(nanoseconds(time));
            }
        }
        self.take_connections()?;
        Ok(Spread::of(times)?.median)
    }

    /// Takes what is waiting: connections that are at their end.
    fn take_connections(&self) -> Result<()> {
        self.listener.set_nonblocking(true).context("not wait for connections")?;
        loop {
            match self.listener.accept() {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("take a connection"),
            }
        }
        self.listener.set_nonblocking(false).context("wait for connections")
    }

    /// Nanoseconds of a sendto().
    fn send(&self) -> Result<f64> {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).context("make a socket")?;
        let turns = |turns: u32| {
            (0..turns).try_for_each(|_| socket.send_to(&DATAGRAM, self.target).map(drop).context("send"))
        };
        turns(SENDS / 10)?;
        let began = Instant::now();
        turns(SENDS)?;
        Ok(nanoseconds(began.elapsed()) / f64::from(SENDS))
    }

    /// Bytes per second of a stream that is received on another CPU.
    fn stream(&self) -> Result<f64> {
        let sender = TcpStream::connect(self.target).context("connect")?;
        let (receiver, _) = self.listener.accept().context("take the connection")?;
        thread::scope(|scope| {
            let draining = scope.spawn(|| {
                stay_on(1..64)?;
                drain(receiver)
            });
            let sent = send_stream(sender);
            draining.join().map_err(|_| anyhow!("the receiver panicked"))??;
            sent
        })
    }
}

fn send_stream(mut stream: TcpStream) -> Result<f64> {
    let chunk = vec![0; CHUNK];
    let mut turns = |duration: Duration| -> Result<f64> {
        let (began, mut chunks) = (Instant::now(), 0_u32);
        while began.elapsed() < duration {
            stream.write_all(&chunk).context("send")?;
            chunks += 1;
        }
        Ok(f64::from(chunks) / began.elapsed().as_secs_f64())
    };
    // Until the connection has found its speed.
    turns(STREAM / 4)?;
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    turns(STREAM).map(|chunks| chunks * CHUNK as f64)
}

fn drain(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    while stream.read(&mut buffer).context("receive")? > 0 {}
    Ok(())
}

/// Keeps the calling thread on some of the CPUs: who sends has the first, who receives the others.
fn stay_on(numbers: std::ops::Range<usize>) -> Result<()> {
    let mut cpus = CpuSet::new();
    numbers.for_each(|number| cpus.set(number));
    sched_setaffinity(None, &cpus).context("stay on some CPUs")
}

fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
