//! The register of held statements, without clients.

use super::*;
use crate::audit::{Journal, Verdict, samples};
use crate::identity::Principal;

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
        let settings =
            config::Approvals { groups: vec!["stewards".to_owned()], issuer: None, wait: 15 * MINUTE };
        let principal = Principal::sample(samples::caller());
        let session =
            Session { id: Uuid::now_v7(), principal, account: "acme".to_owned(), role: String::new() };
        Self { approvals: Approvals::new(Some(settings)), journal, session, _directory: directory }
    }

    async fn hold(&self, request_id: &str) -> Uuid {
        let record = samples::statement(self.session.id, "update t set a = 1", Verdict::Hold);
        let about = Arc::new(HeldStatement::of(&record, String::new(), self.approvals.wait()));
        let id = about.id;
        self.approvals.reserve(&about, &self.session, &Operation::Query, request_id).unwrap();
        let recorded = self.journal.append_statement(record).await.unwrap();
        let request = HeldRequest {
            operation: Operation::Query,
            query: String::new(),
            request_id: request_id.to_owned(),
            headers: HeaderMap::new(),
            request: QueryRequest::parse(br#"{"sqlText":"update t set a = 1"}"#).unwrap(),
            started: Instant::now(),
        };
        self.approvals.set(id, State::Waiting(Box::new(Open { about, request, recorded })));
        id
    }

    fn room(&self, cgroup: &str) -> Result<(), NotHeld> {
        let record = samples::statement(self.session.id, "", Verdict::Hold);
        let about =
            HeldStatement { cgroup: cgroup.to_owned(), ..HeldStatement::of(&record, String::new(), MINUTE) };
        self.approvals.reserve(&about, &self.session, &Operation::Query, "")
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
    assert_eq!(bench.approvals.look(id, Instant::now()).await, Found::InProgress);
    assert!(bench.approvals.take(id, Taking::Approved).is_none(), "nobody has approved it");
    let waiting = bench.approvals.look(id, Instant::now() + MINUTE);
    let ((), found) = tokio::join!(bench.approve(id), waiting);
    assert_eq!(found, Found::Approved);
    let taken = bench.approvals.take(id, Taking::Approved).unwrap();
    assert_eq!(taken.open.recorded.verdict(), Verdict::Allow);
    assert_eq!(bench.approvals.peek(id), Found::InProgress);
    assert!(bench.approvals.take(id, Taking::Any).is_none(), "once, and nobody ends what is on its way");
    assert!(bench.approvals.enter(&bench.session).is_none(), "its session waits");
    bench.approvals.set(id, State::Forwarded);
    assert!(bench.approvals.enter(&bench.session).is_some());
}

#[tokio::test]
async fn a_statement_is_found_by_its_session_at_its_door() {
    let bench = Bench::new();
    let id = bench.hold("1-a").await;
    let query = crate::snowflake::QueryId::of(id);
    let by_driver = Operation::Result(query.clone());
    assert_eq!(bench.approvals.of_query(&bench.session, &by_driver), Some(id));
    assert_eq!(bench.approvals.of_query(&bench.session, &Operation::ApiResult(query)), None);
    assert_eq!(bench.approvals.of_request(&bench.session, &Operation::Query, "1-A"), Some(id));
    assert_eq!(bench.approvals.of_request(&bench.session, &Operation::ApiStatement, "1-a"), None);
    let other = Session { id: Uuid::now_v7(), ..bench.session.clone() };
    assert_eq!(bench.approvals.of_query(&other, &by_driver), None);
    assert_eq!(bench.approvals.of_request(&other, &Operation::Query, "1-a"), None);
    bench.hold("").await;
    assert_eq!(bench.approvals.of_request(&bench.session, &Operation::Query, ""), None, "none is nobody's");
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
    bench.approvals.set(waits, State::Ended(Refusal::request(String::new())));
    bench.approvals.overdue(now + 30 * MINUTE);
    assert!(!bench.approvals.lock().held.contains_key(&waits), "it is forgotten");
}

#[tokio::test]
async fn what_is_asked_for_and_not_ruled_on_expires() {
    let bench = Bench::new();
    let (waits, approved) = (bench.hold("1").await, bench.hold("2").await);
    bench.approve(approved).await;
    let late = Instant::now() + 16 * MINUTE;
    for one in bench.approvals.lock().held.values_mut() {
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
async fn a_workload_and_a_caller_may_have_so_many_statements_held() {
    let mut bench = Bench::new();
    for _ in 0..MOST_OF_A_WORKLOAD {
        assert_eq!(bench.room("/pods/analyst"), Ok(()));
    }
    assert_eq!(bench.room("/pods/analyst"), Err(NotHeld::TooMany));
    for number in MOST_OF_A_WORKLOAD..MOST_OF_A_CALLER {
        assert_eq!(bench.room(&format!("/pods/{number}")), Ok(()));
    }
    assert_eq!(bench.room("/pods/other"), Err(NotHeld::TooMany), "by whatever workloads");
    for number in MOST_OF_A_CALLER..MOST {
        let caller = Caller { subject: number.to_string(), ..samples::caller() };
        bench.session.principal = Principal::sample(caller);
        assert_eq!(bench.room(&format!("/pods/{number}")), Ok(()));
    }
    bench.session.principal = Principal::sample(Caller::default());
    assert_eq!(bench.room("/pods/last"), Err(NotHeld::TooMany));
}

#[tokio::test]
async fn what_has_ended_is_remembered_for_so_many_of_a_workload() {
    let bench = Bench::new();
    let mut ids = Vec::new();
    for _ in 0..=REMEMBERED_OF_A_WORKLOAD {
        let id = bench.hold("").await;
        bench.approvals.set(id, State::Ended(Refusal::request(String::new())));
        ids.push(id);
    }
    assert_eq!(bench.room("/pods/other"), Ok(()));
    let known = &bench.approvals.lock().held;
    assert_eq!(known.len(), REMEMBERED_OF_A_WORKLOAD + 1);
    assert!(!known.contains_key(&ids[0]) && known.contains_key(&ids[1]));
}

#[tokio::test]
async fn a_session_has_one_statement_under_way_while_one_waits() {
    let bench = Bench::new();
    let own = bench.approvals.enter(&bench.session).unwrap();
    let other = bench.approvals.enter(&bench.session).unwrap();
    assert_eq!(bench.room("/pods/analyst"), Err(NotHeld::SessionBusy));
    drop(other);
    assert_eq!(bench.room("/pods/analyst"), Ok(()));
    assert!(bench.approvals.enter(&bench.session).is_none());
    drop(own);
    assert!(bench.approvals.lock().under_way.is_empty());
}

#[tokio::test]
async fn an_agent_that_ends_holds_nothing_more_and_what_is_stuck_is_given_up() {
    let bench = Bench::new();
    let id = bench.hold("").await;
    bench.approvals.close();
    assert_eq!(bench.room("/pods/other"), Err(NotHeld::Ending));
    let _taken = bench.approvals.take(id, Taking::Any).unwrap();
    assert!(bench.approvals.overdue(Instant::now() + 5 * MINUTE).is_empty());
    assert_eq!(bench.approvals.peek(id), Found::InProgress);
    bench.approvals.overdue(Instant::now() + 7 * MINUTE);
    assert!(matches!(bench.approvals.peek(id), Found::Ended(_)));
}
