//! Tells the agent of attempts to get around it: at a rate that no workload can raise, and with the number of those that
//! were not told.

use agent_common::{Event, NAME_SIZE, Rate, RateKey, counter, own_class};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{
        bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
        bpf_get_socket_cookie, bpf_get_socket_uid, bpf_ktime_get_ns, bpf_skb_cgroup_id,
    },
};

use crate::{
    address,
    maps::{EVENTS, RATES, count},
    own,
    packet::Packet,
};

/// Events of one kind that are sent for one workload in a second, by each CPU.
const EVENTS_A_SECOND: u64 = 10;
const SECOND: u64 = 1_000_000_000;

/// What is to be told.
pub struct Report {
    kind: u32,
    cgroup_id: u64,
    netns_cookie: u64,
    socket_cookie: u64,
    /// Process id in the upper half, thread id in the lower one.
    task: u64,
    uid: u32,
    comm: [u8; 16],
    pub device: u32,
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// In host order.
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u16,
    pub family: u16,
}

impl Report {
    /// Of what the task that is running does.
    #[inline(always)]
    pub fn of_task(kind: u32, netns_cookie: u64, socket_cookie: u64) -> Self {
        Self {
            kind,
            // SAFETY: a helper without arguments.
            cgroup_id: unsafe { bpf_get_current_cgroup_id() },
            netns_cookie,
            socket_cookie,
            task: bpf_get_current_pid_tgid(),
            uid: bpf_get_current_uid_gid() as u32,
            comm: bpf_get_current_comm().unwrap_or_default(),
            device: 0,
            source: [0; 4],
            destination: [0; 4],
            source_port: 0,
            destination_port: 0,
            protocol: 0,
            family: 0,
        }
    }

    /// Of a packet. Whatever is running when it is sent need not have to do with it.
    #[inline(always)]
    pub fn of_packet(kind: u32, packet: &Packet, skb: *mut __sk_buff) -> Self {
        let (cgroup_id, uid) = match own::socket_of(skb) {
            None => (0, 0),
            Some(socket) => match own::mark(socket) {
                // What the agent carries for a workload is the workload's.
                Some(own) if own.class == own_class::SPLICE => (own.cgroup_id, 0),
                // SAFETY: the helpers take the context that the kernel passed.
                _ => unsafe { (bpf_skb_cgroup_id(skb), bpf_get_socket_uid(skb)) },
            },
        };
        Self {
            kind,
            cgroup_id,
            netns_cookie: 0,
            // SAFETY: as above.
            socket_cookie: unsafe { bpf_get_socket_cookie(skb.cast()) },
            task: 0,
            uid,
            comm: [0; 16],
            device: 0,
            source: packet.source,
            destination: packet.destination,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            protocol: u16::from(packet.protocol),
            family: 0,
        }
    }

    /// Counts, and sends unless the workload has caused too many. `name` writes the name that was asked for.
    #[inline(always)]
    pub fn send(&self, name: impl FnOnce(&mut [u8; NAME_SIZE])) {
        count(self.kind);
        if !admit(RateKey::owner(self.cgroup_id, self.device), self.kind, EVENTS_A_SECOND) {
            return;
        }
        let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
            count(counter::EVENTS_LOST);
            return;
        };
        let event = entry.write(Event {
            kind: self.kind,
            device: self.device,
            cgroup_id: self.cgroup_id,
            netns_cookie: self.netns_cookie,
            socket_cookie: self.socket_cookie,
            pid: (self.task >> 32) as u32,
            tid: self.task as u32,
            uid: self.uid,
            protocol: self.protocol,
            family: self.family,
            source: address::bytes(self.source),
            destination: address::bytes(self.destination),
            source_port: self.source_port,
            destination_port: self.destination_port,
            reserved: 0,
            comm: self.comm,
            name: [0; NAME_SIZE],
        });
        name(&mut event.name);
        entry.submit(0);
    }
}

/// Counts one more of this kind for this workload; whether it may be sent.
#[inline(always)]
pub fn admit(owner: u64, kind: u32, per_second: u64) -> bool {
    let key = RateKey { owner, kind, reserved: 0 };
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let Some(rate) = RATES.get_ptr_mut(key) else {
        let _ = RATES.insert(key, Rate { window: now, sent: 1, total: 1 }, 0);
        return true;
    };
    // SAFETY: this CPU's own part of the entry.
    let rate = unsafe { &mut *rate };
    rate.total += 1;
    if now.wrapping_sub(rate.window) >= SECOND {
        rate.window = now;
        rate.sent = 0;
    }
    if rate.sent >= per_second {
        return false;
    }
    rate.sent += 1;
    true
}
