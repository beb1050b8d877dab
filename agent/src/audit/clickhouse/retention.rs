//! How long ClickHouse keeps records.

use super::ddl::Target;
use crate::config::RetentionDays;

/// Each table that may have one, with its TTL as ClickHouse prints it; empty for none.
pub(super) fn ttls(days: RetentionDays) -> [(&'static str, String); 8] {
    let RetentionDays { sessions, statements, sensitive_statements, events, payloads } = days;
    let after = |days: Option<u32>| days.map(|days| format!("toDateTime(time) + toIntervalDay({days})"));
    let when = |days, condition| after(days).map(|after| format!("{after} WHERE {condition}"));
    // What belongs to a statement stays as long as any statement may.
    let longest = statements.zip(sensitive_statements).map(|(one, other)| one.max(other));
    let statements = [when(statements, "NOT sensitive"), when(sensitive_statements, "sensitive")];
    [
        ("sessions", after(sessions).unwrap_or_default()),
        ("statements", statements.into_iter().flatten().collect::<Vec<_>>().join(", ")),
        ("approvals", after(sensitive_statements).unwrap_or_default()),
        ("outcomes", after(longest).unwrap_or_default()),
        ("running", after(longest).unwrap_or_default()),
        ("events", after(events).unwrap_or_default()),
        ("payloads", after(payloads).unwrap_or_default()),
        // They are few, and the newer ones follow from them.
        ("checkpoints", String::new()),
    ]
}

/// What gives a table its TTL.
pub(super) fn statement(target: &Target, table: &str, ttl: &str) -> String {
    let change = if ttl.is_empty() { "REMOVE TTL".to_owned() } else { format!("MODIFY TTL {ttl}") };
    format!("ALTER TABLE {}{} {change}", target.stored(table), target.on_cluster())
}

/// The TTL of a table by its `engine_full`; empty for none.
pub(super) fn found(engine: &str) -> &str {
    let ttl = engine.split_once(" TTL ").map_or("", |(_, ttl)| ttl);
    ttl.rsplit_once(" SETTINGS ").map_or(ttl, |(ttl, _)| ttl)
}
