//! Marks on sockets: the agent's own, and those that nothing may leave any more.

use agent_common::{Own, own_class};
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock},
    btf_maps::SkStorage,
    cty::c_void,
    helpers::{bpf_sk_fullsock, bpf_sk_storage_get},
};

use crate::maps::{GUARDED, OWN};

/// `BPF_SK_STORAGE_GET_F_CREATE`
const CREATE: u64 = 1;

/// What a map has for a socket that the verifier knows to be a whole one; null for nothing. With `CREATE` it is made first
/// where it is missing, with a copy of `value`, or of zeros.
#[inline(always)]
fn storage<T>(map: &'static SkStorage<T>, socket: *mut bpf_sock, value: *mut T, flags: u64) -> *mut T {
    let map = (&raw const *map).cast_mut().cast::<c_void>();
    // SAFETY: the map and the socket are what the helper takes, and it makes nothing without the flag.
    unsafe { bpf_sk_storage_get(map, socket.cast(), value.cast(), flags).cast::<T>() }
}

/// The mark on a socket that the verifier knows to be a whole one.
#[inline(always)]
pub fn mark(socket: *mut bpf_sock) -> Option<&'static Own> {
    // SAFETY: what is there stays as long as the socket, which outlives the program's run.
    unsafe { storage(&OWN, socket, core::ptr::null_mut(), 0).as_ref() }
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

/// Marks a socket by which the agent speaks to others than Snowflake, where it is itself in mode `all`: else the guard would
/// take it for a workload's that goes around.
#[inline(always)]
pub fn let_pass(socket: *mut bpf_sock) {
    let mut own = Own { class: own_class::PLAIN, port: 0, reserved: 0, address: [0; 16], cgroup_id: 0 };
    storage(&OWN, socket, &raw mut own, CREATE);
}

/// Whether a packet is from a socket of the agent's, of any kind.
#[inline(always)]
pub fn is_marked(skb: *mut __sk_buff) -> bool {
    socket_of(skb).and_then(mark).is_some()
}

/// Whether a packet is from a socket that may send anything anywhere.
#[inline(always)]
pub fn is_agents(skb: *mut __sk_buff) -> bool {
    socket_of(skb).and_then(mark).is_some_and(|own| own.class == own_class::AGENT)
}

/// Remembers that nothing may leave a packet's socket any more. What is dropped is sent again, and not always in the same
/// pieces: a piece that is harmless by itself would get through.
#[inline(always)]
pub fn close(skb: *mut __sk_buff) {
    if let Some(socket) = socket_of(skb) {
        storage(&GUARDED, socket, core::ptr::null_mut(), CREATE);
    }
}

/// Whether nothing may leave a packet's socket any more.
#[inline(always)]
pub fn is_closed(skb: *mut __sk_buff) -> bool {
    socket_of(skb).is_some_and(|socket| !storage(&GUARDED, socket, core::ptr::null_mut(), 0).is_null())
}
