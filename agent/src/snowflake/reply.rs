//! What Snowflake answers: looked through before any of it reaches the client.

use hyper::StatusCode;
use serde_json::value::RawValue;

use super::api::is_ours;
use super::json::{Malformed, Object};
use super::operation::QueryId;
use super::parts::{self, InParts};
use super::transfer::{self, Transfer};

/// Keys of `data` that carry, or lead to, secrets of the storage behind Snowflake or of the session.
const SECRET: [&str; 18] = [
    "chunkheaders",
    "chunks",
    "creds",
    "encryptionmaterial",
    "idtoken",
    "mastertoken",
    "mfatoken",
    "presigned_url",
    "presignedurl",
    "presignedurls",
    "proofkey",
    "qrmk",
    "remmetoken",
    "sessiontoken",
    "stageinfo",
    "token",
    "token_secret",
    "uploadinfo",
];

/// By the SQL API, where there is always a code.
const SUCCEEDED: &str = "090001";

/// An answer that the client may have, and what the record needs of it.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Reply {
    pub success: bool,
    /// Six digits; empty on success.
    pub code: String,
    pub message: String,
    pub query_id: Option<QueryId>,
    /// The statements of a text with several, each with a result of its own.
    pub result_ids: Vec<QueryId>,
    pub rows: Option<u64>,
    /// The statement still runs; the result is asked for later.
    pub in_progress: bool,
    /// What of it leads to the storage behind Snowflake. That is a secret too, and is replaced.
    pub leads: Option<Leads>,
    /// The key under which the answer carries a secret. Such an answer must not reach the client.
    pub secret: Option<String>,
}

/// To what in the storage behind Snowflake an answer leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// The parts of a result.
    ToParts,
    /// The files of a stage.
    ToStage,
}

impl Reply {
    /// Reads an answer.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let body = Object::parse(bytes)?;
        let data = match body.raw("data").map(RawValue::get) {
            Some(text) if text.starts_with('{') => Object::parse(text.as_bytes())?,
            _ => Object::default(),
        };
        // Of those that lead to parts or stages only the known spelling is, in the known place.
        let is_replaced = |key: &str| parts::KEYS.contains(&key) || transfer::KEYS.contains(&key);
        let in_data = data.keys().filter(|(key, _)| !is_replaced(key));
        let secret = secret_among(body.keys().chain(in_data));
        let (leads, secret) = match (InParts::is_in(&data), Transfer::is_in(&data)) {
            // No answer of Snowflake's leads to both.
            (true, true) => (None, Some("chunks".to_owned())),
            (true, false) => (Some(Leads::ToParts), secret),
            (false, true) => (Some(Leads::ToStage), secret),
            (false, false) => (None, secret),
        };
        // A driver follows it with its token, wherever it leads.
        let result_url: Option<String> = data.field("getResultUrl");
        let leads_away = result_url.is_some_and(|url| !url.starts_with('/') || url.starts_with("//"));
        let secret = secret.or_else(|| leads_away.then(|| "getResultUrl".to_owned()));
        let code: String = body.field("code").unwrap_or_default();
        let query_id: Option<String> = data.field("queryId");
        let result_ids: Option<String> = data.field("resultIds");
        Ok(Self {
            success: body.field("success").unwrap_or(false),
            in_progress: matches!(code.as_str(), "333333" | "333334"),
            code,
            message: body.field("message").unwrap_or_default(),
            query_id: query_id.and_then(|id| QueryId::parse(&id)),
            result_ids: result_ids.unwrap_or_default().split(',').filter_map(QueryId::parse).collect(),
            leads,
            rows: data.field("total").or_else(|| data.field("returned")),
            secret,
        })
    }

    /// Reads an answer of the SQL API, where the status of HTTP says how the statement went.
    pub fn of_api(status: StatusCode, bytes: &[u8]) -> Result<Self, Malformed> {
        let body = Object::parse(bytes)?;
        let mut secret = secret_among(body.keys());
        for (_, value) in body.keys().filter(|(_, value)| value.get().starts_with('{')) {
            let inner = Object::parse(value.get().as_bytes())?;
            secret = secret.or_else(|| secret_among(inner.keys()));
        }
        // A client follows it with its token, wherever it leads.
        let url: Option<String> = body.field("statementStatusUrl");
        let leads_away = url.is_some_and(|url| !is_ours(&url));
        let text = |key| body.field::<String>(key).unwrap_or_default();
        let (code, message) = match text("code") {
            code if code == SUCCEEDED => (String::new(), String::new()),
            code => (code, text("message")),
        };
        let query_id: Option<String> = body.field("statementHandle");
        let result_ids: Option<Vec<String>> = body.field("statementHandles");
        Ok(Self {
            success: status == StatusCode::OK,
            in_progress: status == StatusCode::ACCEPTED,
            code,
            message,
            query_id: query_id.and_then(|id| QueryId::parse(&id)),
            result_ids: result_ids.into_iter().flatten().filter_map(|id| QueryId::parse(&id)).collect(),
            leads: None,
            rows: body.object("resultSetMetaData")?.field("numRows"),
            secret: secret.or_else(|| leads_away.then(|| "statementStatusUrl".to_owned())),
        })
    }
}

