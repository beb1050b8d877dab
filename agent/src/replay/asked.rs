//! What a request asks for, without what differs each time that it is asked: its identifier, tokens, times.

use aws_lc_rs::digest::{Context, SHA256};
use hyper::Method;
use serde_json::Value;

use crate::snowflake::{KnownQuery, Operation, classify};

/// What of a driver's query says what is asked for.
const OF_QUERY: [&str; 4] = ["asyncExec", "bindings", "describeOnly", "sqlText"];
/// The same of the SQL API.
const OF_API: [&str; 4] = ["bindings", "database", "schema", "statement"];
/// Query parameters that are of one request alone, or of a repetition.
const OF_ONE_REQUEST: [&str; 7] =
    ["requestid", "request_id", "request_guid", "retry", "retrycount", "retryreason", "clientstarttime"];
/// Of what is asked for, so many characters are shown.
const SHOWN: usize = 200;

/// A digest of all that says what is asked for.
pub type Key = [u8; 32];

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// `None` for what the agent does not know.
    pub operation: Option<Operation>,
    pub key: Key,
    /// For people: the statement, or method and path. It may steer a terminal.
    pub shown: String,
}

impl Asked {
    /// The body is the inflated one.
    pub fn of(method: &Method, path: &str, query: Option<&str>, body: &[u8]) -> Self {
        let operation = classify(method, path, query).ok();
        let is_text = operation.as_ref().is_some_and(Operation::carries_a_statement);
        let mut body: Value =
            if is_text { serde_json::from_slice(body).unwrap_or_default() } else { Value::Null };
        // Two objects are the same in whichever order they name their keys.
        body.sort_all_objects();
        let sql = ["sqlText", "statement"].iter().find_map(|key| body[*key].as_str());
        let shown = match (&operation, sql) {
            (Some(Operation::Query | Operation::ApiStatement), Some(sql)) => cut(sql),
            _ => cut(&format!("{method} {path}")),
        };
        let mut key = Context::new(&SHA256);
        let mut add = |text: &str| {
            key.update(&(text.len() as u64).to_le_bytes());
            key.update(text.as_bytes());
        };
        add(method.as_str());
        match &operation {
            // The request that it ends is named by an identifier that is new each time.
            Some(operation) => add(&operation.path()),
            None => add(path),
        }
        if let Some(operation) = &operation {
            let known = KnownQuery::parse(operation, query).unwrap_or_default().text;
            let mut pairs: Vec<(String, String)> = form_urlencoded::parse(known.as_bytes())
                .filter(|(name, _)| !OF_ONE_REQUEST.contains(&name.to_ascii_lowercase().as_str()))
                .map(|(name, value)| (name.into_owned(), value.into_owned()))
                .collect();
            pairs.sort();
            add(&Value::from_iter(pairs).to_string());
            match operation {
                Operation::Query => add(&fields(&body, &OF_QUERY)),
                Operation::ApiStatement => add(&fields(&body, &OF_API)),
                Operation::Rest(_) => add(&body.to_string()),
                _ => {}
            }
        }
        let digest = key.finish();
        let key = digest.as_ref().try_into().unwrap_or_default();
        Self { operation, key, shown }
    }

    /// Whether it is of the session itself, which a replay has for each client that asks, as often as it asks.
    pub fn is_housekeeping(&self) -> bool {
        matches!(
            self.operation,
            Some(
                Operation::Login
                    | Operation::Renew
                    | Operation::Heartbeat
                    | Operation::CloseSession
                    | Operation::Telemetry
                    | Operation::SessionlessTelemetry
            )
        )
    }
}

/// Some fields; what says nothing is as good as what is not there.
fn fields(body: &Value, names: &[&str]) -> String {
    let says_something = |value: &&Value| !matches!(value, Value::Null | Value::Bool(false));
    let fields = names.iter().map(|name| body.get(*name).filter(says_something).unwrap_or(&Value::Null));
    fields.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn cut(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN + 1).collect();
    if shown.chars().count() > SHOWN {
        shown = shown.chars().take(SHOWN - 1).chain(['…']).collect();
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "01b1c2d3-0000-1111-2222-333344445555";

    fn query(target: &str, body: &str) -> Asked {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Asked::of(&Method::POST, path, Some(query), body.as_bytes())
    }

    #[test]
    fn what_is_new_each_time_makes_no_difference() {
        let one = query(
            "/queries/v1/query-request?requestId=1&request_guid=2",
            r#"{"sqlText":"select ?","sequenceId":1,"querySubmissionTime":5,"describeOnly":false,"bindings":{"1":{"type":"FIXED","value":"1"},"2":{}},"parameters":{}}"#,
        );
        let again = query(
            "/queries/v1/query-request?request_id=9&retryCount=1",
            r#"{"bindings":{"2":{},"1":{"value":"1","type":"FIXED"}},"sqlText":"select ?","asyncExec":false}"#,
        );
        assert_eq!(one, again);
        assert_eq!((one.shown.as_str(), one.is_housekeeping()), ("select ?", false));
        let abort = |body| query("/queries/v1/abort-request?requestId=1", body).key;
        assert_eq!(abort(r#"{"requestId":"a"}"#), abort(r#"{"requestId":"b"}"#));
    }

    #[test]
    fn what_is_asked_for_does() {
        let target = "/queries/v1/query-request";
        let asked = [
            query(target, r#"{"sqlText":"select ?"}"#),
            query(target, r#"{"sqlText":"select ? "}"#),
            query(target, r#"{"sqlText":"select ?","describeOnly":true}"#),
            query(target, r#"{"sqlText":"select ?","asyncExec":true}"#),
            query(target, r#"{"sqlText":"select ?","bindings":{"1":{"type":"FIXED","value":"1"}}}"#),
            query(target, r#"{"sqlText":"select ?","bindings":{"1":{"type":"FIXED","value":"2"}}}"#),
            query("/api/v2/statements", r#"{"statement":"select ?"}"#),
            query("/api/v2/statements?async=true", r#"{"statement":"select ?"}"#),
            query(&format!("/queries/{ID}/abort-request"), ""),
            Asked::of(&Method::GET, &format!("/queries/{ID}/result"), None, b""),
            Asked::of(&Method::GET, &format!("/api/v2/statements/{ID}"), Some("partition=1"), b""),
            Asked::of(&Method::GET, &format!("/api/v2/statements/{ID}"), Some("partition=2"), b""),
            Asked::of(&Method::GET, "/snowfence/parts/a", None, b""),
            Asked::of(&Method::GET, "/snowfence/parts/b", None, b""),
            query("/api/v2/databases", r#"{"name":"a"}"#),
            query("/api/v2/databases", r#"{"name":"b"}"#),
            query("/nothing", ""),
        ];
        for (index, one) in asked.iter().enumerate() {
            assert!(asked.iter().skip(index + 1).all(|other| other.key != one.key), "{one:?}");
        }
    }

    #[test]
    fn what_is_shown_is_short() {
        let long = query("/queries/v1/query-request", &format!(r#"{{"sqlText":"{}"}}"#, "x".repeat(1000)));
        assert_eq!(long.shown.chars().count(), SHOWN);
        let login = query("/session/v1/login-request?requestId=1", "{}");
        assert_eq!((login.shown.as_str(), login.is_housekeeping()), ("POST /session/v1/login-request", true));
    }
}
