//! The register of held statements, without clients.

use super::*;
use crate::audit::{Journal, Verdict, samples};
use crate::identity::Principal;
use crate::sql::classify;

const MINUTE: Duration = Duration::from_mins(1);

struct Bench {
    approvals: Approvals,
    journal: Journal,
    session: Session,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let journal = Journal::open(&directory.path().join("journal.db"), "node").unwrap();
        let settings = config::Approvals { groups: vec!["stewards".to_owned()], wait: 15 * MINUTE };
        let principal = Principal::sample(samples::caller());
        let session =
            Session { id: Uuid::now_v7(), principal, account: "acme".to_owned(), role: String::new() };
        Self { approvals: Approvals::new(Some(settings)), journal, session, _directory: directory }
    }

    async fn hold(&self, request_id: &str) -> Uuid {
        let record = samples::statement(self.session.id, "update t set a = 1", Verdict::Hold);
        let about = HeldStatement::of(&record, "", self.approvals.wait());
        let recorded = self.journal.append_statement(record).await.unwrap();
        let request = HeldRequest {
            operation: Operation::Query,
            query: String::new(),
            request_id: request_id.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            values: String::new(),
            text: "update t set a = 1".to_owned(),
            sql: "update t set a = 1".to_owned(),
            classification: classify("update t set a = 1"),
            local: None,
            started: Instant::now(),
        };
        let id = about.id;
        self.approvals.insert(&self.session, about, request, recorded);
        id
    }

    async fn approve(&self, id: Uuid) {
        let taken = self.approvals.take(id, Taking::Waiting).unwrap();
        let approver = samples::caller();
        let recorded =
            self.journal.append_approval(&taken.open.recorded, &approver, String::new()).await.unwrap();
        self.approvals.set(id, State::Approved(Box::new(Open { recorded, ..*taken.open })));
    }
}

#[tokio::test]
async fn what_is_approved_is_given_to_one_that_asks() {
    let bench = Bench::new();
    let id = bench.hold("1-2").await;
    assert!(matches!(bench.approvals.look(id, Instant::now()).await, Found::InProgress));
    let waiting = bench.approvals.look(id, Instant::now() + MINUTE);
    let ((), found) = tokio::join!(bench.approve(id), waiting);
    let Found::Approved(open) = found else { panic!("it is not told") };
    assert_eq!(open.recorded.verdict(), Verdict::Allow);
    assert!(matches!(bench.approvals.peek(id), Found::InProgress), "once");
    assert!(bench.approvals.take(id, Taking::Any).is_none(), "nobody ends what is on its way");
    let query = QueryId::parse("01b1c2d3-0000-1111-2222-333344445555").unwrap();
    bench.approvals.forwarded(id, Ok(query.clone()));
    let asked = Operation::Result(QueryId::of(id));
    assert_eq!(bench.approvals.resolve(asked), Operation::Result(query));
}

#[tokio::test]
async fn a_statement_is_approved_once_in_the_journal() {
    let bench = Bench::new();
    let id = bench.hold("1-2").await;
    let taken = bench.approvals.take(id, Taking::Waiting).unwrap();
    assert!(bench.approvals.take(id, Taking::Waiting).is_none(), "nobody else rules meanwhile");
    let approve = || {
        bench.journal.append_approval(&taken.open.recorded, bench.session.principal.caller(), String::new())
    };
    approve().await.unwrap();
    approve().await.unwrap_err();
}

#[tokio::test]
async fn what_nobody_waits_for_ends() {
    let bench = Bench::new();
    let (waits, approved) = (bench.hold("1").await, bench.hold("2").await);
    bench.approve(approved).await;
    let now = Instant::now();
    assert!(bench.approvals.overdue(now + MINUTE).is_empty());
    let overdue = bench.approvals.overdue(now + 3 * MINUTE);
    let mut ended: Vec<_> = overdue.iter().map(|(taken, ruled)| (taken.id(), ruled.ruling)).collect();
    ended.sort_by_key(|(id, _)| *id);
    assert_eq!(ended, [(waits, Ruling::Withdrawn), (approved, Ruling::Withdrawn)]);
    assert!(bench.approvals.list().is_empty());
    bench.approvals.overdue(now + 30 * MINUTE);
    assert!(bench.approvals.of_query(&bench.session, &QueryId::of(waits)).is_none(), "it is forgotten");
}

#[tokio::test]
async fn what_is_asked_for_and_not_ruled_on_expires() {
    let bench = Bench::new();
    let (waits, approved) = (bench.hold("1").await, bench.hold("2").await);
    bench.approve(approved).await;
    let late = Instant::now() + 16 * MINUTE;
    for one in bench.approvals.lock().values_mut() {
        one.seen = late;
    }
    let overdue = bench.approvals.overdue(late);
    let [(taken, ruled)] = overdue.as_slice() else { panic!("one of the two") };
    assert_eq!((taken.id(), ruled.ruling), (waits, Ruling::Expired));
    assert!(
        ruled.refusal(&taken.open).message.contains("nobody ruled within 15 min (policy reads, request 1)")
    );
}

#[tokio::test]
async fn a_workload_may_have_so_many_statements_held_and_no_large_ones() {
    let bench = Bench::new();
    let room = |cgroup: &str, bytes| bench.approvals.room(cgroup, bytes);
    assert_eq!(room("/pods/analyst", LARGEST + 1), Err(NotHeld::TooLarge));
    for _ in 0..MOST_OF_A_WORKLOAD {
        assert_eq!(room("/pods/analyst", 10), Ok(()));
        bench.hold("").await;
    }
    assert_eq!(room("/pods/analyst", 10), Err(NotHeld::TooMany));
    assert_eq!(room("/pods/other", 10), Ok(()));
    assert_eq!(Approvals::default().room("/pods/other", 10), Err(NotHeld::NotConfigured));
    assert!(bench.approvals.of_request(&bench.session, "").is_none(), "no identifier is nobody's");
}

#[tokio::test]
async fn what_has_ended_is_remembered_for_so_many() {
    let bench = Bench::new();
    let first = bench.hold("").await;
    bench.approvals.ended(first, Refusal::request(String::new()));
    let one = |number: usize| {
        let seen = Instant::now() + MINUTE;
        let (session, request_id) = (bench.session.id, String::new());
        (
            Uuid::from_u128(number as u128),
            Held { session, request_id, expires: seen, seen, state: State::Busy },
        )
    };
    let more = (1..REMEMBERED_AT_MOST).map(one);
    bench.approvals.lock().extend(more);
    let next = bench.hold("").await;
    let known = bench.approvals.lock();
    assert!(known.len() == REMEMBERED_AT_MOST && known.contains_key(&next) && !known.contains_key(&first));
}
