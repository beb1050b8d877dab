//! `snowfence policy explain`: what a statement is taken for, and what the policy says of it. Offline.

use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Failure, Format, table};
use crate::config;
use crate::policy::{Decision, Policy, Subject, Verdict, label};
use crate::sql::{self, Classification, Effect, Statement, classify};

/// Lines of more bytes are refused: a statement is at most a megabyte, and escapes make six bytes of one.
const LINE_LIMIT: u64 = 8 * 1024 * 1024;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Say what statements are taken for, and what the policy decides
    #[command(after_help = "Examples:
  snowfence policy explain 'DROP TABLE orders'
  snowfence policy explain --group analysts --policy policy.cedar migration.sql
  echo '{\"id\":1,\"sql\":\"SELECT 1\"}' | snowfence policy explain --format json --input jsonl -")]
    Explain(Explain),
}

#[derive(Args)]
pub(super) struct Explain {
    /// A file, `-` for standard input, or the SQL text itself
    #[arg(value_name = "FILE|-|SQL")]
    text: String,
    /// What the input is
    #[arg(long, value_enum, default_value_t = Input::Sql)]
    input: Input,
    #[arg(long, value_enum, default_value_t = Format::Text)]
    /// How to print
    format: Format,
    /// Decide by this policy file. Default: the built-in policy
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Decide by the policy of this configuration
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    config: Option<PathBuf>,
    /// As a caller in this group (may be repeated)
    #[arg(long, value_name = "GROUP")]
    group: Vec<String>,
    /// As a caller whose rule fixes this role
    #[arg(long, value_name = "ROLE")]
    role: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    /// One text of SQL
    Sql,
    /// A line `{"id": …, "sql": "…"}` a text
    Jsonl,
}

#[derive(Deserialize)]
struct Line {
    id: Option<Box<RawValue>>,
    sql: String,
}

#[derive(Serialize)]
struct Explained<'a> {
    id: Option<&'a RawValue>,
    statements: &'a [Statement],
    effect: Effect,
    decision: Verdict,
    policy: &'a str,
}

pub(super) fn run(Command::Explain(arguments): Command) -> Result<(), Failure> {
    let file = match &arguments.config {
        Some(config) => config::load(config)?.policy_file,
        None => arguments.policy.clone(),
    };
    let policy = Policy::load(file.as_deref())?;
    let subject = Subject { groups: &arguments.group, role: arguments.role.as_deref(), ..Subject::default() };
    let decide = |text: &str| {
        let classification = classify(text);
        let decision = policy.decide(&subject, &classification);
        (classification, decision)
    };
    let mut out = BufWriter::new(io::stdout().lock());
    match arguments.input {
        Input::Sql => {
            let text = read_text(&arguments.text)?;
            let (classification, decision) = decide(&text);
            print(&mut out, arguments.format, None, &text, &classification, &decision)?;
        }
        Input::Jsonl => {
            let lines = open(&arguments.text)?;
            let mut wrong = 0_u64;
            each_line(lines, |number, line| {
                match line {
                    Ok(line) => {
                        let (classification, decision) = decide(&line.sql);
                        let id = line.id.as_deref();
                        print(&mut out, arguments.format, id, &line.sql, &classification, &decision)?;
                    }
                    Err(reason) => {
                        wrong += 1;
                        let error =
                            serde_json::json!({ "id": null, "error": format!("line {number}: {reason}") });
                        writeln!(out, "{error}")?;
                    }
                }
                Ok(())
            })?;
            out.flush()?;
            if wrong > 0 {
                return Err(Failure::Failed(anyhow!(
                    "{wrong} lines could not be read: each must be {{\"id\", \"sql\"}}"
                )));
            }
        }
    }
    out.flush()?;
    Ok(())
}

/// A file's text if there is such a file, standard input for `-`, else the argument itself.
fn read_text(argument: &str) -> Result<String, Failure> {
    if argument != "-" && !Path::new(argument).is_file() {
        return Ok(argument.to_owned());
    }
    let mut bytes = Vec::new();
    let limit = sql::MAX_TEXT_BYTES as u64 + 1;
    open(argument)?.take(limit).read_to_end(&mut bytes)?;
    String::from_utf8(bytes).map_err(|_| Failure::Usage(anyhow!("{argument}: not UTF-8")))
}

fn open(argument: &str) -> Result<Box<dyn BufRead>, Failure> {
    if argument == "-" {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = std::fs::File::open(argument).with_context(|| format!("{argument}: cannot be read"));
    Ok(Box::new(BufReader::new(file.map_err(Failure::Usage)?)))
}

/// Calls for each line that is not blank.
fn each_line(
    mut lines: Box<dyn BufRead>,
    mut call: impl FnMut(u64, Result<Line, String>) -> io::Result<()>,
) -> io::Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        if lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.len() as u64 == LINE_LIMIT && !line.ends_with(b"\n") {
            call(number, Err(format!("longer than {LINE_LIMIT} bytes")))?;
            lines.skip_until(b'\n')?;
            continue;
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        call(number, serde_json::from_slice(&line).map_err(|error| error.to_string()))?;
    }
    Ok(())
}

fn print(
    out: &mut impl Write,
    format: Format,
    id: Option<&RawValue>,
    text: &str,
    classification: &Classification,
    decision: &Decision,
) -> io::Result<()> {
    if format == Format::Json {
        let explained = Explained {
            id,
            statements: &classification.statements,
            effect: classification.effect,
            decision: decision.verdict,
            policy: &decision.policy,
        };
        serde_json::to_writer(&mut *out, &explained)?;
        return writeln!(out);
    }
    for statement in &classification.statements {
        let sql = text.get(statement.text.clone()).unwrap_or_default();
        writeln!(out, "{}", excerpt(sql))?;
        writeln!(out, "  kind      {}", statement.kind)?;
        writeln!(out, "  effect    {}", label(&statement.effect))?;
        let objects = statement
            .objects
            .iter()
            .map(|object| format!("{} ({}, {})", object.name, label(&object.kind), label(&object.access)));
        for (name, values) in [
            ("actions", statement.actions.iter().map(label).collect::<Vec<_>>()),
            ("objects", objects.collect()),
            ("features", statement.features.iter().map(label).collect()),
        ] {
            if !values.is_empty() {
                writeln!(out, "  {name:9} {}", values.join(", "))?;
            }
        }
    }
    let verdict = match decision.verdict {
        Verdict::Allow => "allowed",
        Verdict::Hold => "held for approval",
        Verdict::Deny => "denied",
    };
    let what = if classification.statements.is_empty() { "No statement: " } else { "" };
    writeln!(out, "{what}{verdict} by {}", decision.policy)
}

/// The first line of a statement, as far as it fits.
fn excerpt(sql: &str) -> String {
    let line: String = table::harmless(sql.trim()).collect();
    if line.chars().count() > 100 { line.chars().take(99).chain(['…']).collect() } else { line }
}
