//! IPv4 and IPv6 addresses in one form: four words in network order, IPv4 as `::ffff:a.b.c.d`.

use agent_common::Address;

/// `::ffff:0:0/96` as the kernel's contexts show it: words in network order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// `64:ff9b::/96`, in which a translator on the way to IPv4 shows IPv4 addresses (RFC 6052).
const TRANSLATED: u32 = 0x0064_ff9b_u32.to_be();

/// 127.0.0.1 as the kernel's contexts want it.
pub const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();

/// `::1`, and `::ffff:127.0.0.1`, likewise.
pub const LOOPBACK6: [u32; 4] = [0, 0, 0, 1_u32.to_be()];
pub const LOOPBACK_MAPPED: [u32; 4] = [0, 0, MAPPED, LOOPBACK4];

#[inline(always)]
pub fn mapped(word: u32) -> [u32; 4] {
    [0, 0, MAPPED, word]
}

/// The IPv4 address inside an IPv4-mapped one.
#[inline(always)]
pub fn as_mapped(words: [u32; 4]) -> Option<u32> {
    (words[0] == 0 && words[1] == 0 && words[2] == MAPPED).then_some(words[3])
}

/// The IPv4 address that this one leads to, mapped or translated.
#[inline(always)]
pub fn embedded4(words: [u32; 4]) -> Option<u32> {
    let prefix = (words[0] == 0 && words[2] == MAPPED) || (words[0] == TRANSLATED && words[2] == 0);
    (prefix && words[1] == 0).then_some(words[3])
}

#[inline(always)]
pub fn bytes(words: [u32; 4]) -> Address {
    let [a, b, c, d] = words.map(u32::to_ne_bytes);
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
}

/// The four words of [`bytes`] again.
#[inline(always)]
pub fn words(address: &Address) -> [u32; 4] {
    let a = address;
    [
        u32::from_ne_bytes([a[0], a[1], a[2], a[3]]),
        u32::from_ne_bytes([a[4], a[5], a[6], a[7]]),
        u32::from_ne_bytes([a[8], a[9], a[10], a[11]]),
        u32::from_ne_bytes([a[12], a[13], a[14], a[15]]),
    ]
}

/// 127.0.0.0/8, 0.0.0.0 (which connect takes for 127.0.0.1), `::1` and `::`, and what is mapped of these.
#[inline(always)]
pub fn is_loopback(words: [u32; 4]) -> bool {
    match as_mapped(words) {
        Some(word) => word == 0 || word.to_ne_bytes()[0] == 127,
        None => {
            words[0] == 0 && words[1] == 0 && words[2] == 0 && (words[3] == 0 || words[3] == LOOPBACK6[3])
        }
    }
}