/// The key under which an answer about objects carries a secret: in an object, in each one of a list, or a level below.
pub fn secret_of_objects(bytes: &[u8]) -> Result<Option<String>, Malformed> {
    if bytes.trim_ascii().is_empty() {
        return Ok(None);
    }
    let objects = match serde_json::from_slice::<Vec<Object>>(bytes) {
        Ok(objects) => objects,
        Err(_) => vec![Object::parse(bytes)?],
    };
    for object in &objects {
        let mut secret = secret_among(object.keys());
        for (_, value) in object.keys().filter(|(_, value)| value.get().starts_with('{')) {
            let inner = Object::parse(value.get().as_bytes())?;
            secret = secret.or_else(|| secret_among(inner.keys()));
        }
        if secret.is_some() {
            return Ok(secret);
        }
    }
    Ok(None)
}

/// The first key that carries a secret, or leads to one.
fn secret_among<'a>(mut entries: impl Iterator<Item = (&'a str, &'a RawValue)>) -> Option<String> {
    let is_secret = |(key, value): &(&str, &RawValue)| {
        SECRET.contains(&key.to_ascii_lowercase().as_str()) && !is_empty(value.get())
    };
    entries.find(is_secret).map(|(key, _)| key.to_owned())
}

/// How a query ended, as `GET /monitoring/queries/{id}` tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    pub succeeded: bool,
    pub code: String,
    pub message: String,
}

impl Ending {
    /// Reads an answer; `None` while the query has not ended, or where the answer does not tell.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let data = Object::parse(bytes).ok()?.object("data").ok()?;
        let query = data.field::<Vec<Object>>("queries")?.into_iter().next()?;
        let succeeded = match query.field::<String>("status")?.as_str() {
            "SUCCESS" => true,
            "FAILED_WITH_ERROR" | "FAILED_WITH_INCIDENT" | "ABORTED" | "DISCONNECTED" => false,
            _ => return None,
        };
        let code = query.raw("errorCode").map(|code| code.get().trim_matches('"').to_owned());
        Some(Self {
            succeeded,
            code: code.filter(|code| code != "null").unwrap_or_default(),
            message: query.field("errorMessage").unwrap_or_default(),
        })
    }
}

