//! Statements that are held for a person: whoever asked waits until somebody has ruled.
//!
//! A held statement is recorded before its client hears of it, and a ruling before it has an effect. What is approved goes
//! upstream when its client comes for the result, so what nobody waits for any more never runs. They are kept in memory:
//! an agent that ends forwards none of them, and its successor knows none.

mod ruling;
#[cfg(test)]
mod tests;
mod waiting;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::HeaderMap;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use uuid::Uuid;

use super::Proxy;
use super::sessions::{Owner, Session};
use super::statement::{self, NotHeld};
use crate::audit::{self, Approval, AuditError, Caller, Recorded, Ruling};
use crate::config;
use crate::snowflake::{Operation, QueryRequest, Refusal};

pub use ruling::{ApprovalError, Rule};
pub use waiting::{cancel, hold, in_progress, place, poll};

/// Held statements at a time.
const MOST: usize = 256;
const MOST_OF_A_WORKLOAD: usize = 16;
/// A caller may have several workloads, or make them.
const MOST_OF_A_CALLER: usize = 32;
/// Requests beyond this size are not held, in bytes: nobody reads them. What is kept of one is up to four times that.
const LARGEST: usize = 256 * 1024;
/// A client that did not ask for so long has gone: drivers ask every 16 s at least.
const PATIENCE: Duration = Duration::from_mins(2);
/// For so long, and of so many statements, a client may ask again for what has come of them.
const REMEMBERED: Duration = Duration::from_mins(10);
const REMEMBERED_OF_A_WORKLOAD: usize = 64;
const REMEMBERED_IN_ALL: usize = 1024;
/// Nothing that is being recorded or forwarded takes so long.
const STUCK: Duration = Duration::from_mins(6);
/// When the agent ends, so long it waits for what is being recorded, in steps.
const ENDING: Duration = Duration::from_millis(100);
const ENDING_STEPS: u32 = 50;
/// How often it is looked for what nobody waits for any more.
const INTERVAL: Duration = Duration::from_secs(1);

/// A held statement, as it is shown to whoever is to rule on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldStatement {
    /// The identifier of its record.
    pub id: Uuid,
    /// Microseconds since the Unix epoch, as all times.
    pub time: i64,
    /// When nobody needs to rule any more.
    pub expires: i64,
    /// Somebody has approved it; its client has not come for it yet.
    pub is_approved: bool,
    pub caller: Caller,
    pub cgroup: String,
    pub executable: String,
    pub account: String,
    pub user: String,
    /// At login; by the SQL API, that of the rule.
    pub role: String,
    pub sql: String,
    pub kind: String,
    pub effect: String,
    pub objects: Vec<String>,
    pub features: Vec<String>,
    pub policy: String,
    /// What else the request says that decides on what runs: bound values, parameters, and, by the SQL API, database, schema and
    /// warehouse. JSON, as it was sent.
    pub with: String,
}

/// What goes upstream once it is approved.
pub struct HeldRequest {
    pub operation: Operation,
    /// The query string.
    pub query: String,
    pub request_id: String,
    pub headers: HeaderMap,
    pub request: QueryRequest,
    pub started: Instant,
}

/// The statements that are held.
#[derive(Default)]
pub struct Approvals {
    settings: Option<config::Approvals>,
    register: Mutex<Register>,
    changed: Notify,
}

#[derive(Default)]
struct Register {
    held: HashMap<Uuid, Held>,
    /// How many statements of a session are on their way, without those that were held.
    under_way: HashMap<Uuid, usize>,
    /// The agent ends: nothing is held, and nobody rules, any more.
    is_closed: bool,
}

/// That a statement of a session is on its way.
pub struct UnderWay<'a> {
    approvals: &'a Approvals,
    session: Uuid,
}

struct Held {
    session: Uuid,
    /// The doors have sessions in common.
    is_of_api: bool,
    owner: Owner,
    cgroup: String,
    request_id: String,
    expires: Instant,
    /// When its client last asked for it, or its end was told.
    seen: Instant,
    state: State,
}

enum State {
    /// For a person, with the proof that it is recorded as held.
    Waiting(Box<Open>),
    /// For its client, with the proof that it may be forwarded.
    Approved(Box<Open>),
    /// It, or its ruling, is being recorded, or it is on its way.
    Busy(Instant),
    /// Snowflake has it, under another identifier.
    Forwarded,
    Ended(Refusal),
}

/// All that there is of a statement that waits.
struct Open {
    about: Arc<HeldStatement>,
    request: HeldRequest,
    recorded: Recorded,
}

/// What a client finds that asks for the result.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    InProgress,
    Approved,
    Ended(Refusal),
}

