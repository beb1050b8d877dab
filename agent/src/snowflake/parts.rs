//! Results that come in parts: an answer says where in the storage behind Snowflake the rest of its rows lies, and how to
//! ask for it. All of that is secret; the client is told of addresses at the account's own host instead.

use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::json::{Malformed, Object};
use super::reply::is_empty;

/// What leads to the parts, in `data`, as Snowflake spells it.
pub const KEYS: [&str; 3] = [CHUNKS, HEADERS, KEY];
const CHUNKS: &str = "chunks";
const HEADERS: &str = "chunkHeaders";
/// The key by which the storage decrypts; said by headers where there are none of Snowflake's.
const KEY: &str = "qrmk";
const URL: &str = "url";
/// What a driver needs of a part besides.
const DETAILS: [&str; 4] = ["compressedSize", "rowCount", "uncompressedSize", URL];
const KEY_HEADERS: [(&str, Option<&str>); 2] = [
    ("x-amz-server-side-encryption-customer-algorithm", Some("AES256")),
    ("x-amz-server-side-encryption-customer-key", None),
];

/// The path below which the client finds the parts.
pub const PATH: &str = "/snowfence/parts/";
/// The header by which it asks for them.
pub const LEASE: &str = "x-snowfence-lease";
/// A longer name of a part is none that was given out.
const LONGEST: usize = 16 * 1024;

/// An answer whose result is in parts.
#[derive(Debug)]
pub struct InParts {
    body: Object,
    data: Object,
    parts: Vec<Object>,
    headers: BTreeMap<String, String>,
}

impl InParts {
    /// Whether there is a way to parts in an answer's `data`.
    pub fn is_in(data: &Object) -> bool {
        KEYS.iter().any(|key| data.raw(key).is_some_and(|value| !is_empty(value.get())))
    }

    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let body = Object::parse(bytes)?;
        let data = body.object("data")?;
        let listed = data.raw(CHUNKS).map_or("null", RawValue::get);
        let listed: Option<Vec<Object>> =
            serde_json::from_str(listed).map_err(|_| Malformed::Field(CHUNKS))?;
        let given = data.raw(HEADERS).map_or("null", RawValue::get);
        let given: Option<BTreeMap<String, String>> =
            serde_json::from_str(given).map_err(|_| Malformed::Field(HEADERS))?;
        let key: Option<String> = data.field(KEY);
        let headers = match (given, key) {
            (Some(headers), _) if !headers.is_empty() => headers,
            (_, Some(key)) if !key.is_empty() => KEY_HEADERS
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.unwrap_or(&key).to_owned()))
                .collect(),
            _ => BTreeMap::new(),
        };
        Ok(Self { parts: listed.unwrap_or_default(), body, data, headers })
    }

    /// What the storage wants to be told with each request.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.headers
    }

    /// Where the parts are.
    pub fn urls(&self) -> Result<Vec<String>, Malformed> {
        self.parts.iter().map(address).collect()
    }

    /// The answer for the client. Each address becomes what `name` makes of it, below the account's own.
    pub fn for_client(
        mut self,
        account: &str,
        lease: &str,
        name: impl Fn(&str) -> Option<String>,
    ) -> Result<Vec<u8>, Malformed> {
        for part in &mut self.parts {
            let url = address(part)?;
            let name = name(&url).ok_or(Malformed::Field(URL))?;
            part.retain(|key| DETAILS.contains(&key));
            part.set(URL, &format!("https://{account}{PATH}{name}"));
        }
        self.data.retain(|key| key != KEY);
        if self.parts.is_empty() {
            self.data.retain(|key| key != HEADERS);
        } else {
            self.data.set(CHUNKS, &self.parts);
            self.data.set(HEADERS, &BTreeMap::from([(LEASE, lease)]));
        }
        self.body.set("data", &self.data);
        Ok(self.body.to_vec())
    }
}

fn address(part: &Object) -> Result<String, Malformed> {
    let url: String = part.field(URL).ok_or(Malformed::Field(URL))?;
    if url.starts_with("https://") { Ok(url) } else { Err(Malformed::Field(URL)) }
}

/// The rows of a part in JSON, which stand there without the outer brackets. Every value is a text.
pub fn rows_of_part(content: &[u8]) -> Result<Vec<Vec<Option<String>>>, Malformed> {
    let list = [b"[", content, b"]"].concat();
    serde_json::from_slice(&list).map_err(|_| Malformed::Field(CHUNKS))
}

