//! What the trail costs: `cargo xtask bench audit`.
//!
//! Records are appended to a journal below the current folder, so that a real disk syncs them. With
//! `SNOWFENCE_TEST_CLICKHOUSE` (the command of a server, as the tests have it) they are delivered there, too: at first to a
//! place that takes requests and drops them, which shows what the agent can do; then these requests are made again by a
//! client that has them ready, which shows what ClickHouse can do; at last by the agent to ClickHouse.

mod delivery;

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use snowfence::audit::chain::{JournalSource, Notary, SigningKey, Source, verify};
use snowfence::audit::{Caller, Journal, Outcome, OutcomeStatus, Record, Statement, Verdict, Workload, now};
use tokio::runtime::Runtime;
use uuid::Uuid;

/// How long appends are counted.
const APPENDING: Duration = Duration::from_secs(5);
/// Statements, each with its outcome, that are signed, verified and delivered.
const STATEMENTS: usize = 200_000;
/// As many are appended at once.
const AT_ONCE: usize = 500;

const SQL: &str = "SELECT o.id, o.total, c.name FROM sales.public.orders o JOIN sales.public.customers c ON c.id = o.customer
WHERE o.day BETWEEN '2026-01-01' AND '2026-01-31' AND c.region = 'north' ORDER BY o.total DESC LIMIT 100";

fn main() -> Result<()> {
    let json = std::env::args().any(|argument| argument == "--json");
    let folder = tempfile::tempdir_in(".").context("make a folder")?;
    let runtime = Runtime::new()?;
    let mut figures = Figures { json };
    let sync = syncs(folder.path())?;
    figures.show("one sync of the disk", "µs", micros(sync));
    for sessions in [1, 16, 256] {
        let appended = runtime.block_on(append(&folder.path().join(format!("{sessions}.db")), sessions))?;
        figures.show(&format!("statements recorded, {sessions} sessions"), "1/s", appended.rate);
        figures.show(
            &format!("a record's latency, median, {sessions} sessions"),
            "µs",
            micros(appended.median),
        );
        figures.show(
            &format!("  as a ratio to one sync, {sessions} sessions"),
            "",
            ratio(appended.median, sync),
        );
        figures.show(&format!("  syncs for each record, {sessions} sessions"), "", appended.syncs);
    }
    let path = folder.path().join("journal.db");
    let journal = Journal::open(&path, "bench")?;
    runtime.block_on(fill(&journal))?;
    let records = 2.0 * count(STATEMENTS);
    let key = SigningKey::open(&folder.path().join("audit.key"))?;
    let began = Instant::now();
    // Told to stop at once, it signs a part of what there is.
    while !all_signed(&path)? {
        runtime.block_on(Notary::new(journal.clone(), key.clone()).run(std::future::ready(())));
    }
    figures.show("records signed", "1/s", records / began.elapsed().as_secs_f64());
    let began = Instant::now();
    let report = verify(&mut JournalSource::open(&path)?, &[key.public()], None, |_, _| {})?;
    ensure!(report.is_good() && report.unsigned == 0, "{report:?}");
    figures.show("records verified", "1/s", records / began.elapsed().as_secs_f64());
    figures.show(
        "the journal, for each statement with its outcome",
        "bytes",
        length(&path)? / count(STATEMENTS),
    );
    if let Ok(command) = std::env::var("SNOWFENCE_TEST_CLICKHOUSE") {
        delivery::measure(&runtime, &journal, &command, folder.path(), &mut figures)?;
    }
    runtime.block_on(journal.close());
    Ok(())
}

struct Figures {
    json: bool,
}

impl Figures {
    fn show(&mut self, what: &str, unit: &str, value: f64) {
        let line = if self.json {
            json!({ "what": what.trim(), "unit": unit, "value": value }).to_string()
        } else {
            format!("{what:52} {value:>12.2} {unit}")
        };
        // Whoever no longer reads has seen enough.
        let _ = writeln!(io::stdout(), "{line}");
    }
}

