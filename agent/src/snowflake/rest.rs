//! Snowflake's REST interfaces beside the SQL API (`/api/v2/…`): objects, the Cortex services, managed MCP servers. What
//! a call does, judged from its method and path; where that does not tell, it is opaque.
//!
//! Sources: Snowflake's documentation of the REST APIs, of Cortex and of managed MCP servers.

use std::fmt::Write;

use hyper::Method;
use percent_encoding::percent_decode_str;
use serde_json::value::RawValue;

use super::actions::action;
use super::json::{self, Malformed};
use crate::sql::{Access, Action, Classification, Effect, Feature, Object, ObjectKind, classify};

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
const PARAMETERS: [&str; 29] = [
    "asyncExec",
    "comment",
    "copyGrants",
    "createMode",
    "deep",
    "fromLast",
    "fromName",
    "history",
    "ifExists",
    "ignore_edition_check",
    "kind",
    "like",
    "mode",
    "modified_after",
    "newTableName",
    "pattern",
    "requestId",
    "retryLast",
    "rootOnly",
    "rowLimit",
    "showLimit",
    "startsWith",
    "target",
    "targetDatabase",
    "targetName",
    "targetSchema",
    "targetTableName",
    "version",
    "withLineage",
];
/// The query parameters that name the other object of an action.
const TARGETS: [&str; 3] = ["newTableName", "targetName", "targetTableName"];
/// The modes of creation that replace nothing.
const HARMLESS_MODES: [&str; 2] = ["errorIfExists", "ifNotExists"];

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

/// What comes with a call, as far as it is read: nothing, an object or, with some actions, a list of objects.
#[derive(Debug, Default)]
pub struct RestBody(Vec<json::Object>);

impl RestBody {
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        match serde_json::from_slice::<Vec<&RawValue>>(bytes) {
            Ok(list) => {
                list.iter().map(|one| json::Object::parse(one.get().as_bytes())).collect::<Result<_, _>>()
            }
            Err(_) => json::Object::parse(bytes).map(|one| vec![one]),
        }
        .map(Self)
    }

    fn name(&self) -> Option<String> {
        let [object] = self.0.as_slice() else { return None };
        object.field("name")
    }
}

