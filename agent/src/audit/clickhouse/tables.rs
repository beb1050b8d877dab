//! The tables in ClickHouse, as the first migration makes them.
//!
//! The key of each ends in (node, journal, seq), which no two records share, so that a record that arrives twice becomes
//! one. It begins with the day, as questions do, and with what most questions want a few rows of. Sets of words, such as
//! `verdict`, are `LowCardinality` and not `Enum`: it takes as little room, and a word that a newer agent adds does not stop
//! the delivery of any.

use super::ddl::Table;

/// Snowflake's own roles that may administer.
macro_rules! admin_roles {
    () => {
        "('ACCOUNTADMIN', 'SECURITYADMIN', 'USERADMIN', 'SYSADMIN', 'ORGADMIN', 'GLOBALORGADMIN')"
    };
}
pub(super) use admin_roles;

/// Every record's.
const KEY: &str = "
    node    LowCardinality(String) COMMENT 'host that recorded it',
    journal UUID COMMENT 'journal file on that host',
    seq     UInt64 CODEC(Delta(8), ZSTD(1)) COMMENT 'position in that journal, without gaps over all tables',
    time    DateTime64(6, 'UTC') CODEC(Delta(8), ZSTD(1)) COMMENT 'by the clock of the host',";

const WORKLOAD: &str = "
    cgroup     LowCardinality(String) COMMENT 'workload, as the kernel attests it',
    pid        UInt32 COMMENT 'process that opened the connection',
    uid        UInt32 COMMENT 'user of that process',
    comm       LowCardinality(String) COMMENT 'name of that process',
    executable LowCardinality(String) COMMENT 'program of that process',";

const CALLER: &str = "
    issuer  LowCardinality(String) COMMENT 'who vouches for the subject',
    subject LowCardinality(String) COMMENT 'whom the verified token names',
    groups  Array(LowCardinality(String)) COMMENT 'groups of the subject, by the token',";

const SESSION: &str = "
    id                UUID COMMENT 'of the session, by the agent',
    account           LowCardinality(String) COMMENT 'host name of the account',
    rule              LowCardinality(String) COMMENT 'rule of the configuration that admitted the caller',
    user              LowCardinality(String) COMMENT 'user in Snowflake',
    role              LowCardinality(String) COMMENT 'role in Snowflake',
    snowflake_session String COMMENT 'identifier of the session in Snowflake',
    client            LowCardinality(String) COMMENT 'what the client says it is'";

const STATEMENT: &str = "
    id            UUID COMMENT 'of the statement, by the agent',
    session       UUID COMMENT 'sessions.id',
    request_id    String COMMENT 'identifier of the request, by the client',
    account       LowCardinality(String) COMMENT 'host name of the account',
    user          LowCardinality(String) COMMENT 'user in Snowflake',
    role          LowCardinality(String) COMMENT 'role in Snowflake',
    sql           String CODEC(ZSTD(3)) COMMENT 'text, as the client sent it',
    kind          LowCardinality(String) COMMENT 'kind of statement',
    effect        LowCardinality(String) COMMENT 'none, read, session, write, admin, exfiltration, destructive or opaque',
    actions       Array(LowCardinality(String)) COMMENT 'all that it does',
    objects       Array(LowCardinality(String)) COMMENT 'all that it names',
    features      Array(LowCardinality(String)) COMMENT 'what is remarkable about it',
    verdict       LowCardinality(String) COMMENT 'allow, deny or hold',
    policy        LowCardinality(String) COMMENT 'policy that decided',
    describe_only Bool COMMENT 'only the shape of the result was asked for',
    binds         UInt32 COMMENT 'number of bound values',
    previous      UInt64 COMMENT 'seq of the record before of the same session, 0 for the first',";

