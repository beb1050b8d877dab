//! `connect`: a TCP connection to an endpoint (in mode `all`: to anywhere) goes to the listener instead, anything else to
//! an endpoint's captured ports is refused. Multipath TCP comes by here with its first subflow, TCP Fast Open and
//! io_uring like any other.

use agent_common::{FlowRecord, Settings, counter, endpoint_class, event_kind, mode};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_set_retval,
    },
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::warn;

use crate::{
    ALLOW, REFUSE, address,
    datagram::{self, report},
    maps::{HEARTBEAT, PENDING, count, endpoint_class, is_captured, settings},
    namespaces, own, scope,
};

const SOCK_STREAM: u32 = 1;
const ECONNREFUSED: i32 = 111;

#[unsafe(no_mangle)]
static CAN_SET_ERROR: u8 = 0;

enum Verdict {
    Untouched,
    /// With this error where the kernel lets a program choose, else with EPERM; 0 is EPERM.
    Refused(i32),
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
        Verdict::Refused(error) => refused(error),
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
        Verdict::Refused(error) => refused(error),
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
fn refused(error: i32) -> i32 {
    // SAFETY: a static of this program, read as something that may be anything: what the compiler sees here is not what
    // is loaded. Where it is 0 the verifier leaves the call out, which older kernels do not know.
    if error != 0 && unsafe { (&raw const CAN_SET_ERROR).read_volatile() } == 1 {
        // SAFETY: a helper that takes any error.
        unsafe { bpf_set_retval(-error) };
    }
    REFUSE
}

#[inline(always)]
fn judge(context: &SockAddrContext, destination: [u32; 4]) -> Verdict {
    let fields = context.sock_addr;
    let Some(settings) = settings() else { return Verdict::Untouched };
    let port = port(fields);
    // The type and not the protocol decides: multipath TCP has a number of its own.
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let is_stream = unsafe { (*fields).type_ } == SOCK_STREAM;
    if address::is_loopback(destination) {
        if port == settings.listen_port && is_stream {
            return probed(context, destination, port);
        }
        return Verdict::Untouched;
    }
    let scope = scope::of_task(settings);
    let class = if is_captured(port) { endpoint_class(destination) } else { None };
    let is_all = scope.mode == mode::ALL && !is_by_agent(settings);
    if scope.mode == mode::ALL
        && !is_all
        && let Some(socket) = socket(fields)
    {
        own::let_pass(socket);
    }
    if scope.mode == mode::OFF || class.is_none() && !is_all {
        return Verdict::Untouched;
    }
    if own(fields) {
        return Verdict::Untouched;
    }
    if !is_stream {
        // Whoever is only said to be Snowflake's may be spoken to; and in mode `all` what is not captured as TCP is not.
        if !is_certain(class) && !(is_all && is_captured(port)) {
            return Verdict::Untouched;
        }
        datagram::refuse(context, destination, port);
        return Verdict::Refused(0);
    }
    if !is_alive(settings) {
        if !is_all && !is_certain(class) {
            // Hearsay: nobody is there to look at what is said, and the guard still meets Snowflake's names.
            return Verdict::Untouched;
        }
        report(context, event_kind::AGENT_SILENT, destination, port);
        return Verdict::Refused(ECONNREFUSED);
    }
    redirect(context, settings, destination, port)
}

#[inline(always)]
fn redirect(context: &SockAddrContext, settings: &Settings, destination: [u32; 4], port: u16) -> Verdict {
    // SAFETY: the helpers take the context that the kernel passed.
    let (cookie, netns_cookie) =
        unsafe { (bpf_get_socket_cookie(context.as_ptr()), bpf_get_netns_cookie(context.as_ptr())) };
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

/// Straight to the listener: nobody is there for that.
#[inline(always)]
fn probed(context: &SockAddrContext, destination: [u32; 4], port: u16) -> Verdict {
    report(context, event_kind::LISTENER_PROBED, destination, port);
    Verdict::Refused(ECONNREFUSED)
}

/// Whether an address of this class is Snowflake's, and not only by hearsay.
#[inline(always)]
fn is_certain(class: Option<u32>) -> bool {
    class.is_some_and(|class| class < endpoint_class::LEARNT)
}

/// Whether the socket is one of the agent's own.
#[inline(always)]
fn own(fields: *mut bpf_sock_addr) -> bool {
    socket(fields).and_then(own::mark).is_some()
}

#[inline(always)]
fn socket(fields: *mut bpf_sock_addr) -> Option<*mut bpf_sock> {
    // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
    let socket = unsafe { (*fields).__bindgen_anon_1.sk };
    (!socket.is_null()).then_some(socket)
}

/// Whether the agent itself is running: what it has to say to others than Snowflake is not led back to it.
#[inline(always)]
fn is_by_agent(settings: &Settings) -> bool {
    (bpf_get_current_pid_tgid() >> 32) as u32 == settings.agent && is_alive(settings)
}

/// Whether the agent has given a sign of life of late.
#[inline(always)]
fn is_alive(settings: &Settings) -> bool {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // The agent may have written after the clock was read here.
    HEARTBEAT.get(0).is_some_and(|last| now.saturating_sub(*last) < settings.patience)
}
