//! `snowfence audit show`: what a client asked and was answered, for whoever holds an identity that it was sealed to.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde_json::{Value, json};

use super::source::PayloadSource;
use super::{Failure, Format, Output, table};
use crate::admin::{AdminError, Client, Request};
use crate::app::State;
use crate::audit::payload::{Content, Found, Message, Payload, ReadError, find, identities, read};
use crate::audit::{Event, EventKind, Journal};

/// What is shown of a body, in bytes.
const SHOWN: usize = 4096;

#[derive(Args)]
pub(super) struct ShowArguments {
    /// The identifier of a session, a statement, a payload, or of a query in Snowflake
    id: String,
    /// A file with an identity (`AGE-SECRET-KEY-1…`) that the payloads were sealed to
    #[arg(long, short, value_name = "FILE")]
    identity: PathBuf,
    /// Show bodies whole, of whatever length
    #[arg(long)]
    whole: bool,
    #[command(flatten)]
    source: PayloadSource,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &ShowArguments) -> Result<(), Failure> {
    let journal = arguments.source.trail.journal()?;
    let state = journal.parent().unwrap_or(Path::new("."));
    let identities = identities(&arguments.identity).map_err(|error| Failure::Usage(error.into()))?;
    let kept = arguments.source.kept(&journal)?;
    let payloads = find(&journal, &arguments.id)?;
    if payloads.is_empty() {
        return Err(Failure::Failed(anyhow!(
            "the journal {} knows no payloads of {}: are payloads kept (`[audit.payloads]`), and is it the identifier of a session, a statement, a payload or a query?",
            journal.display(),
            arguments.id
        )));
    }
    note(&journal, state, &arguments.id, payloads.len())?;
    let limit = if arguments.whole { usize::MAX } else { SHOWN };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut failures = 0;
    for Found { payload, time } in &payloads {
        let content = read(&kept, payload, &identities, limit);
        failures += usize::from(content.is_err());
        match arguments.output.format {
            Format::Json => writeln!(out, "{}", as_json(payload, &content))?,
            Format::Text => print(&mut out, payload, time, &content)?,
        }
    }
    out.flush()?;
    if failures > 0 {
        return Err(Failure::Failed(anyhow!("{failures} of {} payloads cannot be read", payloads.len())));
    }
    Ok(())
}

/// That somebody looks is on record before there is anything to see.
pub(super) fn note(journal: &Path, state: &Path, id: &str, payloads: usize) -> Result<(), Failure> {
    let by = std::env::var("SUDO_USER").map(|user| format!(", for {user}")).unwrap_or_default();
    let uid = rustix::process::getuid().as_raw();
    let detail = format!("uid {uid}{by}: {payloads} payloads of {id}");
    let unrecorded = "what is not recorded is not shown";
    let asked = Client::connect(&State(state).socket()).and_then(|agent| {
        agent.ask(&Request::Note { kind: EventKind::PayloadsRead, detail: detail.clone() })
    });
    match asked {
        Ok(_) => Ok(()),
        Err(AdminError::NotRunning(_)) => {
            let event = Event::new(EventKind::PayloadsRead, detail);
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            let node = rustix::system::uname().nodename().to_string_lossy().into_owned();
            let noted = runtime.block_on(async {
                let journal = Journal::open(journal, &node)?;
                let noted = journal.append(vec![event.into()]).await;
                journal.close().await;
                noted
            });
            noted.context(unrecorded).map_err(Failure::Failed)
        }
        Err(error) => Err(Failure::Failed(anyhow!(error).context(unrecorded))),
    }
}

fn as_json(payload: &Payload, content: &Result<Content, ReadError>) -> Value {
    let message = |message: &Message| {
        let text = std::str::from_utf8(&message.body);
        let is_text = text.is_ok();
        json!({
            "head": message.head,
            "encoding": if is_text { "utf-8" } else { "base64" },
            "body": text.map_or_else(|_| STANDARD.encode(&message.body), ToOwned::to_owned),
            "bytes": message.length,
            "pieces": message.pieces,
        })
    };
    match content {
        Ok(content) => json!({
            "payload": payload, "request": message(&content.request), "answer": message(&content.answer),
            "end": content.end,
        }),
        Err(error) => json!({ "payload": payload, "error": error.to_string() }),
    }
}

fn print(
    out: &mut impl Write,
    payload: &Payload,
    time: &str,
    content: &Result<Content, ReadError>,
) -> Result<(), Failure> {
    let name = if payload.operation.is_empty() { "?" } else { &payload.operation };
    let ending = payload.ending.as_str();
    writeln!(out, "── {time}  {name}  {} ms  {ending}  {}", payload.duration_us / 1000, payload.id)?;
    match content {
        Ok(content) => {
            let head = &content.request.head;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            writeln!(out, "→ {} {}", line(&text(&head["method"])), line(&text(&head["target"])))?;
            body(out, &content.request)?;
            writeln!(out, "← {}, {} bytes", content.answer.head["status"], content.answer.length)?;
            body(out, &content.answer)?;
            if let Some(reason) = content.end["reason"].as_str() {
                writeln!(out, "⚠ {}", line(reason))?;
            }
        }
        Err(error) => writeln!(out, "⚠ {error}")?,
    }
    writeln!(out)?;
    Ok(())
}

/// A body in lines: JSON is laid out, other texts are as they are, and of the rest there is the length.
fn body(out: &mut impl Write, message: &Message) -> io::Result<()> {
    if message.body.is_empty() {
        return Ok(());
    }
    let cut_short = message.length > message.body.len() as u64;
    let Some(text) = text(&message.body, cut_short) else {
        return writeln!(out, "  [{} bytes that are no text: --format json shows them]", message.length);
    };
    for line in text.lines() {
        writeln!(out, "  {}", table::harmless(line).collect::<String>())?;
    }
    if cut_short {
        writeln!(out, "  … [{} bytes in all: --whole shows them]", message.length)?;
    }
    Ok(())
}

fn text(body: &[u8], cut_short: bool) -> Option<String> {
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        // A character that was cut in two is no reason to show nothing.
        Err(error) if cut_short && error.error_len().is_none() => {
            std::str::from_utf8(body.get(..error.valid_up_to())?).ok()?
        }
        Err(_) => return None,
    };
    let value: Option<Value> = serde_json::from_str(text).ok();
    Some(value.and_then(|value| serde_json::to_string_pretty(&value).ok()).unwrap_or_else(|| text.to_owned()))
}

fn line(text: &str) -> String {
    table::harmless(text).take(500).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_laid_out_and_a_cut_character_is_left_out() {
        assert_eq!(text(br#"{"a":1}"#, false).unwrap(), "{\n  \"a\": 1\n}");
        assert_eq!(text("sée".as_bytes().get(..2).unwrap(), true).unwrap(), "s");
        assert_eq!(text("sée".as_bytes().get(..2).unwrap(), false), None);
        assert_eq!(text(b"event: x\n\n", false).unwrap(), "event: x\n\n");
    }
}