/// A statement that is being ruled on: nobody else rules on it meanwhile.
struct Taken {
    open: Box<Open>,
    is_approved: bool,
}

/// Which statements are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taking {
    /// Those that wait for a person.
    Waiting,
    /// Those that wait for their client.
    Approved,
    Any,
}

/// Why a statement does not run.
struct Ruled {
    ruling: Ruling,
    /// Nobody where there was no need.
    approver: Caller,
    reason: String,
}

impl Proxy {
    /// Ends what nobody waits for any more, or nobody ruled on in time, for as long as the agent lives.
    pub async fn end_overdue(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        loop {
            ticks.tick().await;
            for (taken, ruled) in self.approvals.overdue(Instant::now()) {
                let id = taken.id();
                tracing::info!(%id, ruling = ruled.ruling.as_str(), "a held statement ends: {}", ruled.reason);
                self.end_noted(taken, ruled).await;
            }
        }
    }

    /// Ends all that waits: the agent does.
    pub async fn end_all_held(&self) {
        for _ in 0..ENDING_STEPS {
            let ids = self.approvals.ids(|one| one.state.is_under_way());
            if ids.is_empty() {
                return;
            }
            self.withdraw(ids, "the agent has ended").await;
            tokio::time::sleep(ENDING).await;
        }
    }

    /// Ends what a session waits for.
    pub(super) async fn end_held(&self, session: &Session) {
        let ids = self.approvals.ids(|one| one.session == session.id);
        self.withdraw(ids, "its session was closed").await;
    }

    async fn withdraw(&self, ids: Vec<Uuid>, reason: &str) {
        for id in ids {
            if let Some(taken) = self.approvals.take(id, Taking::Any) {
                self.end_noted(taken, Ruled::nobody(Ruling::Withdrawn, reason)).await;
            }
        }
    }

    async fn end_noted(&self, taken: Taken, ruled: Ruled) {
        if let Err(error) = self.end(taken, ruled).await {
            tracing::error!(%error, "the end of a held statement could not be recorded");
        }
    }

    /// Ends a held statement without forwarding it. Returns what its client is told.
    async fn end(&self, taken: Taken, ruled: Ruled) -> Result<Refusal, AuditError> {
        let id = taken.id();
        let refusal = ruled.refusal(&taken.open);
        let outcome = statement::refused(&refusal, id, taken.open.request.started);
        // What is approved has its ruling.
        let approval = || Approval::new(id, ruled.ruling, &ruled.approver, ruled.reason.clone()).into();
        let approval = (!taken.is_approved).then(approval);
        match self.journal.append(approval.into_iter().chain([outcome.into()]).collect()).await {
            Ok(()) => {
                self.approvals.set(id, State::Ended(refusal.clone()));
                Ok(refusal)
            }
            Err(error) => {
                self.approvals.put_back(taken);
                Err(error)
            }
        }
    }
}

impl Approvals {
    /// Without settings nothing is held.
    pub fn new(settings: Option<config::Approvals>) -> Self {
        Self { settings, ..Self::default() }
    }

    /// Whether somebody may rule on what is held.
    pub fn is_configured(&self) -> bool {
        self.settings.is_some()
    }

    /// From now on nothing is held, and nobody rules: the agent ends.
    pub fn close(&self) {
        self.lock().is_closed = true;
    }

    /// How long a statement waits for a person.
    fn wait(&self) -> Duration {
        self.settings.as_ref().map_or(Duration::ZERO, |settings| settings.wait)
    }

    /// Those that wait, the oldest first.
    pub fn list(&self) -> Vec<HeldStatement> {
        let about = |one: &Held| {
            Some((Arc::clone(&one.state.open()?.about), matches!(one.state, State::Approved(_))))
        };
        // They may be long: they are copied when the lock is free again.
        let open: Vec<_> = self.lock().held.values().filter_map(about).collect();
        let list = open
            .into_iter()
            .map(|(about, is_approved)| HeldStatement { is_approved, ..HeldStatement::clone(&about) });
        let mut list: Vec<_> = list.collect();
        list.sort_by_key(|one| (one.time, one.id));
        list
    }

    /// How many wait for a person.
    pub fn waiting(&self) -> usize {
        self.lock().held.values().filter(|one| matches!(one.state, State::Waiting(_))).count()
    }

