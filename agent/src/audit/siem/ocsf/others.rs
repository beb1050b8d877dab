//! Sessions, payloads, checkpoints and events.

use serde_json::{Map, Value, json};

use super::{
    Class, Draft, FAILURE, NEW, PRODUCT, SUCCESS, Severity, actor, destination, disposition, put, source,
};
use crate::audit::siem::rows::Row;

const OTHER: u16 = 99;

/// A session that was opened with Snowflake: a logon.
pub(super) fn session(row: &mut Row, node: &str) -> Draft {
    let user = row.text("user").unwrap_or_default();
    let message = format!("{} has a session as {user}", row.peek("subject"));
    let id = row.text("id").unwrap_or_default();
    let issuer = row.peek("issuer").to_owned();
    let mut fields = logon(row, node, &user);
    let mut session = json!({ "uid": id, "issuer": issuer });
    put(&mut session, "uid_alt", row.text("snowflake_session"));
    fields.insert("session".to_owned(), session);
    fields.extend(disposition(true));
    draft(Class::Authentication, (1, "Logon"), Severity::Informational, SUCCESS, message, fields)
}

/// Where a request and its answer are kept.
pub(super) fn payload(row: &mut Row, node: &str) -> Draft {
    let operation = row.text("operation").unwrap_or_else(|| "unknown".to_owned());
    let message = format!("Kept a request ({operation}) and its answer, encrypted");
    let account = row.text("account");
    let fields = super::members(json!({
        "actor": actor(row),
        "src_endpoint": source(row, node),
        "dst_endpoint": destination(account.as_deref()),
        "api": { "operation": operation, "service": { "name": "Snowflake" } },
        // Milliseconds.
        "duration": row.number("duration_us").unwrap_or_default() / 1000,
    }));
    draft(Class::Api, (OTHER, "Keep"), Severity::Informational, SUCCESS, message, fields)
}

/// What the records before it are signed by. Kept where the node cannot change it, it proves that they are what they were.
pub(super) fn checkpoint(row: &mut Row) -> Draft {
    // They are many, and the root stands for them.
    row.text("digests");
    let mut draft = lifecycle((OTHER, "Sign"), Severity::Informational, SUCCESS);
    let numbers = ["first_seq", "last_seq"].map(|column| {
        let number = row.number(column).unwrap_or_default();
        row.leave(column, number);
        number
    });
    draft.message = format!("The records {} to {} are signed", numbers[0], numbers[1]);
    draft
}

/// What happened besides.
pub(super) fn event(row: &mut Row, node: &str) -> Draft {
    let kind = row.text("kind").unwrap_or_default();
    let detail = row.text("detail").unwrap_or_default();
    let info = Severity::Informational;
    let mut draft = match kind.as_str() {
        "agent_started" => lifecycle((3, "Start"), info, SUCCESS),
        "agent_stopped" => lifecycle((4, "Stop"), info, SUCCESS),
        "records_removed" => lifecycle((OTHER, "Remove"), info, SUCCESS),
        "configuration_reloaded" => lifecycle((8, "Update"), info, SUCCESS),
        "configuration_refused" => lifecycle((8, "Update"), Severity::Medium, FAILURE),
        "file_downloaded" => file(row, node, &detail, (2, "Download"), SUCCESS),
        "file_uploaded" => file(row, node, &detail, (1, "Upload"), SUCCESS),
        "transfer_failed" => file(row, node, &detail, (OTHER, "Transfer"), FAILURE),
        "login_refused" | "session_refused" => {
            let user = row.peek("subject").to_owned();
            let user = if user.is_empty() { "unknown" } else { &user };
            let mut fields = logon(row, node, user);
            fields.extend(disposition(false));
            self::draft(Class::Authentication, (1, "Logon"), Severity::Medium, FAILURE, String::new(), fields)
        }
        "session_closed" => {
            let user = row.peek("subject").to_owned();
            let fields = logon(row, node, if user.is_empty() { "unknown" } else { &user });
            self::draft(Class::Authentication, (2, "Logoff"), info, SUCCESS, String::new(), fields)
        }
        "payloads_read" => {
            let fields = super::members(json!({
                "actor": actor(row),
                "src_endpoint": source(row, node),
                "api": { "operation": "read payloads", "service": { "name": PRODUCT } },
            }));
            self::draft(Class::Api, (2, "Read"), Severity::Low, SUCCESS, String::new(), fields)
        }
        _ => finding(row, node, &kind, &detail),
    };
    draft.message = if detail.is_empty() { kind.replace('_', " ") } else { detail };
    row.leave("kind", kind);
    draft
}

