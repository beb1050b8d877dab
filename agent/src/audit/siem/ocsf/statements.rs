//! Statements, and what became of them.

use serde_json::{Map, Value, json};

use super::{Class, Draft, FAILURE, SUCCESS, Severity, actor, destination, disposition, put, source};
use crate::audit::siem::rows::Row;

/// Characters of a text that stand in what follows a statement: the statement's own event has all of it.
const EXCERPT: usize = 1024;
const OTHER: u16 = 99;

/// A statement with its decision.
pub(super) fn statement(row: &mut Row, node: &str, id: Option<&str>) -> Draft {
    let sql = row.text("sql").unwrap_or_default();
    let mut draft = about(row, node, &sql, sql.clone(), id.unwrap_or_default());
    let is_allowed = row.peek("verdict") == "allow";
    let is_harmful = !matches!(row.peek("effect"), "none" | "read" | "session" | "write");
    draft.severity = match (is_allowed, is_harmful) {
        (true, false) => Severity::Informational,
        (true, true) => Severity::Low,
        (false, false) => Severity::Medium,
        (false, true) => Severity::High,
    };
    draft.status = if is_allowed { (OTHER, "Forwarded") } else { FAILURE };
    draft.message = match row.peek("verdict") {
        "allow" => format!("Allowed {}", draft.message),
        "hold" => format!("Held for a person: {}", draft.message),
        _ => format!("Refused {}", draft.message),
    };
    draft
}

/// What became of a statement that was held for a person.
pub(super) fn approval(row: &mut Row, node: &str, id: Option<&str>) -> Draft {
    let mut draft = follows(row, node, id);
    let ruling = row.peek("ruling").to_owned();
    let is_approved = ruling == "approved";
    (draft.status, draft.severity) =
        if is_approved { (SUCCESS, Severity::Medium) } else { (FAILURE, Severity::Low) };
    draft.fields.extend(disposition(is_approved));
    draft.message = match row.peek("approver") {
        "" => format!("{} {ruling}", draft.message),
        approver => format!("{} {ruling} by {approver}", draft.message),
    };
    let mut fields = Value::Object(draft.fields);
    put(&mut fields, "status_detail", row.text("reason"));
    draft.fields = super::members(fields);
    draft
}

/// How a statement ended.
pub(super) fn outcome(row: &mut Row, node: &str, id: Option<&str>) -> Draft {
    let mut draft = follows(row, node, id);
    let status = row.text("status").unwrap_or_default();
    (draft.status, draft.severity) = match status.as_str() {
        "succeeded" => (SUCCESS, Severity::Informational),
        "failed" => (FAILURE, Severity::Low),
        "refused" => (FAILURE, Severity::Medium),
        _ => ((0, "Unknown"), Severity::Medium),
    };
    draft.fields.extend(disposition(status != "refused"));
    draft.message = format!("{} {status}", draft.message);
    let mut fields = Value::Object(draft.fields);
    put(&mut fields, "status_code", row.text("code"));
    put(&mut fields, "status_detail", row.text("message"));
    // Milliseconds.
    put(&mut fields, "duration", row.number("duration_us").map(|duration| duration / 1000));
    draft.fields = super::members(fields);
    draft
}

/// That Snowflake goes on running a statement.
pub(super) fn running(row: &mut Row, node: &str, id: Option<&str>) -> Draft {
    let mut draft = follows(row, node, id);
    draft.fields.extend(disposition(true));
    draft.status = (OTHER, "Running");
    draft.message = format!("{} is running", draft.message);
    draft
}

fn follows(row: &mut Row, node: &str, id: Option<&str>) -> Draft {
    let sql = row.text("sql").unwrap_or_default();
    let excerpt = match sql.char_indices().nth(EXCERPT) {
        Some((end, _)) => format!("{}…", sql.get(..end).unwrap_or_default()),
        None => sql.clone(),
    };
    let query = row.text("query_id").or_else(|| id.map(ToOwned::to_owned)).unwrap_or_default();
    about(row, node, &sql, excerpt, &query)
}

