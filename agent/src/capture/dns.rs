//! What DNS answers say of Snowflake's names.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use hickory_resolver::proto::{
    op::{Message, MessageType},
    rr::{
        Name, RData, Record,
        rdata::svcb::{SVCB, SvcParamValue},
    },
};

use crate::config::is_under;

/// Names that a chain of aliases may lead over.
const ALIASES: usize = 16;
/// Names under the suffixes that one message may speak of, and what may be learnt from it. No real one has as many.
const NAMES: usize = 32;
const SIGHTINGS: usize = 256;
/// Answers over TCP that are put together at a time, and the bytes of one.
const STREAMS: usize = 1024;
const STREAM_BYTES: usize = 64 * 1024;

/// An address that a name under one of the suffixes leads to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) struct Sighting {
    /// In lower case, without a dot at its end.
    pub(super) name: String,
    pub(super) address: IpAddr,
    pub(super) good_for: Duration,
}

/// What a message says of names under the suffixes. Nothing if it is no answer, or broken.
pub(super) fn sightings(message: &[u8], suffixes: &[String]) -> Vec<Sighting> {
    let Ok(message) = Message::from_vec(message) else { return Vec::new() };
    if message.metadata.message_type != MessageType::Response {
        return Vec::new();
    }
    let records: Vec<&Record> = message.answers.iter().chain(&message.additionals).collect();
    // Each name once, so that no answer costs more than it is long.
    let mut by_name: HashMap<Name, Vec<&Record>> = HashMap::new();
    for record in &records {
        by_name.entry(record.name.to_lowercase()).or_default().push(record);
    }
    let asked = message.queries.iter().map(|query| query.name().to_lowercase());
    let mut known: BTreeMap<String, Name> = BTreeMap::new();
    for name in asked.chain(records.iter().map(|record| record.name.to_lowercase())) {
        let text = text(&name);
        if known.len() < NAMES && suffixes.iter().any(|suffix| is_under(&text, suffix)) {
            known.entry(text).or_insert(name);
        }
    }
    let mut found = HashSet::new();
    let mut ordered = Vec::new();
    for (text, name) in known {
        for record in aliases(name, &by_name).iter().filter_map(|alias| by_name.get(alias)).flatten() {
            let good_for = Duration::from_secs(record.ttl.into());
            for address in addresses(&record.data) {
                if ordered.len() == SIGHTINGS {
                    return ordered;
                }
                let sighting = Sighting { name: text.clone(), address, good_for };
                if found.insert(sighting.clone()) {
                    ordered.push(sighting);
                }
            }
        }
    }
    ordered
}

/// A name and all that it is an alias of, as far as the records say.
fn aliases(name: Name, records: &HashMap<Name, Vec<&Record>>) -> Vec<Name> {
    let mut all = vec![name];
    let mut next = 0;
    while let Some(name) = all.get(next) {
        next += 1;
        let targets = records.get(name).into_iter().flatten().filter_map(|record| match &record.data {
            RData::CNAME(target) => Some(target.0.to_lowercase()),
            RData::HTTPS(service) => Some(service.0.target_name.to_lowercase()),
            RData::SVCB(service) => Some(service.target_name.to_lowercase()),
            _ => None,
        });
        for target in targets.collect::<Vec<_>>() {
            if all.len() == ALIASES {
                return all;
            }
            if !all.contains(&target) {
                all.push(target);
            }
        }
    }
    all
}

fn addresses(data: &RData) -> Vec<IpAddr> {
    match data {
        RData::A(address) => vec![IpAddr::from(address.0)],
        RData::AAAA(address) => vec![IpAddr::from(address.0)],
        RData::HTTPS(service) => hints(&service.0),
        RData::SVCB(service) => hints(service),
        _ => Vec::new(),
    }
}

fn hints(service: &SVCB) -> Vec<IpAddr> {
    let values = service.svc_params.iter().map(|(_, value)| value);
    values
        .flat_map(|value| match value {
            SvcParamValue::Ipv4Hint(hint) => hint.0.iter().map(|address| IpAddr::from(address.0)).collect(),
            SvcParamValue::Ipv6Hint(hint) => hint.0.iter().map(|address| IpAddr::from(address.0)).collect(),
            _ => Vec::new(),
        })
        .collect()
}

fn text(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

/// Puts answers over TCP together from their segments.
#[derive(Default)]
pub(super) struct Streams {
    open: HashMap<u64, Stream>,
    /// The cookies, oldest first.
    order: VecDeque<u64>,
}

struct Stream {
    /// The sequence number of the next byte.
    next: u32,
    bytes: Vec<u8>,
}

impl Streams {
    /// Takes a segment of the socket with this cookie. Returns the messages that are whole by now. A segment that does
    /// not follow the last one begins anew: nothing is waited for.
    pub(super) fn take(&mut self, cookie: u64, sequence: u32, segment: &[u8]) -> Vec<Vec<u8>> {
        if !self.open.contains_key(&cookie) {
            while self.open.len() >= STREAMS {
                let Some(oldest) = self.order.pop_front() else { break };
                self.open.remove(&oldest);
            }
            self.order.push_back(cookie);
        }
        let stream = self.open.entry(cookie).or_insert(Stream { next: sequence, bytes: Vec::new() });
        if stream.next != sequence {
            stream.bytes.clear();
        }
        let length = u32::try_from(segment.len()).unwrap_or(u32::MAX);
        stream.next = sequence.wrapping_add(length);
        stream.bytes.extend_from_slice(segment);
        let mut messages = Vec::new();
        while let Some(length) =
            stream.bytes.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length)))
            && let Some(message) = stream.bytes.get(2..2 + length)
        {
            messages.push(message.to_owned());
            stream.bytes.drain(..2 + length);
        }
        if stream.bytes.is_empty() || stream.bytes.len() > STREAM_BYTES {
            self.open.remove(&cookie);
            self.order.retain(|open| *open != cookie);
        }
        messages
    }
}

#[cfg(test)]
mod tests;
