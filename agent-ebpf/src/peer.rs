//! `getpeername`: a redirected client sees the peer that it asked for. Found by the client's end and not by its cookie,
//! for a multipath TCP socket is another one than the subflow that was redirected.

use agent_common::{Peer, SocketKey};
use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock, helpers::bpf_get_netns_cookie, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    ALLOW, address,
    connect::{port, set_address6},
    maps::{PEERS, settings},
};

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    let fields = context.sock_addr;
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let peer = asked_for(&context, |socket| address::mapped(unsafe { (*socket).src_ip4 }));
    if let Some(peer) = peer {
        // SAFETY: as above.
        unsafe {
            (*fields).user_ip4 = address::words(&peer.address)[3];
            (*fields).user_port = u32::from(peer.port.to_be());
        }
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    let fields = context.sock_addr;
    if let Some(peer) = asked_for(&context, source6) {
        set_address6(fields, address::words(&peer.address));
        // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
        unsafe { (*fields).user_port = u32::from(peer.port.to_be()) };
    }
    ALLOW
}

#[inline(always)]
fn asked_for(
    context: &SockAddrContext,
    source: impl Fn(*const bpf_sock) -> [u32; 4],
) -> Option<&'static Peer> {
    let fields = context.sock_addr;
    if port(fields) != settings()?.listen_port {
        return None;
    }
    // SAFETY: the kernel passes a valid context with its socket, and the verifier checks each access to them.
    let (socket, port) = unsafe {
        let socket: *const bpf_sock = (*fields).__bindgen_anon_1.sk;
        if socket.is_null() {
            return None;
        }
        (socket, (*socket).src_port)
    };
    let key = SocketKey {
        // SAFETY: the helper takes the context that the kernel passed.
        netns_cookie: unsafe { bpf_get_netns_cookie(context.as_ptr()) },
        address: address::bytes(source(socket)),
        port: port as u16,
        reserved: [0; 3],
    };
    // SAFETY: the entry lasts as long as the connection; if it is evicted just now, the client sees a wrong peer name.
    unsafe { PEERS.get(key) }
}

#[inline(always)]
fn source6(socket: *const bpf_sock) -> [u32; 4] {
    // Word by word: the verifier knows no wider reads here, and volatile keeps the compiler from joining them.
    // SAFETY: the verifier checks each access.
    unsafe {
        let words = (&raw const (*socket).src_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}
