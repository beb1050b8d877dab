//! What a request asks for, by method and path. What is not listed here is refused.

use hyper::Method;
use uuid::Uuid;

use super::api::{ApiQuery, PATH as API};
use super::json::Malformed;
use super::parts::{PATH as PARTS, part_name};
use super::refusal::request_id;
use super::rest::RestCall;
use super::results;
use super::transfer::{PATH as FILES, file_name};

/// The operations that the agent understands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// `POST /session/v1/login-request`
    Login,
    /// `POST /session/token-request`: a new session token for the master token.
    Renew,
    /// `POST /session/heartbeat`
    Heartbeat,
    /// `POST /session?delete=true`
    CloseSession,
    /// `POST /queries/v1/query-request`
    Query,
    /// `GET /queries/{id}/result`
    Result(QueryId),
    /// `POST /queries/v1/abort-request`, the request to cancel named in the body
    Abort,
    /// `POST /queries/{id}/abort-request`
    AbortQuery(QueryId),
    /// `GET /monitoring/queries/{id}`
    Monitor(QueryId),
    /// `GET /snowfence/parts/{name}`: a part of a result, which the agent fetches from the storage behind Snowflake.
    Part(String),
    /// `PUT /snowfence/files/{name}`: a file for a stage.
    Upload(String),
    /// `HEAD /snowfence/files/{name}`: whether a file is there already; of a sealed name, what is known of it.
    FileHead(String),
    /// `GET /snowfence/files/{sealed name}`: a file of a stage.
    Download(String),
    /// `POST /telemetry/send`: what a driver reports of itself.
    Telemetry,
    /// `POST /telemetry/send/sessionless`: the same, with a token of the client's.
    SessionlessTelemetry,
    /// `POST /api/v2/statements`: the SQL API, as are the two below.
    ApiStatement,
    /// `GET /api/v2/statements/{handle}`: where a statement is, or a partition of its result.
    ApiResult(QueryId),
    /// `POST /api/v2/statements/{handle}/cancel`
    ApiCancel(QueryId),
    /// `/api/v2/…` beside the SQL API: objects, Cortex, MCP servers.
    Rest(RestCall),
    /// `GET /api/v2/results/{handle}`: the result of such a call, later or page by page.
    RestResult(QueryId),
}

/// Snowflake's identifier of a query: letters, digits and hyphens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct QueryId(String);

/// A request that is none of the known operations.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown operation {method} {path}")]
pub struct UnknownOperation {
    pub method: String,
    /// Cut after 200 bytes.
    pub path: String,
    /// The method that the path takes instead, where saying so helps a client.
    pub takes: Option<&'static str>,
}

