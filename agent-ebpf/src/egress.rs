//! `cgroup_skb/egress`, the guard: what covered sockets send to an endpoint without having been redirected is dropped,
//! and so is a packet with the start of a connection to a Snowflake name at an address that nobody knew.
//!
//! It sees packets as they leave the network namespace of their socket: after any translation of addresses there.

use agent_common::{Settings, SynKey, event_kind, mode, own_class};
use aya_ebpf::{bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};

use crate::{
    ALLOW, REFUSE, address,
    hello::{self, Found},
    maps::{UNCOVERED_SYNS, is_captured, is_endpoint, settings},
    own,
    packet::Packet,
    report::Report,
    scope,
};

#[cgroup_skb(egress)]
pub fn egress(context: SkBuffContext) -> i32 {
    if judge(context.skb.skb) { ALLOW } else { REFUSE }
}

/// Whether the packet may go on.
#[inline(always)]
fn judge(skb: *mut __sk_buff) -> bool {
    let Some(settings) = settings() else { return true };
    let Some(packet) = Packet::read(skb, 0) else { return true };
    if address::is_loopback(packet.destination) {
        return true;
    }
    let is_syn = packet.is_syn();
    let may_reach = packet.may_reach(is_captured);
    let to_endpoint = may_reach && packet.matters() && is_endpoint(packet.destination);
    // Later ones too where they meet the perimeter, which may have forgotten the first.
    let is_noted = packet.is_tcp() && (is_syn && may_reach || to_endpoint);
    if is_noted && settings.scoped != 0 && scope::of_packet(settings, skb).mode == mode::OFF {
        let _ = UNCOVERED_SYNS.insert(syn_key(&packet), 0, 0);
        return true;
    }
    if is_syn {
        // Whatever leads such a connection elsewhere does so with its first packet.
        let own = own::socket_of(skb).and_then(own::mark);
        if let Some(own) = own
            && own.class == own_class::SPLICE
            && (address::words(&own.address) != packet.destination || own.port != packet.destination_port)
        {
            tell(skb, event_kind::SPLICE_DIVERTED, &packet, None);
            return false;
        }
    }
    if goes_around(settings, skb, &packet, may_reach) {
        tell(skb, event_kind::PACKET_GUARDED, &packet, None);
        return false;
    }
    if to_endpoint {
        if own::is_agents(skb) || scope::of_packet(settings, skb).mode == mode::OFF {
            return true;
        }
        tell(skb, event_kind::PACKET_GUARDED, &packet, None);
        return false;
    }
    if !packet.is_tcp() || packet.length == 0 {
        return true;
    }
    if own::is_closed(skb) {
        return false;
    }
    let Some(found) = hello::look(skb, &packet) else { return true };
    if own::is_agents(skb) || scope::of_packet(settings, skb).mode == mode::OFF {
        return true;
    }
    own::close(skb);
    tell(skb, found.kind, &packet, Some(&found));
    false
}

/// Whether it begins something, in mode `all`, that was not led through the agent: whatever `connect` was told, the packet
/// leaves for somewhere else.
#[inline(always)]
fn goes_around(settings: &Settings, skb: *mut __sk_buff, packet: &Packet, may_reach: bool) -> bool {
    let begins = packet.opens() || may_reach && packet.is_datagram();
    let may_be_all = settings.scoped != 0 || settings.scope.mode == mode::ALL;
    begins && may_be_all && scope::of_packet(settings, skb).mode == mode::ALL && !own::is_marked(skb)
}

/// The key under which the perimeter looks for the first packet of a connection that is not covered.
#[inline(always)]
pub fn syn_key(packet: &Packet) -> SynKey {
    SynKey {
        destination: address::bytes(packet.destination),
        sequence: packet.sequence,
        port: packet.destination_port,
        reserved: 0,
    }
}

#[inline(always)]
fn tell(skb: *mut __sk_buff, kind: u32, packet: &Packet, found: Option<&Found>) {
    Report::of_packet(kind, packet, skb).send(|name| {
        if let Some(found) = found {
            found.write(skb, name);
        }
    });
}
