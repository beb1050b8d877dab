//! `snowfence audit`: the journal of this node, for people and scripts.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use super::source::{Source, spool};
use super::{Failure, Format, Output, export, reconcile, show, table, verify};
use crate::audit::query::{Cell, Limits, query};
use crate::audit::summary::{self, By, Summary};
use crate::audit::tail::{Entry, EventEntry, StatementEntry, Tail};
use crate::audit::{AuditError, Filter, Verdict, begin_anew, payload, salvage};

/// Rows that a table may have: it is laid out in memory.
const TABLE_ROWS: usize = 10_000;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Show the last statements and events, and go on showing new ones with --follow
    #[command(after_help = "Examples:
  sudo snowfence audit tail --follow
  sudo snowfence audit tail --last 100 --verdict deny --since 2h --format json")]
    Tail(TailArguments),
    /// List the last sessions: whose, from where, and what they did
    #[command(after_help = "Examples:
  sudo snowfence audit sessions --since 1d --table CUSTOMERS
  sudo snowfence audit sessions --verdict deny --format json | jq -r .session")]
    Sessions(SessionsArguments),
    /// Count statements: by caller, workload, table, effect, verdict, …
    #[command(after_help = "Examples:
  sudo snowfence audit stats --by table --since 7d
  sudo snowfence audit stats --by caller --verdict deny")]
    Stats(StatsArguments),
    /// Ask the journal a question in SQL (read-only SQLite)
    #[command(
        after_help = "Tables: sessions, statements, approvals, running, outcomes, events, payloads, checkpoints; view: trail (statements with their outcomes).

Examples:
  sudo snowfence audit query 'SELECT time, subject, verdict, sql FROM trail ORDER BY time DESC LIMIT 20'
  sudo snowfence audit query 'SELECT effect, count(*) FROM trail GROUP BY effect' --format json"
    )]
    Query(QueryArguments),
    /// Show what a client asked and was answered, whole: needs an identity that payloads are sealed to
    #[command(after_help = "Each look is itself an event of the trail (`payloads_read`).

Examples:
  sudo snowfence audit show 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11 --identity security.key
  sudo snowfence audit show 01b1c2d3-0000-1111-2222-333344445555 -i security.key --whole --format json | jq .answer.body")]
    Show(show::ShowArguments),
    /// Write a session into one file, with the proof that it carries
    #[command(
        after_help = "The file holds the session's records, how they were signed, and its payloads as they are sealed. It can be verified
(snowfence audit verify --export FILE) without the journal.

Examples:
  sudo snowfence audit export 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11
  sudo snowfence audit export 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11 --to - | zstd > session.zst"
    )]
    Export(export::ExportArguments),
    /// Prove that no record was changed, dropped, moved or forged since it was signed
    #[command(
        after_help = "Ends with 1 if something is wrong, and says which records. Needs no agent: a copy of the journal will do.
What came after the last checkpoint is not signed yet: while the agent works, that is a matter of seconds.

Examples:
  sudo snowfence audit verify
  snowfence audit verify --clickhouse --key keys
  snowfence audit verify --export 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11.jsonl --key keys
  snowfence audit verify --journal copy/journal.db --key 5f3a…c2 --format json | jq .problems"
    )]
    Verify(verify::VerifyArguments),
    /// Compare the trail with Snowflake's own history: what covered users did there and no agent recorded
    #[command(
        after_help = "The running agent asks, with the credential of [audit.reconcile]. What is found is an event of the trail, once:
unrecorded_statement, unrecorded_login. Ends with 1 if something was found, or could not be compared.

Examples:
  sudo snowfence audit reconcile
  sudo snowfence audit reconcile --since 7d --user SVC_AGENTS --format json | jq -r .query_id"
    )]
    Reconcile(reconcile::ReconcileArguments),
    /// Keep what can be read of a damaged journal, as the agent does at its start
    #[command(
        after_help = "The agent must not run. The damaged file is set aside as it is, under a name with the time; what is missing is an event
of the trail (journal_salvaged), and stays missing to snowfence audit verify. Sinks go on where they were.
A journal that is a copy from an earlier time, as in a snapshot that was restored, gives its numbers to other records: begin
another.

Examples:
  sudo snowfence audit salvage
  sudo snowfence audit salvage --begin-anew"
    )]
    Salvage(SalvageArguments),
    /// Print the public key that this node signs its trail with
    #[command(
        after_help = "Keep it where this host cannot change it.\n\nExample:\n  sudo snowfence audit key >> keys"
    )]
    Key(verify::KeyArguments),
}

#[derive(Args)]
pub(super) struct TailArguments {
    #[command(flatten)]
    source: Source,
    /// Go on as new entries come
    #[arg(long, short)]
    follow: bool,
    /// How many to begin with
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    last: u32,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: Output,
}

