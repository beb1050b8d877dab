//! `snowfence audit verify` and `key`: whether the trail is what was signed.

use std::fs::File;
use std::io::{self, BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};

use super::source::Source;
use super::{ConfigFile, Failure, Format, Output, schema};
use crate::app::State;
use crate::audit::chain::{self, Copies, JournalSource, Report, Salvaged, SigningKey, verify, verify_export};
use crate::audit::clickhouse::{self, Delivered, DeliveredSource};
use crate::config::Bucket as Place;
use crate::storage::Bucket;

#[derive(Args)]
pub(super) struct VerifyArguments {
    #[command(flatten)]
    source: Source,
    /// Verify a session that was exported instead
    #[arg(long, value_name = "FILE", conflicts_with = "journal")]
    export: Option<PathBuf>,
    /// Verify what ClickHouse has, of all nodes
    #[arg(long, conflicts_with_all = ["journal", "export"])]
    clickhouse: bool,
    /// Of what ClickHouse has, only this node's
    #[arg(long, value_name = "NODE", requires = "clickhouse")]
    node: Option<String>,
    /// Begin with this checkpoint, and trust what it says of those before it
    #[arg(long, value_name = "NUMBER", conflicts_with = "export")]
    from: Option<u64>,
    /// Compare with the copies of checkpoints in this object store, which show what was cut off at the end, too; the configured one
    /// if none is named
    #[arg(long, value_name = "URL", num_args = 0..=1, require_equals = true, conflicts_with = "export", default_missing_value = "")]
    checkpoints: Option<String>,
    /// A public key that is trusted, as `snowfence audit key` prints it, or a file of such keys; this node's where none is given
    #[arg(long = "key", value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    output: Output,
}

#[derive(Args)]
pub(super) struct KeyArguments {
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

impl VerifyArguments {
    /// Where the copies of checkpoints are, if there is to be a comparison.
    fn bucket(&self) -> Result<Option<Bucket>, Failure> {
        let Some(named) = &self.checkpoints else { return Ok(None) };
        let place = if named.is_empty() {
            self.source.config().load()?.checkpoints
        } else {
            let place = Place::parse(named);
            Some(place.map_err(|expected| Failure::Usage(anyhow!("--checkpoints={named}: {expected}")))?)
        };
        let place = place.ok_or_else(|| {
            Failure::Usage(anyhow!(
                "no object store for checkpoints is configured (`[audit.checkpoints]`), or named"
            ))
        })?;
        Bucket::open(&place).map(Some).map_err(|error| Failure::Usage(error.into()))
    }
}

pub(super) fn run(arguments: &VerifyArguments) -> Result<(), Failure> {
    if let Some(file) = &arguments.export {
        return exported(arguments, file);
    }
    if arguments.clickhouse {
        return delivered(arguments);
    }
    let journal = arguments.source.journal()?;
    // Whoever made a copy of a journal could have put another key beside it.
    let own = if arguments.source.is_own() { journal.parent() } else { None };
    let keys = keys(&arguments.keys, own)?;
    judge(one(arguments, &mut JournalSource::open(&journal)?, &keys)?.is_good())
}

/// All journals in ClickHouse, or those of one node.
fn delivered(arguments: &VerifyArguments) -> Result<(), Failure> {
    let settings = schema::settings(arguments.source.config())?;
    let keys = keys(&arguments.keys, None)?;
    let runtime = schema::runtime()?;
    let mut journals = runtime.block_on(clickhouse::delivered(&settings))?;
    journals.retain(|delivered| arguments.node.as_ref().is_none_or(|node| *node == delivered.node));
    if journals.is_empty() {
        return Err(Failure::Failed(anyhow!("ClickHouse has no checkpoints of such a node")));
    }
    let mut good = true;
    for Delivered { journal, .. } in journals {
        let mut source = DeliveredSource::new(&settings, journal, &runtime)?;
        let report = one(arguments, &mut source, &keys)?;
        if report.checkpoints == 0 {
            eprintln!("snowfence: nothing proves the journal {journal}: it has no checkpoints");
        }
        good &= report.is_good() && report.checkpoints > 0;
    }
    judge(good)
}

/// Verifies and tells.
fn one(
    arguments: &VerifyArguments,
    source: &mut impl chain::Source,
    keys: &[String],
) -> Result<Report, Failure> {
    let bucket = arguments.bucket()?;
    let mut progress = Progress::new("records verified");
    let mut report = verify(source, keys, arguments.from, |now, last| progress.show(now, last))?;
    progress.end();
    if let Some(bucket) = &bucket {
        let runtime = schema::runtime()?;
        let mut progress = Progress::new("objects with checkpoints compared");
        let show = |now, all| progress.show(count(now), count(all));
        report.copies =
            Some(Copies::new(bucket, &runtime).compare(source, arguments.from, &mut report, show)?);
        progress.end();
    }
    print(&report, arguments.output.format)?;
    Ok(report)
}

fn exported(arguments: &VerifyArguments, path: &Path) -> Result<(), Failure> {
    let file = File::open(path).map_err(|error| Failure::Usage(anyhow!("{}: {error}", path.display())))?;
    let keys = keys(&arguments.keys, None)?;
    let report = verify_export(BufReader::new(file), &keys)
        .map_err(|error| Failure::Failed(anyhow!("{}: {error}", path.display())))?;
    let mut out = io::stdout().lock();
    if arguments.output.format == Format::Json {
        writeln!(out, "{}", with_verdict(&report, report.problems.is_empty())?)?;
    } else {
        for problem in &report.problems {
            writeln!(out, "{problem}")?;
        }
        writeln!(
            out,
            "{} records of session {} on {} are as they were signed, with {} payloads",
            report.verified,
            report.session,
            name(&report.node),
            report.payloads
        )?;
        for (count, what) in [
            (report.open, "statements have no outcome: it was not known then, or was left out"),
            (report.incomplete, "payloads are not whole: their pieces were no longer kept, or were left out"),
        ] {
            if count > 0 {
                writeln!(out, "{count} {what}")?;
            }
        }
        tell_keys(&mut out, report.key_is_known, &report.keys)?;
    }
    judge(report.problems.is_empty())
}

fn judge(good: bool) -> Result<(), Failure> {
    if good { Ok(()) } else { Err(Failure::Failed(anyhow!("this is not what was signed"))) }
}

fn with_verdict(report: &impl Serialize, good: bool) -> io::Result<Value> {
    let mut value = serde_json::to_value(report)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("good".to_owned(), good.into());
    }
    Ok(value)
}

