//! Tells the agent of attempts to get around it: at a rate that no workload can raise, and with the number of those that
//! were not told.

use agent_common::{Event, NAME_SIZE, Rate, RateKey, counter};
use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid,
    bpf_ktime_get_ns,
};

use crate::{
    address,
    maps::{EVENTS, RATES, count},
    packet::Packet,
};

/// Events of one kind that are sent for one workload in a second, by each CPU.
const EVENTS_A_SECOND: u64 = 10;
const SECOND: u64 = 1_000_000_000;

/// What is to be told.
pub struct Report {
    pub kind: u32,
    pub cgroup_id: u64,
    pub netns_cookie: u64,
    pub socket_cookie: u64,
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
    pub const EMPTY: Self = Self {
        kind: 0,
        cgroup_id: 0,
        netns_cookie: 0,
        socket_cookie: 0,
        device: 0,
        source: [0; 4],
        destination: [0; 4],
        source_port: 0,
        destination_port: 0,
        protocol: 0,
        family: 0,
    };

    /// Of a packet.
    #[inline(always)]
    pub fn packet(kind: u32, packet: &Packet) -> Self {
        Self {
            kind,
            source: packet.source,
            destination: packet.destination,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            protocol: u16::from(packet.protocol),
            ..Self::EMPTY
        }
    }

    /// Counts, and sends unless the workload has caused too many. `name` writes the name that was asked for.
    #[inline(always)]
    pub fn send(&self, name: impl FnOnce(&mut [u8; NAME_SIZE])) {
        count(self.kind);
        if !admit(self.cgroup_id, self.kind, EVENTS_A_SECOND) {
            return;
        }
        let Some(mut entry) = EVENTS.reserve::<Event>(0) else {
            count(counter::EVENTS_LOST);
            return;
        };
        // Packets are also sent when something else is running, whose name must not stand in the event.
        // SAFETY: a helper without arguments.
        let is_tasks = unsafe { bpf_get_current_cgroup_id() } == self.cgroup_id;
        let (task, user) =
            if is_tasks { (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid() as u32) } else { (0, 0) };
        let comm = if is_tasks { bpf_get_current_comm().unwrap_or_default() } else { [0; 16] };
        let event = entry.write(Event {
            kind: self.kind,
            device: self.device,
            cgroup_id: self.cgroup_id,
            netns_cookie: self.netns_cookie,
            socket_cookie: self.socket_cookie,
            pid: (task >> 32) as u32,
            tid: task as u32,
            uid: user,
            protocol: self.protocol,
            family: self.family,
            source: address::bytes(self.source),
            destination: address::bytes(self.destination),
            source_port: self.source_port,
            destination_port: self.destination_port,
            reserved: 0,
            comm,
            name: [0; NAME_SIZE],
        });
        name(&mut event.name);
        entry.submit(0);
    }
}

/// Counts one more of this kind for this workload; whether it may be sent.
#[inline(always)]
pub fn admit(cgroup_id: u64, kind: u32, per_second: u64) -> bool {
    let key = RateKey { cgroup_id, kind, reserved: 0 };
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
