//! RFC 5424 messages over TLS (RFC 5425), or over TCP (RFC 6587).
//!
//! The protocol has no acknowledgement, so each batch has a connection of its own, which this side closes for writing: who
//! has read all of it, up to the close, closes too (RFC 5425, 4.4). Without that, the batch is sent again.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use super::ocsf::{Event, Severity};
use super::shorten::shorten;
use super::stream::{Connection, Failure, connect};

/// For one batch, from connecting to the receiver's close.
const DEADLINE: Duration = Duration::from_mins(1);

/// For a reset, beyond the time that the network takes.
const GRACE: Duration = Duration::from_millis(50);

/// What names an element of one's own needs a number of an enterprise. This one is for those who have none (RFC 5612).
const ELEMENT: &str = "snowfence@32473";

pub(super) struct Syslog {
    pub host: String,
    pub port: u16,
    pub tls: Option<Arc<ClientConfig>>,
    pub max_message_bytes: usize,
}

impl Syslog {
    pub(super) async fn send(&self, events: Vec<Event>) -> Result<(), Failure> {
        let limit = self.max_message_bytes;
        // Cutting what is long takes its time.
        let framing =
            move || events.iter().flat_map(|event| frame(&message(event, limit))).collect::<Vec<u8>>();
        let frames = tokio::task::spawn_blocking(framing).await?;
        let exchange = async {
            let Connection { mut stream, socket, round_trip } =
                connect(&self.host, self.port, self.tls.as_ref()).await?;
            stream.write_all(&frames).await?;
            stream.shutdown().await?;
            // A receiver says nothing. What it says all the same is not kept.
            let mut said = [0; 1024];
            loop {
                match stream.read(&mut said).await {
                    Ok(0) => break,
                    Ok(_) => {}
                    // Not every receiver says goodbye in TLS, too.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
                    Err(error) => return Err(error.into()),
                }
            }
            // Had it closed before it got all, what came later would be answered with a reset, a way there and back on.
            sleep(2 * round_trip + GRACE).await;
            match socket.take_error()? {
                Some(error) => Err(error.into()),
                None => Ok(()),
            }
        };
        match timeout(DEADLINE, exchange).await {
            Ok(done) => done,
            Err(_) => Err(format!(
                "the receiver has not taken a batch, and closed the connection after it, within {} s",
                DEADLINE.as_secs()
            )
            .into()),
        }
    }
}

/// Octet counting.
fn frame(message: &str) -> Vec<u8> {
    format!("{} {message}", message.len()).into_bytes()
}

/// A message of at most `limit` bytes.
fn message(event: &Event, limit: usize) -> String {
    const AUTHORIZATION: u8 = 10;
    const AUDIT: u8 = 13;
    let facility = if event.is_authentication { AUTHORIZATION } else { AUDIT };
    let level = match event.severity {
        Severity::High => 3,
        Severity::Medium => 4,
        Severity::Low => 5,
        Severity::Informational => 6,
    };
    let priority = facility * 8 + level;
    let time = if event.iso.is_empty() { "-" } else { &event.iso };
    let host: String = event.node.chars().filter(char::is_ascii_graphic).take(255).collect();
    let host = if host.is_empty() { "-" } else { &host };
    let header = format!(
        "<{priority}>1 {time} {host} snowfence - {table} [{ELEMENT} node=\"{node}\" seq=\"{seq}\"] ",
        table = event.table,
        node = escape(&event.node),
        seq = event.seq,
    );
    let json = shorten(&event.json, limit.saturating_sub(header.len()));
    header + &json
}

/// The value of a parameter.
fn escape(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            '"' | '\\' | ']' => escaped.extend(['\\', character]),
            _ if character.is_control() => escaped.push('?'),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn event(node: &str, json: &Value) -> Event {
        Event {
            seq: 7,
            table: "statements",
            node: node.to_owned(),
            iso: "2026-01-02T03:04:05.678901Z".to_owned(),
            time: 0,
            severity: Severity::High,
            is_authentication: false,
            is_giving_up: false,
            json: json.to_string(),
        }
    }

    #[test]
    fn a_message_has_the_form_of_rfc_5424() {
        let event = event("node-1", &json!({ "message": "ü\n" }));
        let text = message(&event, 8192);
        assert_eq!(
            text,
            "<107>1 2026-01-02T03:04:05.678901Z node-1 snowfence - statements [snowfence@32473 node=\"node-1\" seq=\"7\"] {\"message\":\"ü\\n\"}"
        );
        assert_eq!(frame("ü"), "2 ü".as_bytes());
        let login = Event { is_authentication: true, severity: Severity::Informational, ..event };
        assert!(message(&login, 8192).starts_with("<86>1 "));
    }

    #[test]
    fn what_a_name_of_a_node_may_have_ends_no_field() {
        let text = message(&event("a \"]\\\n", &json!({})), 8192);
        assert!(text.contains(" a\"]\\ snowfence - "), "{text}");
        assert!(text.contains("node=\"a \\\"\\]\\\\?\" seq="), "{text}");
    }

    #[test]
    fn a_long_message_is_cut_to_the_limit_and_stays_json() {
        let text =
            message(&event("n", &json!({ "query_info": { "query_string": "\0".repeat(1 << 20) } })), 4096);
        assert!((3000..=4096).contains(&text.len()), "{}", text.len());
        let json = text.split_once("] ").unwrap().1;
        let json: Value = serde_json::from_str(json).unwrap();
        assert_eq!(json["unmapped"]["truncated"]["/query_info/query_string"], 6 * (1 << 20) + 2);
    }

    async fn send(
        receive: impl AsyncFn(&mut tokio::net::TcpStream) -> Vec<u8>,
    ) -> (Result<(), Failure>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let syslog = Syslog { host: "127.0.0.1".to_owned(), port, tls: None, max_message_bytes: 8192 };
        let events = vec![event("n", &json!({ "message": "x".repeat(1000) })); 1000];
        let receiving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            receive(&mut stream).await
        };
        tokio::join!(syslog.send(events), receiving)
    }

    #[tokio::test]
    async fn who_has_read_all_has_got_all() {
        let (sent, received) = send(async |stream| {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            all
        })
        .await;
        sent.unwrap();
        let text = String::from_utf8(received).unwrap();
        let mut left = text.as_str();
        let mut count = 0;
        while let Some((length, rest)) = left.split_once(' ') {
            left = rest.get(length.parse().unwrap()..).unwrap();
            count += 1;
        }
        assert_eq!(count, 1000);
    }

    #[tokio::test]
    async fn who_closes_before_has_not() {
        let (sent, _) = send(async |_| Vec::new()).await;
        assert!(sent.is_err());
        let (sent, _) = send(async |stream| {
            let mut some = vec![0; 100_000];
            stream.read_exact(&mut some).await.unwrap();
            some
        })
        .await;
        assert!(sent.is_err());
    }
}
