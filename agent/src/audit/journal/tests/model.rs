//! The journal against a model in memory.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::audit::samples::{TABLES, any_record};
use crate::audit::{Outcome, Workload};

/// What a sequence of appends, closings and reopenings must leave behind.
#[derive(Default)]
struct Model {
    /// Every identifier that is in the journal, by table, with its `seq`.
    rows: HashMap<(&'static str, Uuid), i64>,
    last_seq: i64,
}

impl Model {
    fn key(record: &Record) -> (&'static str, Uuid) {
        match record {
            Record::Session(session) => ("sessions", session.id),
            Record::Statement(statement) => ("statements", statement.id),
            Record::Approval(approval) => ("approvals", approval.statement),
            Record::Outcome(outcome) => ("outcomes", outcome.statement),
            Record::Event(event) => ("events", event.id),
            Record::Payload(payload) => ("payloads", payload.id),
            Record::Running(running) => ("running", running.statement),
            Record::Checkpoint(checkpoint) => ("checkpoints", Uuid::from_u128(checkpoint.number.into())),
        }
    }

    /// Whether the append must succeed.
    fn append(&mut self, records: &[Record]) -> bool {
        let keys: Vec<_> = records.iter().map(Self::key).collect();
        let unique: HashSet<_> = keys.iter().collect();
        if unique.len() < keys.len() || keys.iter().any(|key| self.rows.contains_key(key)) {
            return false;
        }
        for key in keys {
            self.last_seq += 1;
            self.rows.insert(key, self.last_seq);
        }
        true
    }

    fn settle(&mut self) {
        let mut open: Vec<_> = self
            .rows
            .iter()
            .filter(|((table, id), _)| *table == "statements" && !self.rows.contains_key(&("outcomes", *id)))
            .map(|((_, id), seq)| (*seq, *id))
            .collect();
        open.sort_unstable();
        for (_, id) in open {
            self.last_seq += 1;
            self.rows.insert(("outcomes", id), self.last_seq);
        }
    }
}

fn stored(path: &Path) -> HashMap<(&'static str, Uuid), i64> {
    let mut stored = HashMap::new();
    for (table, column) in TABLES {
        for row in rows(path, &format!("SELECT {column}, seq FROM {table}")) {
            let [Value::Text(id), Value::Integer(seq)] = &row[..] else { panic!("{row:?}") };
            stored.insert((table, Uuid::parse_str(id).unwrap()), *seq);
        }
    }
    stored
}

#[derive(Debug, Clone)]
enum Step {
    Append(Vec<Record>),
    /// Appends the records of an earlier append again.
    Again(usize),
    /// Appends the outcome of an earlier statement.
    End(usize),
    Reopen,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => prop::collection::vec(any_record(), 0..5).prop_map(Step::Append),
        1 => any::<usize>().prop_map(Step::Again),
        3 => any::<usize>().prop_map(Step::End),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn the_journal_equals_its_model(steps in prop::collection::vec(any_step(), 1..24)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        let runtime = runtime();
        let mut journal = Journal::open(&path, "node").unwrap();
        let mut model = Model::default();
        let mut appended: Vec<Vec<Record>> = Vec::new();
        for step in steps {
            let records = match step {
                Step::Append(records) => records,
                Step::Again(index) if !appended.is_empty() => appended[index % appended.len()].clone(),
                Step::End(index) => {
                    let statements: Vec<Uuid> = appended.iter().flatten().filter_map(|record| match record {
                        Record::Statement(statement) => Some(statement.id),
                        _ => None,
                    }).collect();
                    if statements.is_empty() { continue }
                    vec![outcome(statements[index % statements.len()]).into()]
                }
                Step::Again(_) => continue,
                Step::Reopen => {
                    runtime.block_on(journal.close());
                    journal = Journal::open(&path, "node").unwrap();
                    model.settle();
                    continue;
                }
            };
            let expected = model.append(&records);
            let result = runtime.block_on(journal.append(records.clone()));
            prop_assert_eq!(result.is_ok(), expected, "{:?}", result);
            appended.push(records);
        }
        prop_assert_eq!(journal.written().borrow().last_seq, model.last_seq);
        prop_assert_eq!(stored(&path), model.rows);
    }

    #[test]
    fn a_record_comes_back_as_it_was(record in any_record()) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("journal.db");
        runtime().block_on(async {
            let journal = Journal::open(&path, "node").unwrap();
            journal.append(vec![record.clone()]).await.unwrap();
            journal.close().await;
        });
        let row = |sql: &str| rows(&path, sql).remove(0);
        let text = |text: &String| Value::Text(text.clone());
        let list = |list: &Vec<String>| Value::Text(serde_json::to_string(list).unwrap());
        let number = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        match &record {
            Record::Session(session) => prop_assert_eq!(
                row("SELECT time, cgroup, groups, user, client FROM sessions"),
                [Value::Integer(session.time), text(&session.workload.cgroup), list(&session.caller.groups),
                 text(&session.user), text(&session.client)]
            ),
            Record::Statement(statement) => prop_assert_eq!(
                row("SELECT time, sql, objects, features, verdict, describe_only, binds, uid FROM statements"),
                [Value::Integer(statement.time), text(&statement.sql), list(&statement.objects),
                 list(&statement.features), Value::Text(statement.verdict.as_str().to_owned()),
                 Value::Integer(i64::from(statement.describe_only)), number(statement.binds.into()),
                 number(statement.workload.uid.into())]
            ),
            Record::Approval(approval) => prop_assert_eq!(
                row("SELECT time, approver, reason FROM approvals"),
                [Value::Integer(approval.time), text(&approval.approver), text(&approval.reason)]
            ),
            Record::Outcome(Outcome { time, rows, message, duration_us, .. }) => prop_assert_eq!(
                row("SELECT time, rows, message, duration_us FROM outcomes"),
                [Value::Integer(*time), rows.map_or(Value::Null, number), text(message), number(*duration_us)]
            ),
            Record::Event(event) => {
                let workload = |part: fn(&Workload) -> &String| event.workload.as_ref().map_or(Value::Null, |all| text(part(all)));
                prop_assert_eq!(
                    row("SELECT time, cgroup, comm, groups, detail FROM events"),
                    [Value::Integer(event.time), workload(|all| &all.cgroup), workload(|all| &all.comm),
                     event.caller.as_ref().map_or(Value::Null, |caller| list(&caller.groups)), text(&event.detail)]
                );
            }
            Record::Running(running) => prop_assert_eq!(
                row("SELECT time, query_id FROM running"),
                [Value::Integer(running.time), text(&running.query_id)]
            ),
            Record::Checkpoint(checkpoint) => prop_assert_eq!(
                row("SELECT number, root FROM checkpoints"),
                [number(checkpoint.number), text(&checkpoint.root)]
            ),
            Record::Payload(payload) => prop_assert_eq!(
                row("SELECT time, operation, answer_bytes, ending, places FROM payloads"),
                [Value::Integer(payload.time), text(&payload.operation), number(payload.answer_bytes),
                 Value::Text(payload.ending.as_str().to_owned()),
                 Value::Text(serde_json::to_string(&payload.places).unwrap())]
            ),
        }
    }
}
