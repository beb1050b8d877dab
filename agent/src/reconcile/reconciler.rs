//! Compares, by a timer and when somebody asks for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

use super::history::Reader;
use super::matching::{SKEW, strange_logins, without_children};
use super::{Counts, Finding, LISTED, ReconcileError, Report, UnrecordedLogin, UnrecordedStatement, Wanted};
use crate::audit::trail::{Scope, Trail};
use crate::audit::{Event, EventKind, Record, iso_time, now};
use crate::config::{self, Covered};
use crate::proxy::{Asker, OwnSession, Proxy};
use crate::snowflake::history::{Executed, Login, Span};

const DAY: i64 = 24 * 3600 * 1_000_000;
/// Of a finding's text so much is told, in characters.
const TEXT: usize = 500;
/// Queries of the history that are remembered, to be looked for the other way round.
const REMEMBERED: usize = 1_000_000;

pub struct Reconciler {
    proxy: Arc<Proxy>,
    settings: config::Reconcile,
    trail: Trail,
    /// Until when each account has been compared by the timer.
    reached: PathBuf,
    /// One at a time, so that nothing is found twice.
    at_work: Mutex<()>,
    pub counts: Counts,
}

impl Reconciler {
    pub fn new(proxy: Arc<Proxy>, settings: config::Reconcile, trail: Trail, reached: PathBuf) -> Self {
        Self { proxy, settings, trail, reached, at_work: Mutex::new(()), counts: Counts::default() }
    }