/// What kind of answerer is behind a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Objects, as rows of a table.
    Objects,
    /// Something that is done with one, as SQL says it.
    Action(&'static str),
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
            // What another method is for is the server's affair, or the object's: it could be read in two ways.
            (method, ["databases", _, "schemas", _, "mcp-servers", _], None) => {
                (method == "POST").then_some(Family::Mcp)?
            }
            ("GET" | "POST" | "PUT" | "DELETE", [..], None) if are_objects(&words) => Family::Objects,
            (.., Some(verb)) if are_objects(words.get(..words.len() / 2 * 2)?) => {
                Family::Action(action(method, &words, verb)?)
            }
            _ => return None,
        };
        let (method, verb) = (method.clone(), verb.map(ToOwned::to_owned));
        Some(Self { method, segments, verb, family })
    }

    /// Whether a path is that of an MCP server.
    pub fn is_of_mcp(path: &str) -> bool {
        Self::parse(&Method::POST, path).is_some_and(|call| call.is_mcp())
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

    /// Whether the answer is about objects: a list, a description, what was done with one.
    pub fn is_of_objects(&self) -> bool {
        matches!(self.family, Family::Objects | Family::Action(_))
    }

    /// What the call does. `query` is the query string that goes upstream.
    pub fn classification(&self, query: &str, body: &RestBody) -> Classification {
        let of = |kind, effect, action, access| {
            Classification::of_call(kind, effect, [action], self.object(access))
        };
        match self.family {
            Family::Objects => self.on_objects(query),
            Family::Action(sql) => self.by_sql(sql, query, body),
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

    /// What an action does: what the statement that does the same does, with the names of the request.
    fn by_sql(&self, sql: &str, query: &str, body: &RestBody) -> Classification {
        let one = self.collection().map_or("OBJECT", |(_, one, _)| one);
        if sql.is_empty() {
            let verb = self.verb.as_deref().unwrap_or_default().to_uppercase();
            let object = self.object(Access::Execute);
            return Classification::of_call(
                &format!("REST {verb} {one}"),
                Effect::Opaque,
                [Action::Execute],
                object,
            );
        }
        let mut sql = sql.replace("{}", one);
        if replaces(query) {
            sql = sql.replacen("CREATE", "CREATE OR REPLACE", 1);
        }
        let mut classification = classify(&sql);
        for statement in &mut classification.statements {
            let mut unknown = None;
            for object in &mut statement.objects {
                object.name = match object.name.as_str() {
                    "X" => self.names().join("."),
                    _ => self.target(query, body).unwrap_or_else(|| {
                        unknown = Some(Feature::UnknownObject);
                        "?".to_owned()
                    }),
                };
            }
            statement.text = 0..0;
            statement.features.retain(|feature| *feature != Feature::Unparsed);
            statement.features.extend(unknown);
            // What its parameters and its body say besides is a language of its own, like that of what creates.
            if self.method != Method::GET {
                statement.effect = statement.effect.worse(Effect::Opaque);
            }
            classification.effect = statement.effect;
        }
        classification
    }

    /// The other object that an action is about, if the request names it in one way.
    fn target(&self, query: &str, body: &RestBody) -> Option<String> {
        let value = |name: &&str| value(query, name);
        let mut given = TARGETS.iter().filter_map(value).chain(body.name());
        let (name, None) = (given.next()?, given.next()) else { return None };
        let mut names = self.names();
        *names.last_mut()? = one_name(&name)?;
        let places = [("targetDatabase", 0), ("targetSchema", 1)];
        for (parameter, at) in places {
            let Some(place) = value(&parameter) else { continue };
            // Behind the places comes the name itself.
            let is_place = at + 1 < names.len();
            *names.get_mut(at).filter(|_| is_place)? = one_name(&place)?;
        }
        Some(names.join("."))
    }

    fn on_objects(&self, query: &str) -> Classification {
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
            ("POST", false) if replaces(query) => {
                let kind = format!("REST POST {one}");
                let actions = [Action::Create, Action::Replace];
                let object = self.object(Access::Create);
                Classification::of_call(&kind, Effect::Destructive, actions, object).with(Feature::OrReplace)
            }
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
        let names = self.names();
        let kind = match self.collection()? {
            (_, FILE, _) => ObjectKind::Stage,
            (_, _, kind) if self.segments.len().is_multiple_of(2) => kind,
            _ => ObjectKind::Unknown,
        };
        let prefix = if kind == ObjectKind::Stage { "@" } else { "" };
        let name = if names.is_empty() { "?".to_owned() } else { format!("{prefix}{}", names.join(".")) };
        Some(Object { name, kind, access })
    }

    /// The names of the object and of what it lies in.
    fn names(&self) -> Vec<String> {
        self.pairs().filter_map(|(_, name)| name).map(identifier).collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.segments
            .chunks(2)
            .filter_map(|pair| Some((pair.first()?.as_str(), pair.get(1).map(String::as_str))))
    }

    /// The collection that the path ends in; of an action, that of the object that it is done with.
    fn collection(&self) -> Option<(&'static str, &'static str, ObjectKind)> {
        let is_action = matches!(self.family, Family::Action(_));
        let (last, _) = self.pairs().filter(|(_, name)| name.is_some() || !is_action).last()?;
        COLLECTIONS.into_iter().find(|(collection, ..)| *collection == last)
    }
}

/// Whether what is created takes the place of what is there.
fn replaces(query: &str) -> bool {
    value(query, "createMode").is_some_and(|mode| !HARMLESS_MODES.contains(&mode.as_str()))
}

/// The value of a query parameter; none has two.
fn value(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(known, _)| known == name).map(|(_, value)| value.into_owned())
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

/// A name that a parameter or a body gives, if it is one and not several with dots between them.
fn one_name(name: &str) -> Option<String> {
    let quoted = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
    let is_one = match quoted {
        Some(name) => !name.is_empty() && !name.contains('"'),
        None => !name.is_empty() && name.chars().all(|it| it.is_alphanumeric() || matches!(it, '_' | '$')),
    };
    is_one.then(|| identifier(name))
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
mod tests;
