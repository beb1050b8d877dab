//! `snowfence audit export`: a session in one file.

use std::fs::{self, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::source::PayloadSource;
use super::verify::{Progress, count};
use super::{Failure, Format, Output};
use crate::admin::Client;
use crate::app::State;
use crate::audit::chain::{ExportError, export, is_signed};

/// An agent signs what is new within a few seconds.
const SIGNING: Duration = Duration::from_secs(15);

#[derive(Args)]
pub(super) struct ExportArguments {
    /// The identifier of the session
    session: Uuid,
    /// Where to write it, `-` for the standard output; SESSION.jsonl in this folder by default
    #[arg(long, short = 'O', value_name = "FILE")]
    to: Option<PathBuf>,
    #[command(flatten)]
    source: PayloadSource,
    #[command(flatten)]
    output: Output,
}

pub(super) fn run(arguments: &ExportArguments) -> Result<(), Failure> {
    let journal = arguments.source.trail.journal()?;
    let state = journal.parent().unwrap_or(Path::new("."));
    let kept = arguments.source.kept(&journal)?;
    wait_until_signed(&journal, state, arguments.session)?;
    let write = |out: &mut dyn Write| {
        let mut out = BufWriter::new(out);
        let mut progress = Progress::new("records written");
        let show = |now, all| progress.show(count(now), count(all));
        let exported = export(&journal, &kept, arguments.session, &mut out, show)?;
        out.flush()?;
        progress.end();
        Ok::<_, ExportError>(exported)
    };
    if arguments.to.as_deref() == Some(Path::new("-")) {
        write(&mut io::stdout().lock()).map_err(failed)?;
        return Ok(());
    }
    let path = arguments.to.clone().unwrap_or_else(|| format!("{}.jsonl", arguments.session).into());
    let mut part = path.clone().into_os_string();
    part.push(".part");
    let unwritten = |error: io::Error| Failure::Failed(anyhow!("{}: {error}", path.display()));
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part);
    let mut file = file.map_err(unwritten)?;
    let written = write(&mut file).and_then(|exported| Ok((exported, file.sync_all()?)));
    let (exported, ()) = written.map_err(|error| {
        let _ = fs::remove_file(&part);
        failed(error)
    })?;
    fs::rename(&part, &path).map_err(unwritten)?;
    let mut out = io::stdout().lock();
    if arguments.output.format == Format::Json {
        writeln!(out, "{}", json!({ "file": path, "exported": exported }))?;
        return Ok(());
    }
    writeln!(out, "{}: {} records, {} payloads", path.display(), exported.records, exported.payloads)?;
    if exported.unsigned > 0 {
        writeln!(
            out,
            "{} records are not signed yet: export it again when the agent has run",
            exported.unsigned
        )?;
    }
    if exported.removed > 0 {
        writeln!(
            out,
            "{} payloads are without their pieces, which are no longer in the spool (`audit.payloads.keep_days`), nor in an archive",
            exported.removed
        )?;
    }
    Ok(())
}

/// Where an agent runs, the last records get their checkpoint soon.
fn wait_until_signed(journal: &Path, state: &Path, session: Uuid) -> Result<(), Failure> {
    const STEP: Duration = Duration::from_millis(200);
    let mut waited = Duration::ZERO;
    while waited < SIGNING && !is_signed(journal, session)? && Client::connect(&State(state).socket()).is_ok()
    {
        if waited.is_zero() {
            eprintln!("waiting for the agent to sign the last records");
        }
        std::thread::sleep(STEP);
        waited += STEP;
    }
    Ok(())
}

fn failed(error: ExportError) -> Failure {
    match error {
        // A reader that has seen enough is told apart by the error itself.
        ExportError::Write(error) => Failure::Failed(error.into()),
        error => Failure::Failed(error.into()),
    }
}