fn name(node: &str) -> &str {
    if node.is_empty() { "an unknown node" } else { node }
}

/// Without a key from elsewhere the proof is of less.
pub(super) fn tell_keys(out: &mut impl Write, is_known: bool, keys: &[String]) -> io::Result<()> {
    if is_known || keys.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "nobody has said which key is the node's: this shows that one key ({}) signed it all; name it by --key",
        keys.join(", ")
    )
}

/// Prints the public key of this node.
pub(super) fn key(arguments: &KeyArguments) -> Result<(), Failure> {
    let config = arguments.config.load()?;
    let path = State(&config.agent.state_dir).signing_key();
    if !path.exists() {
        return Err(Failure::Failed(anyhow!(
            "no signing key at {} yet (the agent makes it at its first start)",
            path.display()
        )));
    }
    let key = SigningKey::open(&path).map_err(|error| Failure::Failed(error.into()))?.public();
    let mut out = io::stdout().lock();
    match arguments.output.format {
        Format::Text => writeln!(out, "{key}")?,
        Format::Json => writeln!(out, "{}", json!({ "node": config.agent.node, "key": key }))?,
    }
    Ok(())
}

/// The keys that are trusted: those that are named, else the one beside the journal, else none.
pub(super) fn keys(named: &[String], state: Option<&Path>) -> Result<Vec<String>, Failure> {
    let mut keys = Vec::new();
    for name in named {
        if is_key(name) {
            keys.push(name.to_lowercase());
            continue;
        }
        let path = PathBuf::from(name);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            Failure::Usage(anyhow!(
                "{name} is neither a key (64 hexadecimal digits) nor a file of keys: {error}"
            ))
        })?;
        let found: Vec<String> =
            text.split_whitespace().filter(|word| is_key(word)).map(str::to_lowercase).collect();
        if found.is_empty() {
            return Err(Failure::Usage(anyhow!("{name} holds no key (64 hexadecimal digits)")));
        }
        keys.extend(found);
    }
    let own = state.map(|state| State(state).signing_key()).filter(|path| path.exists());
    if let (true, Some(path)) = (keys.is_empty(), own) {
        keys.push(SigningKey::open(&path).map_err(|error| Failure::Failed(error.into()))?.public());
    }
    Ok(keys)
}

fn is_key(text: &str) -> bool {
    text.len() == 64 && text.chars().all(|digit| digit.is_ascii_hexdigit())
}

fn print(report: &Report, format: Format) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    if format == Format::Json {
        writeln!(out, "{}", with_verdict(report, report.is_good())?)?;
        return Ok(());
    }
    for problem in &report.problems {
        writeln!(out, "{problem}")?;
    }
    if report.more_problems > 0 {
        writeln!(out, "and {} more", report.more_problems)?;
    }
    for Salvaged { seq, salvage, .. } in &report.salvages {
        writeln!(out, "record {seq} says that the journal was damaged: {salvage}")?;
    }
    if !report.salvages.is_empty() && !report.is_good() {
        writeln!(
            out,
            "damage explains nothing to whoever has to be sure: it can be feigned. Look for what is missing in ClickHouse (--clickhouse), in a SIEM sink, or in the file that was set aside"
        )?;
    }
    let checkpoints = if report.checkpoints == 1 { "checkpoint" } else { "checkpoints" };
    writeln!(
        out,
        "{} records of {} are as they were signed ({} {checkpoints}, up to record {})",
        report.verified,
        name(&report.node),
        report.checkpoints,
        report.signed
    )?;
    match report.copies {
        None => {}
        Some(0) => writeln!(out, "the object store has no copies of its checkpoints: it proves nothing")?,
        Some(copies) => writeln!(out, "{copies} copies of checkpoints were compared")?,
    }
    for other in &report.other_journals {
        writeln!(out, "the object store has copies of another journal of this node, {other}: where is it?")?;
    }
    if let Some(removed) = report.removed_through {
        writeln!(out, "those up to record {removed} left the journal in their time")?;
    }
    if report.unsigned > 0 {
        writeln!(out, "{} after that are not signed yet", report.unsigned)?;
    }
    tell_keys(&mut out, report.key_is_known, &report.keys)?;
    Ok(())
}

pub(super) fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// How far long work is, on a terminal.
pub(super) struct Progress {
    what: &'static str,
    shown: Option<i64>,
    is_terminal: bool,
}

impl Progress {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, shown: None, is_terminal: io::stderr().is_terminal() }
    }

    pub(super) fn show(&mut self, now: i64, all: i64) {
        let percent = now.saturating_mul(100).checked_div(all).unwrap_or(100);
        if self.is_terminal && self.shown != Some(percent) {
            self.shown = Some(percent);
            eprint!("\r{percent:3} %  {now} of {all} {}", self.what);
        }
    }

    pub(super) fn end(&self) {
        if self.shown.is_some() {
            eprint!("\r\x1b[K");
        }
    }
}
