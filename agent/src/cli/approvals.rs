//! `snowfence approvals`: the statements of this node that wait for a person, and what somebody rules on them.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand};
use zeroize::Zeroizing;

use super::{ConfigFile, Failure, Format, Output, ask, table};
use crate::admin::{AdminError, Answer, Request};
use crate::audit::{iso_time, now};
use crate::proxy::{HeldStatement, Rule};

/// A token is a few kilobytes.
const TOKEN_LIMIT: u64 = 64 * 1024;
/// Of a text, so many lines are listed; `show` has all.
const LINES: usize = 8;
/// And of a line, so many characters.
const CUT: usize = 200;
/// `show` has all of a line, in pieces of so many.
const FOLD: usize = 72;

#[derive(Subcommand)]
pub(super) enum Command {
    /// List the statements that wait, the oldest first
    #[command(
        after_help = "Examples:\n  sudo snowfence approvals list\n  sudo snowfence approvals list --format json | jq -r '[.id, .caller.subject, .sql] | @tsv'"
    )]
    List {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Show one of them, with the whole of its text
    #[command(after_help = "Example:\n  sudo snowfence approvals show 5d2f0c4e8a11")]
    Show {
        /// Its identifier, or the end of it
        id: String,
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Let one of them run, once
    #[command(
        after_help = "The token is of the identity provider, and names one of the groups in [approvals]. Who asked for a statement\ncannot rule on it. The ruling is in the trail: who, when, and why.\n\nExamples:\n  sudo snowfence approvals approve 5d2f0c4e8a11 --token-file ~/token --reason 'ticket 4711'\n  get-token | sudo snowfence approvals approve 5d2f0c4e8a11 --token-file -"
    )]
    Approve(RuleArguments),
    /// Refuse one of them: its client is told by whom, and why
    #[command(
        after_help = "Example:\n  sudo snowfence approvals deny 5d2f0c4e8a11 --token-file ~/token --reason 'not without a WHERE'"
    )]
    Deny(RuleArguments),
}