    /// Compares every so often, each time from where the last time ended; where there was none, a day.
    pub async fn run(self: Arc<Self>) {
        let Some(every) = self.settings.every else { return };
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut reached = self.reached();
            let mut reports = Vec::new();
            for account in &self.settings.accounts {
                let since = reached.get(&account.host).copied();
                let report = self.compare(account, &Wanted { since, ..Wanted::default() }).await;
                if report.error.is_empty() {
                    reached.insert(account.host.clone(), report.until);
                }
                reports.push(report);
            }
            self.remember(&reached);
            self.count(&reports);
        }
    }

    /// Compares what is wanted.
    pub async fn reconcile(&self, wanted: &Wanted) -> Vec<Report> {
        let mut reports = Vec::new();
        for account in &self.settings.accounts {
            reports.push(self.compare(account, wanted).await);
        }
        if wanted.user.is_none() {
            self.count(&reports);
        }
        reports
    }

    async fn compare(&self, account: &Covered, wanted: &Wanted) -> Report {
        let _alone = self.at_work.lock().await;
        let mut report = Report { account: account.host.clone(), ..Report::default() };
        if let Err(error) = self.try_compare(account, wanted, &mut report).await {
            tracing::error!(account = account.host, %error, "the trail cannot be compared with Snowflake's history");
            report.error = error.to_string();
            self.counts.failures.inc();
        }
        report
    }

    fn count(&self, reports: &[Report]) {
        if reports.iter().all(|report| report.error.is_empty()) {
            self.counts.succeeded();
        }
    }

    async fn try_compare(
        &self,
        account: &Covered,
        wanted: &Wanted,
        report: &mut Report,
    ) -> Result<(), ReconcileError> {
        let users = users(account, wanted)?;
        let span = self.span(wanted, report).await?;
        let settings = &self.settings;
        let asker = Asker {
            account: &account.host,
            user: &settings.user,
            role: settings.role.as_deref(),
            warehouse: settings.warehouse.as_deref(),
            credential: &settings.credential,
            rule: "",
            caller: "snowfence audit reconcile",
        };
        let session = self.proxy.own_session(&asker).await?;
        let mut compared = Ok(());
        for user in users {
            compared = self.compare_user(&session, user, span, report).await;
            if compared.is_err() {
                break;
            }
        }
        session.close().await;
        compared
    }

    /// What of the wanted span has settled, and is both in the trail and in Snowflake's history.
    async fn span(&self, wanted: &Wanted, report: &mut Report) -> Result<Span, ReconcileError> {
        const MARGIN: i64 = 60_000_000;
        let now = now();
        let settled = now - micros(self.settings.settle);
        let until = wanted.until.unwrap_or(settled).min(settled);
        let oldest = now - micros(self.settings.history.reach()) + MARGIN;
        let begins = self.trail.begins().await?;
        let since = wanted.since.unwrap_or(until - DAY);
        let from = since.max(oldest).max(begins);
        (report.from, report.until) = (from, until);
        report.begins_later = wanted.since.is_some() && begins > since;
        if from >= until {
            return Err(ReconcileError::Nothing { settle: self.settings.settle.as_secs() / 60 });
        }
        Ok(Span::new(from, until))
    }

    async fn compare_user(
        &self,
        session: &OwnSession<'_>,
        user: &str,
        span: Span,
        report: &mut Report,
    ) -> Result<(), ReconcileError> {
        let strange = self.compare_logins(session, user, span, report).await?;
        let mut seen: HashSet<Uuid> = HashSet::new();
        let mut statements = 0;
        let mut reader = Reader::new(session, self.settings.history, user, span);
        while let Some(executed) = reader.executed().await? {
            statements += executed.len();
            if seen.len() < REMEMBERED {
                seen.extend(executed.iter().filter_map(|row| Uuid::parse_str(&row.query_id).ok()));
            }
            let missing = self.missing(&report.account, user, executed).await?;
            report.missing += missing.len() as u64;
            let findings = missing.into_iter().map(|row| statement_finding(row, &strange)).collect();
            self.report(report, findings).await?;
        }
        report.statements += statements as u64;
        self.counts.statements.inc_by(statements as u64);
        self.other_way_round(user, span, statements, &seen, report).await
    }

    /// The user's logins of which no agent knows; also those of a day before, as what they opened goes on.
    async fn compare_logins(
        &self,
        session: &OwnSession<'_>,
        user: &str,
        span: Span,
        report: &mut Report,
    ) -> Result<Vec<Login>, ReconcileError> {
        let reach = now() - micros(self.settings.history.reach()) + SKEW;
        let from = (span.from - DAY).max(reach).max(self.trail.begins().await?).min(span.from);
        let mut strange = Vec::new();
        let mut reader = Reader::new(session, self.settings.history, user, Span::new(from, span.until));
        while let Some(logins) = reader.logins().await? {
            report.logins += logins.iter().filter(|login| span.has(login.time)).count() as u64;
            let times = logins.iter().map(|login| login.time);
            let Some((first, last)) = times.clone().min().zip(times.max()) else { continue };
            let scope = scope(&report.account, user, first - SKEW, last + SKEW);
            let opened = self.trail.opened(&scope).await?;
            let calls = self.trail.calls(&scope).await?;
            strange.extend(strange_logins(logins, &opened, &calls, &self.settings.addresses));
        }
        let in_span: Vec<&Login> = strange.iter().filter(|login| span.has(login.time)).collect();
        report.strange_logins += in_span.len() as u64;
        let findings = in_span.into_iter().map(login_finding).collect();
        self.report(report, findings).await?;
        Ok(strange)
    }

    /// What of these the trail does not know.
    async fn missing(
        &self,
        account: &str,
        user: &str,
        executed: Vec<Executed>,
    ) -> Result<Vec<Executed>, ReconcileError> {
        let ids: Vec<String> = executed.iter().map(|row| row.query_id.clone()).collect();
        let known = self.trail.known(&ids).await?;
        let (known, unknown): (Vec<_>, Vec<_>) =
            executed.into_iter().partition(|row| known.contains(&row.query_id));
        let started = unknown.iter().map(|row| row.started);
        let Some((first, last)) = started.clone().min().zip(started.max()) else { return Ok(unknown) };
        let mut sessions: Vec<String> = unknown.iter().map(|row| row.session.clone()).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let scope = scope(account, user, first - SKEW, last + SKEW);
        let parents = self.trail.forwarded(&scope, &sessions).await?;
        let of_queries: HashMap<String, String> =
            known.into_iter().map(|row| (row.query_id, row.session)).collect();
        Ok(without_children(unknown, &parents, &of_queries))
    }

    /// Records what was not found before, and lists it.
    async fn report(&self, report: &mut Report, findings: Vec<Finding>) -> Result<(), ReconcileError> {
        let room = LISTED.saturating_sub(report.findings.len());
        report.findings.extend(findings.iter().take(room).cloned());
        for name in ["query_id", "event_id"] {
            let of_kind: Vec<&Finding> = findings.iter().filter(|finding| finding.id().0 == name).collect();
            if of_kind.is_empty() {
                continue;
            }
            let ids: Vec<String> = of_kind.iter().map(|finding| finding.id().1.to_owned()).collect();
            let reported = self.trail.reported(name, &ids).await?;
            for finding in of_kind.into_iter().filter(|finding| !reported.contains(finding.id().1)) {
                self.record(&report.account, finding).await?;
                report.new += 1;
            }
        }
        Ok(())
    }

    async fn record(&self, account: &str, finding: &Finding) -> Result<(), ReconcileError> {
        let (kind, counter) = match finding {
            Finding::UnrecordedStatement(_) => {
                (EventKind::UnrecordedStatement, &self.counts.missing_statements)
            }
            Finding::UnrecordedLogin(_) => (EventKind::UnrecordedLogin, &self.counts.strange_logins),
        };
        let id = finding.id().1;
        tracing::warn!(kind = kind.as_str(), account, id, "Snowflake has it, and no agent recorded it");
        let detail = serde_json::to_string(finding).unwrap_or_default();
        let event = Event { account: account.to_owned(), ..Event::new(kind, detail) };
        self.proxy.journal.append(vec![Record::from(event)]).await?;
        self.proxy.counts.events(kind, 1);
        counter.inc();
        Ok(())
    }

    /// What the trail has of the same time, and Snowflake's history has not.
    async fn other_way_round(
        &self,
        user: &str,
        span: Span,
        statements: usize,
        seen: &HashSet<Uuid>,
        report: &mut Report,
    ) -> Result<(), ReconcileError> {
        if statements == 0 {
            let known =
                self.trail.succeeded(&scope(&report.account, user, span.from, span.until)).await?.len();
            let (user, asker) = (user.to_owned(), self.settings.user.clone());
            return if known == 0 { Ok(()) } else { Err(ReconcileError::Blind { user, known, asker }) };
        }
        if seen.len() >= REMEMBERED {
            return Ok(());
        }
        // Near the ends the clocks may disagree.
        let scope = scope(&report.account, user, span.from + SKEW, span.until - SKEW);
        let succeeded = self.trail.succeeded(&scope).await?;
        let lacks = |id: &String| Uuid::parse_str(id).is_ok_and(|id| !seen.contains(&id));
        let room = LISTED.saturating_sub(report.not_in_history.len());
        report.not_in_history.extend(succeeded.into_iter().filter(lacks).take(room));
        Ok(())
    }

    fn reached(&self) -> BTreeMap<String, i64> {
        // Without it, or if it is damaged, a day is compared again, which does no harm.
        let bytes = std::fs::read(&self.reached).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn remember(&self, reached: &BTreeMap<String, i64>) {
        let partial = self.reached.with_extension("partial");
        let bytes = serde_json::to_vec(reached).unwrap_or_default();
        let written = std::fs::write(&partial, bytes);
        if let Err(error) = written.and_then(|()| std::fs::rename(&partial, &self.reached)) {
            tracing::warn!(%error, "how far the trail has been compared is forgotten at the next start");
        }
    }
}