/// Classifies a request. Doubled slashes count as one: a driver sends them.
pub fn classify(method: &Method, path: &str, query: Option<&str>) -> Result<Operation, UnknownOperation> {
    let unknown = || UnknownOperation {
        method: method.as_str().chars().take(20).collect(),
        path: path.chars().take(200).collect(),
        takes: RestCall::is_of_mcp(path).then_some("POST"),
    };
    if let Some(call) = RestCall::parse(method, path) {
        return Ok(Operation::Rest(call));
    }
    if let "PUT" | "HEAD" = method.as_str() {
        let name = file_name(path).ok_or_else(unknown)?;
        return Ok(if method == Method::PUT { Operation::Upload(name) } else { Operation::FileHead(name) });
    }
    let mut segments: Vec<&str> = path.split('/').collect();
    // A path starts with one slash; what follows the last one must not be empty.
    if segments.first() != Some(&"") || segments.last() == Some(&"") {
        return Err(unknown());
    }
    segments.retain(|segment| !segment.is_empty());
    let id = |text: &str| QueryId::parse(text).ok_or_else(unknown);
    match (method.as_str(), segments.as_slice()) {
        ("POST", ["session", "v1", "login-request"]) => Ok(Operation::Login),
        ("POST", ["session", "token-request"]) => Ok(Operation::Renew),
        ("POST", ["session", "heartbeat"]) => Ok(Operation::Heartbeat),
        ("POST", ["session"]) if deletes(query) => Ok(Operation::CloseSession),
        ("POST", ["queries", "v1", "query-request"]) => Ok(Operation::Query),
        ("POST", ["queries", "v1", "abort-request"]) => Ok(Operation::Abort),
        ("POST", ["queries", query, "abort-request"]) => Ok(Operation::AbortQuery(id(query)?)),
        ("GET", ["queries", query, "result"]) => Ok(Operation::Result(id(query)?)),
        ("GET", ["monitoring", "queries", query]) => Ok(Operation::Monitor(id(query)?)),
        ("GET", ["snowfence", "parts", name]) => {
            part_name(name).map(|name| Operation::Part(name.to_owned())).ok_or_else(unknown)
        }
        ("GET", ["snowfence", "files", name]) => {
            part_name(name).map(|name| Operation::Download(name.to_owned())).ok_or_else(unknown)
        }
        ("POST", ["telemetry", "send"]) => Ok(Operation::Telemetry),
        ("POST", ["telemetry", "send", "sessionless"]) => Ok(Operation::SessionlessTelemetry),
        ("POST", ["api", "v2", "statements"]) => Ok(Operation::ApiStatement),
        ("GET", ["api", "v2", "statements", handle]) => Ok(Operation::ApiResult(id(handle)?)),
        ("POST", ["api", "v2", "statements", handle, "cancel"]) => Ok(Operation::ApiCancel(id(handle)?)),
        ("GET", ["api", "v2", "results", handle]) => Ok(Operation::RestResult(id(handle)?)),
        _ => Err(unknown()),
    }
}

/// Query parameters that identify a request and its retries, or say how its answer is to come.
const PARAMETERS: [&str; 10] = [
    "clientStartTime",
    "combinedDescribe",
    "delete",
    "disableOfflineChunks",
    "requestId",
    "request_guid",
    "request_id",
    "retry",
    "retryCount",
    "retryReason",
];

/// Whether a query parameter goes on to Snowflake.
pub fn is_known_parameter(name: &str) -> bool {
    PARAMETERS.contains(&name)
}

/// What is taken of a query string.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct KnownQuery {
    /// As it goes upstream: what is not known is left out.
    pub text: String,
    /// The client's identifier of the request; empty where it sends none.
    pub request_id: String,
}

impl KnownQuery {
    pub fn parse(operation: &Operation, query: Option<&str>) -> Result<Self, Malformed> {
        if let Operation::Rest(call) = operation {
            return Ok(Self { text: call.query(query)?, request_id: request_id(query) });
        }
        if let Operation::RestResult(_) = operation {
            return Ok(Self { text: results::query_string(query)?, request_id: String::new() });
        }
        if operation.is_of_api() {
            let query = ApiQuery::parse(query)?;
            return Ok(Self { text: query.to_string(), request_id: query.request_id().to_owned() });
        }
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
        let known = pairs.filter(|(name, _)| is_known_parameter(name));
        let text = form_urlencoded::Serializer::new(String::new()).extend_pairs(known).finish();
        Ok(Self { text, request_id: request_id(query) })
    }
}

impl Operation {
    /// Whether it is one of the SQL API or of the REST interfaces, where a refusal is an error of HTTP.
    pub fn is_of_api(&self) -> bool {
        matches!(self, Self::ApiStatement | Self::ApiResult(_) | Self::ApiCancel(_)) || self.is_of_rest()
    }

    /// Whether it is one of the REST interfaces beside the SQL API.
    pub fn is_of_rest(&self) -> bool {
        matches!(self, Self::Rest(_) | Self::RestResult(_))
    }

    /// The query that it is about, where it is about one that was asked for before.
    pub fn query(&self) -> Option<&QueryId> {
        match self {
            Self::Result(query)
            | Self::AbortQuery(query)
            | Self::Monitor(query)
            | Self::ApiResult(query)
            | Self::ApiCancel(query) => Some(query),
            _ => None,
        }
    }