/// What a statement's events have in common.
fn about(row: &mut Row, node: &str, sql: &str, text: String, query: &str) -> Draft {
    let objects = row.list("objects");
    let kind = row.text("kind").unwrap_or_else(|| "statement".to_owned());
    let account = row.text("account");
    let who = row.peek("subject").to_owned();
    let mut fields = Map::new();
    fields.insert("actor".to_owned(), actor(row));
    fields.insert("src_endpoint".to_owned(), source(row, node));
    fields.insert("dst_endpoint".to_owned(), destination(account.as_deref()));
    if let Some(policy) = row.text("policy") {
        fields.insert("policy".to_owned(), json!({ "name": policy }));
    }
    if !row.peek("verdict").is_empty() {
        fields.extend(disposition(row.peek("verdict") == "allow"));
    }
    let (class, activity) = if let Some((method, path)) = call(sql) {
        let mut api = json!({ "operation": format!("{method} {path}"), "service": { "name": "Snowflake" } });
        put(&mut api, "request", row.text("request_id").map(|id| json!({ "uid": id })));
        let resources: Vec<Value> = objects.iter().map(|name| json!({ "name": name })).collect();
        fields.extend(super::members(json!({
            "api": api,
            "http_request": { "http_method": method, "uid": query },
            "resources": resources,
        })));
        row.leave("request", text);
        (Class::Api, api_activity(&kind))
    } else {
        fields.extend(store(&objects, account.as_deref()));
        fields.insert("query_info".to_owned(), json!({ "query_string": text, "uid": query }));
        if row.table == "statements" {
            row.leave("objects", objects);
        }
        (Class::Datastore, activity(&kind, row.peek("effect")))
    };
    let message = format!("{kind} of {}", if who.is_empty() { "nobody in particular" } else { &who });
    row.leave("kind", kind);
    Draft { class, activity, severity: Severity::Informational, status: SUCCESS, message, fields }
}

/// The method and path, where the text of a statement is a request of the REST interfaces.
fn call(sql: &str) -> Option<(&str, &str)> {
    let (method, target) = sql.lines().next()?.split_once(' ')?;
    let is_call = matches!(method, "GET" | "POST" | "PUT" | "DELETE")
        && target.starts_with("/api/")
        && !target.contains(' ');
    is_call.then(|| (method, target.split('?').next().unwrap_or(target)))
}

/// The first object, as the store that was used; the account where none is named.
fn store(objects: &[Value], account: Option<&str>) -> Map<String, Value> {
    const DATABASE: u16 = 1;
    const BUCKET: u16 = 2;
    const TABLE: u16 = 3;
    let database = |name: &str| json!({ "name": name, "type": "Relational", "type_id": 1 });
    let whole = account.unwrap_or("Snowflake");
    super::members(match objects.first().and_then(Value::as_str) {
        None => json!({ "type_id": DATABASE, "type": "Database", "database": database(whole) }),
        Some(stage) if stage.starts_with('@') => json!({
            "type_id": BUCKET, "type": "Databucket",
            "databucket": { "name": stage, "type": "Stage", "type_id": OTHER },
            "database": database(whole),
        }),
        Some(table) => json!({
            "type_id": TABLE, "type": "Table", "table": { "name": table },
            "database": database(first_of_three(table).unwrap_or(whole)),
        }),
    })
}

/// The database of a name that has one. Dots in quotes do not count.
fn first_of_three(name: &str) -> Option<&str> {
    let mut is_quoted = false;
    let mut dots = name.char_indices().filter(|(_, character)| {
        is_quoted ^= *character == '"';
        *character == '.' && !is_quoted
    });
    let (first, second) = (dots.next()?, dots.next()?);
    (second.0 > first.0).then(|| name.get(..first.0)).flatten()
}

/// By the verb; for several statements in one, by the worst of them.
fn activity(kind: &str, effect: &str) -> (u16, String) {
    let verb = if kind.contains("; ") {
        match effect {
            "read" => "SELECT",
            "write" => "INSERT",
            "destructive" => "DROP",
            _ => "",
        }
    } else {
        kind.split(' ').next().unwrap_or_default()
    };
    let (id, name) = match verb {
        "DESCRIBE" | "EXPLAIN" | "GET" => (1, "Read"),
        "ALTER" | "COMMENT" | "RENAME" | "UPDATE" => (2, "Update"),
        "SELECT" => (4, "Query"),
        "COPY" | "INSERT" | "MERGE" | "PUT" => (5, "Write"),
        "CREATE" | "UNDROP" => (6, "Create"),
        "DELETE" | "DROP" | "REMOVE" | "TRUNCATE" => (7, "Delete"),
        "LIST" | "SHOW" => (8, "List"),
        _ => (OTHER, kind),
    };
    (id, name.to_owned())
}

fn api_activity(kind: &str) -> (u16, String) {
    let (id, name) = match kind.trim_start_matches("REST ").split(' ').next().unwrap_or_default() {
        "CREATE" | "POST" => (1, "Create"),
        "DESCRIBE" | "LIST" | "SHOW" => (2, "Read"),
        "ALTER" | "PUT" => (3, "Update"),
        "DELETE" | "DROP" => (4, "Delete"),
        _ => (OTHER, kind),
    };
    (id, name.to_owned())
}
