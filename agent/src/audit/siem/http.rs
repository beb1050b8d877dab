//! Batches by HTTP: JSON, or as Splunk's HTTP Event Collector takes it.
//!
//! What says that a request's content is wrong (400, 413, 422) leads to smaller requests, down to the one record that is
//! refused. Anything else that is no success is a fault of the place, or of the configuration, and is tried again.

use std::io::Write;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::ocsf::Event;
use super::shorten::shorten;
use super::stream::{Connection, Failure, connect};
use crate::config::{SecretReference, SiemFormat};

/// For one request and its answer.
const DEADLINE: Duration = Duration::from_mins(1);
const ANSWER_LIMIT: usize = 64 * 1024;
/// Characters of an answer that are told.
const EXCERPT: usize = 200;
/// Bytes of a record that is sent once more before it is given up.
const CUT: usize = 8 * 1024;

pub(super) struct Http {
    pub url: Uri,
    pub tls: Option<Arc<ClientConfig>>,
    pub format: SiemFormat,
    pub token: Option<SecretReference>,
    pub gzip: bool,
    /// Most bytes of a request, before compression.
    pub batch_bytes: usize,
}

/// What became of a batch whose requests were all answered.
#[derive(Debug, Default)]
pub(super) struct Answered {
    pub accepted: bool,
    /// The records that were refused alone, and how.
    pub refused: Vec<(usize, String)>,
}

enum Answer {
    Accepted,
    /// By what the content is.
    Refused(String),
}

/// A place that takes requests.
trait Post: Sync {
    fn post(&self, events: &[Event]) -> impl Future<Output = Result<Answer, Failure>> + Send;
}

impl Post for Http {
    async fn post(&self, events: &[Event]) -> Result<Answer, Failure> {
        let authorization = self.authorization()?;
        let body = self.compressed(body(self.format, events))?;
        let (status, said) = timeout(DEADLINE, self.exchange(body, authorization.clone()))
            .await
            .map_err(|_| format!("no answer within {} s", DEADLINE.as_secs()))??;
        if status.is_success() {
            return Ok(Answer::Accepted);
        }
        let said = excerpt(&said, authorization.as_ref());
        let answer = format!("HTTP {}{said}", status.as_u16());
        match status {
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Ok(Answer::Refused(answer))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(format!("{answer}: is the token right?").into())
            }
            _ => Err(answer.into()),
        }
    }
}

impl Http {
    /// Sends the events in their order.
    pub(super) async fn send(&self, events: &[Event]) -> Result<Answered, Failure> {
        split(self, events, self.batch_bytes).await
    }

    /// The token is read each time, so that a new one needs no restart.
    fn authorization(&self) -> Result<Option<HeaderValue>, Failure> {
        let Some(reference) = &self.token else { return Ok(None) };
        let token = reference.read()?;
        let scheme = if self.format == SiemFormat::SplunkHec { "Splunk" } else { "Bearer" };
        let mut value = HeaderValue::from_str(&format!("{scheme} {}", token.expose()))
            .map_err(|_| "the token has characters that no header may have")?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    fn compressed(&self, body: Vec<u8>) -> Result<Bytes, Failure> {
        if !self.gzip {
            return Ok(body.into());
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&body)?;
        Ok(encoder.finish()?.into())
    }

    async fn exchange(
        &self,
        body: Bytes,
        authorization: Option<HeaderValue>,
    ) -> Result<(StatusCode, Bytes), Failure> {
        let host = self.url.host().ok_or("the URL has no host")?.trim_matches(['[', ']']);
        let port = self.url.port_u16().unwrap_or(if self.tls.is_some() { 443 } else { 80 });
        let Connection { stream, .. } = connect(host, port, self.tls.as_ref()).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let content =
            if self.format == SiemFormat::Ndjson { "application/x-ndjson" } else { "application/json" };
        let mut request = Request::post(self.url.path_and_query().map_or("/", |path| path.as_str()))
            .header(header::HOST, self.url.authority().map_or("", |authority| authority.as_str()))
            .header(header::USER_AGENT, concat!("snowfence/", env!("CARGO_PKG_VERSION")))
            .header(header::CONTENT_TYPE, content);
        if self.gzip {
            request = request.header(header::CONTENT_ENCODING, "gzip");
        }
        if let Some(value) = authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body))?;
        // The connection drives the exchange and ends once the sender is dropped.
        let exchange = async move {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let said = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
            // What a success says does not matter.
            let said = said.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            Ok::<_, Failure>((status, said))
        };
        let (answer, _) = tokio::join!(exchange, connection);
        answer
    }
}

