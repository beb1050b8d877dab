//! The tables in ClickHouse, as the first migration makes them. What came later is in [`super::migrations`].
//!
//! The key of each ends in (node, journal, seq), which no two records share, so that a record that arrives twice becomes
//! one. It begins with the day, as questions do. Sets of words, such as `verdict`, are `LowCardinality` and not `Enum`: it
//! takes as little room, and a word that a newer agent adds does not stop the delivery of any.

use super::ddl::Table;

/// Every record's.
pub(super) const KEY: &str = "
    node    LowCardinality(String) COMMENT 'host that recorded it',
    journal UUID COMMENT 'journal file on that host',
    seq     UInt64 COMMENT 'position in that journal, without gaps over all tables',
    time    DateTime64(6, 'UTC'),";

const WORKLOAD: &str = "
    cgroup     LowCardinality(String) COMMENT 'workload, as the kernel attests it',
    pid        UInt32,
    uid        UInt32,
    comm       LowCardinality(String),
    executable LowCardinality(String),";

const CALLER: &str = "
    issuer  LowCardinality(String) COMMENT 'who vouches for the subject',
    subject LowCardinality(String) COMMENT 'whom the verified token names',
    groups  Array(LowCardinality(String)),";

const SESSION: &str = "
    id                UUID,
    account           LowCardinality(String),
    rule              LowCardinality(String) COMMENT 'rule of the configuration that admitted the caller',
    user              LowCardinality(String) COMMENT 'user in Snowflake',
    role              LowCardinality(String) COMMENT 'role in Snowflake',
    snowflake_session String COMMENT 'identifier of the session in Snowflake',
    client            LowCardinality(String) COMMENT 'what the client says it is'";

const STATEMENT: &str = "
    id            UUID,
    session       UUID COMMENT 'sessions.id',
    request_id    String COMMENT 'identifier of the request, by the client',
    account       LowCardinality(String),
    user          LowCardinality(String) COMMENT 'user in Snowflake',
    role          LowCardinality(String) COMMENT 'role in Snowflake',
    sql           String CODEC(ZSTD(1)),
    kind          LowCardinality(String),
    effect        LowCardinality(String),
    actions       Array(LowCardinality(String)),
    objects       Array(LowCardinality(String)),
    features      Array(LowCardinality(String)),
    verdict       LowCardinality(String) COMMENT 'allow, deny or hold',
    policy        LowCardinality(String) COMMENT 'policy that decided',
    describe_only Bool COMMENT 'only the shape of the result was asked for',
    binds         UInt32 COMMENT 'number of bound values'";

const OUTCOME: &str = "
    statement      UUID COMMENT 'statements.id',
    status         LowCardinality(String) COMMENT 'succeeded, failed, refused or unknown',
    query_id       String COMMENT 'identifier of the query in Snowflake',
    rows           Nullable(UInt64),
    code           LowCardinality(String) COMMENT 'error code',
    message        String CODEC(ZSTD(1)),
    duration_us    UInt64 COMMENT 'microseconds',
    response_bytes UInt64";

const EVENT: &str = "
    id         UUID,
    kind       LowCardinality(String),
    cgroup     LowCardinality(Nullable(String)) COMMENT 'workload, as the kernel attests it; NULL where there is none',
    pid        Nullable(UInt32),
    uid        Nullable(UInt32),
    comm       LowCardinality(Nullable(String)),
    executable LowCardinality(Nullable(String)),
    issuer     LowCardinality(Nullable(String)) COMMENT 'who vouches for the subject; NULL where there is none',
    subject    LowCardinality(Nullable(String)),
    groups     Array(LowCardinality(String)),
    account    LowCardinality(String),
    detail     String CODEC(ZSTD(1))";

const RUNNING: &str = "
    statement UUID COMMENT 'statements.id',
    query_id  String COMMENT 'identifier of the query in Snowflake'";

const PAYLOAD: &str = "
    id            UUID,
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
    digest        String COMMENT 'SHA-256 of the digests of the pieces'";

const CHECKPOINT: &str = "
    number    UInt64 COMMENT 'from 1, without gaps',
    first_seq UInt64 COMMENT 'the first record that it covers',
    last_seq  UInt64,
    root      String COMMENT 'root of the Merkle tree of these records',
    previous  String COMMENT 'digest of the checkpoint before',
    key       LowCardinality(String) COMMENT 'public key of the node (Ed25519)',
    signature String,
    digests   String CODEC(ZSTD(1)) COMMENT 'leaves of the tree'";

/// In the order in which the first migration makes them.
pub(super) const FIRST: [Table; 6] = [
    Table {
        name: "sessions",
        comment: "Sessions with Snowflake; read it with FINAL",
        columns: &[KEY, WORKLOAD, CALLER, SESSION],
    },
    Table {
        name: "statements",
        comment: "Requests to run SQL; read it with FINAL",
        columns: &[KEY, WORKLOAD, CALLER, STATEMENT],
    },
    Table { name: "outcomes", comment: "How statements ended; read it with FINAL", columns: &[KEY, OUTCOME] },
    Table { name: "events", comment: "What else happened; read it with FINAL", columns: &[KEY, EVENT] },
    Table {
        name: "running",
        comment: "Statements that Snowflake went on running after its first answer; read it with FINAL",
        columns: &[KEY, RUNNING],
    },
    Table {
        name: "payloads",
        comment: "Where requests and answers are kept, sealed; read it with FINAL",
        columns: &[KEY, PAYLOAD],
    },
];

/// What the records are signed by.
pub(super) const CHECKPOINTS: Table = Table {
    name: "checkpoints",
    comment: "What the records were signed by; read it with FINAL",
    columns: &[KEY, CHECKPOINT],
};
