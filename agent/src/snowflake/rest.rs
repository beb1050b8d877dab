//! Snowflake's REST interfaces beside the SQL API (`/api/v2/…`): objects, the Cortex services, managed MCP servers. What
//! a call does, judged from its method and path; where that does not tell, it is opaque.
//!
//! Sources: Snowflake's documentation of the REST APIs, of Cortex and of managed MCP servers.

use std::fmt::Write;

use hyper::Method;
use percent_encoding::percent_decode_str;

use super::json::Malformed;
use crate::sql::{Access, Action, Classification, Effect, Feature, Object, ObjectKind};

/// Longer names are none.
const LONGEST_NAME: usize = 255;

/// The collections of objects: in the path, and as SQL calls one of them.
const COLLECTIONS: [(&str, &str, ObjectKind); 36] = [
    ("agents", "AGENT", ObjectKind::Unknown),
    ("alerts", "ALERT", ObjectKind::Alert),
    ("api-integrations", "API INTEGRATION", ObjectKind::Integration),
    ("catalog-integrations", "CATALOG INTEGRATION", ObjectKind::Integration),
    ("compute-pools", "COMPUTE POOL", ObjectKind::ComputePool),
    ("cortex-search-services", "CORTEX SEARCH SERVICE", ObjectKind::Unknown),
    ("database-roles", "DATABASE ROLE", ObjectKind::Role),
    ("databases", "DATABASE", ObjectKind::Database),
    ("dynamic-tables", "DYNAMIC TABLE", ObjectKind::Table),
    ("event-tables", "EVENT TABLE", ObjectKind::Table),
    ("external-volumes", "EXTERNAL VOLUME", ObjectKind::ExternalVolume),
    ("files", FILE, ObjectKind::Unknown),
    ("functions", "FUNCTION", ObjectKind::Function),
    ("grants", "GRANT", ObjectKind::Unknown),
    ("iceberg-tables", "ICEBERG TABLE", ObjectKind::Table),
    ("image-repositories", "IMAGE REPOSITORY", ObjectKind::Repository),
    ("mcp-servers", "MCP SERVER", ObjectKind::Unknown),
    ("network-policies", "NETWORK POLICY", ObjectKind::Policy),
    ("notebooks", "NOTEBOOK", ObjectKind::Notebook),
    ("notification-integrations", "NOTIFICATION INTEGRATION", ObjectKind::Integration),
    ("pipes", "PIPE", ObjectKind::Pipe),
    ("procedures", "PROCEDURE", ObjectKind::Procedure),
    ("roles", "ROLE", ObjectKind::Role),
    ("schemas", "SCHEMA", ObjectKind::Schema),
    ("semantic-views", "SEMANTIC VIEW", ObjectKind::View),
    ("sequences", "SEQUENCE", ObjectKind::Sequence),
    ("services", "SERVICE", ObjectKind::Service),
    ("stages", "STAGE", ObjectKind::Stage),
    ("streams", "STREAM", ObjectKind::Stream),
    ("tables", "TABLE", ObjectKind::Table),
    ("tags", "TAG", ObjectKind::Tag),
    ("tasks", "TASK", ObjectKind::Task),
    ("user-defined-functions", "FUNCTION", ObjectKind::Function),
    ("users", "USER", ObjectKind::User),
    ("views", "VIEW", ObjectKind::View),
    ("warehouses", "WAREHOUSE", ObjectKind::Warehouse),
];
const FILE: &str = "FILE";

/// The query parameters that go upstream.
const PARAMETERS: [&str; 15] = [
    "copyGrants",
    "createMode",
    "deep",
    "fromName",
    "history",
    "ifExists",
    "kind",
    "like",
    "pattern",
    "requestId",
    "rootOnly",
    "rowLimit",
    "showLimit",
    "startsWith",
    "targetSchema",
];

/// A call, as far as its method and path tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestCall {
    method: Method,
    /// Decoded, without what follows the colon.
    segments: Vec<String>,
    /// What follows a colon at the end.
    verb: Option<String>,
    family: Family,
}

