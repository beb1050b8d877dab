//! The perimeter, on the devices through which packets leave the host: what goes to an endpoint, or begins a connection to
//! a Snowflake name, and is not the agent's, is dropped, whatever made it: a socket of any kind, a guest, a device that a
//! pod made for itself.

use agent_common::{WireKey, event_kind};
use aya_ebpf::{bindings::__sk_buff, macros::classifier, programs::TcContext};

use crate::{
    address,
    egress::syn_key,
    hello::{self, Found},
    maps::{UNCOVERED_FLOWS, UNCOVERED_SYNS, is_captured, is_endpoint, settings},
    own,
    packet::{Packet, load},
    report::Report,
    scope,
};

/// Leave the packet to whatever program comes next, by either way of attaching.
const NEXT: i32 = -1;
/// Pass it on without asking anybody else.
const PASS: i32 = 0;
const DROP: i32 = 2;

const ETHERNET_HEADER: u32 = 14;
const VLAN_HEADER: u32 = 4;
/// Tags that may stand one after the other.
const VLANS: usize = 2;

/// For devices of the host whose packets begin with an Ethernet header.
#[classifier]
pub fn perimeter(context: TcContext) -> i32 {
    over_ethernet(context.skb.skb, true)
}

/// For devices of the host whose packets begin with the IP header.
#[classifier]
pub fn perimeter_ip(context: TcContext) -> i32 {
    verdict(context.skb.skb, 0, true)
}

/// The same for devices in other namespaces, whose numbers mean nothing to the host. What passes goes on at once: a filter
/// of the pod's own that came after this could write another address into it.
#[classifier]
pub fn perimeter_inside(context: TcContext) -> i32 {
    at_last(over_ethernet(context.skb.skb, false))
}

#[classifier]
pub fn perimeter_ip_inside(context: TcContext) -> i32 {
    at_last(verdict(context.skb.skb, 0, false))
}

#[inline(always)]
fn at_last(verdict: i32) -> i32 {
    if verdict == NEXT { PASS } else { verdict }
}

#[inline(always)]
fn over_ethernet(skb: *mut __sk_buff, on_host: bool) -> i32 {
    // The packet's own bytes say what it is, for a packet socket may tell the kernel something else.
    let mut offset = ETHERNET_HEADER;
    for _ in 0..VLANS {
        match ethertype(skb, offset - 2) {
            Some([0x81, 0x00] | [0x88, 0xa8]) => offset += VLAN_HEADER,
            Some([0x08, 0x00] | [0x86, 0xdd]) => break,
            _ => return NEXT,
        }
    }
    verdict(skb, offset, on_host)
}

/// Two bytes that stand at one of a few places near the start of the packet: read without a call where they lie in one
/// piece with it, as they do in every packet that is not made on purpose.
#[inline(always)]
fn ethertype(skb: *mut __sk_buff, offset: u32) -> Option<[u8; 2]> {
    // SAFETY: the kernel passes a valid context; the verifier checks that what is read lies before the end.
    unsafe {
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        let at = start + offset as usize;
        if at + 2 > end { load(skb, offset) } else { Some(*(at as *const [u8; 2])) }
    }
}

#[inline(always)]
fn verdict(skb: *mut __sk_buff, offset: u32, on_host: bool) -> i32 {
    let Some(settings) = settings() else { return NEXT };
    let Some(packet) = Packet::read(skb, offset) else { return NEXT };
    let to_endpoint = packet.may_reach(is_captured) && packet.matters() && is_endpoint(packet.destination);
    let found =
        if to_endpoint || !packet.is_tcp() || packet.length == 0 { None } else { hello::look(skb, &packet) };
    let kind = match &found {
        Some(found) => found.kind,
        None if to_endpoint => event_kind::PERIMETER_DROPPED,
        None => {
            // An uncovered connection to an address that may turn out to be Snowflake's.
            if packet.is_syn() && settings.scoped != 0 {
                is_known_uncovered(skb, offset);
            }
            return NEXT;
        }
    };
    let may_pass = match own::socket_of(skb) {
        Some(_) => own::is_agents(skb) || scope::is_uncovered(settings, skb),
        // From another namespace: its socket stayed there.
        None => packet.is_tcp() && is_known_uncovered(skb, offset) != 0,
    };
    if may_pass {
        return NEXT;
    }
    tell(skb, kind, &packet, found.as_ref(), on_host);
    DROP
}

/// Whether the packet is of a connection whose first packet an uncovered socket sent. What translates addresses on the
/// way changes the source of that packet, but not its sequence number.
///
/// A function that the verifier checks once; and with a stack of its own, of which older kernels have little.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_known_uncovered(skb: *mut __sk_buff, offset: u32) -> u32 {
    Packet::read(skb, offset).is_some_and(|packet| find_uncovered(&packet)).into()
}

#[inline(always)]
fn find_uncovered(packet: &Packet) -> bool {
    let key = WireKey {
        source: address::bytes(packet.source),
        destination: address::bytes(packet.destination),
        source_port: packet.source_port,
        destination_port: packet.destination_port,
    };
    let syn = syn_key(packet);
    // SAFETY: nothing is read through the references; only whether there are entries counts.
    unsafe {
        let is_known = UNCOVERED_FLOWS.get(key).is_some();
        if is_known && !packet.is_syn() {
            return true;
        }
        let is_uncovered = packet.matters() && UNCOVERED_SYNS.get(syn).is_some();
        if is_uncovered {
            let _ = UNCOVERED_FLOWS.insert(key, 0, 0);
        } else if is_known {
            // Another connection has the ports of an earlier one.
            let _ = UNCOVERED_FLOWS.remove(key);
        }
        is_uncovered
    }
}

#[inline(always)]
fn tell(skb: *mut __sk_buff, kind: u32, packet: &Packet, found: Option<&Found>, on_host: bool) {
    let mut report = Report::of_packet(kind, packet, skb);
    if on_host {
        // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
        report.device = unsafe { (*skb).ingress_ifindex };
    }
    report.send(|name| {
        if let Some(found) = found {
            found.write(skb, name);
        }
    });
}
