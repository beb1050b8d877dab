//! The tables in ClickHouse.
//!
//! The key of each ends in (node, journal, seq), which no two records share, so that a record that arrives twice becomes
//! one. It begins with the day, as questions do.

const ENGINE: &str = "ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(time)
ORDER BY (toDate(time), node, journal, seq)
SETTINGS non_replicated_deduplication_window = 1000";

const KEY: &str = "
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

/// What was added to tables later.
const ADDED: [&str; 2] = [
    "statements ADD COLUMN IF NOT EXISTS previous UInt64 COMMENT 'seq of the record before of the same session'",
    "payloads ADD COLUMN IF NOT EXISTS previous UInt64 COMMENT 'seq of the record before of the same session'",
];

/// The columns of the journal's view of the same name.
const TRAIL: &str = "
SELECT s.seq AS seq, s.time AS time, s.node AS node, s.id AS id, s.session AS session, s.request_id AS request_id,
       s.cgroup AS cgroup, s.pid AS pid, s.uid AS uid, s.comm AS comm, s.executable AS executable,
       s.issuer AS issuer, s.subject AS subject, s.groups AS groups, s.account AS account,
       n.rule AS rule, n.client AS client, s.user AS user, s.role AS role, s.sql AS sql, s.kind AS kind,
       s.effect AS effect, s.actions AS actions, s.objects AS objects, s.features AS features,
       s.verdict AS verdict, s.policy AS policy, s.describe_only AS describe_only, s.binds AS binds,
       if(o.status = '', 'open', o.status) AS status, o.rows AS rows, o.query_id AS query_id, o.code AS code,
       o.message AS message, if(o.status = '', NULL, o.duration_us) AS duration_us,
       if(o.status = '', NULL, o.response_bytes) AS response_bytes
FROM DB.statements AS s FINAL
LEFT JOIN DB.outcomes AS o FINAL ON o.statement = s.id
LEFT JOIN DB.sessions AS n FINAL ON n.id = s.session
SETTINGS join_use_nulls = 0";

/// What creates the database and its tables where they are missing. `database` is an identifier.
pub(super) fn statements(database: &str) -> Vec<String> {
    let table = |name: &str, comment: &str, columns: &[&str]| {
        let columns = columns.concat();
        format!("CREATE TABLE IF NOT EXISTS `{database}`.{name} ({columns}\n)\n{ENGINE}\nCOMMENT '{comment}'")
    };
    let added = ADDED.map(|column| format!("ALTER TABLE `{database}`.{column}"));
    let mut statements = vec![
        format!("CREATE DATABASE IF NOT EXISTS `{database}`"),
        table("sessions", "Sessions with Snowflake; read it with FINAL", &[KEY, WORKLOAD, CALLER, SESSION]),
        table("statements", "Requests to run SQL; read it with FINAL", &[KEY, WORKLOAD, CALLER, STATEMENT]),
        table("outcomes", "How statements ended; read it with FINAL", &[KEY, OUTCOME]),
        table("events", "What else happened; read it with FINAL", &[KEY, EVENT]),
        table(
            "running",
            "Statements that Snowflake went on running after its first answer; read it with FINAL",
            &[KEY, RUNNING],
        ),
        table("payloads", "Where requests and answers are kept, sealed; read it with FINAL", &[KEY, PAYLOAD]),
        table("checkpoints", "What the records were signed by; read it with FINAL", &[KEY, CHECKPOINT]),
        format!(
            "CREATE VIEW IF NOT EXISTS `{database}`.trail AS{}",
            TRAIL.replace("DB.", &format!("`{database}`."))
        ),
    ];
    statements.extend(added);
    statements
}