/// What of the trail.
#[derive(Args)]
struct Wanted {
    /// Only what is newer, such as 30s, 15m, 2h or 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// Only what is older
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    until: Option<Duration>,
    /// Only of the caller with this subject
    #[arg(long, value_name = "SUBJECT")]
    subject: Option<String>,
    /// Only of workloads whose cgroup path matches (`*`, `?`)
    #[arg(long, value_name = "GLOB")]
    cgroup: Option<String>,
    /// Only statements on this table or other object: whole or its last parts (`*`, `?`)
    #[arg(long, value_name = "GLOB")]
    table: Option<String>,
    /// Only statements with this effect
    #[arg(long, value_name = "EFFECT")]
    effect: Option<String>,
    /// Only statements with this verdict
    #[arg(long, value_name = "VERDICT", value_parser = parse_verdict)]
    verdict: Option<Verdict>,
}

#[derive(Args)]
pub(super) struct SessionsArguments {
    #[command(flatten)]
    source: Source,
    /// How many, the newest first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    last: u32,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub(super) struct StatsArguments {
    #[command(flatten)]
    source: Source,
    /// What to count by
    #[arg(long, value_enum, default_value_t = Dimension::Caller)]
    by: Dimension,
    /// How many rows, the most statements first
    #[arg(long, short = 'n', value_name = "N", default_value_t = 20)]
    last: u32,
    #[command(flatten)]
    wanted: Wanted,
    #[command(flatten)]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dimension {
    Account,
    Caller,
    Day,
    Effect,
    Policy,
    Role,
    Table,
    Verdict,
    Workload,
}

#[derive(Args)]
pub(super) struct QueryArguments {
    /// One SELECT
    sql: String,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub(super) struct SalvageArguments {
    #[command(flatten)]
    source: Source,
    /// Begin a new journal instead, with another identifier, and with no record of this one: they stay in the file set aside
    #[arg(long)]
    begin_anew: bool,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Tail(arguments) => tail(arguments),
        Command::Sessions(arguments) => sessions(arguments),
        Command::Stats(arguments) => stats(arguments),
        Command::Query(arguments) => ask(&arguments),
        Command::Show(arguments) => show::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Reconcile(arguments) => reconcile::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Salvage(arguments) => keep(&arguments),
        Command::Key(arguments) => verify::key(&arguments),
    }
}

fn tail(arguments: TailArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    let filter = arguments.wanted.filter();
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let entries = Tail::open(&journal, filter, Some(arguments.last), arguments.follow)?;
    let mut out = io::stdout().lock();
    for entry in entries {
        let entry = entry?;
        match (arguments.output.format, &entry) {
            (Format::Json, entry) => {
                serde_json::to_writer(&mut out, entry).map_err(io::Error::from)?;
                writeln!(out)?;
            }
            (Format::Text, Entry::Statement(statement)) => print_statement(&mut out, statement, colour)?,
            (Format::Text, Entry::Event(event)) => print_event(&mut out, event, colour)?,
        }
        out.flush()?;
    }
    Ok(())
}

/// One line a statement: when, whose, what became of it, what it was.
fn print_statement(out: &mut impl Write, entry: &StatementEntry, colour: bool) -> io::Result<()> {
    let paint = match entry.verdict.as_str() {
        _ if !colour => "",
        "allow" => "\x1b[32m",
        "hold" => "\x1b[33m",
        _ => "\x1b[31m",
    };
    let reset = if colour { "\x1b[0m" } else { "" };
    let rows = entry.rows.map(|rows| format!(" {rows} rows")).unwrap_or_default();
    let time = entry.duration_us.map(|micros| format!(" {} ms", micros / 1000)).unwrap_or_default();
    let ruling = match entry.approver.as_str() {
        "" => entry.ruling.clone(),
        approver => format!("{} by {}", entry.ruling, table::cut(approver)),
    };
    let ruling = if ruling.is_empty() { ruling } else { format!(", {ruling}") };
    writeln!(
        out,
        "{}  {}  {paint}{:5}{reset} {:9}{rows}{time}  {}  {}  [{}{ruling}]",
        entry.time,
        table::cut(&entry.subject),
        entry.verdict,
        entry.status,
        entry.effect,
        table::cut(&entry.sql),
        entry.policy,
    )
}

fn print_event(out: &mut impl Write, entry: &EventEntry, colour: bool) -> io::Result<()> {
    let (paint, reset) = if colour { ("\x1b[36m", "\x1b[0m") } else { ("", "") };
    let whose = entry.subject.as_deref().or(entry.cgroup.as_deref()).unwrap_or("-");
    let detail: String = table::harmless(&entry.detail).collect();
    writeln!(out, "{}  {}  {paint}event{reset} {}  {detail}", entry.time, table::cut(whose), entry.kind)
}

