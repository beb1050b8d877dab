//! The schema in ClickHouse, as numbered migrations. A new one goes to the end; what was released does not change.

use super::ddl::Step;
use super::{tables, views};

/// What brings the schema from the version before it to its own, which is its place in [`ALL`], from 1.
#[derive(Debug)]
pub(super) struct Migration {
    pub name: &'static str,
    pub steps: &'static [Step],
}

/// The version of the schema that this program writes.
pub(super) fn version() -> u32 {
    u32::try_from(ALL.len()).unwrap_or(u32::MAX)
}

/// All with their versions.
pub(super) fn all() -> impl Iterator<Item = (u32, &'static Migration)> {
    (1..).zip(ALL)
}

const ALL: &[Migration] = &[
    Migration {
        name: "tables",
        steps: &[
            Step::Table(tables::SESSIONS),
            Step::Table(tables::STATEMENTS),
            Step::Table(tables::APPROVALS),
            Step::Table(tables::OUTCOMES),
            Step::Table(tables::EVENTS),
            Step::Table(tables::RUNNING_ON),
            Step::Table(tables::PAYLOADS),
            Step::Table(tables::CHECKPOINTS),
        ],
    },
    Migration {
        name: "indexes",
        steps: &[
            Step::Index("sessions", "by_id", "id", EXACT),
            Step::Index("statements", "by_time", "time", "minmax GRANULARITY 1"),
            Step::Index("statements", "by_id", "id", EXACT),
            Step::Index("statements", "by_session", "session", EXACT),
            Step::Index("statements", "by_object", "objects", EXACT),
            Step::Index("statements", "by_subject", "subject", EXACT),
            Step::Index("statements", "by_cgroup", "cgroup", "set(100) GRANULARITY 1"),
            Step::Index("statements", "by_role", "role", "set(100) GRANULARITY 1"),
            Step::Index("statements", "by_word", "lower(sql)", "tokenbf_v1(32768, 3, 0) GRANULARITY 1"),
            Step::Index("approvals", "by_statement", "statement", EXACT),
            Step::Index("outcomes", "by_statement", "statement", EXACT),
            Step::Index("outcomes", "by_query", "query_id", EXACT),
            Step::Index("events", "by_kind", "kind", "set(100) GRANULARITY 1"),
            Step::Index("events", "by_cgroup", "cgroup", "set(100) GRANULARITY 1"),
            Step::Index("running", "by_statement", "statement", EXACT),
            Step::Index("payloads", "by_session", "session", EXACT),
            Step::Index("payloads", "by_statement", "statement", EXACT),
            Step::Index("payloads", "by_query", "query_id", EXACT),
        ],
    },
    Migration {
        name: "questions",
        steps: &[
            Step::View("trail", views::TRAIL),
            Step::View("access", views::ACCESS),
            Step::View("activity", views::ACTIVITY),
            Step::View("refusals", views::REFUSALS),
            Step::View("approved", views::APPROVED),
            Step::View("volume", views::VOLUME),
            Step::View("new_objects", views::NEW_OBJECTS),
            Step::View("admin_use", views::ADMIN_USE),
            Step::View("bypass_attempts", views::BYPASS_ATTEMPTS),
            Step::View("sessions_at", views::SESSIONS_AT),
            Step::View("gaps", views::GAPS),
        ],
    },
];

/// Of identifiers and names: one granule in a hundred is read for nothing.
const EXACT: &str = "bloom_filter(0.01) GRANULARITY 1";
