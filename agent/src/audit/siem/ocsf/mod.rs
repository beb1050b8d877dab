//! Records as events of the Open Cybersecurity Schema Framework: one event for each record.
//!
//! An event is found again by `metadata.uid`, which is its own, and `metadata.correlation_uid`, which a statement shares
//! with its outcome. What the schema has no place for is in `unmapped`, under the journal's names.

mod others;
mod statements;

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::rows::Row;

/// The version of the schema.
const VERSION: &str = "1.5.0";
const PRODUCT: &str = "snowfence";

/// A record as it goes to a sink.
#[derive(Clone, Debug)]
pub(in crate::audit) struct Event {
    pub seq: i64,
    pub table: &'static str,
    pub node: String,
    /// ISO 8601, UTC, with microseconds; empty for a time that has no such form.
    pub iso: String,
    /// Microseconds since the epoch.
    pub time: i64,
    pub severity: Severity,
    pub is_authentication: bool,
    /// That a record was given up: if this is, too, nobody is told again.
    pub is_giving_up: bool,
    pub json: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::audit) enum Severity {
    Informational = 1,
    Low,
    Medium,
    High,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Api = 6003,
    ApplicationLifecycle = 6002,
    Authentication = 3002,
    Datastore = 6005,
    DetectionFinding = 2004,
    FileHosting = 6006,
}

/// What a record is mapped to, before what all events have.
struct Draft {
    class: Class,
    activity: (u16, String),
    severity: Severity,
    status: (u16, &'static str),
    message: String,
    fields: Map<String, Value>,
}

const SUCCESS: (u16, &str) = (1, "Success");
const FAILURE: (u16, &str) = (2, "Failure");
const NEW: (u16, &str) = (1, "New");

impl Severity {
    fn name(self) -> &'static str {
        match self {
            Self::Informational => "Informational",
            Self::Low => "Low",
            Self::Medium => "Medium",
            Self::High => "High",
        }
    }
}

impl Class {
    fn name(self) -> &'static str {
        match self {
            Self::Api => "API Activity",
            Self::ApplicationLifecycle => "Application Lifecycle",
            Self::Authentication => "Authentication",
            Self::Datastore => "Datastore Activity",
            Self::DetectionFinding => "Detection Finding",
            Self::FileHosting => "File Hosting Activity",
        }
    }

    fn category(self) -> (u16, &'static str) {
        match self {
            Self::DetectionFinding => (2, "Findings"),
            Self::Authentication => (3, "Identity & Access Management"),
            _ => (6, "Application Activity"),
        }
    }
}

/// Maps a row of the journal with this identifier.
pub(super) fn event(journal: Uuid, mut row: Row) -> Event {
    let (seq, table) = (row.seq, row.table);
    let node = row.text("node").unwrap_or_default();
    let time = row.number("time").unwrap_or_default();
    let iso = row.text("iso").unwrap_or_default();
    let is_giving_up = table == "events" && row.peek("kind") == "record_given_up";
    let correlation = match table {
        "statements" => row.text("id"),
        "approvals" | "outcomes" | "running" => row.text("statement"),
        "payloads" => Some(row.peek("statement").to_owned()).filter(|id| *id != Uuid::nil().to_string()),
        _ => None,
    };
    let draft = match table {
        "statements" => statements::statement(&mut row, &node, correlation.as_deref()),
        "approvals" => statements::approval(&mut row, &node, correlation.as_deref()),
        "outcomes" => statements::outcome(&mut row, &node, correlation.as_deref()),
        "running" => statements::running(&mut row, &node, correlation.as_deref()),
        "sessions" => others::session(&mut row, &node),
        "payloads" => others::payload(&mut row, &node),
        "checkpoints" => others::checkpoint(&mut row),
        _ => others::event(&mut row, &node),
    };
    let Draft { class, activity, severity, status, message, mut fields } = draft;
    let uid = class as u32;
    let type_name = format!("{}: {}", class.name(), activity.1);
    let (category, category_name) = class.category();
    let mut metadata = json!({
        "version": VERSION,
        "product": { "name": PRODUCT, "vendor_name": PRODUCT, "version": env!("CARGO_PKG_VERSION") },
        "profiles": ["security_control"],
        "log_name": table,
        "uid": format!("{node}/{journal}/{seq}"),
        "sequence": seq,
    });
    put(&mut metadata, "original_time", (!iso.is_empty()).then_some(iso.as_str()));
    put(&mut metadata, "correlation_uid", correlation);
    fields.extend(members(json!({
        "metadata": metadata,
        "category_uid": category,
        "category_name": category_name,
        "class_uid": uid,
        "class_name": class.name(),
        "activity_id": activity.0,
        "activity_name": activity.1,
        "type_uid": uid * 100 + u32::from(activity.0),
        "type_name": type_name,
        "time": time.div_euclid(1000),
        "severity_id": severity as u8,
        "severity": severity.name(),
        "status_id": status.0,
        "status": status.1,
        "message": message,
    })));
    let rest = row.rest();
    if !rest.is_empty() {
        fields.insert("unmapped".to_owned(), rest.into());
    }
    Event {
        seq,
        table,
        node,
        iso,
        time,
        severity,
        is_authentication: class == Class::Authentication,
        is_giving_up,
        json: Value::Object(fields).to_string(),
    }
}