/// What kind of answerer is behind a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Objects, as rows of a table.
    Objects,
    /// A language model.
    Inference,
    /// Turns a question into SQL, and runs none.
    Analyst,
    /// Finds rows of a table.
    Search,
    /// Runs what it sees fit to run.
    Agent,
    /// A server for the Model Context Protocol.
    Mcp,
}

impl RestCall {
    /// A call by its path; `None` for what is not known.
    pub fn parse(method: &Method, path: &str) -> Option<Self> {
        let rest = path.strip_prefix("/api/v2/")?;
        let (rest, verb) = match rest.split_once(':') {
            Some((rest, verb)) => (rest, Some(verb)),
            None => (rest, None),
        };
        let segments: Vec<String> = rest.split('/').map(name).collect::<Option<_>>()?;
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let family = match (method.as_str(), words.as_slice(), verb) {
            ("POST", ["cortex", "inference"], Some("complete" | "embed"))
            | ("POST", ["cortex", "v1", "chat", "completions"], None)
            | ("GET", ["cortex", "models"] | ["cortex", "v1", "models"], None) => Family::Inference,
            ("POST", ["cortex", "analyst", "message"], None) => Family::Analyst,
            ("POST", ["cortex", "agent"] | ["databases", _, "schemas", _, "agents", _], Some("run")) => {
                Family::Agent
            }
            ("POST", ["databases", _, "schemas", _, "cortex-search-services", _], Some("query")) => {
                Family::Search
            }
            ("POST", ["databases", _, "schemas", _, "mcp-servers", _], None) => Family::Mcp,
            ("GET" | "POST" | "PUT" | "DELETE", [..], None) if are_objects(&words) => Family::Objects,
            _ => return None,
        };
        let (method, verb) = (method.clone(), verb.map(ToOwned::to_owned));
        Some(Self { method, segments, verb, family })
    }

    pub fn method(&self) -> Method {
        self.method.clone()
    }

    /// The path to ask upstream, each name in one spelling.
    pub fn path(&self) -> String {
        let mut path = String::from("/api/v2");
        for segment in &self.segments {
            path.push('/');
            for byte in segment.bytes() {
                if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
                    path.push(byte.into());
                } else {
                    let _ = write!(path, "%{byte:02X}");
                }
            }
        }
        if let Some(verb) = &self.verb {
            path.push(':');
            path.push_str(verb);
        }
        path
    }

    /// The query string to ask upstream. Of one that is not understood nothing goes: a filter that is left out would give
    /// more than was asked for.
    pub fn query(&self, query: Option<&str>) -> Result<String, Malformed> {
        let mut known = form_urlencoded::Serializer::new(String::new());
        let mut seen: Vec<String> = Vec::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !PARAMETERS.contains(&name.as_ref()) {
                return Err(Malformed::UnknownParameter);
            }
            if seen.iter().any(|other| other == name.as_ref()) || value.len() > LONGEST_NAME {
                return Err(Malformed::UnknownParameter);
            }
            known.append_pair(&name, &value);
            seen.push(name.into_owned());
        }
        Ok(known.finish())
    }

    pub fn is_mcp(&self) -> bool {
        self.family == Family::Mcp
    }

    /// Whether the answer is a list or a description of objects.
    pub fn is_of_objects(&self) -> bool {
        self.family == Family::Objects
    }

    /// What the call does.
    pub fn classification(&self) -> Classification {
        let of = |kind, effect, action, access| {
            Classification::of_call(kind, effect, [action], self.object(access))
        };
        match self.family {
            Family::Objects => self.on_objects(),
            Family::Inference => {
                of("CORTEX INFERENCE", Effect::Read, Action::Call, Access::Read).with(Feature::AiFunction)
            }
            Family::Analyst => {
                of("CORTEX ANALYST", Effect::Read, Action::Call, Access::Read).with(Feature::AiFunction)
            }
            Family::Search => of("CORTEX SEARCH", Effect::Read, Action::Select, Access::Read),
            Family::Agent => {
                of("CORTEX AGENT", Effect::Opaque, Action::Execute, Access::Execute).with(Feature::AiFunction)
            }
            Family::Mcp => of("MCP CALL TOOL", Effect::Opaque, Action::Execute, Access::Execute),
        }
    }

    fn on_objects(&self) -> Classification {
        let one = self.collection().map_or("OBJECT", |(_, one, _)| one);
        let has_name = self.segments.len().is_multiple_of(2);
        let of = |kind: &str, effect, action, access| {
            Classification::of_call(kind, effect, [action], self.object(access))
        };
        match (self.method.as_str(), has_name) {
            ("GET", false) if one == FILE => {
                of("LIST", Effect::Read, Action::List, Access::Read).with(Feature::Stage)
            }
            ("GET", false) => of("SHOW", Effect::Read, Action::Show, Access::Read),
            ("GET", true) => of(&format!("DESCRIBE {one}"), Effect::Read, Action::Describe, Access::Read),
            ("DELETE", _) => of(&format!("DROP {one}"), Effect::Destructive, Action::Drop, Access::Drop),
            // What the body asks for is a language of its own.
            (method, false) => {
                of(&format!("REST {method} {one}"), Effect::Opaque, Action::Create, Access::Create)
            }
            (method, true) => {
                of(&format!("REST {method} {one}"), Effect::Opaque, Action::Alter, Access::Alter)
            }
        }
    }

    /// What the path leads to; of a list, where it is.
    pub fn object(&self, access: Access) -> Option<Object> {
        let names: Vec<String> = self.pairs().filter_map(|(_, name)| name).map(identifier).collect();
        let kind = match self.collection()? {
            (_, FILE, _) => ObjectKind::Stage,
            (_, _, kind) if self.segments.len().is_multiple_of(2) => kind,
            _ => ObjectKind::Unknown,
        };
        let prefix = if kind == ObjectKind::Stage { "@" } else { "" };
        let name = if names.is_empty() { "?".to_owned() } else { format!("{prefix}{}", names.join(".")) };
        Some(Object { name, kind, access })
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.segments
            .chunks(2)
            .filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1).map(String::as_str))))
    }

    fn collection(&self) -> Option<(&'static str, &'static str, ObjectKind)> {
        let (last, _) = self.pairs().last()?;
        COLLECTIONS.into_iter().find(|(collection, ..)| *collection == last)
    }
}

