//! The network devices of a namespace.

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use super::netlink::{Netlink, attributes, half, put_attribute, word};

/// The group of messages about devices that come, go and change.
pub(super) const GROUP: u32 = 1;

const GET: u16 = 18;
const NEW: u16 = 16;
const GET_NAMESPACE: u16 = 90;
/// Bytes before the attributes of a device.
const HEAD: usize = 16;
const NAME: u16 = 3;
const INFO: u16 = 18;
const INFO_KIND: u16 = 1;
const PEER_NAMESPACE: u16 = 37;
/// Bytes before the attributes of a message about namespaces, and these.
const NAMESPACE_HEAD: usize = 4;
const NAMESPACE_ID: u16 = 1;
const NAMESPACE_DESCRIPTOR: u16 = 3;

const ETHERNET: u16 = 1;
const LOOPBACK: u16 = 772;
/// What has no header of its own before that of IP: PPP, tunnels, 6in4, GRE, raw IP, and none.
const WITHOUT_HEADER: [u16; 8] = [512, 519, 768, 769, 776, 778, 823, 65534];
/// Two ends that lead into each other: what goes in here comes out in another namespace of this host.
const PAIRS: [&str; 2] = ["veth", "netkit"];

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Device {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) framing: Framing,
    /// The kernel's word for what made it; empty for hardware.
    kind: String,
}

/// What a packet on the device begins with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Framing {
    Ethernet,
    Ip,
    Loopback,
    Other,
}

/// The devices of the namespace of the calling thread.
pub(super) fn list() -> io::Result<Vec<Device>> {
    let messages = Netlink::open(None)?.list(GET, &[0; HEAD])?;
    let devices = messages.iter().filter(|message| message.kind == NEW);
    Ok(devices.filter_map(|message| Device::read(&message.body)).collect())
}

/// What this namespace calls the namespace that the other end of a device is in; none if that is here.
pub(super) fn peer_namespace(device: u32) -> io::Result<Option<i32>> {
    let mut body = [0; HEAD];
    let (_, index) = body.split_at_mut(4);
    index.iter_mut().zip(device.to_ne_bytes()).for_each(|(to, from)| *to = from);
    let answer = Netlink::open(None)?.ask(GET, &body)?;
    Ok(id_in(answer.body.get(HEAD..), PEER_NAMESPACE))
}

/// What this namespace calls another one; none where it has no name for it, for no device leads there.
pub(super) fn id_of_namespace(namespace: BorrowedFd<'_>) -> io::Result<Option<i32>> {
    let mut body = vec![0; NAMESPACE_HEAD];
    put_attribute(&mut body, NAMESPACE_DESCRIPTOR, &namespace.as_raw_fd().to_ne_bytes());
    let answer = Netlink::open(None)?.ask(GET_NAMESPACE, &body)?;
    Ok(id_in(answer.body.get(NAMESPACE_HEAD..), NAMESPACE_ID))
}

fn id_in(bytes: Option<&[u8]>, wanted: u16) -> Option<i32> {
    let content = attributes(bytes?).find(|(attribute, _)| *attribute == wanted)?.1;
    word(content, 0).map(u32::cast_signed).filter(|id| *id >= 0)
}

impl Device {
    fn read(body: &[u8]) -> Option<Self> {
        let framing = match half(body, 2)? {
            ETHERNET => Framing::Ethernet,
            LOOPBACK => Framing::Loopback,
            kind if WITHOUT_HEADER.contains(&kind) => Framing::Ip,
            _ => Framing::Other,
        };
        let mut device = Self { index: word(body, 4)?, name: String::new(), framing, kind: String::new() };
        for (attribute, content) in attributes(body.get(HEAD..)?) {
            match attribute {
                NAME => device.name = text(content),
                INFO => {
                    let kind = attributes(content).find(|(attribute, _)| *attribute == INFO_KIND);
                    device.kind = kind.map(|(_, content)| text(content)).unwrap_or_default();
                }
                _ => {}
            }
        }
        Some(device)
    }

    /// Whether packets leave the host by it, as far as can be told. In the host's own namespace everything may lead out,
    /// for hosts are containers too; elsewhere a pair leads back to the host, where its packets are met again.
    pub(super) fn is_uplink(&self, in_hosts_namespace: bool) -> bool {
        self.framing != Framing::Loopback && (in_hosts_namespace || !PAIRS.contains(&self.kind.as_str()))
    }
}

fn text(bytes: &[u8]) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(framing: u16, index: u32, name: &str, kind: Option<&str>) -> Vec<u8> {
        let mut body = vec![0, 0];
        body.extend(framing.to_ne_bytes());
        body.extend(index.to_ne_bytes());
        body.extend([0; 8]);
        put_attribute(&mut body, NAME, format!("{name}\0").as_bytes());
        if let Some(kind) = kind {
            let mut info = Vec::new();
            put_attribute(&mut info, INFO_KIND, format!("{kind}\0").as_bytes());
            put_attribute(&mut body, INFO, &info);
        }
        body
    }

    #[test]
    fn uplinks_are_what_leads_out() {
        for (framing, kind, at_home, elsewhere) in [
            (LOOPBACK, None, false, false),
            (ETHERNET, None, true, true),
            (ETHERNET, Some("veth"), true, false),
            (ETHERNET, Some("macvlan"), true, true),
            (ETHERNET, Some("vlan"), true, true),
            (65534, Some("wireguard"), true, true),
        ] {
            let device = Device::read(&body(framing, 7, "net1", kind)).unwrap();
            assert_eq!((device.index, device.name.as_str()), (7, "net1"));
            assert_eq!((device.is_uplink(true), device.is_uplink(false)), (at_home, elsewhere), "{device:?}");
        }
    }

    #[test]
    fn what_is_cut_off_is_no_device() {
        let whole = body(ETHERNET, 7, "net1", Some("veth"));
        for end in 0..HEAD {
            assert_eq!(Device::read(&whole[..end]), None);
        }
    }

    #[test]
    fn this_namespace_has_a_loopback_device() {
        let devices = list().unwrap();
        assert!(devices.iter().any(|device| device.name == "lo" && device.framing == Framing::Loopback));
    }
}
