//! Records for tests.

use proptest::prelude::*;
use uuid::Uuid;

use super::chain::Checkpoint;
use super::payload::{Ending, Payload, Place};
use super::{
    Approval, Caller, Event, EventKind, Outcome, OutcomeStatus, Record, Ruling, Running, Session, Statement,
    Verdict, Workload,
};

/// The journal's tables, and what identifies a record in each.
pub(super) const TABLES: [(&str, &str); 7] = [
    ("sessions", "id"),
    ("statements", "id"),
    ("approvals", "statement"),
    ("outcomes", "statement"),
    ("events", "id"),
    ("payloads", "id"),
    ("running", "statement"),
];

/// 2026-01-02T03:04:05.678901Z
pub(super) const TIME: i64 = 1_767_323_045_678_901;

pub(crate) fn workload() -> Workload {
    Workload {
        cgroup: "/pods/analyst".to_owned(),
        pid: 4321,
        uid: 1000,
        comm: "python3".to_owned(),
        executable: "/usr/bin/python3.11".to_owned(),
    }
}

pub(crate) fn caller() -> Caller {
    Caller {
        issuer: "https://idp.example".to_owned(),
        subject: "agent-7".to_owned(),
        groups: vec!["analysts".to_owned(), "all \"staff\"".to_owned()],
    }
}

pub(super) fn session() -> Session {
    Session {
        id: Uuid::now_v7(),
        time: TIME,
        workload: workload(),
        caller: caller(),
        account: "acme.snowflakecomputing.com".to_owned(),
        rule: "analysts".to_owned(),
        user: "SVC_AGENTS".to_owned(),
        role: "ANALYST".to_owned(),
        snowflake_session: "1234567890".to_owned(),
        client: "PythonConnector 4.0.0".to_owned(),
    }
}

pub(crate) fn statement(session: Uuid, sql: &str, verdict: Verdict) -> Statement {
    Statement {
        id: Uuid::now_v7(),
        session,
        time: TIME,
        request_id: "6b1f0c1e-request".to_owned(),
        workload: workload(),
        caller: caller(),
        account: "acme.snowflakecomputing.com".to_owned(),
        user: "SVC_AGENTS".to_owned(),
        role: "ANALYST".to_owned(),
        sql: sql.to_owned(),
        kind: "select".to_owned(),
        effect: "read".to_owned(),
        actions: vec!["select".to_owned()],
        objects: vec!["SALES.PUBLIC.ORDERS".to_owned(), "SALES.PUBLIC.\"Odd, name\"".to_owned()],
        features: vec![],
        verdict,
        policy: "reads".to_owned(),
        describe_only: false,
        binds: 2,
    }
}

pub(super) fn approval(statement: Uuid) -> Approval {
    Approval {
        statement,
        time: TIME + 1000,
        ruling: Ruling::Approved,
        approver_issuer: "https://idp.example".to_owned(),
        approver: "kim".to_owned(),
        reason: "month-end correction".to_owned(),
    }
}

pub(super) fn outcome(statement: Uuid) -> Outcome {
    Outcome {
        statement,
        time: TIME + 1500,
        status: OutcomeStatus::Succeeded,
        query_id: "01b2c3d4-0000-query".to_owned(),
        rows: Some(42),
        code: String::new(),
        message: String::new(),
        duration_us: 1500,
        response_bytes: 2048,
    }
}

pub(super) fn event(kind: EventKind) -> Event {
    Event {
        id: Uuid::now_v7(),
        time: TIME,
        kind,
        workload: Some(workload()),
        caller: None,
        account: "acme.snowflakecomputing.com".to_owned(),
        detail: "GET /unknown".to_owned(),
    }
}

pub(super) fn payload(session: Uuid, statement: Uuid) -> Payload {
    Payload {
        id: Uuid::now_v7(),
        session,
        statement,
        query_id: "01b2c3d4-0000-query".to_owned(),
        time: TIME,
        operation: "query".to_owned(),
        request_bytes: 100,
        answer_bytes: 2048,
        sealed_bytes: 900,
        duration_us: 1500,
        ending: Ending::Complete,
        run: Uuid::from_u128(7),
        places: vec![Place { segment: 1, offset: 0, length: 900, micros: None }],
        digest: "00ff".to_owned(),
    }
}

