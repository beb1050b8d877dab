//! The name in the first bytes of a connection: in a TLS ClientHello, or in a request to a proxy for a tunnel.
//!
//! Only what stands whole in one packet is found. What is written in pieces, to an address that nobody knows, is what
//! mode `all` is for.

use core::hint::black_box;

use agent_common::{NAME_SIZE, SUFFIX_SIZE, Settings, event_kind};
use aya_ebpf::{bindings::__sk_buff, cty::c_void, helpers::bpf_skb_load_bytes};

use crate::{
    maps::{SUFFIXES, settings},
    packet::{Packet, load},
};

/// Bytes up to the version in the hello: of the record, of the handshake message, and the version.
const PREFIX: u32 = 11;
const RANDOM: u32 = 32;
const RECORD_HEADER: u32 = 5;
/// Records that may stand before a hello, and their length.
const PREFACES: u32 = 4;
const LONGEST_PREFACE: u8 = 16;
/// Extensions that are looked at. No client sends half as many.
const EXTENSIONS: u32 = 64;
/// The longest name of a host.
const LONGEST: u32 = 255;
const METHOD: &[u8; 8] = b"CONNECT ";

/// A Snowflake name, and where it stands in the packet.
pub struct Found {
    /// The kind of the event that tells of it.
    pub kind: u32,
    start: u32,
    length: u32,
}

impl Found {
    /// In the one register that a function returns: a packet is shorter than sixteen megabytes, a name than 256 bytes.
    #[inline(always)]
    fn pack(&self) -> u64 {
        u64::from(self.kind) << 32 | u64::from(self.start & 0x00ff_ffff) << 8 | u64::from(self.length & 0xff)
    }

    #[inline(always)]
    fn unpack(packed: u64) -> Option<Self> {
        let found =
            Self { kind: (packed >> 32) as u32, start: packed as u32 >> 8, length: packed as u32 & 0xff };
        (found.length != 0).then_some(found)
    }

    /// Copies the name, or its end.
    #[inline(always)]
    pub fn write(&self, skb: *mut __sk_buff, name: &mut [u8; NAME_SIZE]) {
        let length = if self.length < NAME_SIZE as u32 { self.length } else { NAME_SIZE as u32 - 1 };
        let start = self.start + (self.length - length);
        read_to(skb, start, name.as_mut_ptr(), length);
    }
}

/// Looks for a Snowflake name in the payload of a packet.
#[inline(always)]
pub fn look(skb: *mut __sk_buff, packet: &Packet) -> Option<Found> {
    Found::unpack(snowflake_name(skb, packet.payload))
}

/// [`look`], as a function that the verifier checks once, for any arguments, instead of once for each way that leads to
/// it: of those there are so many that older kernels give up.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn snowflake_name(skb: *mut __sk_buff, payload: u32) -> u64 {
    let Some(settings) = settings() else { return 0 };
    look_at(settings, skb, payload).map_or(0, |found| found.pack())
}

#[inline(always)]
fn look_at(settings: &Settings, skb: *mut __sk_buff, payload: u32) -> Option<Found> {
    let mut payload = payload;
    let mut start: [u8; 8] = load(skb, payload)?;
    // What servers read over: a change of ciphers before a second hello, a warning, an empty record.
    for _ in 0..PREFACES {
        let is_preface = start[1] == 3
            && start[3] == 0
            && (matches!(start[0], 0x14 | 0x15) && start[4] <= LONGEST_PREFACE
                || start[0] == 0x16 && start[4] == 0);
        if !is_preface {
            break;
        }
        payload += RECORD_HEADER + u32::from(start[4]);
        start = load(skb, payload)?;
    }
    let found = match start[0] {
        0x16 if start[1] == 3 && start[5] == 1 => server_name(skb, payload)?,
        b'C' if start == *METHOD => tunnel(skb, payload + METHOD.len() as u32)?,
        // SOCKS 5: connect, to a name of which the length stands before it.
        5 if start[1] == 1 && start[3] == 3 => {
            Found { kind: event_kind::TUNNEL_GUARDED, start: payload + 5, length: u32::from(start[4]) }
        }
        _ => return None,
    };
    is_snowflake(settings, skb, found.start, found.length).then_some(found)
}

