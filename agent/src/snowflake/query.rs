//! `POST /queries/v1/query-request`, and `POST /api/v2/statements`, which is the same of the SQL API.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::json::{Malformed, Object, compact};
use super::login::set_tag;

/// What of the body goes upstream. `dataframeAst` does not: it is a second form of the statement, which nobody has
/// classified.
const FORWARDED: [&str; 12] = [
    "asyncExec",
    "bindStage",
    "bindings",
    "describeOnly",
    "describedJobId",
    "disableOfflineChunks",
    "isInternal",
    "parameters",
    "queryContextDTO",
    "querySubmissionTime",
    "sequenceId",
    "sqlText",
];

/// The same of the SQL API. `role` is not among them: it is the rule's, or nobody's.
const FORWARDED_BY_API: [&str; 8] = [
    "bindings",
    "database",
    "parameters",
    "resultSetMetaData",
    "schema",
    "statement",
    "timeout",
    "warehouse",
];

/// A request to run SQL.
#[derive(Debug)]
pub struct QueryRequest {
    pub sql: String,
    /// The client wants the shape of the result only.
    pub describe_only: bool,
    /// The client does not wait: it asks later, by Snowflake's identifier of the query.
    pub is_async: bool,
    /// The number of bound values.
    pub binds: u32,
    /// Those that are texts, by their number: there can be names among them.
    texts: BTreeMap<usize, String>,
    body: Object,
}

/// A value that is bound to a placeholder.
#[derive(Deserialize)]
struct Binding {
    #[serde(rename = "type")]
    kind: String,
    value: Value,
}

/// An array is of one value for each row.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Text(String),
    Other(serde::de::IgnoredAny),
}

impl QueryRequest {
    /// A driver's.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut body = Object::parse(bytes)?;
        body.retain(|key| FORWARDED.contains(&key));
        Self::new(body, "sqlText")
    }

    /// One by the SQL API, where each request says as which role and on which warehouse it is to run.
    /// `tag` is for one that has no tag of its own.
    pub fn of_api(
        bytes: &[u8],
        role: Option<&str>,
        warehouse: Option<&str>,
        tag: Option<&str>,
    ) -> Result<Self, Malformed> {
        let mut body = Object::parse(bytes)?;
        body.retain(|key| FORWARDED_BY_API.contains(&key));
        for (key, value) in [("role", role), ("warehouse", warehouse)] {
            if let Some(value) = value {
                body.set(key, &value);
            }
        }
        if let Some(tag) = tag {
            let mut parameters = body.object("parameters")?;
            set_tag(&mut parameters, "query_tag", tag);
            body.set("parameters", &parameters);
        }
        Self::new(body, "statement")
    }

    fn new(body: Object, text: &'static str) -> Result<Self, Malformed> {
        let sql = body.field::<String>(text).ok_or(Malformed::Field(text))?;
        let bindings = body.object("bindings")?;
        let texts = bindings.keys().filter_map(|(number, _)| {
            let binding: Binding = bindings.field(number)?;
            let Value::Text(text) = binding.value else { return None };
            Some((number.parse().ok()?, text)).filter(|_| binding.kind.eq_ignore_ascii_case("text"))
        });
        let (texts, binds) = (texts.collect(), bindings.keys().count());
        Ok(Self {
            sql,
            describe_only: body.field("describeOnly").unwrap_or(false),
            is_async: body.field("asyncExec").unwrap_or(false),
            binds: u32::try_from(binds).unwrap_or(u32::MAX),
            texts,
            body,
        })
    }

    /// The text that is bound to a placeholder, by its number.
    pub fn text(&self, number: usize) -> Option<&str> {
        self.texts.get(&number).map(String::as_str)
    }

    /// Whether its values are in a stage, and not in it.
    pub fn is_staged(&self) -> bool {
        self.body.raw("bindStage").is_some_and(|stage| stage.get() != "null")
    }

    /// What besides the text decides on what runs: a JSON object, as it was sent, without white space; empty where there is nothing.
    pub fn with(&self) -> String {
        const DECIDE: [&str; 6] = ["bindings", "database", "parameters", "role", "schema", "warehouse"];
        let fields = self.body.keys().filter(|(key, value)| DECIDE.contains(key) && value.get() != "null");
        let fields: Vec<String> =
            fields.map(|(key, value)| format!("\"{key}\":{}", compact(value.get()))).collect();
        if fields.is_empty() { String::new() } else { format!("{{{}}}", fields.join(",")) }
    }

    /// What goes upstream: the known fields of the body, value for value as they came.
    pub fn to_vec(&self) -> Vec<u8> {
        self.body.to_vec()
    }
}

