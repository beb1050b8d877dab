//! Opens connections that the capture does not lead back to the agent.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use socket2::Domain;
use tokio::net::{TcpSocket, TcpStream};

use crate::capture::{Flow, Marker};

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Dialer {
    marker: Marker,
}

impl Dialer {
    pub fn new(marker: Marker) -> Self {
        Self { marker }
    }

    /// Connects as the agent itself, from its own network.
    pub async fn dial(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        self.marker.agents(socket.as_fd()).map_err(io::Error::other)?;
        connect(socket, address).await
    }

    /// Connects to where a workload's connection was going, from its own network: by its own routes and policies, with its
    /// own address, and to no endpoint that it could not have reached by itself.
    pub async fn dial_for(&self, flow: &Flow) -> io::Result<TcpStream> {
        let (namespace, address) = (Arc::clone(&flow.namespace), flow.destination);
        let opened = tokio::task::spawn_blocking(move || namespace.socket(Domain::for_address(address)));
        let socket = TcpSocket::from_std_stream(opened.await.map_err(io::Error::other)??.into());
        let cgroup_id = flow.workload.cgroup_id;
        self.marker.splice(socket.as_fd(), address, cgroup_id).map_err(io::Error::other)?;
        connect(socket, address).await
    }
}

async fn connect(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(CONNECT_DEADLINE, socket.connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}