/// The name that the ClientHello in the record at `record` asks for.
#[inline(always)]
fn server_name(skb: *mut __sk_buff, record: u32) -> Option<Found> {
    let prefix: [u8; PREFIX as usize] = load(skb, record)?;
    if prefix[0] != 0x16 || prefix[1] != 3 || prefix[5] != 1 {
        return None;
    }
    let mut position = record + PREFIX + RANDOM;
    let session: u8 = load(skb, position)?;
    position += 1 + u32::from(session);
    let ciphers: [u8; 2] = load(skb, position)?;
    position += 2 + u32::from(u16::from_be_bytes(ciphers));
    let compression: u8 = load(skb, position)?;
    // After it the length of all extensions, which the end of the packet stands in for.
    position += 1 + u32::from(compression) + 2;
    for _ in 0..EXTENSIONS {
        let extension: [u8; 4] = load(skb, position)?;
        let length = u32::from(u16::from_be_bytes([extension[2], extension[3]]));
        position += 4;
        if extension[0] == 0 && extension[1] == 0 {
            // The length of the list, the kind of the first name, its length.
            let list: [u8; 5] = load(skb, position)?;
            return Some(Found {
                kind: event_kind::NAME_GUARDED,
                start: position + 5,
                length: u32::from(u16::from_be_bytes([list[3], list[4]])),
            });
        }
        position += length;
    }
    None
}

/// The host in `CONNECT host:port`.
#[inline(always)]
fn tunnel(skb: *mut __sk_buff, start: u32) -> Option<Found> {
    // Without a branch on what is found: each would be one more way for the verifier to follow to the end.
    let (mut length, mut goes_on) = (0, 1);
    for position in 0..LONGEST {
        let mut byte = 0_u8;
        // Beyond the end of the packet this leaves a zero.
        // SAFETY: the helper writes one byte.
        unsafe { bpf_skb_load_bytes(skb.cast(), start + position, (&raw mut byte).cast(), 1) };
        let is_end = is_zero(byte ^ b':') | is_zero(byte ^ b' ') | is_zero(byte);
        goes_on &= 1 ^ is_end;
        length += goes_on;
    }
    Some(Found { kind: event_kind::TUNNEL_GUARDED, start, length })
}

/// 1 for 0, and 0 for anything else.
#[inline(always)]
fn is_zero(byte: u8) -> u32 {
    black_box(u32::from(byte)).wrapping_sub(1) >> 31
}

/// Whether the name ends in one of the suffixes, whatever its case, and with a dot after it or without.
#[inline(always)]
fn is_snowflake(settings: &Settings, skb: *mut __sk_buff, start: u32, length: u32) -> bool {
    if length < 2 || length > LONGEST {
        return false;
    }
    let Some(last) = load::<u8>(skb, start + length - 1) else { return false };
    let length = if last == b'.' { length - 1 } else { length };
    for suffix in settings.suffix_lengths {
        // With its dot; the name may be the suffix itself, without one.
        let suffix = u32::from(suffix);
        if suffix == 0 {
            break;
        }
        if suffix >= SUFFIX_SIZE as u32 || length + 1 < suffix {
            continue;
        }
        if ends_in(skb, start + length - suffix, suffix, length + 1 == suffix) {
            return true;
        }
    }
    false
}

#[inline(always)]
fn ends_in(skb: *mut __sk_buff, start: u32, length: u32, is_whole: bool) -> bool {
    const WORDS: usize = SUFFIX_SIZE / 8;
    /// Beyond the key, so that the verifier sees that no length leads outside.
    const SPARE: usize = SUFFIX_SIZE / 8;
    let mut key = [0_u64; WORDS + SPARE];
    let bytes = key.as_mut_ptr().cast::<u8>();
    let first = (SUFFIX_SIZE as u32 - length) & (SUFFIX_SIZE as u32 - 1);
    // SAFETY: within the key by the mask.
    let end = unsafe { bytes.add(first as usize) };
    if !read_to(skb, start, end, length) {
        return false;
    }
    if is_whole {
        // SAFETY: as above. What stands before the name in the packet is no part of it.
        unsafe { *end = b'.' };
    }
    for word in key.iter_mut().take(WORDS) {
        *word |= 0x2020_2020_2020_2020;
    }
    // SAFETY: nothing is read through the reference; only whether there is an entry counts. The key is as large as it is
    // said to be, and made of bytes.
    unsafe { SUFFIXES.get(&*bytes.cast::<[u8; SUFFIX_SIZE]>()) }.is_some()
}

/// Reads 1 to 64 bytes.
#[inline(always)]
fn read_to(skb: *mut __sk_buff, offset: u32, to: *mut u8, length: u32) -> bool {
    // Opaque, so that the bounds stay in the program for the verifier to see.
    let length = (black_box(length - 1) & 63) + 1;
    // SAFETY: the callers have room for 64 bytes.
    unsafe { bpf_skb_load_bytes(skb.cast(), offset, to.cast::<c_void>(), length) == 0 }
}