    /// The same about another query.
    #[must_use]
    pub fn about(self, other: QueryId) -> Self {
        match self {
            Self::Result(_) => Self::Result(other),
            Self::AbortQuery(_) => Self::AbortQuery(other),
            Self::Monitor(_) => Self::Monitor(other),
            Self::ApiResult(_) => Self::ApiResult(other),
            Self::ApiCancel(_) => Self::ApiCancel(other),
            about_none => about_none,
        }
    }

    /// For records.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Login => "login",
            Self::Renew => "renew",
            Self::Heartbeat => "heartbeat",
            Self::CloseSession => "close_session",
            Self::Query => "query",
            Self::Result(_) => "result",
            Self::Abort | Self::AbortQuery(_) => "abort",
            Self::Monitor(_) => "monitor",
            Self::Part(_) => "part",
            Self::Upload(_) => "upload",
            Self::FileHead(_) => "file_head",
            Self::Download(_) => "download",
            Self::Telemetry | Self::SessionlessTelemetry => "telemetry",
            Self::ApiStatement => "api_statement",
            Self::ApiResult(_) => "api_result",
            Self::ApiCancel(_) => "api_cancel",
            Self::Rest(_) => "rest",
            Self::RestResult(_) => "rest_result",
        }
    }

    /// The method to ask upstream with.
    pub fn method(&self) -> Method {
        match self {
            Self::Rest(call) => call.method(),
            Self::Result(_) | Self::Monitor(_) | Self::Part(_) | Self::ApiResult(_) | Self::RestResult(_) => {
                Method::GET
            }
            _ => Method::POST,
        }
    }

    /// Whether it carries a statement, which goes upstream only when it is recorded.
    pub fn carries_a_statement(&self) -> bool {
        matches!(self, Self::Query | Self::ApiStatement | Self::Rest(_))
    }

    /// The path to ask upstream. It is built here, so that no spelling of the client's gets there.
    pub fn path(&self) -> String {
        match self {
            Self::Login => "/session/v1/login-request".into(),
            Self::Renew => "/session/token-request".into(),
            Self::Heartbeat => "/session/heartbeat".into(),
            Self::CloseSession => "/session".into(),
            Self::Query => "/queries/v1/query-request".into(),
            Self::Result(QueryId(id)) => format!("/queries/{id}/result"),
            Self::Abort => "/queries/v1/abort-request".into(),
            Self::AbortQuery(QueryId(id)) => format!("/queries/{id}/abort-request"),
            Self::Monitor(QueryId(id)) => format!("/monitoring/queries/{id}"),
            Self::Part(name) => format!("{PARTS}{name}"),
            Self::Upload(name) | Self::FileHead(name) | Self::Download(name) => format!("{FILES}{name}"),
            Self::Telemetry => "/telemetry/send".into(),
            Self::SessionlessTelemetry => "/telemetry/send/sessionless".into(),
            Self::ApiStatement => API.into(),
            Self::ApiResult(QueryId(id)) => format!("{API}/{id}"),
            Self::ApiCancel(QueryId(id)) => format!("{API}/{id}/cancel"),
            Self::Rest(call) => call.path(),
            Self::RestResult(handle) => results::path(handle),
        }
    }
}

impl QueryId {
    pub fn parse(text: &str) -> Option<Self> {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        ((16..=64).contains(&text.len()) && text.bytes().all(valid)).then(|| Self(text.to_ascii_lowercase()))
    }