#[derive(Args)]
pub(super) struct RuleArguments {
    /// The identifier of the statement, or the end of it
    id: String,
    /// A file with your token; `-` reads it from standard input
    #[arg(long, short, value_name = "FILE")]
    token_file: PathBuf,
    /// Why, for the trail; of a denial, its client is told
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    config: ConfigFile,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(command: &Command) -> Result<(), Failure> {
    match command {
        Command::List { config, output } => list(config, output.format),
        Command::Show { id, config, output } => show(id, config, output.format),
        Command::Approve(arguments) => rule(arguments, true),
        Command::Deny(arguments) => rule(arguments, false),
    }
}

fn list(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let held = held(config)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if held.is_empty() && format == Format::Text {
        writeln!(out, "No statement waits.")?;
    }
    for one in &held {
        print(&mut out, one, format, false)?;
    }
    Ok(out.flush()?)
}

fn show(id: &str, config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let mut held = held(config)?;
    held.retain(|one| one.is_named(id));
    if held.is_empty() {
        return Err(Failure::Failed(anyhow!(
            "no statement {id} waits: `snowfence audit query` knows what became of it (trail: verdict, ruling, approver)"
        )));
    }
    let mut out = io::BufWriter::new(io::stdout().lock());
    for one in &held {
        print(&mut out, one, format, true)?;
    }
    Ok(out.flush()?)
}

fn rule(arguments: &RuleArguments, approve: bool) -> Result<(), Failure> {
    let token = token(&arguments.token_file)?;
    let rule = Rule {
        statement: arguments.id.clone(),
        approve,
        reason: arguments.reason.clone(),
        token: token.trim().to_owned(),
    };
    let Answer::Ruled(ruled) = ask(&arguments.config.load()?, &Request::Rule(rule))? else {
        return Err(Failure::Failed(AdminError::Unexpected.into()));
    };
    let mut out = io::stdout().lock();
    let ruling = if approve { "approved" } else { "denied" };
    if arguments.output.format == Format::Json {
        writeln!(out, "{}", serde_json::json!({ "statement": ruled.id, "ruling": ruling }))?;
    } else {
        let (subject, sql) = (table::cut(&ruled.caller.subject), table::cut(&ruled.sql));
        writeln!(out, "{ruling}: {sql}  ({subject}, {})", ruled.id)?;
    }
    Ok(())
}

fn held(config: &ConfigFile) -> Result<Vec<HeldStatement>, Failure> {
    match ask(&config.load()?, &Request::Held)? {
        Answer::Held(held) => Ok(held),
        _ => Err(Failure::Failed(AdminError::Unexpected.into())),
    }
}

fn token(file: &Path) -> Result<Zeroizing<String>, Failure> {
    let mut token = Zeroizing::new(String::new());
    let read = if file == Path::new("-") {
        io::stdin().take(TOKEN_LIMIT).read_to_string(&mut token)
    } else {
        File::open(file).and_then(|opened| opened.take(TOKEN_LIMIT).read_to_string(&mut token))
    };
    read.with_context(|| format!("{}: the token cannot be read", file.display())).map_err(Failure::Usage)?;
    Ok(token)
}

fn print(out: &mut impl Write, one: &HeldStatement, format: Format, whole: bool) -> io::Result<()> {
    if format == Format::Json {
        return writeln!(out, "{}", serde_json::to_string(one).map_err(io::Error::from)?);
    }
    // A line that is as long as the terminal is wide could begin another one that is no line of this.
    let line = |text: &str| {
        let text = table::visible(text);
        let shown: String = text.chars().take(CUT).collect();
        if shown.len() < text.len() { format!("{shown} …") } else { shown }
    };
    let state = if one.is_approved {
        "approved, its client has not come for it yet".to_owned()
    } else {
        format!("waits for {}, expires in {}", minutes(now() - one.time), minutes(one.expires - now()))
    };
    writeln!(out, "{}  {}  {state}", one.id, iso_time(one.time))?;
    let groups = if one.caller.groups.is_empty() {
        String::new()
    } else {
        format!(" ({})", one.caller.groups.join(", "))
    };
    let (subject, issuer) = (line(&one.caller.subject), line(&one.caller.issuer));
    writeln!(out, "  who     {subject}{}, by {issuer}", line(&groups))?;
    writeln!(out, "  from    {}, {}", line(&one.cgroup), line(&one.executable))?;
    let role = if one.role.is_empty() { String::new() } else { format!(", role {} at login", one.role) };
    writeln!(out, "  as      {}{} on {}", line(&one.user), line(&role), line(&one.account))?;
    let features =
        if one.features.is_empty() { String::new() } else { format!(": {}", one.features.join(", ")) };
    writeln!(out, "  does    {} ({}){}", line(&one.kind), one.effect, line(&features))?;
    if !one.objects.is_empty() {
        writeln!(out, "  to      {}", line(&one.objects.join(", ")))?;
    }
    writeln!(out, "  held by {}", line(&one.policy))?;
    if whole {
        if !one.with.is_empty() {
            writeln!(out, "  with")?;
            fold(out, &one.with)?;
        }
        for text in one.sql.split('\n') {
            fold(out, text)?;
        }
        return writeln!(out);
    }
    if !one.with.is_empty() {
        writeln!(out, "  with    {}", line(&one.with))?;
    }
    for text in one.sql.split('\n').take(LINES) {
        writeln!(out, "    | {}", line(text))?;
    }
    if one.sql.split('\n').count() > LINES || one.sql.split('\n').any(|text| text.len() > CUT) {
        writeln!(out, "    … (`snowfence approvals show {}` has all of it)", one.id)?;
    }
    writeln!(out)
}

/// A line in pieces, each of which says that it belongs there.
fn fold(out: &mut impl Write, text: &str) -> io::Result<()> {
    let visible: Vec<char> = table::visible(text.trim_end_matches('\r')).chars().collect();
    if visible.is_empty() {
        return writeln!(out, "    |");
    }
    for (index, piece) in visible.chunks(FOLD).enumerate() {
        let mark = if index == 0 { '|' } else { '+' };
        writeln!(out, "    {mark} {}", piece.iter().collect::<String>())?;
    }
    Ok(())
}

/// A time in microseconds, for people.
fn minutes(micros: i64) -> String {
    match micros.max(0) / 1_000_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}
