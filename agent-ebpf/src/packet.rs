//! The headers of a packet, read from its bytes alone.

use aya_ebpf::{bindings::__sk_buff, helpers::bpf_skb_load_bytes};

use crate::address;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
/// What has its ports where UDP has them: DCCP, SCTP, UDP-Lite.
const LIKE_UDP: [u8; 3] = [33, 132, 136];
/// What tells of the network, and gets nobody anywhere.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const UDP_HEADER: u32 = 8;
/// Extension headers that are walked; a packet with more is none that anybody sends.
const EXTENSIONS: usize = 6;

const SYN: u8 = 0x02;

pub struct Packet {
    pub source: [u32; 4],
    pub destination: [u32; 4],
    /// In host order; zero where there are no ports.
    pub source_port: u16,
    pub destination_port: u16,
    /// In network order.
    pub sequence: u32,
    pub protocol: u8,
    flags: u8,
    /// A part of a packet, other than its first.
    pub is_fragment: bool,
    /// Where the bytes after the headers are, and how many.
    pub payload: u32,
    pub length: u32,
}

impl Packet {
    /// Reads the headers of the IP packet that begins at `offset`. None if there is none, or not all of it.
    #[inline(always)]
    pub fn read(skb: *mut __sk_buff, offset: u32) -> Option<Self> {
        let first: u8 = load(skb, offset)?;
        match first >> 4 {
            4 => Self::read4(skb, offset),
            6 => Self::read6(skb, offset),
            _ => None,
        }
    }

    #[inline(always)]
    fn read4(skb: *mut __sk_buff, offset: u32) -> Option<Self> {
        let header: [u8; IPV4_HEADER as usize] = load(skb, offset)?;
        let length = u32::from(header[0] & 0x0f) * 4;
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let packet = Self {
            source: address::mapped(word(&header, 12)),
            destination: address::mapped(word(&header, 16)),
            source_port: 0,
            destination_port: 0,
            sequence: 0,
            protocol: header[9],
            flags: 0,
            is_fragment: fragment != 0,
            payload: 0,
            length: 0,
        };
        packet.read_transport(skb, offset + length)
    }

    #[inline(always)]
    fn read6(skb: *mut __sk_buff, offset: u32) -> Option<Self> {
        let header: [u8; IPV6_HEADER as usize] = load(skb, offset)?;
        let mut packet = Self {
            source: [word(&header, 8), word(&header, 12), word(&header, 16), word(&header, 20)],
            destination: [word(&header, 24), word(&header, 28), word(&header, 32), word(&header, 36)],
            source_port: 0,
            destination_port: 0,
            sequence: 0,
            protocol: header[6],
            flags: 0,
            is_fragment: false,
            payload: 0,
            length: 0,
        };
        let mut position = offset + IPV6_HEADER;
        for _ in 0..EXTENSIONS {
            match packet.protocol {
                // Hop-by-hop options, routing, destination options: their length is in units of eight bytes.
                0 | 43 | 60 => {
                    let extension: [u8; 2] = load(skb, position)?;
                    packet.protocol = extension[0];
                    position += (u32::from(extension[1]) + 1) * 8;
                }
                44 => {
                    let extension: [u8; 4] = load(skb, position)?;
                    packet.protocol = extension[0];
                    packet.is_fragment |= u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0;
                    position += 8;
                }
                _ => break,
            }
        }
        packet.read_transport(skb, position)
    }

    #[inline(always)]
    fn read_transport(mut self, skb: *mut __sk_buff, position: u32) -> Option<Self> {
        if self.is_fragment {
            return Some(self);
        }
        if self.protocol == TCP {
            let header: [u8; 14] = load(skb, position)?;
            self.source_port = u16::from_be_bytes([header[0], header[1]]);
            self.destination_port = u16::from_be_bytes([header[2], header[3]]);
            self.sequence = word(&header, 4);
            self.flags = header[13];
            self.payload = position + u32::from(header[12] >> 4) * 4;
        } else if self.protocol == UDP || LIKE_UDP.contains(&self.protocol) {
            let header: [u8; 4] = load(skb, position)?;
            self.source_port = u16::from_be_bytes([header[0], header[1]]);
            self.destination_port = u16::from_be_bytes([header[2], header[3]]);
            self.payload = position + UDP_HEADER;
        } else {
            return Some(self);
        }
        // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
        let end = unsafe { (*skb).len };
        self.length = end.saturating_sub(self.payload);
        Some(self)
    }

    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.protocol == TCP && !self.is_fragment
    }

    /// The first packet of a connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.is_tcp() && self.flags & SYN != 0
    }

    /// Whether it begins a connection or carries anything. The rest (an acknowledgement, the end of a connection) comes
    /// from what is left of the agent's own sockets too, and gets nobody anywhere.
    #[inline(always)]
    pub fn matters(&self) -> bool {
        !self.is_tcp() || self.flags & SYN != 0 || self.length > 0
    }

    /// Whether it is of a kind that reaches a captured port: a protocol without ports too, and a part of a packet, which
    /// does not show its port.
    #[inline(always)]
    pub fn may_reach(&self, is_captured: impl FnOnce(u16) -> bool) -> bool {
        match self.protocol {
            ICMP | ICMPV6 => false,
            protocol if protocol == TCP || protocol == UDP || LIKE_UDP.contains(&protocol) => {
                self.is_fragment || is_captured(self.destination_port)
            }
            _ => true,
        }
    }
}

/// Reads from the packet. None beyond its end.
#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills the whole value or fails; every T that is asked for is made of plain bytes.
    unsafe {
        let failed =
            bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) != 0;
        if failed { None } else { Some(value.assume_init()) }
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