pub(super) fn checkpoint(number: u64) -> Checkpoint {
    Checkpoint {
        node: "node".to_owned(),
        number,
        time: TIME,
        first_seq: 1,
        last_seq: 1,
        root: "ab".repeat(32),
        previous: "00".repeat(32),
        key: "cd".repeat(32),
        signature: "ef".repeat(64),
        digests: "ab".repeat(32),
    }
}

/// Any record, with texts of any kind. An outcome's statement is a random one.
pub(super) fn any_record() -> impl Strategy<Value = Record> {
    let text = || prop_oneof![any::<String>(), Just("\0'\"; DROP TABLE x; --\u{feff}\u{1f409}".to_owned())];
    let texts = move || prop::collection::vec(text(), 0..3);
    let id = || any::<u128>().prop_map(Uuid::from_u128);
    // What ClickHouse's DateTime64(6) can hold: 1900 to 2299.
    let time = || -2_208_988_800_000_000_i64..10_413_791_999_000_000;
    let workload = move || {
        (text(), any::<u32>(), any::<u32>(), text(), text())
            .prop_map(|(cgroup, pid, uid, comm, executable)| Workload { cgroup, pid, uid, comm, executable })
    };
    let caller = move || {
        (text(), text(), texts()).prop_map(|(issuer, subject, groups)| Caller { issuer, subject, groups })
    };
    let verdict = prop_oneof![Just(Verdict::Allow), Just(Verdict::Deny), Just(Verdict::Hold)];
    prop_oneof![
        (id(), time(), workload(), caller(), text(), text()).prop_map(
            |(id, time, workload, caller, user, client)| {
                Record::Session(Session { id, time, workload, caller, user, client, ..session() })
            }
        ),
        (
            (id(), id(), time(), workload(), caller(), text()),
            (texts(), texts(), verdict, any::<bool>(), any::<u32>())
        )
            .prop_map(
                |(
                    (id, session, time, workload, caller, sql),
                    (objects, features, verdict, describe_only, binds),
                )| {
                    Record::Statement(Statement {
                        id,
                        time,
                        workload,
                        caller,
                        objects,
                        features,
                        describe_only,
                        binds,
                        ..statement(session, &sql, verdict)
                    })
                }
            ),
        (id(), time(), text(), text()).prop_map(|(statement, time, approver, reason)| {
            Record::Approval(Approval { time, approver, reason, ..approval(statement) })
        }),
        (id(), time(), any::<Option<u64>>(), text(), any::<u64>()).prop_map(
            |(statement, time, rows, message, duration_us)| {
                Record::Outcome(Outcome { time, rows, message, duration_us, ..outcome(statement) })
            }
        ),
        (id(), time(), prop::option::of(workload()), prop::option::of(caller()), text()).prop_map(
            |(id, time, workload, caller, detail)| {
                Record::Event(Event { id, time, workload, caller, detail, ..event(EventKind::NoFlow) })
            }
        ),
        (id(), time(), text()).prop_map(|(statement, time, query_id)| Record::Running(Running {
            statement,
            time,
            query_id
        })),
        (id(), id(), time(), text(), any::<u64>(), prop::collection::vec((1_u32..9, any::<u32>()), 0..5))
            .prop_map(|(id, statement, time, operation, answer_bytes, places)| {
                let places = places
                    .into_iter()
                    .map(|(segment, length)| {
                        let offset = u64::from(length);
                        Place { segment, offset, length, micros: (segment > 4).then_some(offset) }
                    })
                    .collect();
                Record::Payload(Payload {
                    id,
                    time,
                    operation,
                    answer_bytes,
                    places,
                    ..payload(Uuid::nil(), statement)
                })
            }),
    ]
}