impl Finding {
    /// By what it is known again: the name in the detail of its event, and the value.
    fn id(&self) -> (&'static str, &str) {
        match self {
            Self::UnrecordedStatement(statement) => ("query_id", &statement.query_id),
            Self::UnrecordedLogin(login) => ("event_id", &login.event_id),
        }
    }
}

fn statement_finding(row: Executed, strange: &[Login]) -> Finding {
    let before = strange.iter().filter(|login| login.time <= row.started.saturating_add(1_000_000));
    let login = before.max_by_key(|login| login.time).filter(|_| row.address.is_empty());
    let (address, client) = match login {
        Some(login) => (login.address.clone(), login.client.clone()),
        None => (row.address, row.client),
    };
    Finding::UnrecordedStatement(UnrecordedStatement {
        query_id: row.query_id,
        user: row.user,
        role: row.role,
        session: row.session,
        started: iso_time(row.started),
        status: row.status,
        text: row.text.chars().take(TEXT).collect(),
        address,
        client,
        by_time: login.is_some(),
    })
}

fn login_finding(login: &Login) -> Finding {
    Finding::UnrecordedLogin(UnrecordedLogin {
        event_id: login.event_id.clone(),
        user: login.user.clone(),
        time: iso_time(login.time),
        address: login.address.clone(),
        client: login.client.clone(),
        factor: login.factor.clone(),
    })
}

fn users<'a>(account: &'a Covered, wanted: &Wanted) -> Result<Vec<&'a str>, ReconcileError> {
    let covered = account.users.iter().map(String::as_str);
    let Some(user) = &wanted.user else { return Ok(covered.collect()) };
    let users: Vec<&str> = covered.filter(|covered| *covered == user.to_uppercase()).collect();
    if users.is_empty() { Err(ReconcileError::NotCovered(user.clone())) } else { Ok(users) }
}

fn scope(account: &str, user: &str, from: i64, until: i64) -> Scope {
    Scope { account: account.to_owned(), user: user.to_owned(), from, until }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