/// The request that `POST /queries/v1/abort-request` wants to end.
pub fn aborted_request(bytes: &[u8]) -> Result<String, Malformed> {
    let request: String = Object::parse(bytes)?.field("requestId").ok_or(Malformed::Field("requestId"))?;
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if request.len() > 64 || !request.bytes().all(valid) {
        return Err(Malformed::Field("requestId"));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_statement_is_the_one_that_goes_upstream() {
        let body = br#"{"sqlText":"select ?","bindings":{"1":{"type":"FIXED","value":"1"}},"dataframeAst":"x","role":"ACCOUNTADMIN","sequenceId":12345678901234567890}"#;
        let request = QueryRequest::parse(body).unwrap();
        assert_eq!((request.sql.as_str(), request.binds, request.describe_only), ("select ?", 1, false));
        assert_eq!(request.text(1), None, "no text");
        assert_eq!(
            String::from_utf8(request.to_vec()).unwrap(),
            r#"{"sqlText":"select ?","bindings":{"1":{"type":"FIXED","value":"1"}},"sequenceId":12345678901234567890}"#
        );
    }

    #[test]
    fn texts_among_the_bound_values_are_known() {
        let body = br#"{"sqlText":"x","bindings":{"1":{"type":"TEXT","value":"a"},"2":{"type":"TEXT","value":["b"]},"3":{"type":"FIXED","value":"4"},"x":{"type":"TEXT","value":"c"},"4":5}}"#;
        let request = QueryRequest::parse(body).unwrap();
        assert_eq!((request.text(1), request.binds), (Some("a"), 5));
        assert_eq!([2, 3, 4, 0].map(|number| request.text(number)), [None; 4]);
    }

    #[test]
    fn by_the_sql_api_role_and_warehouse_are_the_rules() {
        let body = br#"{"statement":"select ?","role":"ACCOUNTADMIN","warehouse":"BIG","timeout":60,"x":1,"bindings":{"1":{"type":"FIXED","value":"1"}}}"#;
        let text = |request: &QueryRequest| String::from_utf8(request.to_vec()).unwrap();
        let request = QueryRequest::of_api(body, None, None, None).unwrap();
        assert_eq!((request.sql.as_str(), request.binds), ("select ?", 1));
        assert_eq!(
            text(&request),
            r#"{"statement":"select ?","warehouse":"BIG","timeout":60,"bindings":{"1":{"type":"FIXED","value":"1"}}}"#
        );
        let request = QueryRequest::of_api(body, Some("ANALYST"), Some("WH"), Some("me")).unwrap();
        let body: serde_json::Value = serde_json::from_str(&text(&request)).unwrap();
        assert_eq!((&body["role"], &body["warehouse"]), (&"ANALYST".into(), &"WH".into()));
        assert_eq!(body["parameters"]["query_tag"], "me");
        for body in ["{}", r#"{"sqlText":"select 1"}"#, r#"{"statement":"a","STATEMENT":"b"}"#] {
            assert!(QueryRequest::of_api(body.as_bytes(), None, None, None).is_err(), "{body}");
        }
    }

    #[test]
    fn what_decides_besides_the_text_is_shown_as_it_was_sent() {
        let body = br#"{"sqlText":"x", "bindings": { "1": {"type":"TEXT", "value": "a \" \u0062\u000a\\u0063"} },"parameters":{ } ,"sequenceId":1,"schema":null}"#;
        let request = QueryRequest::parse(body).unwrap();
        assert_eq!(
            request.with(),
            r#"{"bindings":{"1":{"type":"TEXT","value":"a \" b\u000a\\u0063"}},"parameters":{}}"#
        );
        assert!(!request.is_staged());
        let request = QueryRequest::parse(br#"{"sqlText":"x","bindStage":"@SYSTEM$BIND/1"}"#).unwrap();
        assert!(request.is_staged() && request.with().is_empty());
        let body = br#"{"statement":"x","database":"D","schema":"S"}"#;
        let request = QueryRequest::of_api(body, Some("ANALYST"), None, None).unwrap();
        assert_eq!(request.with(), r#"{"database":"D","schema":"S","role":"ANALYST"}"#);
    }

    #[test]
    fn a_body_without_one_statement_is_malformed() {
        for body in ["{}", r#"{"sqlText":null}"#, r#"{"sqlText":["x"]}"#, r#"{"sqlText":"a","bindings":[1]}"#]
        {
            assert!(QueryRequest::parse(body.as_bytes()).is_err(), "{body}");
        }
        assert!(QueryRequest::parse(b"{\"sqlText\":\"\xff\"}").is_err());
        assert!(QueryRequest::parse(br#"{"sqlText":"\ud800"}"#).is_err());
    }
}
