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

const IPV4_HEADER: usize = 20;
const IPV6_HEADER: u32 = 40;
/// Those of IPv4 and TCP, without options; and that of IPv6.
const HEADERS: usize = 40;
/// The first byte of an IPv4 header without options.
const PLAIN: u8 = 0x45;
/// Bytes of TCP's header up to its flags, and of any other with ports.
const TCP_FIELDS: usize = 14;
const PORTS: usize = 4;
const UDP_HEADER: u32 = 8;
/// Extension headers that are walked; a packet with more is none that anybody sends.
const EXTENSIONS: usize = 6;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

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
        // One buffer for all: the stack of a program is small.
        let mut bytes = [0; HEADERS];
        // Of nearly every packet this is all there is to read: each call costs more than what is done with its bytes.
        let is_whole = read_to(skb, offset, &mut bytes, HEADERS);
        if !is_whole && !read_to(skb, offset, &mut bytes, IPV4_HEADER) {
            return None;
        }
        match bytes[0] >> 4 {
            4 => {
                let packet = Self::of_header4(&bytes);
                let has_ports = packet.protocol == TCP || packet.protocol == UDP;
                if is_whole && bytes[0] == PLAIN && has_ports && !packet.is_fragment {
                    return Some(packet.with_ports(skb, &bytes, IPV4_HEADER, offset + IPV4_HEADER as u32));
                }
                let position = offset + u32::from(bytes[0] & 0x0f) * 4;
                packet.read_transport(skb, &mut bytes, position)
            }
            6 if is_whole => Self::read6(skb, &mut bytes, offset + IPV6_HEADER),
            _ => None,
        }
    }

    #[inline(always)]
    fn of_header4(header: &[u8; HEADERS]) -> Self {
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        Self {
            source: address::mapped(word(header, 12)),
            destination: address::mapped(word(header, 16)),
            source_port: 0,
            destination_port: 0,
            sequence: 0,
            protocol: header[9],
            flags: 0,
            is_fragment: fragment != 0,
            payload: 0,
            length: 0,
        }
    }

    /// Reads what follows an IPv6 header: other headers may come before that of the transport.
    #[inline(always)]
    fn read6(skb: *mut __sk_buff, header: &mut [u8; HEADERS], mut position: u32) -> Option<Self> {
        let mut packet = Self {
            source: [word(header, 8), word(header, 12), word(header, 16), word(header, 20)],
            destination: [word(header, 24), word(header, 28), word(header, 32), word(header, 36)],
            source_port: 0,
            destination_port: 0,
            sequence: 0,
            protocol: header[6],
            flags: 0,
            is_fragment: false,
            payload: 0,
            length: 0,
        };
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
                    position += 8;
                    if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
                        // What follows is no header, and of what protocol it is only the first part says.
                        packet.is_fragment = true;
                        break;
                    }
                }
                _ => break,
            }
        }
        packet.read_transport(skb, header, position)
    }

    #[inline(always)]
    fn read_transport(
        mut self,
        skb: *mut __sk_buff,
        buffer: &mut [u8; HEADERS],
        position: u32,
    ) -> Option<Self> {
        if self.is_fragment {
            return Some(self);
        }
        let length = match self.protocol {
            TCP => TCP_FIELDS,
            _ if self.is_like_udp() => PORTS,
            _ => return Some(self),
        };
        if read_to(skb, position, buffer, length) {
            return Some(self.with_ports(skb, buffer, 0, position));
        }
        // Its ports are in another part, if there is one.
        self.is_fragment = true;
        Some(self)
    }

    /// Takes what the header of the transport says, which begins in `bytes` at `start` and in the packet at `position`.
    #[inline(always)]
    fn with_ports(mut self, skb: *mut __sk_buff, bytes: &[u8; HEADERS], start: usize, position: u32) -> Self {
        self.source_port = u16::from_be_bytes([bytes[start], bytes[start + 1]]);
        self.destination_port = u16::from_be_bytes([bytes[start + 2], bytes[start + 3]]);
        self.payload = position + UDP_HEADER;
        if self.protocol == TCP {
            self.sequence = word(bytes, start + 4);
            self.flags = bytes[start + 13];
            self.payload = position + u32::from(bytes[start + 12] >> 4) * 4;
        }
        // SAFETY: the kernel passes a valid context, and the verifier checks each access to it.
        let end = unsafe { (*skb).len };
        self.length = end.saturating_sub(self.payload);
        self
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

    /// The first packet of a connection that its sender begins.
    #[inline(always)]
    pub fn opens(&self) -> bool {
        self.is_tcp() && self.flags & (SYN | ACK) == SYN
    }

    /// Whether it is a whole one of those that need no connection.
    #[inline(always)]
    pub fn is_datagram(&self) -> bool {
        !self.is_fragment && self.is_like_udp()
    }

    /// Whether its protocol has its ports where UDP has them.
    #[inline(always)]
    fn is_like_udp(&self) -> bool {
        self.protocol == UDP || LIKE_UDP.contains(&self.protocol)
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
        if self.is_fragment {
            return true;
        }
        match self.protocol {
            ICMP | ICMPV6 => false,
            protocol if protocol == TCP || self.is_like_udp() => is_captured(self.destination_port),
            _ => true,
        }
    }
}

/// Reads so many bytes into a buffer; says whether there were so many.
#[inline(always)]
fn read_to(skb: *mut __sk_buff, offset: u32, buffer: &mut [u8; HEADERS], length: usize) -> bool {
    // SAFETY: the callers ask for no more than the buffer has room for.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, buffer.as_mut_ptr().cast(), length as u32) == 0 }
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