/// Posts events in requests of at most `batch_bytes`, in their order, and halves what is refused until it is one record,
/// which has a last chance without its longest texts.
async fn split(place: &impl Post, events: &[Event], batch_bytes: usize) -> Result<Answered, Failure> {
    let mut answered = Answered::default();
    let mut left = batches(events, batch_bytes);
    left.reverse();
    while let Some(range) = left.pop() {
        let batch = events.get(range.clone()).unwrap_or_default();
        match (place.post(batch).await?, batch) {
            (Answer::Accepted, _) => answered.accepted = true,
            (Answer::Refused(why), [event]) => {
                let cut = Event { json: shorten(&event.json, CUT), ..event.clone() };
                if cut.json.len() < event.json.len() && matches!(place.post(&[cut]).await?, Answer::Accepted)
                {
                    answered.accepted = true;
                } else {
                    answered.refused.push((range.start, why));
                }
            }
            (Answer::Refused(_), _) => {
                let middle = range.start + range.len() / 2;
                left.push(middle..range.end);
                left.push(range.start..middle);
            }
        }
    }
    Ok(answered)
}

/// As many events as fit, but at least one.
fn batches(events: &[Event], batch_bytes: usize) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut size = 0;
    for (index, event) in events.iter().enumerate() {
        size += event.json.len();
        match batches.last_mut() {
            Some(batch) if size <= batch_bytes => batch.end = index + 1,
            _ => {
                batches.push(index..index + 1);
                size = event.json.len();
            }
        }
    }
    batches
}

fn body(format: SiemFormat, events: &[Event]) -> Vec<u8> {
    let mut body = Vec::with_capacity(events.iter().map(|event| event.json.len() + 128).sum());
    for (index, event) in events.iter().enumerate() {
        let json = event.json.as_bytes();
        match format {
            SiemFormat::Json => {
                body.push(if index == 0 { b'[' } else { b',' });
                body.extend(json);
            }
            SiemFormat::Ndjson => {
                body.extend(json);
                body.push(b'\n');
            }
            SiemFormat::SplunkHec => {
                let (seconds, micros) = (event.time.div_euclid(1_000_000), event.time.rem_euclid(1_000_000));
                let host = serde_json::Value::from(event.node.as_str());
                let head = format!(
                    "{{\"time\":\"{seconds}.{micros:06}\",\"host\":{host},\"source\":\"snowfence\",\"sourcetype\":\"snowfence:ocsf\",\"event\":"
                );
                body.extend(head.as_bytes());
                body.extend(json);
                body.extend(b"}\n");
            }
        }
    }
    if format == SiemFormat::Json {
        body.push(b']');
    }
    body
}

