//! What a client asks a managed MCP server: JSON-RPC 2.0, of which a call of a tool can carry a statement.
//!
//! Sources: the Model Context Protocol, revisions 2025-06-18 and 2025-11-25, and Snowflake's documentation of its managed
//! servers, whose tools of the type `SYSTEM_EXECUTE_SQL` take one argument, `sql`. Names of tools are free, and a call
//! does not tell a tool's type.

use serde_json::json;
use serde_json::value::RawValue;

use super::json::Object;

/// What of a request goes upstream.
const FIELDS: [&str; 4] = ["jsonrpc", "id", "method", "params"];

/// One request.
#[derive(Debug)]
pub struct McpRequest {
    /// As it was written; `None` for a notification, which has no answer.
    id: Option<String>,
    pub ask: Ask,
    body: Object,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub enum Ask {
    /// What keeps a connection going, and changes nothing.
    Housekeeping,
    /// Which tools there are.
    ListTools,
    /// A tool whose only argument is a statement.
    Sql { tool: String, sql: String },
    /// Any other tool.
    Tool(String),
}

/// A request that is not understood, as JSON-RPC numbers such errors.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct McpError {
    pub code: i32,
    message: &'static str,
    /// Of the request, as far as it could be read.
    id: Option<String>,
}

impl McpRequest {
    pub fn parse(bytes: &[u8]) -> Result<Self, McpError> {
        let invalid = |message| McpError { code: -32600, message, id: None };
        let mut body = Object::parse(bytes)
            .map_err(|_| invalid("the body is not one JSON-RPC request, without keys twice"))?;
        body.retain(|key| FIELDS.contains(&key));
        if body.field::<String>("jsonrpc").as_deref() != Some("2.0") {
            return Err(invalid("the request is not of JSON-RPC 2.0"));
        }
        let id = match body.raw("id").map(RawValue::get) {
            None => None,
            Some(id)
                if id.len() <= 128
                    && id.starts_with(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) =>
            {
                Some(id.to_owned())
            }
            Some(_) => return Err(invalid("the request's id is neither a short text nor a number")),
        };
        let error = |code, message| McpError { code, message, id: id.clone() };
        let ask = match body.field::<String>("method").unwrap_or_default().as_str() {
            "initialize" | "ping" | "notifications/initialized" | "notifications/cancelled" => {
                Ask::Housekeeping
            }
            "tools/list" => Ask::ListTools,
            "tools/call" => call(&body).ok_or_else(|| {
                error(-32602, "a call of a tool needs the name of the tool and, as an object, its arguments")
            })?,
            _ => return Err(error(-32601, "this method of MCP is not known to Snowfence")),
        };
        Ok(Self { id, ask, body })
    }

    /// What goes upstream.
    pub fn to_vec(&self) -> Vec<u8> {
        self.body.to_vec()
    }

    /// The answer to a request that is refused.
    pub fn refusal(&self, message: &str, statement: &str) -> Vec<u8> {
        failure(self.id.as_deref(), -32000, message, Some(statement))
    }
}

impl McpError {
    /// The answer to it.
    pub fn answer(&self) -> Vec<u8> {
        failure(self.id.as_deref(), self.code, &format!("Snowfence refused this request: {self}"), None)
    }
}

fn failure(id: Option<&str>, code: i32, message: &str, statement: Option<&str>) -> Vec<u8> {
    let mut error = json!({ "code": code, "message": message });
    if let (Some(statement), Some(error)) = (statement, error.as_object_mut()) {
        error.insert("data".into(), json!({ "statement": statement }));
    }
    // The id is JSON already.
    format!(r#"{{"jsonrpc":"2.0","id":{},"error":{error}}}"#, id.unwrap_or("null")).into_bytes()
}

fn call(body: &Object) -> Option<Ask> {
    let params = body.object("params").ok()?;
    let tool = params.field::<String>("name").filter(|name| (1..=256).contains(&name.len()))?;
    let arguments = params.object("arguments").ok()?;
    Some(match arguments.field::<String>("sql") {
        Some(sql) if arguments.keys().count() == 1 => Ask::Sql { tool, sql },
        _ => Ask::Tool(tool),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(body: &str) -> Result<Ask, i32> {
        McpRequest::parse(body.as_bytes()).map(|request| request.ask).map_err(|error| error.code)
    }

    fn calls(params: &str) -> Result<Ask, i32> {
        asks(&format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#))
    }

    #[test]
    fn a_tool_that_takes_a_statement_alone_is_judged_by_it() {
        let tool = || "q".to_owned();
        let sql = |sql: &str| Ok(Ask::Sql { tool: tool(), sql: sql.to_owned() });
        assert_eq!(calls(r#"{"name":"q","arguments":{"sql":"select 1"}}"#), sql("select 1"));
        for opaque in [
            r#"{"name":"q","arguments":{"sql":"select 1","also":"drop table t"}}"#,
            r#"{"name":"q","arguments":{"sql":["drop table t"]}}"#,
            r#"{"name":"q","arguments":{"query":"select 1"}}"#,
            r#"{"name":"q","arguments":{}}"#,
            r#"{"name":"q"}"#,
        ] {
            assert_eq!(calls(opaque), Ok(Ask::Tool(tool())), "{opaque}");
        }
        for malformed in [
            r#"{"arguments":{"sql":"select 1"}}"#,
            r#"{"name":"q","arguments":"select 1"}"#,
            r#"{"name":"q","arguments":{"sql":"select 1","SQL":"drop table t"}}"#,
            r#"{"name":"q","name":"r","arguments":{"sql":"select 1"}}"#,
            "[]",
        ] {
            assert_eq!(calls(malformed), Err(-32602), "{malformed}");
        }
    }

    #[test]
    fn what_is_no_request_is_answered_as_json_rpc_does() {
        assert_eq!(asks(r#"{"jsonrpc":"2.0","id":"a","method":"tools/list"}"#), Ok(Ask::ListTools));
        assert_eq!(asks(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#), Ok(Ask::Housekeeping));
        for (body, code) in [
            ("", -32600),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
            (r#"{"id":1,"method":"ping"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":{"a":1},"method":"ping"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#, -32600),
            (r#"{"jsonrpc":"2.0","id":1,"method":"resources/read"}"#, -32601),
        ] {
            assert_eq!(asks(body), Err(code), "{body}");
        }
        let error = McpRequest::parse(br#"{"jsonrpc":"2.0","id":"a","method":"x"}"#).unwrap_err();
        let answer: serde_json::Value = serde_json::from_slice(&error.answer()).unwrap();
        assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!("a"), &json!(-32601)));
    }

    #[test]
    fn of_a_request_what_is_known_goes_upstream() {
        let body = br#"{"jsonrpc":"2.0","id":12345678901234567890,"method":"tools/list","params":{"cursor":"c"},"extra":1}"#;
        let request = McpRequest::parse(body).unwrap();
        assert_eq!(
            String::from_utf8(request.to_vec()).unwrap(),
            r#"{"jsonrpc":"2.0","id":12345678901234567890,"method":"tools/list","params":{"cursor":"c"}}"#
        );
        let refusal: serde_json::Value = serde_json::from_slice(&request.refusal("no", "x")).unwrap();
        assert_eq!(
            (&refusal["error"]["message"], &refusal["error"]["data"]["statement"]),
            (&json!("no"), &json!("x"))
        );
    }
}
