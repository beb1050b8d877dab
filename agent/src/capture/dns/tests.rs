use std::str::FromStr as _;

use hickory_resolver::proto::{
    op::Query,
    rr::{
        RecordType,
        rdata::{
            A, AAAA, CNAME, HTTPS,
            svcb::{IpHint, SvcParamKey},
        },
    },
};
use proptest::prelude::*;

use super::*;

fn suffixes() -> Vec<String> {
    vec!["snowflakecomputing.com".into(), "snowflake.app".into()]
}

fn name(text: &str) -> Name {
    Name::from_str(text).unwrap()
}

fn answer(question: &str, records: Vec<Record>) -> Vec<u8> {
    let mut message = Message::response(7, hickory_resolver::proto::op::OpCode::Query);
    message.add_query(Query::query(name(question), RecordType::A));
    message.answers = records;
    message.to_vec().unwrap()
}

fn a(owner: &str, address: [u8; 4]) -> Record {
    Record::from_rdata(name(owner), 60, RData::A(A(address.into())))
}

fn alias(owner: &str, target: &str) -> Record {
    Record::from_rdata(name(owner), 60, RData::CNAME(CNAME(name(target))))
}

fn found(message: &[u8]) -> Vec<(String, String)> {
    let sightings = sightings(message, &suffixes()).into_iter();
    sightings.map(|sighting| (sighting.name, sighting.address.to_string())).collect()
}

fn pair(name: &str, address: &str) -> (String, String) {
    (name.to_owned(), address.to_owned())
}

#[test]
fn addresses_of_snowflakes_names_are_seen() {
    let account = "ACME.snowflakecomputing.com.";
    let message = answer(account, vec![a(account, [10, 0, 0, 1]), a("www.example.com.", [10, 0, 0, 2])]);
    assert_eq!(found(&message), [pair("acme.snowflakecomputing.com", "10.0.0.1")]);
    let message = answer("www.example.com.", vec![a("www.example.com.", [10, 0, 0, 2])]);
    assert!(found(&message).is_empty());
    let message =
        answer("evilsnowflakecomputing.com.", vec![a("evilsnowflakecomputing.com.", [10, 0, 0, 3])]);
    assert!(found(&message).is_empty());
}

#[test]
fn aliases_are_followed_to_and_from_snowflakes_names() {
    let account = "acme.snowflakecomputing.com.";
    let message = answer(
        account,
        vec![
            alias(account, "lb.example.net."),
            alias("lb.example.net.", "b.example.net."),
            a("b.example.net.", [10, 0, 0, 4]),
        ],
    );
    assert_eq!(found(&message), [pair("acme.snowflakecomputing.com", "10.0.0.4")]);
    let message =
        answer("data.example.com.", vec![alias("data.example.com.", account), a(account, [10, 0, 0, 5])]);
    assert_eq!(found(&message), [pair("acme.snowflakecomputing.com", "10.0.0.5")]);
}

#[test]
fn aliases_that_lead_round_in_a_circle_end() {
    let account = "acme.snowflakecomputing.com.";
    let message = answer(account, vec![alias(account, "b.example."), alias("b.example.", account)]);
    assert!(found(&message).is_empty());
}

#[test]
fn service_records_say_addresses_too() {
    let account = "acme.snowflakecomputing.com.";
    let hints = vec![
        (SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(vec![A([10, 0, 0, 6].into())]))),
        (SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(vec![AAAA("fd00::6".parse().unwrap())]))),
    ];
    let service = SVCB::new(1, name("edge.example."), hints);
    let record = Record::from_rdata(name(account), 60, RData::HTTPS(HTTPS(service)));
    let message = answer(account, vec![record, a("edge.example.", [10, 0, 0, 7])]);
    let addresses: Vec<String> = found(&message).into_iter().map(|(_, address)| address).collect();
    assert_eq!(addresses, ["10.0.0.6", "fd00::6", "10.0.0.7"]);
}

#[test]
fn questions_and_broken_messages_say_nothing() {
    let account = "acme.snowflakecomputing.com.";
    let mut question = answer(account, vec![a(account, [10, 0, 0, 1])]);
    // The bit that makes it an answer.
    question[2] &= 0x7f;
    assert!(found(&question).is_empty());
    let whole = answer(account, vec![a(account, [10, 0, 0, 1])]);
    for end in 0..whole.len() {
        assert!(found(&whole[..end]).is_empty(), "{end}");
    }
    // A name that points at itself.
    let mut looped = whole;
    looped.truncate(12);
    looped.extend([0xc0, 12, 0, 1, 0, 1]);
    assert!(found(&looped).is_empty());
}

#[test]
fn answers_over_tcp_are_put_together() {
    let account = "acme.snowflakecomputing.com.";
    let message = answer(account, vec![a(account, [10, 0, 0, 1])]);
    let mut stream = u16::try_from(message.len()).unwrap().to_be_bytes().to_vec();
    stream.extend(&message);
    let twice = stream.repeat(2);
    for cut in 0..twice.len() {
        let mut streams = Streams::default();
        let (first, second) = twice.split_at(cut);
        let mut messages = streams.take(1, u32::MAX - 3, first);
        let sequence = (u32::MAX - 3).wrapping_add(u32::try_from(cut).unwrap());
        messages.extend(streams.take(1, sequence, second));
        assert_eq!(messages, [message.clone(), message.clone()], "{cut}");
        assert!(streams.open.is_empty() && streams.order.is_empty());
    }
}

#[test]
fn a_gap_begins_anew_and_floods_are_bounded() {
    let mut streams = Streams::default();
    assert!(streams.take(1, 100, &[0, 9, 1]).is_empty());
    assert_eq!(streams.take(1, 500, &[0, 1, 7]), [[7]]);
    for cookie in 0..u64::try_from(STREAMS * 3).unwrap() {
        streams.take(cookie, 0, &[0xff, 0xff, 0]);
    }
    assert!(streams.open.len() <= STREAMS && streams.order.len() <= STREAMS);
    for part in 0..100_u32 {
        streams.take(9_999_999, part * 1024, &[0xff; 1024]);
    }
    assert!(streams.open.values().all(|stream| stream.bytes.len() <= STREAM_BYTES + 1024));
}

proptest! {
    #[test]
    fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600), sequence: u32) {
        let _ = sightings(&bytes, &suffixes());
        let mut streams = Streams::default();
        for message in streams.take(1, sequence, &bytes) {
            let _ = sightings(&message, &suffixes());
        }
    }

    #[test]
    fn no_change_to_an_answer_does_harm(at in 0_usize..60, value: u8) {
        let account = "acme.snowflakecomputing.com.";
        let mut message = answer(account, vec![alias(account, "b.example."), a("b.example.", [10, 0, 0, 1])]);
        let at = at % message.len();
        message[at] = value;
        let _ = sightings(&message, &suffixes());
    }
}