/// The caller and the workload, which are taken from the row. Where the record has neither, it was the agent itself.
fn actor(row: &mut Row) -> Value {
    let (subject, issuer, groups) = (row.text("subject"), row.text("issuer"), row.list("groups"));
    let mut actor = json!({});
    if let Some(subject) = subject {
        let groups: Vec<Value> = groups.into_iter().map(|name| json!({ "name": name })).collect();
        let mut user = json!({ "name": subject, "groups": groups });
        put(&mut user, "domain", issuer.clone());
        put(&mut actor, "user", Some(user));
    }
    if let Some(session) = row.text("session").filter(|session| *session != Uuid::nil().to_string()) {
        let mut session = json!({ "uid": session });
        put(&mut session, "issuer", issuer);
        put(&mut actor, "session", Some(session));
    }
    put(&mut actor, "process", process(row));
    if actor.as_object().is_none_or(Map::is_empty) {
        put(&mut actor, "app_name", Some(PRODUCT));
    }
    actor
}

fn process(row: &mut Row) -> Option<Value> {
    let pid = row.number("pid")?;
    let mut process = json!({ "pid": pid });
    put(&mut process, "name", row.text("comm"));
    if let Some(uid) = row.number("uid") {
        put(&mut process, "user", Some(json!({ "uid": uid.to_string() })));
    }
    if let Some(path) = row.text("executable") {
        const REGULAR: u16 = 1;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        put(
            &mut process,
            "file",
            Some(json!({ "name": name, "path": path, "type": "Regular File", "type_id": REGULAR })),
        );
    }
    let cgroup = row.peek("cgroup");
    if !cgroup.is_empty() {
        put(&mut process, "xattributes", Some(json!({ "cgroup": cgroup })));
    }
    Some(process)
}

/// Where it came from: a cgroup of a node.
fn source(row: &mut Row, node: &str) -> Value {
    let mut source = json!({ "name": node });
    put(&mut source, "uid", row.text("cgroup"));
    source
}

/// Where it went: an account of Snowflake.
fn destination(account: Option<&str>) -> Value {
    let mut destination = json!({ "svc_name": "Snowflake" });
    put(&mut destination, "hostname", account);
    destination
}

/// What the agent did about it.
fn disposition(is_allowed: bool) -> Map<String, Value> {
    members(if is_allowed {
        json!({ "action_id": 1, "action": "Allowed", "disposition_id": 1, "disposition": "Allowed" })
    } else {
        json!({ "action_id": 2, "action": "Denied", "disposition_id": 2, "disposition": "Blocked" })
    })
}

/// Sets a member that is there.
fn put(object: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let (Some(object), Some(value)) = (object.as_object_mut(), value) {
        object.insert(key.to_owned(), value.into());
    }
}

fn members(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