/// What is kept longer than the rest, and what most questions are about.
const SENSITIVE: &str = concat!(
    "
    sensitive Bool MATERIALIZED (verdict != 'allow') OR \
    (effect IN ('admin', 'destructive', 'exfiltration', 'opaque')) OR (role IN ",
    admin_roles!(),
    ") COMMENT 'refused, held, administers, destroys, carries data out, is opaque, or its role may administer'"
);

const APPROVAL: &str = "
    statement       UUID COMMENT 'statements.id',
    ruling          LowCardinality(String) COMMENT 'approved, denied, expired or withdrawn',
    approver_issuer LowCardinality(String) COMMENT 'who vouches for the approver; empty where nobody has ruled',
    approver        LowCardinality(String) COMMENT 'whom the token of the approver names',
    reason          String CODEC(ZSTD(3)) COMMENT 'as the approver gave it, or why nobody had to rule'";

const OUTCOME: &str = "
    statement      UUID COMMENT 'statements.id',
    status         LowCardinality(String) COMMENT 'succeeded, failed, refused or unknown',
    query_id       String COMMENT 'identifier of the query in Snowflake',
    rows           Nullable(UInt64) COMMENT 'rows of the result, or that were changed; NULL where Snowflake does not say',
    code           LowCardinality(String) COMMENT 'error code',
    message        String CODEC(ZSTD(3)) COMMENT 'error, as the client saw it',
    duration_us    UInt64 COMMENT 'microseconds',
    response_bytes UInt64 COMMENT 'bytes of the answer',
    issuer         LowCardinality(String) COMMENT 'who vouches for the subject; here from the statement, not part of the proof',
    subject        LowCardinality(String) COMMENT 'whose statement it was; here from the statement, not part of the proof'";

const EVENT: &str = "
    id         UUID COMMENT 'of the event, by the agent',
    kind       LowCardinality(String) COMMENT 'what happened',
    cgroup     LowCardinality(Nullable(String)) COMMENT 'workload, as the kernel attests it; NULL where there is none',
    pid        Nullable(UInt32) COMMENT 'process that is the cause',
    uid        Nullable(UInt32) COMMENT 'user of that process',
    comm       LowCardinality(Nullable(String)) COMMENT 'name of that process',
    executable LowCardinality(Nullable(String)) COMMENT 'program of that process',
    issuer     LowCardinality(Nullable(String)) COMMENT 'who vouches for the subject; NULL where there is none',
    subject    LowCardinality(Nullable(String)) COMMENT 'whom the verified token names',
    groups     Array(LowCardinality(String)) COMMENT 'groups of the subject, by the token',
    account    LowCardinality(String) COMMENT 'host name of the account',
    detail     String CODEC(ZSTD(3)) COMMENT 'particulars'";

const RUNNING: &str = "
    statement UUID COMMENT 'statements.id',
    query_id  String COMMENT 'identifier of the query in Snowflake'";

const PAYLOAD: &str = "
    id            UUID COMMENT 'of the payload, by the agent',
    session       UUID COMMENT 'sessions.id',
    statement     UUID COMMENT 'statements.id; zeros for a request without one',
    query_id      String COMMENT 'identifier of the query in Snowflake; empty for a request about none',
    operation     LowCardinality(String) COMMENT 'what the request asked for',
    request_bytes UInt64 COMMENT 'of the content, as the client sent it, inflated',
    answer_bytes  UInt64 COMMENT 'of the content, as the client got it',
    sealed_bytes  UInt64 COMMENT 'in the spool of the node',
    duration_us   UInt64 COMMENT 'microseconds',
    ending        LowCardinality(String) COMMENT 'complete, truncated, broken or lost',
    run           UUID COMMENT 'folder of the spool',
    places        String CODEC(ZSTD(1)) COMMENT 'where the pieces are in it, as JSON',
    digest        String COMMENT 'SHA-256 of the digests of the pieces',
    previous      UInt64 COMMENT 'seq of the record before of the same session, 0 for the first'";

const CHECKPOINT: &str = "
    number    UInt64 COMMENT 'from 1, without gaps',
    first_seq UInt64 COMMENT 'the first record that it covers',
    last_seq  UInt64,
    root      String COMMENT 'root of the Merkle tree of these records',
    previous  String COMMENT 'digest of the checkpoint before',
    key       LowCardinality(String) COMMENT 'public key of the node (Ed25519)',
    signature String,
    digests   String CODEC(ZSTD(1)) COMMENT 'leaves of the tree'";

pub(super) const SESSIONS: Table = Table {
    name: "sessions",
    comment: "Sessions with Snowflake; read it with FINAL",
    columns: &[KEY, WORKLOAD, CALLER, SESSION],
    apart: None,
};

pub(super) const STATEMENTS: Table = Table {
    name: "statements",
    comment: "Requests to run SQL; read it with FINAL",
    columns: &[KEY, WORKLOAD, CALLER, STATEMENT, SENSITIVE],
    apart: Some("sensitive"),
};

pub(super) const APPROVALS: Table = Table {
    name: "approvals",
    comment: "What became of statements that were held for a person; read it with FINAL",
    columns: &[KEY, APPROVAL],
    apart: None,
};

pub(super) const OUTCOMES: Table = Table {
    name: "outcomes",
    comment: "How statements ended; read it with FINAL",
    columns: &[KEY, OUTCOME],
    apart: Some("status"),
};

pub(super) const EVENTS: Table = Table {
    name: "events",
    comment: "What else happened; read it with FINAL",
    columns: &[KEY, EVENT],
    apart: None,
};

pub(super) const RUNNING_ON: Table = Table {
    name: "running",
    comment: "Statements that Snowflake went on running after its first answer; read it with FINAL",
    columns: &[KEY, RUNNING],
    apart: None,
};

pub(super) const PAYLOADS: Table = Table {
    name: "payloads",
    comment: "Where requests and answers are kept, sealed; read it with FINAL",
    columns: &[KEY, PAYLOAD],
    apart: None,
};

pub(super) const CHECKPOINTS: Table = Table {
    name: "checkpoints",
    comment: "What the records were signed by; read it with FINAL",
    columns: &[KEY, CHECKPOINT],
    apart: None,
};
