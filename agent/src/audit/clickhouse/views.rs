//! The questions that a security team asks first, as views. Each sees a record once, however often it arrived.

use super::tables::admin_roles;

/// That a statement may have run: it was allowed, or a person approved it.
macro_rules! may_have_run {
    () => {
        "(verdict = 'allow' OR verdict = 'hold' AND id IN (SELECT statement FROM DB.approvals WHERE ruling = 'approved'))"
    };
}

/// The columns of the journal's view of the same name.
pub(super) const TRAIL: &str = "
SELECT s.seq AS seq, s.time AS time, s.node AS node, s.id AS id, s.session AS session, s.request_id AS request_id,
       s.cgroup AS cgroup, s.pid AS pid, s.uid AS uid, s.comm AS comm, s.executable AS executable,
       s.issuer AS issuer, s.subject AS subject, s.groups AS groups, s.account AS account,
       n.rule AS rule, n.client AS client, s.user AS user, s.role AS role, s.sql AS sql, s.kind AS kind,
       s.effect AS effect, s.actions AS actions, s.objects AS objects, s.features AS features,
       s.verdict AS verdict, s.policy AS policy, s.describe_only AS describe_only, s.binds AS binds,
       if(o.status = '', 'open', o.status) AS status, o.rows AS rows, o.query_id AS query_id, o.code AS code,
       o.message AS message, if(o.status = '', NULL, o.duration_us) AS duration_us,
       if(o.status = '', NULL, o.response_bytes) AS response_bytes,
       a.ruling AS ruling, a.approver_issuer AS approver_issuer, a.approver AS approver, a.reason AS reason
FROM DB.statements AS s FINAL
LEFT JOIN DB.outcomes AS o FINAL ON o.statement = s.id
LEFT JOIN DB.sessions AS n FINAL ON n.id = s.session
LEFT JOIN DB.approvals AS a FINAL ON a.statement = s.id";

/// Statements that were allowed or approved, and name an object. The node is asked for because the key begins with it.
pub(super) const ACCESS: &str = concat!(
    "
SELECT s.time AS time, s.issuer AS issuer, s.subject AS subject, s.cgroup AS cgroup, s.node AS node, s.role AS role,
       s.effect AS effect, s.actions AS actions, s.sql AS sql, s.id AS id, s.session AS session,
       if(o.status = '', 'open', o.status) AS status, o.rows AS rows, o.query_id AS query_id
FROM (
    SELECT * FROM DB.statements FINAL
    WHERE has(objects, {object:String}) AND ",
    may_have_run!(),
    " AND time >= now64(6) - toIntervalDay({days:UInt16})
) AS s
LEFT JOIN (
    SELECT statement, status, rows, query_id FROM DB.outcomes FINAL
    WHERE time >= now64(6) - toIntervalDay({days:UInt16}) AND (node, statement) IN (
        SELECT node, id FROM DB.statements
        WHERE has(objects, {object:String}) AND ",
    may_have_run!(),
    " AND time >= now64(6) - toIntervalDay({days:UInt16})
    )
) AS o ON o.statement = s.id"
);

/// All that a workload did, or tried: its statements and the events that name it. `cgroup` is a pattern of LIKE.
pub(super) const ACTIVITY: &str = "
SELECT time, 'statement' AS what, kind, subject, cgroup, verdict, effect, sql AS detail, id
FROM DB.statements FINAL
WHERE cgroup LIKE {cgroup:String} AND time >= now64(6) - toIntervalDay({days:UInt16})
UNION ALL
SELECT time, 'event', kind, coalesce(subject, ''), coalesce(cgroup, ''), '', '', detail, id
FROM DB.events FINAL
WHERE cgroup LIKE {cgroup:String} AND time >= now64(6) - toIntervalDay({days:UInt16})";

/// Refused and held statements, with the policy that said so, what was ruled on it, and what the client was told.
pub(super) const REFUSALS: &str = "
SELECT s.time AS time, s.issuer AS issuer, s.subject AS subject, s.cgroup AS cgroup, s.node AS node,
       s.verdict AS verdict, s.policy AS policy, s.effect AS effect, s.kind AS kind, s.objects AS objects,
       s.features AS features, a.ruling AS ruling, a.approver AS approver, o.message AS message, s.sql AS sql, s.id AS id
FROM (
    SELECT * FROM DB.statements FINAL
    WHERE sensitive AND verdict != 'allow' AND time >= now64(6) - toIntervalDay({days:UInt16})
) AS s
LEFT JOIN (
    SELECT statement, message FROM DB.outcomes FINAL
    WHERE status = 'refused' AND time >= now64(6) - toIntervalDay({days:UInt16})
) AS o ON o.statement = s.id
LEFT JOIN (
    SELECT statement, ruling, approver FROM DB.approvals FINAL
    WHERE time >= now64(6) - toIntervalDay({days:UInt16})
) AS a ON a.statement = s.id";