/// Whether it is collection, name, collection, name … Files have no names of one segment, and an address to fetch one by
/// is not given.
fn are_objects(segments: &[&str]) -> bool {
    let is_known = |pair: &[&str]| match pair {
        ["files", _] | [] => false,
        [collection, ..] => COLLECTIONS.iter().any(|(known, ..)| known == collection),
    };
    segments.chunks(2).all(is_known)
}

/// A segment of a path that can be read in one way only.
fn name(segment: &str) -> Option<String> {
    let name = percent_decode_str(segment).decode_utf8().ok()?;
    let is_valid = |character: char| {
        character.is_alphanumeric()
            || matches!(character, '_' | '$' | '-' | '.' | '"' | ' ' | '(' | ')' | ',')
    };
    let is_name = (1..=LONGEST_NAME).contains(&name.len())
        && name.chars().all(is_valid)
        && name.chars().any(|character| !matches!(character, '.' | ' '));
    is_name.then(|| name.into_owned())
}

/// A name as statements are recorded with it: in upper case, unless quotes say otherwise.
fn identifier(name: &str) -> String {
    let Some(quoted) = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) else {
        return name.to_uppercase();
    };
    let is_plain =
        |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'$');
    let starts_plain = quoted.starts_with(|first: char| first.is_ascii_uppercase() || first == '_');
    if starts_plain && quoted.bytes().all(is_plain) { quoted.to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(method: &Method, path: &str) -> Option<(String, Effect, String)> {
        let call = RestCall::parse(method, path)?;
        let classification = call.classification();
        let statement = classification.statements.first()?;
        let object = statement.objects.first().map(|object| object.name.clone()).unwrap_or_default();
        Some((statement.kind.clone(), classification.effect, object))
    }

    #[test]
    fn a_call_is_judged_by_its_method_and_path() {
        let table = "/api/v2/databases/sales/schemas/%22my%20schema%22/tables";
        for (method, path, kind, effect, object) in [
            (Method::GET, "/api/v2/databases", "SHOW", Effect::Read, "?"),
            (Method::GET, table, "SHOW", Effect::Read, r#"SALES."my schema""#),
            (Method::GET, &format!("{table}/t"), "DESCRIBE TABLE", Effect::Read, r#"SALES."my schema".T"#),
            (
                Method::DELETE,
                &format!("{table}/t"),
                "DROP TABLE",
                Effect::Destructive,
                r#"SALES."my schema".T"#,
            ),
            (Method::POST, table, "REST POST TABLE", Effect::Opaque, r#"SALES."my schema""#),
            (Method::PUT, "/api/v2/warehouses/wh", "REST PUT WAREHOUSE", Effect::Opaque, "WH"),
            (Method::GET, "/api/v2/roles/r/grants", "SHOW", Effect::Read, "R"),
            (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files", "LIST", Effect::Read, "@D.S.X"),
            (Method::POST, "/api/v2/cortex/inference:complete", "CORTEX INFERENCE", Effect::Read, ""),
            (Method::POST, "/api/v2/cortex/agent:run", "CORTEX AGENT", Effect::Opaque, ""),
            (
                Method::POST,
                "/api/v2/databases/d/schemas/s/agents/a:run",
                "CORTEX AGENT",
                Effect::Opaque,
                "D.S.A",
            ),
            (
                Method::POST,
                "/api/v2/databases/d/schemas/s/cortex-search-services/docs:query",
                "CORTEX SEARCH",
                Effect::Read,
                "D.S.DOCS",
            ),
        ] {
            let expected = Some((kind.to_owned(), effect, object.to_owned()));
            assert_eq!(judged(&method, path), expected, "{method} {path}");
        }
    }

    #[test]
    fn what_is_not_known_or_could_be_read_in_two_ways_is_no_call() {
        for (method, path) in [
            (Method::GET, "/api/v2/"),
            (Method::GET, "/api/v2/secrets"),
            (Method::GET, "/api/v2/databases/"),
            (Method::GET, "/api/v2/databases//schemas"),
            (Method::GET, "/api/v2/databases/../users"),
            (Method::GET, "/api/v2/databases/%2e%2e/schemas"),
            (Method::GET, "/api/v2/databases/a%2Fb"),
            (Method::GET, "/api/v2/databases/a;b"),
            (Method::GET, "/api/v2/databases/a%3Arun"),
            (Method::GET, "/api/v2/databases/a%00"),
            (Method::GET, "/api/v2/databases/%ff"),
            (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files/a.csv"),
            (Method::GET, "/api/v2/databases/d/schemas/s/stages/x/files/a.csv:presigned-url"),
            (Method::GET, "/api/v2/databases/d/schemas/s/services/x/logs"),
            (Method::POST, "/api/v2/warehouses/wh:suspend"),
            (Method::POST, "/api/v2/users/u/programmatic-access-tokens"),
            (Method::GET, "/api/v2/cortex/inference:complete"),
            (Method::POST, "/api/v2/cortex/inference:other"),
            (Method::PATCH, "/api/v2/databases/d"),
            (Method::HEAD, "/api/v2/databases/d"),
            (Method::POST, "/api/v2/remote-build/execute"),
        ] {
            assert_eq!(RestCall::parse(&method, path), None, "{method} {path}");
        }
    }

    #[test]
    fn upstream_it_is_read_as_here() {
        let path = "/api/v2/databases/a%20b/schemas/%53/functions/f(NUMBER,%20TEXT)";
        let call = RestCall::parse(&Method::GET, path).unwrap();
        let upstream = call.path();
        assert_eq!(upstream, "/api/v2/databases/a%20b/schemas/S/functions/f%28NUMBER%2C%20TEXT%29");
        assert_eq!(RestCall::parse(&Method::GET, &upstream), Some(call.clone()));
        assert_eq!(call.query(Some("like=a%25&showLimit=10")).unwrap(), "like=a%25&showLimit=10");
        assert_eq!(call.query(None).unwrap(), "");
        for query in ["liek=a", "like=a&like=b", "like=a&%6cike=b", "token=x"] {
            assert!(call.query(Some(query)).is_err(), "{query}");
        }
    }
}
