//! `cgroup_skb/ingress`: DNS answers that covered sockets receive are shown to the agent, which learns from them where
//! Snowflake's names lead. Nothing is ever dropped here.

use core::hint::black_box;

use agent_common::{DNS_SIZE, DnsHeader, counter, event_kind};
use aya_ebpf::{
    EbpfContext as _,
    helpers::{bpf_get_socket_cookie, bpf_skb_cgroup_id, bpf_skb_load_bytes},
    macros::cgroup_skb,
    programs::SkBuffContext,
};

use crate::{
    ALLOW,
    maps::{ANSWER, DNS, count},
    packet::{Packet, UDP},
    report::admit,
};

const PORT: u16 = 53;
/// Answers that are shown of those that one workload receives in a second. What it misses the guard still meets.
const ANSWERS_A_SECOND: u64 = 500;

#[cgroup_skb(ingress)]
pub fn ingress(context: SkBuffContext) -> i32 {
    observe(&context);
    ALLOW
}

#[inline(always)]
fn observe(context: &SkBuffContext) {
    let skb = context.skb.skb;
    let Some(packet) = Packet::read(skb, 0) else { return };
    if packet.source_port != PORT || packet.length == 0 {
        return;
    }
    // SAFETY: the helper takes the context that the kernel passed.
    let cgroup_id = unsafe { bpf_skb_cgroup_id(skb) };
    count(event_kind::DNS_ANSWER);
    if !admit(cgroup_id, event_kind::DNS_ANSWER, ANSWERS_A_SECOND) {
        count(counter::DNS_LOST);
        return;
    }
    let Some(answer) = ANSWER.get_ptr_mut(0) else { return };
    let truncated = packet.length > DNS_SIZE as u32;
    let length = if truncated { DNS_SIZE as u32 } else { packet.length };
    // Opaque, so that the bounds stay in the program for the verifier to see.
    let length = (black_box(length - 1) & (DNS_SIZE as u32 - 1)) + 1;
    // SAFETY: this CPU's slot, which no other program writes: answers are received with interruptions by the network
    // held off. The helper fills no more than there is room for.
    unsafe {
        (*answer).header = DnsHeader {
            cgroup_id,
            socket_cookie: bpf_get_socket_cookie(context.as_ptr()),
            sequence: u32::from_be(packet.sequence),
            length: length as u16,
            stream: u8::from(packet.protocol != UDP),
            truncated: u8::from(truncated),
        };
        let bytes = (&raw mut (*answer).bytes).cast();
        if bpf_skb_load_bytes(skb.cast(), packet.payload, bytes, length) != 0 {
            return;
        }
        let size = size_of::<DnsHeader>() + length as usize;
        let whole = core::slice::from_raw_parts(answer.cast::<u8>(), size);
        if DNS.output::<[u8]>(whole, 0).is_err() {
            count(counter::DNS_LOST);
        }
    }
}
