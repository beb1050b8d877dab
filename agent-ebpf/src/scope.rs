//! What holds for a workload, by its cgroup; and whether a task is in a container.

use agent_common::{Scope, Settings, TaskLayout, mode};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_current_task, bpf_probe_read_kernel,
        bpf_skb_ancestor_cgroup_id,
    },
};

use crate::maps::{SCOPES, settings};

/// Levels of the hierarchy at which scopes are looked for; what is deeper has its ancestor's.
const LEVELS: i32 = 16;

#[unsafe(no_mangle)]
static TASK_LAYOUT: TaskLayout = TaskLayout {
    task_nsproxy: 0,
    nsproxy_net: 0,
    nsproxy_pid: 0,
    net_inum: 0,
    pid_inum: 0,
    host_net: 0,
    host_pid: 0,
};

/// The scope of the task that is running.
#[inline(always)]
pub fn of_task(settings: &Settings) -> Scope {
    if settings.scoped == 0 { settings.scope } else { unpack(scope_of_task()) }
}

/// The scope of the socket that a packet belongs to.
#[inline(always)]
pub fn of_packet(settings: &Settings, skb: *mut __sk_buff) -> Scope {
    if settings.scoped == 0 { settings.scope } else { unpack(scope_of_packet(skb)) }
}

// Functions that the verifier checks once, and not once for each way that leads to them.

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scope_of_task() -> u32 {
    // SAFETY: a helper that takes any level.
    find(|level| unsafe { bpf_get_current_ancestor_cgroup_id(level) })
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn scope_of_packet(skb: *mut __sk_buff) -> u32 {
    // SAFETY: the helper takes the context that the kernel passed, and any level.
    find(|level| unsafe { bpf_skb_ancestor_cgroup_id(skb, level) })
}

#[inline(always)]
fn find(ancestor: impl Fn(i32) -> u64) -> u32 {
    let mut found = settings().map_or(0, |settings| pack(settings.scope));
    for level in 0..LEVELS {
        let id = ancestor(level);
        if id == 0 {
            break;
        }
        // SAFETY: copied at once; if it is changed just now, the packet is one of before or after the change.
        if let Some(scope) = unsafe { SCOPES.get(id) } {
            found = pack(*scope);
        }
    }
    found
}

#[inline(always)]
fn pack(scope: Scope) -> u32 {
    u32::from(scope.mode) | u32::from(scope.raw_sockets) << 8
}

#[inline(always)]
fn unpack(packed: u32) -> Scope {
    Scope { mode: packed as u8, raw_sockets: (packed >> 8) as u8, reserved: [0; 2] }
}

/// Whether the socket that a packet belongs to is none of the agent's business: outside the covered cgroup, or in a
/// scope that is switched off.
#[inline(always)]
pub fn is_uncovered(settings: &Settings, skb: *mut __sk_buff) -> bool {
    // SAFETY: the helper takes the context that the kernel passed, and any level.
    let ancestor = unsafe { bpf_skb_ancestor_cgroup_id(skb, settings.cgroup_level as i32) };
    ancestor != settings.cgroup || of_packet(settings, skb).mode == mode::OFF
}

/// Whether the task that is running is in a container: in a process namespace and a network namespace that are not the
/// host's. False where the kernel's structures are not known.
#[inline(always)]
pub fn in_container() -> bool {
    // Read as something that may be anything: what the compiler sees here is not what is loaded.
    // SAFETY: a static of this program.
    let layout = unsafe { (&raw const TASK_LAYOUT).read_volatile() };
    if layout.task_nsproxy == 0 {
        return false;
    }
    // SAFETY: a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some(namespaces) = pointer(task, layout.task_nsproxy) else { return false };
    let network = number(namespaces, layout.nsproxy_net, layout.net_inum);
    let processes = number(namespaces, layout.nsproxy_pid, layout.pid_inum);
    network != layout.host_net && processes != layout.host_pid
}

/// The number of the namespace that is named at `member`.
#[inline(always)]
fn number(namespaces: u64, member: u32, inum: u32) -> u32 {
    let Some(namespace) = pointer(namespaces, member) else { return 0 };
    let address = namespace + u64::from(inum);
    // SAFETY: the helper takes any address and fails where there is nothing to read.
    unsafe { bpf_probe_read_kernel(address as *const u32) }.unwrap_or(0)
}

#[inline(always)]
fn pointer(structure: u64, member: u32) -> Option<u64> {
    let address = structure + u64::from(member);
    // SAFETY: as above.
    unsafe { bpf_probe_read_kernel(address as *const u64) }.ok()
}