    /// Notes that a driver's statement is on its way, on a session that has none that waits or is about to be forwarded.
    pub fn enter(&self, session: &Session) -> Option<UnderWay<'_>> {
        let mut register = self.lock();
        let waits = |one: &Held| one.session == session.id && !one.is_of_api && one.state.is_under_way();
        if register.held.values().any(waits) {
            return None;
        }
        *register.under_way.entry(session.id).or_default() += 1;
        Some(UnderWay { approvals: self, session: session.id })
    }

    /// The held statement of a session that a query's identifier stands for, at the door where it came in.
    pub fn of_query(&self, session: &Session, operation: &Operation) -> Option<Uuid> {
        self.settings.as_ref()?;
        let id: Uuid = operation.query()?.as_str().parse().ok()?;
        let mut register = self.lock();
        let one = register.held.get_mut(&id).filter(|one| one.is_of(session, operation))?;
        one.seen = Instant::now();
        Some(id)
    }

    /// The held statement of a session that was asked for by this request, at the same door.
    pub fn of_request(&self, session: &Session, operation: &Operation, request_id: &str) -> Option<Uuid> {
        // Each statement asks this.
        if self.settings.is_none() || request_id.is_empty() {
            return None;
        }
        let register = self.lock();
        let is_it =
            |one: &Held| one.is_of(session, operation) && one.request_id.eq_ignore_ascii_case(request_id);
        register.held.iter().find(|(_, one)| is_it(one)).map(|(id, _)| *id)
    }

    fn ids(&self, of: impl Fn(&Held) -> bool) -> Vec<Uuid> {
        self.lock().held.iter().filter(|(_, one)| of(one)).map(|(id, _)| *id).collect()
    }

    /// Takes a place for a statement that is about to be recorded.
    fn reserve(
        &self,
        about: &HeldStatement,
        session: &Session,
        operation: &Operation,
        request_id: &str,
    ) -> Result<(), NotHeld> {
        let (now, owner) = (Instant::now(), Owner::of(session));
        let mut register = self.lock();
        let Register { held, under_way, is_closed } = &mut *register;
        if *is_closed {
            return Err(NotHeld::Ending);
        }
        // Its own one is on its way.
        if !operation.is_of_api() && under_way.get(&session.id).is_some_and(|count| *count > 1) {
            return Err(NotHeld::SessionBusy);
        }
        let of_workload = |one: &Held| one.cgroup == about.cgroup;
        let waiting = || held.values().filter(|one| one.state.is_under_way());
        if waiting().count() >= MOST
            || waiting().filter(|one| of_workload(one)).count() >= MOST_OF_A_WORKLOAD
            || waiting().filter(|one| one.owner == owner).count() >= MOST_OF_A_CALLER
        {
            return Err(NotHeld::TooMany);
        }
        let ended = |one: &Held| !one.state.is_under_way();
        forget_oldest(held, REMEMBERED_OF_A_WORKLOAD, |one| ended(one) && of_workload(one));
        forget_oldest(held, REMEMBERED_IN_ALL, ended);
        let one = Held {
            session: session.id,
            is_of_api: operation.is_of_api(),
            owner,
            cgroup: about.cgroup.clone(),
            request_id: request_id.to_owned(),
            expires: now + self.wait(),
            seen: now,
            state: State::Busy(now),
        };
        held.insert(about.id, one);
        Ok(())
    }

    /// It could not be recorded.
    fn give_up(&self, id: Uuid) {
        self.lock().held.remove(&id);
    }

    /// What its client finds; waits for a change until `deadline`.
    async fn look(&self, id: Uuid, deadline: Instant) -> Found {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.peek(id) {
                Found::InProgress => {}
                found => return found,
            }
            if tokio::time::timeout_at(deadline.into(), changed).await.is_err() {
                return Found::InProgress;
            }
        }
    }

    fn peek(&self, id: Uuid) -> Found {
        let mut register = self.lock();
        let Some(one) = register.held.get_mut(&id) else { return Found::InProgress };
        one.seen = Instant::now();
        match &one.state {
            State::Approved(_) => Found::Approved,
            State::Ended(refusal) => Found::Ended(refusal.clone()),
            State::Waiting(_) | State::Busy(_) | State::Forwarded => Found::InProgress,
        }
    }

    /// Takes one that waits.
    fn take(&self, id: Uuid, taking: Taking) -> Option<Taken> {
        self.lock().held.get_mut(&id)?.take(taking)
    }

    /// It could not be ruled on.
    fn put_back(&self, taken: Taken) {
        let waiting = if taken.is_approved { State::Approved } else { State::Waiting };
        self.set(taken.id(), waiting(taken.open));
    }

    /// Takes those that nobody waits for, or nobody ruled on in time, and forgets those that ended long ago.
    fn overdue(&self, now: Instant) -> Vec<(Taken, Ruled)> {
        let mut register = self.lock();
        let held = &mut register.held;
        held.retain(|_, one| one.state.is_under_way() || now.duration_since(one.seen) < REMEMBERED);
        for one in held.values_mut() {
            if matches!(one.state, State::Busy(since) if now.duration_since(since) > STUCK) {
                let lost = "Snowfence has lost what became of this statement";
                one.state = State::Ended(Refusal::answer(lost.to_owned()));
            }
        }
        let overdue = |one: &mut Held| {
            if now.duration_since(one.seen) > PATIENCE {
                let ruled = Ruled::nobody(Ruling::Withdrawn, "its client has gone");
                return Some((one.take(Taking::Any)?, ruled));
            }
            if now < one.expires {
                return None;
            }
            let minutes = self.wait().as_secs() / 60;
            let ruled = Ruled::nobody(Ruling::Expired, &format!("nobody ruled within {minutes} min"));
            Some((one.take(Taking::Waiting)?, ruled))
        };
        held.values_mut().filter_map(overdue).collect()
    }

    fn set(&self, id: Uuid, state: State) {
        if let Some(one) = self.lock().held.get_mut(&id) {
            one.seen = Instant::now();
            one.state = state;
        }
        self.changed.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Register> {
        self.register.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut register = self.approvals.lock();
        let under_way = &mut register.under_way;
        let Some(count) = under_way.get_mut(&self.session) else { return };
        *count -= 1;
        if *count == 0 {
            under_way.remove(&self.session);
        }
    }
}

