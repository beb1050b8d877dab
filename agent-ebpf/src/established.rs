//! `sock_ops`: when a redirected socket sends its first SYN its own address and port are settled, and its record is
//! filed under them, which is all that the agent sees at accept.

use agent_common::{Peer, SocketKey, counter};
use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_SOCK_OPS_TCP_CONNECT_CB,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::sock_ops,
    programs::SockOpsContext,
};

use aya_log_ebpf::warn;

use crate::{
    address,
    maps::{FLOWS, PEERS, PENDING, count, settings},
};

const AF_INET6: u32 = 10;
const CONTINUE: u32 = 1;

#[sock_ops]
pub fn established(context: SockOpsContext) -> u32 {
    if context.op() == BPF_SOCK_OPS_TCP_CONNECT_CB {
        file(&context);
    }
    CONTINUE
}

#[inline(always)]
fn file(context: &SockOpsContext) {
    let Some(settings) = settings() else { return };
    // The context shows this port shifted into the upper half, in network order; the local one in host order.
    let to_listener = u32::from_be(context.remote_port()) == u32::from(settings.listen_port);
    let key = SocketKey {
        // SAFETY: the helper takes the context that the kernel passed.
        netns_cookie: unsafe { bpf_get_netns_cookie(context.as_ptr()) },
        address: address::bytes(local_address(context)),
        port: context.local_port() as u16,
        reserved: [0; 3],
    };
    if to_listener {
        // SAFETY: the helper takes the context that the kernel passed.
        let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
        // SAFETY: the entry is this socket's, which is in this very call; only this program removes it.
        if let Some(record) = unsafe { PENDING.get(cookie) } {
            let peer = Peer { address: record.address, port: record.port, reserved: 0 };
            if FLOWS.insert(key, record, 0).is_err() {
                count(counter::FLOWS_LOST);
                warn!(context, "no room for a connection's record: the proxy will refuse it");
                let _ = FLOWS.remove(key);
            }
            let _ = PEERS.insert(key, &peer, 0);
            let _ = PENDING.remove(cookie);
            return;
        }
        let _ = PEERS.remove(key);
    }
    // Whatever an earlier connection from the same end left untaken must not speak for this one, not even if a
    // translation of addresses inside the namespace leads it to the listener.
    // SAFETY: nothing is read through the reference; only whether there is an entry counts.
    if unsafe { FLOWS.get(key) }.is_some() {
        let _ = FLOWS.remove(key);
    }
}

#[inline(always)]
fn local_address(context: &SockOpsContext) -> [u32; 4] {
    if context.family() != AF_INET6 {
        return address::mapped(context.local_ip4());
    }
    // Word by word: the verifier knows no wider reads here, and volatile keeps the compiler from joining them.
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    unsafe {
        let words = (&raw const (*context.ops).local_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}
