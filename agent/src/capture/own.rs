//! The agent's own sockets, which must not be led to itself. The mark is in the kernel, on the socket, and goes with it:
//! nobody who may not use the kernel programs' maps can set one, and none outlives its socket.

use std::{
    net::SocketAddr,
    os::fd::BorrowedFd,
    sync::{Arc, Mutex, PoisonError},
};

use agent_common::{Own, maps, own_class};
use aya::maps::{MapData, SkStorage};

use super::{CaptureError, endpoints::bytes};

/// Marks sockets as the agent's own; clones use the same map.
#[derive(Clone)]
pub struct Marker {
    map: Arc<Mutex<SkStorage<MapData, Own>>>,
}

impl Marker {
    pub(super) fn new(map: SkStorage<MapData, Own>) -> Self {
        Self { map: Arc::new(Mutex::new(map)) }
    }

    /// The socket may go anywhere. To be called before it connects.
    pub fn agents(&self, socket: BorrowedFd<'_>) -> Result<(), CaptureError> {
        self.mark(
            socket,
            Own { class: own_class::AGENT, port: 0, reserved: 0, address: [0; 16], cgroup_id: 0 },
        )
    }

    /// The socket carries the connection of a workload, by the id of its cgroup, to this address: it is not captured, but
    /// is held to what the workload is held to, and to that address. To be called before it connects.
    pub fn splice(
        &self,
        socket: BorrowedFd<'_>,
        address: SocketAddr,
        cgroup_id: u64,
    ) -> Result<(), CaptureError> {
        let (class, port) = (own_class::SPLICE, address.port());
        self.mark(socket, Own { class, port, reserved: 0, address: bytes(address.ip()), cgroup_id })
    }

    fn mark(&self, socket: BorrowedFd<'_>, own: Own) -> Result<(), CaptureError> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(&socket, own, 0).map_err(CaptureError::map(maps::OWN))
    }
}