/// Forgets the oldest of these, where there are so many.
fn forget_oldest(held: &mut HashMap<Uuid, Held>, most: usize, which: impl Fn(&Held) -> bool) {
    let of_these = || held.iter().filter(|(_, one)| which(one));
    if of_these().count() >= most {
        let oldest = of_these().min_by_key(|(_, one)| one.seen).map(|(id, _)| *id);
        oldest.and_then(|id| held.remove(&id));
    }
}

impl Held {
    fn is_of(&self, session: &Session, operation: &Operation) -> bool {
        self.session == session.id && self.is_of_api == operation.is_of_api()
    }

    fn take(&mut self, taking: Taking) -> Option<Taken> {
        let (open, is_approved) = match std::mem::replace(&mut self.state, State::Busy(Instant::now())) {
            State::Waiting(open) if taking != Taking::Approved => (open, false),
            State::Approved(open) if taking != Taking::Waiting => (open, true),
            other => {
                self.state = other;
                return None;
            }
        };
        Some(Taken { open, is_approved })
    }
}

impl State {
    /// What waits, for a person or for its client.
    fn open(&self) -> Option<&Open> {
        match self {
            Self::Waiting(open) | Self::Approved(open) => Some(open),
            Self::Busy(_) | Self::Forwarded | Self::Ended(_) => None,
        }
    }

    /// It has not come to its end here.
    fn is_under_way(&self) -> bool {
        !matches!(self, Self::Forwarded | Self::Ended(_))
    }
}

impl Taken {
    fn id(&self) -> Uuid {
        self.open.about.id
    }
}

impl Ruled {
    fn nobody(ruling: Ruling, reason: &str) -> Self {
        Self { ruling, approver: Caller::default(), reason: reason.to_owned() }
    }

    /// What the driver's exception says.
    fn refusal(&self, open: &Open) -> Refusal {
        let why = match (self.approver.subject.as_str(), self.reason.as_str()) {
            ("", reason) => reason.to_owned(),
            (approver, "") => format!("{approver} denied it"),
            (approver, reason) => format!("{approver} denied it: {reason}"),
        };
        let Open { about, request, .. } = open;
        let message = statement::refused_because(&about.kind, &why, &about.policy, &request.request_id);
        match self.ruling {
            Ruling::Withdrawn => Refusal::cancelled(message, about.id),
            _ => Refusal::statement(message, about.id),
        }
    }
}

impl HeldStatement {
    /// Whether a text names it: its identifier, or the end of that. Not the beginning, which is the time: soon another statement
    /// may have the same.
    pub fn is_named(&self, text: &str) -> bool {
        self.id.to_string().ends_with(&text.to_ascii_lowercase())
    }

    fn of(record: &audit::Statement, with: String, wait: Duration) -> Self {
        let wait = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        Self {
            id: record.id,
            time: record.time,
            expires: record.time.saturating_add(wait),
            is_approved: false,
            caller: record.caller.clone(),
            cgroup: record.workload.cgroup.clone(),
            executable: record.workload.executable.clone(),
            account: record.account.clone(),
            user: record.user.clone(),
            role: record.role.clone(),
            sql: record.sql.clone(),
            kind: record.kind.clone(),
            effect: record.effect.clone(),
            objects: record.objects.clone(),
            features: record.features.clone(),
            policy: record.policy.clone(),
            with,
        }
    }
}
