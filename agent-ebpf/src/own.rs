//! The agent's own sockets.

use agent_common::{Own, own_class};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    cty::c_void,
    helpers::{bpf_sk_fullsock, bpf_sk_storage_get},
};

use crate::maps::OWN;

/// The mark on a socket that the verifier knows to be a whole one.
#[inline(always)]
pub fn mark(socket: *mut bpf_sock) -> Option<&'static Own> {
    let map = (&raw const OWN).cast_mut().cast::<c_void>();
    // SAFETY: the map and the socket are what the helper takes, and it makes nothing without the flag. What it returns
    // stays as long as the socket, which outlives the program's run.
    unsafe { bpf_sk_storage_get(map, socket.cast(), core::ptr::null_mut(), 0).cast::<Own>().as_ref() }
}

/// The whole socket that a packet belongs to. None where there is none, or only what is left of one.
#[inline(always)]
pub fn socket_of(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let socket = unsafe { (*skb).__bindgen_anon_2.sk };
    if socket.is_null() {
        return None;
    }
    // SAFETY: the helper takes the socket of the context, which is not null.
    let socket = unsafe { bpf_sk_fullsock(socket) };
    (!socket.is_null()).then_some(socket)
}

/// Whether a packet is from a socket that may send anything anywhere.
#[inline(always)]
pub fn is_agents(skb: *mut __sk_buff) -> bool {
    socket_of(skb).and_then(mark).is_some_and(|own| own.class == own_class::AGENT)
}