impl Wanted {
    fn filter(self) -> Filter {
        Filter {
            since: self.since.map(ago),
            until: self.until.map(ago),
            subject: self.subject,
            cgroup: self.cgroup,
            object: self.table,
            effect: self.effect,
            verdict: self.verdict,
        }
    }
}

impl From<Dimension> for By {
    fn from(dimension: Dimension) -> Self {
        match dimension {
            Dimension::Account => Self::Account,
            Dimension::Caller => Self::Caller,
            Dimension::Day => Self::Day,
            Dimension::Effect => Self::Effect,
            Dimension::Policy => Self::Policy,
            Dimension::Role => Self::Role,
            Dimension::Table => Self::Object,
            Dimension::Verdict => Self::Verdict,
            Dimension::Workload => Self::Workload,
        }
    }
}

fn sessions(arguments: SessionsArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    print_summary(
        &summary::sessions(&journal, &arguments.wanted.filter(), arguments.last)?,
        arguments.output.format,
    )
}

fn stats(arguments: StatsArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    let stats = summary::stats(&journal, &arguments.wanted.filter(), arguments.by.into(), arguments.last)?;
    print_summary(&stats, arguments.output.format)
}

fn print_summary(summary: &Summary, format: Format) -> Result<(), Failure> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match format {
        Format::Json => {
            for row in &summary.rows {
                writeln!(out, "{}", object(&summary.columns, row))?;
            }
        }
        Format::Text => {
            let rows: Vec<Vec<String>> =
                summary.rows.iter().map(|row| row.iter().map(ToString::to_string).collect()).collect();
            table::print(&mut out, &summary.columns, &rows)?;
        }
    }
    Ok(out.flush()?)
}

fn object(columns: &[String], row: &[Cell]) -> Value {
    let cells = row.iter().map(|cell| serde_json::to_value(cell).unwrap_or_default());
    Value::Object(columns.iter().cloned().zip(cells).collect())
}

fn ask(arguments: &QueryArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut rows: Vec<Vec<String>> = Vec::new();
    let (mut written, mut cut_short) = (Ok(()), false);
    let columns = query(&journal, &arguments.sql, &Limits::default(), |columns, cells| {
        if arguments.output.format == Format::Json {
            written = writeln!(out, "{}", object(columns, &cells));
            return if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        }
        if rows.len() == TABLE_ROWS {
            cut_short = true;
            return ControlFlow::Break(());
        }
        rows.push(cells.iter().map(ToString::to_string).collect());
        ControlFlow::Continue(())
    })?;
    written?;
    if arguments.output.format == Format::Text {
        table::print(&mut out, &columns, &rows)?;
    }
    out.flush()?;
    if cut_short {
        eprintln!(
            "snowfence: only the first {TABLE_ROWS} rows are shown: use LIMIT, or --format json for all"
        );
    }
    Ok(())
}

fn keep(arguments: &SalvageArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    let node = arguments.source.config().load()?.agent.node;
    if !journal.exists() {
        return Err(AuditError::Missing(journal).into());
    }
    let damage = format!("as somebody said (uid {})", rustix::process::getuid().as_raw());
    let told = if arguments.begin_anew {
        // Payloads that this journal has are nothing new to the next one.
        if let Ok((unrecorded, settle)) = payload::lost(&spool(&journal), &journal)
            && unrecorded.is_empty()
        {
            settle();
        }
        begin_anew(&journal, &node, &damage)?
    } else {
        salvage(&journal, &node, &damage)?
    };
    let mut out = io::stdout().lock();
    match arguments.output.format {
        Format::Json => writeln!(out, "{}", serde_json::to_string(&told).map_err(io::Error::from)?)?,
        Format::Text => writeln!(out, "{told}")?,
    }
    Ok(())
}

/// So long ago, in microseconds since the Unix epoch.
pub(super) fn ago(age: Duration) -> i64 {
    let then = SystemTime::now().checked_sub(age).unwrap_or(UNIX_EPOCH);
    let micros = then.duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    i64::try_from(micros).unwrap_or(i64::MAX)
}

pub(super) fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number and a unit, such as 30s, 15m, 2h or 7d".to_owned();
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        _ => return Err(wrong()),
    };
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

fn parse_verdict(text: &str) -> Result<Verdict, String> {
    [Verdict::Allow, Verdict::Deny, Verdict::Hold]
        .into_iter()
        .find(|verdict| verdict.as_str() == text)
        .ok_or_else(|| "expected allow, deny or hold".to_owned())
}

impl From<AuditError> for Failure {
    fn from(error: AuditError) -> Self {
        match error {
            AuditError::Sql(_) | AuditError::NotReadOnly => Self::Usage(anyhow!(error)),
            error => Self::Failed(error.into()),
        }
    }
}