struct Appended {
    rate: f64,
    median: Duration,
    syncs: f64,
}

/// The median time that the disk takes for one small write with its sync.
fn syncs(folder: &Path) -> Result<Duration> {
    let mut file = File::create(folder.join("sync"))?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let began = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        times.push(began.elapsed());
    }
    Ok(median(times))
}

/// Has as many sessions append statements as fast as they can, each after the one before.
async fn append(path: &Path, sessions: usize) -> Result<Appended> {
    let journal = Journal::open(path, "bench")?;
    let before = journal.written().borrow().commits;
    let began = Instant::now();
    let tasks: Vec<_> = (0..sessions)
        .map(|_| {
            let (journal, session) = (journal.clone(), Uuid::now_v7());
            tokio::spawn(async move {
                let mut times = Vec::new();
                while began.elapsed() < APPENDING {
                    let asked = Instant::now();
                    journal.append_statement(statement(session)).await?;
                    times.push(asked.elapsed());
                }
                Ok::<_, anyhow::Error>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for task in tasks {
        times.extend(task.await??);
    }
    let rate = count(times.len()) / began.elapsed().as_secs_f64();
    let commits = journal.written().borrow().commits - before;
    let syncs = count(usize::try_from(commits)?) / count(times.len());
    journal.close().await;
    Ok(Appended { rate, median: median(times), syncs })
}

fn all_signed(path: &Path) -> Result<bool> {
    let mut source = JournalSource::open(path)?;
    let last = source.range()?.map_or(0, |(_, last)| last);
    // The last checkpoint is signed by none.
    Ok(source.signed()? + 1 >= last)
}

async fn fill(journal: &Journal) -> Result<()> {
    let session = Uuid::now_v7();
    for _ in 0..STATEMENTS / AT_ONCE {
        let mut records = Vec::with_capacity(2 * AT_ONCE);
        for _ in 0..AT_ONCE {
            let statement = statement(session);
            let outcome = outcome(statement.id);
            records.extend([Record::from(statement), outcome.into()]);
        }
        journal.append(records).await?;
    }
    Ok(())
}

fn statement(session: Uuid) -> Statement {
    Statement {
        id: Uuid::now_v7(),
        session,
        time: now(),
        request_id: Uuid::now_v7().to_string(),
        workload: Workload {
            cgroup: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod7f3c.slice/cri-containerd-91ab.scope".into(),
            pid: 4321,
            uid: 1000,
            comm: "python3".into(),
            executable: "/usr/bin/python3.11".into(),
        },
        caller: Caller {
            issuer: "https://idp.example".into(),
            subject: "agent-7".into(),
            groups: vec!["analysts".into()],
        },
        account: "acme.snowflakecomputing.com".into(),
        user: "SVC_AGENTS".into(),
        role: "ANALYST".into(),
        sql: SQL.into(),
        kind: "SELECT".into(),
        effect: "read".into(),
        actions: vec!["SELECT".into()],
        objects: vec!["SALES.PUBLIC.ORDERS".into(), "SALES.PUBLIC.CUSTOMERS".into()],
        features: Vec::new(),
        verdict: Verdict::Allow,
        policy: "reads-allowed".into(),
        describe_only: false,
        binds: 0,
    }
}

fn outcome(statement: Uuid) -> Outcome {
    Outcome {
        statement,
        time: now(),
        status: OutcomeStatus::Succeeded,
        query_id: Uuid::now_v7().to_string(),
        rows: Some(100),
        code: String::new(),
        message: String::new(),
        duration_us: 150_000,
        response_bytes: 20_480,
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn ratio(one: Duration, other: Duration) -> f64 {
    one.as_secs_f64() / other.as_secs_f64()
}

fn length(path: &Path) -> Result<f64> {
    Ok(count(usize::try_from(fs::metadata(path)?.len())?))
}

/// Exact for what is counted here.
#[expect(clippy::cast_precision_loss, reason = "no count here has more than 52 bits")]
fn count(number: usize) -> f64 {
    number as f64
}