/// The beginning of an answer, for people, and without the token should the place repeat it.
fn excerpt(said: &[u8], authorization: Option<&HeaderValue>) -> String {
    let mut text = String::from_utf8_lossy(said).into_owned();
    let secret = authorization.and_then(|value| value.to_str().ok()?.split_once(' '));
    if let Some((_, secret)) = secret {
        text = text.replace(secret, "…");
    }
    let text: String = text.chars().filter(|character| !character.is_control()).take(EXCERPT).collect();
    if text.trim().is_empty() { String::new() } else { format!(" ({})", text.trim()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::Value;

    use super::super::ocsf::Severity;
    use super::*;

    fn events(texts: &[&str]) -> Vec<Event> {
        let event = |(seq, text): (usize, &&str)| Event {
            seq: i64::try_from(seq).unwrap(),
            table: "events",
            node: "n".to_owned(),
            iso: String::new(),
            time: 1_767_323_045_678_901,
            severity: Severity::Low,
            is_authentication: false,
            is_giving_up: false,
            json: serde_json::json!({ "message": text }).to_string(),
        };
        texts.iter().enumerate().map(event).collect()
    }

    /// Refuses what has `poison` in it, or more than so many bytes.
    struct Picky {
        most: usize,
        taken: Mutex<Vec<String>>,
        requests: AtomicUsize,
    }

    impl Post for Picky {
        async fn post(&self, events: &[Event]) -> Result<Answer, Failure> {
            self.requests.fetch_add(1, Ordering::Relaxed);
            let size: usize = events.iter().map(|event| event.json.len()).sum();
            if size > self.most || events.iter().any(|event| event.json.contains("poison")) {
                return Ok(Answer::Refused("HTTP 400".to_owned()));
            }
            self.taken.lock().unwrap().extend(events.iter().map(|event| event.json.clone()));
            Ok(Answer::Accepted)
        }
    }

    /// What became of the events, what was taken, and in how many requests.
    fn deliver(texts: &[&str], batch_bytes: usize, most: usize) -> (Answered, Vec<String>, usize) {
        let place = Picky { most, taken: Mutex::default(), requests: AtomicUsize::default() };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let answered = runtime.block_on(split(&place, &events(texts), batch_bytes)).unwrap();
        (answered, place.taken.into_inner().unwrap(), place.requests.into_inner())
    }

    #[test]
    fn only_the_record_that_is_refused_is_left_out_and_the_order_stays() {
        let texts: Vec<String> = (0..64).map(|number| format!("{number:02}")).collect();
        let mut texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        texts[17] = "poison";
        texts[63] = "poison";
        let (answered, taken, requests) = deliver(&texts, usize::MAX, usize::MAX);
        let refused: Vec<usize> = answered.refused.iter().map(|(index, _)| *index).collect();
        assert_eq!(refused, [17, 63]);
        assert!(answered.accepted && taken.len() == 62 && taken.is_sorted(), "{taken:?}");
        assert!(requests < 40, "{requests} requests");
    }

    #[test]
    fn a_place_that_refuses_everything_has_accepted_nothing() {
        let (answered, taken, _) = deliver(&["poison", "poison"], usize::MAX, usize::MAX);
        assert!(!answered.accepted && answered.refused.len() == 2 && taken.is_empty());
    }

    #[test]
    fn what_is_too_large_alone_is_sent_without_its_longest_text() {
        let long = "x".repeat(100_000);
        let (answered, taken, _) = deliver(&["a", &long, "b"], usize::MAX, 20_000);
        assert!(answered.refused.is_empty());
        assert!(taken.len() == 3 && taken[1].len() <= CUT && taken[1].contains("truncated"));
    }

    #[test]
    fn requests_are_bounded_in_bytes() {
        let all = events(&["aaaa", "bbbb", &"c".repeat(100), "dddd"]);
        let size = all[0].json.len();
        assert_eq!(batches(&all, 2 * size), [0..2, 2..3, 3..4]);
        assert_eq!(batches(&all, usize::MAX).len(), 1);
        assert!(batches(&[], 10).is_empty());
    }

    #[test]
    fn bodies_are_what_each_place_takes() {
        let all = events(&["a", "b\n"]);
        let text = |format| String::from_utf8(body(format, &all)).unwrap();
        let array: Vec<Value> = serde_json::from_str(&text(SiemFormat::Json)).unwrap();
        assert_eq!(array[1]["message"], "b\n");
        assert_eq!(text(SiemFormat::Ndjson), "{\"message\":\"a\"}\n{\"message\":\"b\\n\"}\n");
        let splunk = text(SiemFormat::SplunkHec);
        let first: Value = serde_json::from_str(splunk.lines().next().unwrap()).unwrap();
        assert_eq!(first["time"], "1767323045.678901");
        assert_eq!((&first["host"], &first["event"]["message"]), (&"n".into(), &"a".into()));
    }

    #[test]
    fn an_answer_that_repeats_the_token_does_not_tell_it() {
        let token = HeaderValue::from_static("Splunk 11112222-3333");
        let said = excerpt(b"{\"text\":\"Invalid token 11112222-3333\"}\r\n", Some(&token));
        assert_eq!(said, " ({\"text\":\"Invalid token …\"})");
        assert_eq!(excerpt(b"", None), "");
    }
}