fn draft(
    class: Class,
    activity: (u16, &str),
    severity: Severity,
    status: (u16, &'static str),
    message: String,
    fields: Map<String, Value>,
) -> Draft {
    Draft { class, activity: (activity.0, activity.1.to_owned()), severity, status, message, fields }
}

/// Of the agent itself.
fn lifecycle(activity: (u16, &str), severity: Severity, status: (u16, &'static str)) -> Draft {
    let app = json!({ "name": PRODUCT, "vendor_name": PRODUCT, "version": env!("CARGO_PKG_VERSION") });
    let fields = Map::from_iter([("app".to_owned(), app)]);
    draft(Class::ApplicationLifecycle, activity, severity, status, String::new(), fields)
}

fn logon(row: &mut Row, node: &str, user: &str) -> Map<String, Value> {
    let account = row.text("account");
    super::members(json!({
        "actor": actor(row),
        "src_endpoint": source(row, node),
        "dst_endpoint": destination(account.as_deref()),
        "service": { "name": "Snowflake" },
        "user": { "name": user },
        "auth_protocol": "OAUTH 2.0",
        "auth_protocol_id": 6,
    }))
}

fn file(
    row: &mut Row,
    node: &str,
    detail: &str,
    activity: (u16, &str),
    status: (u16, &'static str),
) -> Draft {
    const REGULAR: u16 = 1;
    let account = row.text("account");
    // What was moved stands first.
    let what = detail.split(": ").next().unwrap_or_default();
    let fields = super::members(json!({
        "actor": actor(row),
        "src_endpoint": source(row, node),
        "dst_endpoint": destination(account.as_deref()),
        "file": { "name": what, "type": "Regular File", "type_id": REGULAR },
    }));
    let severity = if status == SUCCESS { Severity::Informational } else { Severity::Low };
    draft(Class::FileHosting, activity, severity, status, String::new(), fields)
}

/// What somebody should look at.
fn finding(row: &mut Row, node: &str, kind: &str, detail: &str) -> Draft {
    let (severity, is_refused) = judge(kind);
    let account = row.text("account");
    let title = kind.replace('_', " ");
    let mut fields = super::members(json!({
        "finding_info": { "uid": row.text("id"), "title": title, "desc": detail, "types": [kind] },
        "is_alert": severity as u8 >= Severity::Medium as u8,
        "evidences": [{
            "actor": actor(row),
            "src_endpoint": source(row, node),
            "dst_endpoint": destination(account.as_deref()),
        }],
    }));
    if is_refused {
        fields.extend(disposition(false));
    }
    draft(Class::DetectionFinding, (1, "Create"), severity, NEW, String::new(), fields)
}

/// How bad an event is, and whether it is about something that the agent has refused, dropped or ended.
fn judge(kind: &str) -> (Severity, bool) {
    match kind {
        // Ways around the agent.
        "datagram_refused" | "diverted" | "foreign_name" | "host_mismatch" | "name_guarded" | "no_flow"
        | "packet_dropped" | "perimeter_dropped" | "raw_socket_refused" | "tunnel_refused" => {
            (Severity::High, true)
        }
        "malformed_request" | "not_tls" | "request_too_large" | "unknown_operation" | "approval_refused" => {
            (Severity::Medium, true)
        }
        "agent_silent" | "payload_not_kept" => (Severity::High, true),
        "share_used_up" => (Severity::Medium, true),
        "handshake_failed" | "old_connection" => (Severity::Low, true),
        "journal_salvaged" | "record_given_up" | "unrecorded_login" | "unrecorded_statement" => {
            (Severity::High, false)
        }
        "upstream_failed" => (Severity::Low, false),
        // Of a later version.
        _ => (Severity::Medium, false),
    }
}