/// Null, false, or nothing in it.
pub(super) fn is_empty(json: &str) -> bool {
    let compact: String = json.chars().filter(|character| !character.is_whitespace()).take(8).collect();
    matches!(compact.as_str(), "null" | "false" | "\"\"" | "[]" | "{}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_record_needs_is_read() {
        let reply = Reply::parse(
            br#"{"data":{"queryId":"01b1c2d3-0000-1111-2222-333344445555","total":3,"rowset":[["1"]],"chunks":[],"qrmk":null},"code":null,"message":null,"success":true}"#,
        )
        .unwrap();
        assert_eq!((reply.success, reply.rows, &reply.secret), (true, Some(3), &None));
        assert_eq!(reply.query_id.unwrap().as_str(), "01b1c2d3-0000-1111-2222-333344445555");
    }

    #[test]
    fn an_answer_of_the_sql_api_is_read_by_its_status() {
        let body = br#"{"code":"090001","message":"ok","statementHandle":"01b1c2d3-0000-1111-2222-333344445555","statementHandles":["01b1c2d3-0000-1111-2222-333344445556"],"statementStatusUrl":"/api/v2/statements/01b1c2d3-0000-1111-2222-333344445555","resultSetMetaData":{"numRows":3,"rowType":[{"name":"token"}]},"data":[["1"]]}"#;
        let reply = Reply::of_api(StatusCode::OK, body).unwrap();
        assert_eq!(
            (reply.success, reply.rows, reply.code.as_str(), &reply.secret),
            (true, Some(3), "", &None)
        );
        assert_eq!((reply.result_ids.len(), reply.in_progress), (1, false));
        assert!(Reply::of_api(StatusCode::ACCEPTED, body).unwrap().in_progress);
        let failed =
            Reply::of_api(StatusCode::UNPROCESSABLE_ENTITY, br#"{"code":"002003","message":"no"}"#).unwrap();
        assert_eq!((failed.success, failed.code.as_str(), failed.message.as_str()), (false, "002003", "no"));
        for secret in [
            r#"{"token":"x"}"#,
            r#"{"data":{"stageInfo":{"creds":{}}}}"#,
            r#"{"resultSetMetaData":{"qrmk":"k"}}"#,
            r#"{"statementStatusUrl":"https://evil.example/api/v2/statements/1"}"#,
        ] {
            assert!(Reply::of_api(StatusCode::OK, secret.as_bytes()).unwrap().secret.is_some(), "{secret}");
        }
    }

    #[test]
    fn an_ending_is_told_from_a_query_that_goes_on() {
        let monitor =
            |query: &str| Ending::parse(format!(r#"{{"data":{{"queries":[{query}]}}}}"#).as_bytes());
        assert_eq!(monitor(r#"{"status":"RUNNING"}"#), None);
        assert!(monitor(r#"{"status":"SUCCESS","errorCode":null}"#).unwrap().succeeded);
        let failed =
            monitor(r#"{"status":"FAILED_WITH_ERROR","errorCode":1003,"errorMessage":"no"}"#).unwrap();
        assert_eq!((failed.succeeded, failed.code.as_str(), failed.message.as_str()), (false, "1003", "no"));
        assert_eq!(Ending::parse(br#"{"data":{"queries":[]}}"#), None);
    }

    #[test]
    fn an_answer_with_a_secret_says_so() {
        for body in [
            r#"{"data":{"Chunks":[{"url":"https://bucket/?sig=x"}]},"success":true}"#,
            r#"{"chunks":[{"url":"https://bucket/?sig=x"}],"success":true}"#,
            r#"{"stageInfo":{"creds":{"AWS_TOKEN":"x"}},"success":true}"#,
            r#"{"data":{"StageInfo":{"creds":{}}},"success":true}"#,
            r#"{"data":{"sessionToken":"x"},"success":true}"#,
            r#"{"data":{"getResultUrl":"https://evil.example/result"},"success":true}"#,
            r#"{"data":{"getResultUrl":"//evil.example/result"},"success":true}"#,
        ] {
            assert!(Reply::parse(body.as_bytes()).unwrap().secret.is_some(), "{body}");
        }
        assert!(Reply::parse(b"<html>").is_err());
        let in_parts = r#"{"data":{"chunks":[{"url":"https://bucket/?sig=x"}],"qrmk":"k"},"success":true}"#;
        let reply = Reply::parse(in_parts.as_bytes()).unwrap();
        assert_eq!((reply.leads, reply.secret), (Some(Leads::ToParts), None));
        let in_stage = r#"{"data":{"stageInfo":{"creds":{"AWS_TOKEN":"x"}}},"success":true}"#;
        let reply = Reply::parse(in_stage.as_bytes()).unwrap();
        assert_eq!((reply.leads, reply.secret), (Some(Leads::ToStage), None));
        let in_both = r#"{"data":{"stageInfo":{"creds":{"a":"x"}},"chunks":[{"url":"x"}]},"success":true}"#;
        assert!(Reply::parse(in_both.as_bytes()).unwrap().secret.is_some());
    }
}