    /// An identifier of the agent's own.
    pub fn of(id: Uuid) -> Self {
        Self(id.to_string())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn deletes(query: Option<&str>) -> bool {
    query.is_some_and(|query| query.split('&').any(|pair| pair == "delete=true"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn post(target: &str) -> Result<Operation, UnknownOperation> {
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        classify(&Method::POST, path, query)
    }

    #[test]
    fn the_drivers_requests_are_known() {
        let id = QueryId::parse("01b1c2d3-0000-1111-2222-333344445555").unwrap();
        assert_eq!(post("/session/v1/login-request?requestId=1"), Ok(Operation::Login));
        assert_eq!(post("/session?delete=true&requestId=1"), Ok(Operation::CloseSession));
        assert_eq!(
            classify(&Method::GET, "/monitoring/queries//01b1c2d3-0000-1111-2222-333344445555", None),
            Ok(Operation::Monitor(id.clone()))
        );
        assert_eq!(Operation::Monitor(id).path(), "/monitoring/queries/01b1c2d3-0000-1111-2222-333344445555");
    }

    #[test]
    fn of_the_query_string_only_what_is_known_goes_upstream() {
        let query = "requestId=1-2&token=secret&roleName=X&request_guid=3&sqlText=drop&delete=true";
        let known = |query| KnownQuery::parse(&Operation::Query, query).unwrap();
        assert_eq!(known(Some(query)).text, "requestId=1-2&request_guid=3&delete=true");
        assert_eq!(known(Some(query)).request_id, "1-2");
        assert_eq!(known(None).text, "");
    }

    #[test]
    fn the_sql_api_is_known() {
        let id = QueryId::parse("01b1c2d3-0000-1111-2222-333344445555").unwrap();
        let path = format!("/api/v2/statements/{}", id.as_str());
        let get = classify(&Method::GET, &path, Some("partition=1")).unwrap();
        assert_eq!(get, Operation::ApiResult(id.clone()));
        assert_eq!((get.method(), get.path()), (Method::GET, path.clone()));
        assert_eq!(post("/api/v2/statements?async=true"), Ok(Operation::ApiStatement));
        let cancel = post(&format!("{path}/cancel")).unwrap();
        assert_eq!((cancel.path(), &cancel), (format!("{path}/cancel"), &Operation::ApiCancel(id)));
        assert!(cancel.is_of_api() && Operation::ApiStatement.carries_a_statement());
        assert!(classify(&Method::DELETE, &path, None).is_err());
    }

    #[test]
    fn results_that_come_later_are_asked_for_by_their_handle() {
        let id = QueryId::parse("01b1c2d3-0000-1111-2222-333344445555").unwrap();
        let path = format!("/api/v2/results/{}", id.as_str());
        let get = classify(&Method::GET, &path, None).unwrap();
        assert_eq!((&get, get.method(), get.path()), (&Operation::RestResult(id), Method::GET, path.clone()));
        assert!(get.is_of_api() && !get.carries_a_statement());
        assert_eq!(KnownQuery::parse(&get, Some("page=1")).unwrap().text, "page=1");
        for (method, path) in [
            (Method::POST, path.clone()),
            (Method::GET, format!("{path}:x")),
            (Method::GET, "/api/v2/results".into()),
        ] {
            assert!(classify(&method, &path, None).is_err(), "{method} {path}");
        }
    }

    #[test]
    fn an_mcp_server_is_posted_to() {
        let server = "/api/v2/databases/d/schemas/s/mcp-servers/m";
        assert!(matches!(post(server), Ok(Operation::Rest(call)) if call.is_mcp()));
        for method in [Method::GET, Method::DELETE, Method::PUT, Method::HEAD] {
            let unknown = classify(&method, server, None).unwrap_err();
            assert_eq!(unknown.takes, Some("POST"), "{method}");
        }
        assert_eq!(classify(&Method::GET, "/api/v2/nothing", None).unwrap_err().takes, None);
    }

    #[test]
    fn what_looks_like_one_is_not() {
        for target in [
            "/session",
            "/session?delete=false",
            "/Session/v1/login-request",
            "/queries/v1/query-request/",
            "/queries/v1/query%2drequest",
            "/queries/v1/../v1/query-request",
            "/queries/v1/query-request;x=1",
            "queries/v1/query-request",
            "/api/v2/unknown",
            "/api/v2/statements/",
            "/api/v2/statements/cancel",
            "/api/v2/statements/0123456789abcdef'--/cancel",
            "/queries/0123456789abcdef'--/abort-request",
            "*",
            "",
        ] {
            assert!(post(target).is_err(), "{target}");
        }
        assert!(classify(&Method::PUT, "/queries/v1/query-request", None).is_err());
    }
}
