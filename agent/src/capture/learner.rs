//! Learns where Snowflake is from what workloads are told (DNS answers) and from what they do (names that the guard met).
//! Both may be lies. What is learnt is only looked at, until the server there has proved to be Snowflake's.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::DnsHeader;
use aya::maps::{MapData, RingBuf};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
};

use super::{Endpoints, dns, sys};

/// How long an address is kept after it was last seen: at least, for clients remember answers too, and at most.
const SHORTEST: Duration = Duration::from_hours(1);
const LONGEST: Duration = Duration::from_hours(24);
/// Where the proof is asked for, unless it was seen elsewhere.
const PORT: u16 = 443;

/// An address that is said to be Snowflake's, to be asked who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Suspect {
    pub address: SocketAddr,
    /// The name that it is said to have.
    pub name: String,
}

/// A handle by which addresses are learnt; clones share everything.
#[derive(Clone)]
pub(super) struct Learner {
    pub(super) endpoints: Endpoints,
    pub(super) suspects: mpsc::Sender<Suspect>,
}

impl Learner {
    /// An address was seen with this name.
    pub(super) fn learn(&self, address: SocketAddr, name: &str, good_for: Duration) {
        match self.endpoints.learn(address.ip(), name, good_for.clamp(SHORTEST, LONGEST)) {
            // If too many wait, it is asked the next time that it is seen.
            Ok(true) => drop(self.suspects.try_send(Suspect { address, name: name.to_owned() })),
            Ok(false) => {}
            Err(error) => tracing::debug!(%address, name, %error, "not learnt"),
        }
    }

    /// Reads DNS answers until it is aborted.
    pub(super) async fn listen(self, answers: RingBuf<MapData>, suffixes: Vec<String>) {
        // SAFETY: the ring buffer owns its descriptor, which stays the same and open as long as the buffer lives.
        let registered = unsafe { AsyncFd::register_with_interest(answers, Interest::READABLE) };
        let mut answers = match registered {
            Ok(answers) => answers,
            Err(error) => return tracing::error!(%error, "DNS answers are not looked at"),
        };
        let mut streams = dns::Streams::default();
        while let Ok(mut ready) = answers.readable_mut().await {
            let Some(item) = ready.get_inner_mut().next() else {
                ready.clear_ready();
                continue;
            };
            self.hear(&item, &suffixes, &mut streams);
            drop(item);
            // A flood must not keep the others of this thread waiting.
            tokio::task::yield_now().await;
        }
    }

    fn hear(&self, item: &[u8], suffixes: &[String], streams: &mut dns::Streams) {
        let Some((header, bytes)) = item.split_at_checked(size_of::<DnsHeader>()) else { return };
        let Some(header) = sys::read::<DnsHeader>(header) else { return };
        let messages = if header.stream == 0 {
            vec![bytes.to_owned()]
        } else {
            streams.take(header.socket_cookie, header.sequence, bytes)
        };
        for sighting in messages.iter().flat_map(|message| dns::sightings(message, suffixes)) {
            let address: IpAddr = sighting.address;
            self.learn((address, PORT).into(), &sighting.name, sighting.good_for);
        }
    }
}
