//! `connect`: a TCP connection to an endpoint goes to the listener instead, anything else to an endpoint's redirected
//! ports is refused. Multipath TCP comes by here with its first subflow, TCP Fast Open and io_uring like any other.

use agent_common::{FlowRecord, counter, event_kind};
use aya_ebpf::{
    EbpfContext as _,
    bindings::bpf_sock_addr,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns,
    },
    macros::cgroup_sock_addr,
    maps::lpm_trie::Key,
    programs::SockAddrContext,
};

use aya_log_ebpf::warn;

use crate::{
    ALLOW, REFUSE, address,
    maps::{ENDPOINTS4, ENDPOINTS6, EXEMPT, PENDING, PORTS, count, settings},
    namespaces,
};

const SOCK_STREAM: u32 = 1;

enum Verdict {
    Untouched,
    Refused,
    /// To this loopback port, in host order.
    Redirected(u16),
}

#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    let fields = context.sock_addr;
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let destination = address::mapped(unsafe { (*fields).user_ip4 });
    match judge(&context, destination) {
        Verdict::Untouched => ALLOW,
        Verdict::Refused => REFUSE,
        Verdict::Redirected(port) => {
            // SAFETY: as above.
            unsafe {
                (*fields).user_ip4 = address::LOOPBACK4;
                (*fields).user_port = u32::from(port.to_be());
            }
            ALLOW
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    let fields = context.sock_addr;
    let destination = address6(fields);
    match judge(&context, destination) {
        Verdict::Untouched => ALLOW,
        Verdict::Refused => REFUSE,
        Verdict::Redirected(port) => {
            let loopback = match address::as_mapped(destination) {
                Some(_) => address::LOOPBACK_MAPPED,
                None => address::LOOPBACK6,
            };
            set_address6(fields, loopback);
            // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
            unsafe { (*fields).user_port = u32::from(port.to_be()) };
            ALLOW
        }
    }
}

#[inline(always)]
pub fn address6(fields: *const bpf_sock_addr) -> [u32; 4] {
    // Word by word: the verifier knows no wider reads here, and volatile keeps the compiler from joining them.
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    unsafe {
        let words = (&raw const (*fields).user_ip6).cast::<u32>();
        [
            words.read_volatile(),
            words.add(1).read_volatile(),
            words.add(2).read_volatile(),
            words.add(3).read_volatile(),
        ]
    }
}

#[inline(always)]
pub fn set_address6(fields: *mut bpf_sock_addr, value: [u32; 4]) {
    // SAFETY: as for `address6`.
    unsafe {
        let words = (&raw mut (*fields).user_ip6).cast::<u32>();
        words.write_volatile(value[0]);
        words.add(1).write_volatile(value[1]);
        words.add(2).write_volatile(value[2]);
        words.add(3).write_volatile(value[3]);
    }
}

/// The port of the context, in host order.
#[inline(always)]
pub fn port(fields: *const bpf_sock_addr) -> u16 {
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let port = unsafe { (&raw const (*fields).user_port).read_volatile() };
    u16::from_be(port as u16)
}

#[inline(always)]
fn judge(context: &SockAddrContext, destination: [u32; 4]) -> Verdict {
    let fields = context.sock_addr;
    let Some(settings) = settings() else { return Verdict::Untouched };
    let port = port(fields);
    if port == settings.listen_port {
        // Perhaps straight to the listener: what an earlier, failed connect of this socket left must not speak for it.
        // SAFETY: the helper takes the context that the kernel passed.
        let _ = PENDING.remove(unsafe { bpf_get_socket_cookie(context.as_ptr()) });
    }
    // SAFETY: nothing is read through the reference; only whether there is an entry counts.
    if unsafe { PORTS.get(port) }.is_none() || !is_endpoint(destination) || address::is_loopback(destination)
    {
        return Verdict::Untouched;
    }
    // SAFETY: the helper takes the context that the kernel passed.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    // SAFETY: nothing is read through the reference; only whether there is an entry counts.
    if unsafe { EXEMPT.get(cookie) }.is_some() {
        return Verdict::Untouched;
    }
    // The type and not the protocol decides: multipath TCP has a number of its own.
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    if unsafe { (*fields).type_ } != SOCK_STREAM {
        count(counter::REFUSED);
        return Verdict::Refused;
    }

    // SAFETY: the helper takes the context that the kernel passed.
    let netns_cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    namespaces::announce(netns_cookie, event_kind::ENDPOINT_HIT);
    let record = FlowRecord {
        // SAFETY: helpers without arguments.
        cgroup_id: unsafe { bpf_get_current_cgroup_id() },
        netns_cookie,
        socket_cookie: cookie,
        // SAFETY: as above.
        time: unsafe { bpf_ktime_get_ns() },
        pid: (bpf_get_current_pid_tgid() >> 32) as u32,
        uid: bpf_get_current_uid_gid() as u32,
        address: address::bytes(destination),
        port,
        reserved: [0; 3],
        comm: bpf_get_current_comm().unwrap_or_default(),
    };
    if PENDING.insert(cookie, &record, 0).is_err() {
        // Redirected all the same: without a record the proxy refuses it.
        count(counter::FLOWS_LOST);
        warn!(context, "no room for a connection's record: the proxy will refuse it");
    }
    count(counter::REDIRECTED);
    Verdict::Redirected(settings.listen_port)
}

#[inline(always)]
fn is_endpoint(destination: [u32; 4]) -> bool {
    match address::as_mapped(destination) {
        Some(word) => ENDPOINTS4.get(Key::new(32, word.to_ne_bytes())).is_some(),
        None => ENDPOINTS6.get(Key::new(128, address::bytes(destination))).is_some(),
    }
}