/// Statements that a person approved, who that was and why, and what came of them; `refused` where the client had gone.
pub(super) const APPROVED: &str = "
SELECT s.time AS time, s.issuer AS issuer, s.subject AS subject, s.cgroup AS cgroup, s.node AS node,
       a.time AS approved, a.approver_issuer AS approver_issuer, a.approver AS approver, a.reason AS reason,
       s.policy AS policy, s.effect AS effect, s.kind AS kind, s.objects AS objects,
       if(o.status = '', 'open', o.status) AS status, o.rows AS rows, o.query_id AS query_id, s.sql AS sql, s.id AS id
FROM (
    SELECT * FROM DB.approvals FINAL
    WHERE ruling = 'approved' AND time >= now64(6) - toIntervalDay({days:UInt16})
) AS a
JOIN (
    SELECT * FROM DB.statements FINAL
    WHERE sensitive AND verdict = 'hold' AND time >= now64(6) - toIntervalDay({days:UInt16} + 1)
) AS s ON s.id = a.statement
LEFT JOIN (
    SELECT statement, status, rows, query_id FROM DB.outcomes FINAL
    WHERE statement IN (SELECT statement FROM DB.approvals WHERE ruling = 'approved')
      AND time >= now64(6) - toIntervalDay({days:UInt16})
) AS o ON o.statement = a.statement";

/// How much each caller took out. What succeeded was allowed, or approved.
pub(super) const VOLUME: &str = "
SELECT issuer, subject, count() AS statements, sum(rows) AS rows, sum(response_bytes) AS response_bytes
FROM DB.outcomes FINAL
WHERE status = 'succeeded' AND time >= now64(6) - toIntervalDay({days:UInt16})
GROUP BY issuer, subject";

/// Objects that a caller named in a statement that was allowed or approved in these days, and never before.
pub(super) const NEW_OBJECTS: &str = concat!(
    "
SELECT issuer, subject, object, min(time) AS first
FROM DB.statements ARRAY JOIN objects AS object
WHERE ",
    may_have_run!(),
    "
GROUP BY issuer, subject, object
HAVING first >= now64(6) - toIntervalDay({days:UInt16})"
);

/// Statements under a role that may administer, or that administer.
pub(super) const ADMIN_USE: &str = concat!(
    "
SELECT time, issuer, subject, cgroup, node, user, role, effect, kind, verdict, policy, objects, sql, id
FROM DB.statements FINAL
WHERE sensitive AND (effect = 'admin' OR role IN ",
    admin_roles!(),
    ") AND time >= now64(6) - toIntervalDay({days:UInt16})"
);

/// Attempts to reach Snowflake otherwise than through the agent.
pub(super) const BYPASS_ATTEMPTS: &str = "
SELECT time, kind, cgroup, comm, executable, subject, node, account, detail, id
FROM DB.events FINAL
WHERE kind IN ('datagram_refused', 'diverted', 'foreign_name', 'host_mismatch', 'name_guarded', 'no_flow', 'not_tls',
               'old_connection', 'packet_dropped', 'perimeter_dropped', 'raw_socket_refused', 'session_refused',
               'tunnel_refused', 'unrecorded_login', 'unrecorded_statement')
  AND time >= now64(6) - toIntervalDay({days:UInt16})";

/// Sessions that were open at a moment: begun before it, in the month before, and with a statement at or after it.
pub(super) const SESSIONS_AT: &str = "
SELECT id, time AS opened, issuer, subject, cgroup, node, user, role, client
FROM DB.sessions FINAL
WHERE time BETWEEN {moment:DateTime64(6, 'UTC')} - toIntervalDay(31) AND {moment:DateTime64(6, 'UTC')}
  AND id IN (
    SELECT session FROM DB.statements
    WHERE time BETWEEN {moment:DateTime64(6, 'UTC')} AND {moment:DateTime64(6, 'UTC')} + toIntervalDay(31)
  )";

/// Journals of which records are missing, among those of these days. What is on its way comes after the last one. A record may be
/// a little older than the one before it: so those of one more day are read.
pub(super) const GAPS: &str = "
SELECT node, journal, first, last,
       last - first + 1 - bitmapCardinality(bitmapSubsetInRange(present, first, last + 1)) AS missing
FROM (
    SELECT node, journal, minIf(seq, time >= now64(6) - toIntervalDay({days:UInt16})) AS first, max(seq) AS last,
           groupBitmapState(seq) AS present
    FROM (
        SELECT node, journal, seq, time FROM DB.sessions WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.statements WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.approvals WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.outcomes WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.events WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.running WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.payloads WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
        UNION ALL SELECT node, journal, seq, time FROM DB.checkpoints WHERE time >= now64(6) - toIntervalDay({days:UInt16} + 1)
    )
    GROUP BY node, journal
)
WHERE first > 0 AND missing > 0";
