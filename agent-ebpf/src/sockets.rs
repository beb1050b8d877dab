//! Sockets as they are made: a first one in a network namespace tells the agent to listen there, and those that go by
//! every other hook, raw and packet sockets, are refused to containers.

use agent_common::{Scope, event_kind, mode, raw_sockets};
use aya_ebpf::{
    EbpfContext as _,
    helpers::bpf_get_netns_cookie,
    macros::{cgroup_sock, lsm_cgroup},
    programs::{LsmContext, SockContext},
};

use crate::{ALLOW, REFUSE, maps::settings, namespaces, report::Report, scope};

const SOCK_RAW: u32 = 3;
const AF_PACKET: i32 = 17;
const AF_XDP: i32 = 44;

/// Sockets of the families INET and INET6.
#[cgroup_sock(sock_create)]
pub fn socket_created(context: SockContext) -> i32 {
    // SAFETY: the helper takes the context that the kernel passed.
    let netns_cookie = unsafe { bpf_get_netns_cookie(context.as_ptr()) };
    namespaces::announce(netns_cookie, event_kind::SOCKET_CREATED);
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let (kind, family, protocol) =
        unsafe { ((*context.sock).type_, (*context.sock).family, (*context.sock).protocol) };
    if kind != SOCK_RAW || may_be_raw() {
        return ALLOW;
    }
    refuse(netns_cookie, family, protocol);
    REFUSE
}

/// Sockets of every family; the others were seen above. Needs a kernel with BPF among its security modules.
#[lsm_cgroup(hook = "socket_create")]
pub fn packet_socket_created(context: LsmContext) -> i32 {
    let family: i32 = context.arg(0);
    let protocol: i32 = context.arg(2);
    let by_kernel: i32 = context.arg(3);
    if by_kernel != 0 || family != AF_PACKET && family != AF_XDP || may_be_raw() {
        return ALLOW;
    }
    refuse(0, family as u32, protocol as u32);
    REFUSE
}

/// Whether the task that is running may have sockets that write their own headers.
#[inline(always)]
fn may_be_raw() -> bool {
    let Some(settings) = settings() else { return true };
    let Scope { mode, raw_sockets, .. } = scope::of_task(settings);
    if mode == mode::OFF {
        return true;
    }
    match raw_sockets {
        raw_sockets::ALLOW => true,
        raw_sockets::REFUSE => false,
        _ => !scope::in_container(),
    }
}

#[inline(always)]
fn refuse(netns_cookie: u64, family: u32, protocol: u32) {
    let mut report = Report::of_task(event_kind::RAW_SOCKET_REFUSED, netns_cookie, 0);
    report.family = family as u16;
    report.protocol = protocol as u16;
    report.send(|_| {});
}
