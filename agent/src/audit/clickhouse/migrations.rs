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
        name: "tables and trail",
        steps: &[
            Step::Table(tables::FIRST[0]),
            Step::Table(tables::FIRST[1]),
            Step::Table(tables::FIRST[2]),
            Step::Table(tables::FIRST[3]),
            Step::Table(tables::FIRST[4]),
            Step::Table(tables::FIRST[5]),
            Step::View("trail", views::TRAIL),
        ],
    },
    Migration {
        name: "codecs, comments and indexes",
        steps: &[
            Step::Columns("sessions", KEY),
            Step::Columns("statements", KEY),
            Step::Columns("outcomes", KEY),
            Step::Columns("events", KEY),
            Step::Columns("running", KEY),
            Step::Columns("payloads", KEY),
            Step::Columns("sessions", CALLER),
            Step::Columns("statements", CALLER),
            Step::Columns(
                "sessions",
                "id UUID COMMENT 'of the session, by the agent',
                account LowCardinality(String) COMMENT 'host name of the account'",
            ),
            Step::Columns("statements", STATEMENT),
            Step::Columns("outcomes", OUTCOME),
            Step::Columns("events", EVENT),
            Step::Columns("payloads", "id UUID COMMENT 'of the payload, by the agent'"),
            Step::Index("sessions", "by_id", "id", EXACT),
            Step::Index("statements", "by_time", "time", "minmax GRANULARITY 1"),
            Step::Index("statements", "by_id", "id", EXACT),
            Step::Index("statements", "by_session", "session", EXACT),
            Step::Index("statements", "by_object", "objects", EXACT),
            Step::Index("statements", "by_subject", "subject", EXACT),
            Step::Index("statements", "by_cgroup", "cgroup", "set(100) GRANULARITY 1"),
            Step::Index("statements", "by_verdict", "verdict", "set(8) GRANULARITY 1"),
            Step::Index("statements", "by_effect", "effect", "set(16) GRANULARITY 1"),
            Step::Index("statements", "by_role", "role", "set(100) GRANULARITY 1"),
            Step::Index("statements", "by_word", "lower(sql)", "tokenbf_v1(32768, 3, 0) GRANULARITY 1"),
            Step::Index("outcomes", "by_statement", "statement", EXACT),
            Step::Index("outcomes", "by_query", "query_id", EXACT),
            Step::Index("outcomes", "by_status", "status", "set(8) GRANULARITY 1"),
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
            Step::View("volume", views::VOLUME),
            Step::View("new_objects", views::NEW_OBJECTS),
            Step::View("admin_use", views::ADMIN_USE),
            Step::View("bypass_attempts", views::BYPASS_ATTEMPTS),
            Step::View("sessions_at", views::SESSIONS_AT),
        ],
    },
    Migration {
        name: "proof",
        steps: &[
            Step::Columns("statements", PREVIOUS),
            Step::Columns("payloads", PREVIOUS),
            Step::Table(tables::CHECKPOINTS),
        ],
    },
];

const PREVIOUS: &str =
    "previous UInt64 COMMENT 'seq of the record before of the same session, 0 for the first'";

/// Of identifiers and names: one granule in a hundred is read for nothing.
const EXACT: &str = "bloom_filter(0.01) GRANULARITY 1";

const KEY: &str = "
    seq  UInt64 CODEC(Delta(8), ZSTD(1)) COMMENT 'position in that journal, without gaps over all tables',
    time DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)) COMMENT 'by the clock of the host'";

const CALLER: &str = "
    pid        UInt32 COMMENT 'process that opened the connection',
    uid        UInt32 COMMENT 'user of that process',
    comm       LowCardinality(String) COMMENT 'name of that process',
    executable LowCardinality(String) COMMENT 'program of that process',
    groups     Array(LowCardinality(String)) COMMENT 'groups of the subject, by the token'";

const STATEMENT: &str = "
    id       UUID COMMENT 'of the statement, by the agent',
    account  LowCardinality(String) COMMENT 'host name of the account',
    sql      String CODEC(ZSTD(3)) COMMENT 'text, as the client sent it',
    kind     LowCardinality(String) COMMENT 'kind of statement',
    effect   LowCardinality(String) COMMENT 'none, read, session, write, admin, exfiltration, destructive or opaque',
    actions  Array(LowCardinality(String)) COMMENT 'all that it does',
    objects  Array(LowCardinality(String)) COMMENT 'all that it names',
    features Array(LowCardinality(String)) COMMENT 'what is remarkable about it'";

const OUTCOME: &str = "
    rows           Nullable(UInt64) COMMENT 'rows of the result, or that were changed; NULL where Snowflake does not say',
    message        String CODEC(ZSTD(3)) COMMENT 'error, as the client saw it',
    response_bytes UInt64 COMMENT 'bytes of the answer'";

const EVENT: &str = "
    id         UUID COMMENT 'of the event, by the agent',
    kind       LowCardinality(String) COMMENT 'what happened',
    pid        Nullable(UInt32) COMMENT 'process that is the cause',
    uid        Nullable(UInt32) COMMENT 'user of that process',
    comm       LowCardinality(Nullable(String)) COMMENT 'name of that process',
    executable LowCardinality(Nullable(String)) COMMENT 'program of that process',
    subject    LowCardinality(Nullable(String)) COMMENT 'whom the verified token names',
    groups     Array(LowCardinality(String)) COMMENT 'groups of the subject, by the token',
    account    LowCardinality(String) COMMENT 'host name of the account',
    detail     String CODEC(ZSTD(3)) COMMENT 'particulars'";
