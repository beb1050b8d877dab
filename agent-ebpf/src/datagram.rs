//! `sendmsg` of sockets that are not connected: a datagram to an endpoint's captured ports is refused.

use agent_common::{event_kind, mode};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

use crate::{
    ALLOW, REFUSE, address,
    connect::{address6, port},
    maps::{is_captured, is_endpoint, settings},
    report::Report,
    scope,
};

#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let destination = address::mapped(unsafe { (*context.sock_addr).user_ip4 });
    if judge(&context, destination) { ALLOW } else { REFUSE }
}

#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    let destination = address6(context.sock_addr);
    if judge(&context, destination) { ALLOW } else { REFUSE }
}

/// Whether the datagram may be sent.
#[inline(always)]
fn judge(context: &SockAddrContext, destination: [u32; 4]) -> bool {
    let Some(settings) = settings() else { return true };
    let port = port(context.sock_addr);
    if !is_captured(port) || address::is_loopback(destination) {
        return true;
    }
    let mode = scope::of_task(settings).mode;
    if mode == mode::OFF || mode == mode::ENDPOINTS && !is_endpoint(destination) {
        return true;
    }
    refuse(context, destination, port);
    false
}

/// Tells of a datagram, or a datagram socket's connect, that is refused.
#[inline(always)]
pub fn refuse(context: &SockAddrContext, destination: [u32; 4], port: u16) {
    report(context, event_kind::DATAGRAM_REFUSED, destination, port);
}

/// Tells of what the task that is running does with a socket.
#[inline(always)]
pub fn report(context: &SockAddrContext, kind: u32, destination: [u32; 4], port: u16) {
    // SAFETY: the helpers take the context that the kernel passed.
    let (netns_cookie, socket_cookie) =
        unsafe { (bpf_get_netns_cookie(context.as_ptr()), bpf_get_socket_cookie(context.as_ptr())) };
    let mut report = Report::of_task(kind, netns_cookie, socket_cookie);
    report.destination = destination;
    report.destination_port = port;
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    report.protocol = unsafe { (*context.sock_addr).protocol } as u16;
    report.send(|_| {});
}
