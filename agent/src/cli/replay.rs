//! `snowfence replay`: a recorded session once more, for people, for scripts, or for the driver that it was recorded from.

mod layout;
mod player;
mod serving;
mod terminal;

use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use uuid::Uuid;

use super::source::PayloadSource;
use super::{Failure, Format, Output, show, verify};
use crate::audit::RecordedSession;
use crate::audit::payload::identities;
use crate::replay::Teller;

use layout::{INDENT, beginning, lines, seconds};

/// Gaps that are worth a line where nobody waits for them, in microseconds.
const GAP: i64 = 1_000_000;

#[derive(Args)]
pub(super) struct ReplayArguments {
    /// The identifier of a session: column `session` of the view `trail`
    #[arg(required_unless_present = "export")]
    session: Option<Uuid>,
    /// Replay a session that was exported (`snowfence audit export`), once it is verified
    #[arg(long, value_name = "FILE", conflicts_with_all = ["session", "journal"])]
    export: Option<PathBuf>,
    /// A public key that the export must be signed with, or a file of such keys
    #[arg(long = "key", value_name = "KEY", requires = "export")]
    keys: Vec<String>,
    /// A file with an identity (`AGE-SECRET-KEY-1…`) that the payloads were sealed to
    #[arg(long, short, value_name = "FILE")]
    identity: PathBuf,
    /// How fast: 2 is twice as fast as it was
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = parse_speed)]
    speed: f64,
    /// Do not wait between the steps
    #[arg(long)]
    no_wait: bool,
    /// Of each result, or part of one, show so many rows
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    /// Answer a driver at this address with what was recorded
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["no_wait", "speed", "rows"])]
    serve: Option<SocketAddr>,
    /// Where to write the certificate that the driver is to trust
    #[arg(long, value_name = "FILE", requires = "serve")]
    ca_out: Option<PathBuf>,
    /// Serve without TLS
    #[arg(long, requires = "serve", conflicts_with = "ca_out")]
    plain: bool,
    /// Let each answer take the time that it took
    #[arg(long, requires = "serve")]
    timing: bool,
    #[command(flatten)]
    source: PayloadSource,
    #[command(flatten)]
    output: Output,
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<(), Failure> {
    let session = match (&arguments.export, arguments.session) {
        (Some(file), _) => exported(arguments, file)?,
        (None, Some(id)) => recorded(arguments, id)?,
        (None, None) => return Err(Failure::Usage(anyhow!("which session? Name it, or an export"))),
    };
    match arguments.serve {
        Some(address) => serving::serve(arguments, session, address),
        None => tell(arguments, Teller::new(session, arguments.rows)),
    }
}

/// A session of the journal.
fn recorded(arguments: &ReplayArguments, id: Uuid) -> Result<RecordedSession, Failure> {
    let journal = arguments.source.trail.journal()?;
    let state = journal.parent().unwrap_or(Path::new("."));
    let identities = identities(&arguments.identity).map_err(|error| Failure::Usage(error.into()))?;
    let kept = Box::new(arguments.source.kept(&journal)?);
    let session = RecordedSession::load(&journal, id, kept, identities.into_boxed_slice())?;
    let Some(session) = session else {
        return Err(Failure::Failed(anyhow!(
            "the journal {} knows no session {id}: `snowfence audit sessions` shows which there are",
            journal.display()
        )));
    };
    if !session.payloads.is_empty() {
        show::note(&journal, state, &id.to_string(), session.payloads.len())?;
    }
    Ok(session)
}

/// Whoever has an export is out of the agent's sight: no journal notes that they look.
fn exported(arguments: &ReplayArguments, file: &Path) -> Result<RecordedSession, Failure> {
    let identities = identities(&arguments.identity).map_err(|error| Failure::Usage(error.into()))?;
    let keys = verify::keys(&arguments.keys, None)?;
    let (session, report) = RecordedSession::load_export(file, &keys, identities.into_boxed_slice())
        .map_err(|error| Failure::Failed(error.into()))?;
    verify::tell_keys(&mut io::stderr(), report.key_is_known, &report.keys)?;
    Ok(session)
}

fn tell(arguments: &ReplayArguments, mut teller: Teller) -> Result<(), Failure> {
    let moments = teller.moments();
    let mut out = io::BufWriter::new(io::stdout().lock());
    if arguments.output.format == Format::Json {
        for moment in moments {
            serde_json::to_writer(&mut out, &teller.step(moment)).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        out.flush()?;
        return Ok(());
    }
    for line in beginning(&teller) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if !arguments.no_wait && io::stdin().is_terminal() && io::stdout().is_terminal() {
        return player::play(&mut teller, &moments, arguments.speed, &mut out);
    }
    let mut last = 0;
    for moment in moments {
        if moment.at - last >= GAP {
            writeln!(out, "{INDENT}… {}", seconds(moment.at - last))?;
        }
        last = moment.at;
        for line in lines(&teller.step(moment)) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(())
}

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "expected a number, such as 2 or 0.5".to_owned())?;
    if (0.01..=1000.0).contains(&speed) { Ok(speed) } else { Err("expected 0.01 to 1000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_number_that_makes_sense() {
        assert!(parse_speed("2").is_ok_and(|speed| speed > 1.9));
        for wrong in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(parse_speed(wrong).is_err(), "{wrong}");
        }
    }
}