/// An answer as a client got it, with its parts below another address than the account's: `https://host` without the path;
/// `None` where it leads to no parts.
pub fn moved(answer: &[u8], account: &str, to: &str) -> Option<Vec<u8>> {
    let mut body = Object::parse(answer).ok()?;
    let mut data = body.object("data").ok()?;
    let mut parts: Vec<Object> = data.field(CHUNKS)?;
    let own = format!("https://{account}{PATH}");
    let mut is_moved = false;
    for part in &mut parts {
        let url: String = part.field(URL)?;
        if let Some(name) = url.strip_prefix(&own) {
            part.set(URL, &format!("{to}{PATH}{name}"));
            is_moved = true;
        }
    }
    data.set(CHUNKS, &parts);
    body.set("data", &data);
    is_moved.then(|| body.to_vec())
}

/// The name of a part as a client asks for it: nothing but letters, digits, hyphens and underscores.
pub fn part_name(text: &str) -> Option<&str> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    ((1..=LONGEST).contains(&text.len()) && text.bytes().all(valid)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"data":{"total":12345678901234567890,"rowset":[["1"]],"chunks":[{"url":"https://bucket.example/a?sig=S1","rowCount":2,"uncompressedSize":20,"secret":"S2"}],"chunkHeaders":{"x-key":"S3"},"qrmk":"S4","queryId":"q"},"code":null,"success":true}"#;

    #[test]
    fn the_client_is_told_of_the_account_alone() {
        let answer = InParts::parse(ANSWER.as_bytes()).unwrap();
        assert_eq!(answer.headers()["x-key"], "S3");
        let told =
            answer.for_client("acme.example", "the-lease", |url| Some(format!("n{}", url.len()))).unwrap();
        assert_eq!(
            String::from_utf8(told).unwrap(),
            r#"{"data":{"total":12345678901234567890,"rowset":[["1"]],"chunks":[{"url":"https://acme.example/snowfence/parts/n31","rowCount":2,"uncompressedSize":20}],"chunkHeaders":{"x-snowfence-lease":"the-lease"},"queryId":"q"},"code":null,"success":true}"#
        );
    }

    #[test]
    fn of_an_answer_that_moves_the_addresses_alone_change() {
        let answer = r#"{"data":{"rowset":[["https://acme.example/snowfence/parts/x"]],"chunks":[{"url":"https://acme.example/snowfence/parts/n1","rowCount":2}],"total":12345678901234567890},"code":null,"success":true}"#;
        let there = moved(answer.as_bytes(), "acme.example", "http://127.0.0.1:8080").unwrap();
        let there = String::from_utf8(there).unwrap();
        assert!(there.contains(r#"[["https://acme.example/snowfence/parts/x"]]"#), "{there}");
        assert_eq!(there.replace(r#""http://127.0.0.1:8080/"#, r#""https://acme.example/"#), answer);
        assert_eq!(moved(answer.as_bytes(), "other.example", "http://x"), None);
        assert_eq!(moved(br#"{"data":null,"success":true}"#, "acme.example", "http://x"), None);
    }

    #[test]
    fn a_key_without_headers_becomes_those_of_the_storage() {
        let answer = r#"{"data":{"chunks":[{"url":"https://b/"}],"qrmk":"k"},"success":true}"#;
        let headers = InParts::parse(answer.as_bytes()).unwrap().headers().clone();
        assert_eq!(headers["x-amz-server-side-encryption-customer-key"], "k");
        assert_eq!(headers["x-amz-server-side-encryption-customer-algorithm"], "AES256");
    }

    #[test]
    fn a_key_goes_even_where_there_are_no_parts() {
        let answer = r#"{"data":{"chunks":[],"chunkHeaders":{"a":"S"},"qrmk":"S","x":1},"success":true}"#;
        let told = InParts::parse(answer.as_bytes()).unwrap().for_client("a", "l", |_| None).unwrap();
        assert_eq!(String::from_utf8(told).unwrap(), r#"{"data":{"chunks":[],"x":1},"success":true}"#);
    }

    #[test]
    fn what_is_not_as_it_should_be_is_refused() {
        for data in [
            r#"{"chunks":{"url":"https://b/"}}"#,
            r#"{"chunks":["https://b/"]}"#,
            r#"{"chunks":[{"url":5}]}"#,
            r#"{"chunks":[{"url":"http://b/"}]}"#,
            r#"{"chunks":[{"Url":"https://b/"}]}"#,
            r#"{"chunks":[{"url":"https://b/"}],"chunkHeaders":{"a":1}}"#,
        ] {
            let answer = format!(r#"{{"data":{data},"success":true}}"#);
            let told = InParts::parse(answer.as_bytes())
                .and_then(|answer| answer.for_client("a", "l", |_| Some("n".to_owned())));
            assert!(told.is_err(), "{data}");
        }
        assert!(part_name("aZ09-_").is_some());
        for name in ["", "a/b", "a%2fb", "a.b", "ä"] {
            assert!(part_name(name).is_none(), "{name}");
        }
    }
}
