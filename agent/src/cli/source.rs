//! Which trail a command reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;

use super::{ConfigFile, Failure, schema};
use crate::admin::{AdminError, Client, Request};
use crate::app::State;
use crate::audit::payload::{Archived, Kept};
use crate::audit::{Event, EventKind, Journal, Records};
use crate::config::Bucket;

#[derive(Args)]
pub(super) struct Source {
    #[command(flatten)]
    config: ConfigFile,
    /// Read this journal instead of the one that the configuration names
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

/// A trail with its payloads.
#[derive(Args)]
pub(super) struct PayloadSource {
    #[command(flatten)]
    pub trail: Source,
    /// Read payloads that have left the host from this object store instead of the one that the configuration names; credentials come
    /// from the environment
    #[arg(long, value_name = "URL", value_parser = Bucket::parse)]
    archive: Option<Bucket>,
}

/// The trail of this node, or of all.
#[derive(Args)]
pub(super) struct EverySource {
    #[command(flatten)]
    payloads: PayloadSource,
    /// Read what ClickHouse has, of all nodes, instead of the journal of this one
    #[arg(long, conflicts_with = "journal")]
    clickhouse: bool,
}

impl Source {
    /// Whether it is the journal that the configuration names.
    pub fn is_own(&self) -> bool {
        self.journal.is_none()
    }

    pub fn config(&self) -> &ConfigFile {
        &self.config
    }

    pub fn journal(&self) -> Result<PathBuf, Failure> {
        match &self.journal {
            Some(path) => Ok(path.clone()),
            None => Ok(State(&self.config.load()?.agent.state_dir).journal()),
        }
    }
}

impl PayloadSource {
    /// Where the payloads of a journal are.
    pub fn kept(&self, journal: &Path) -> Result<Kept, Failure> {
        let configured = || {
            let payloads = if self.trail.is_own() { self.trail.config.load()?.payloads } else { None };
            Ok::<_, Failure>(payloads.and_then(|payloads| payloads.archive).map(|archive| archive.bucket))
        };
        let bucket = match &self.archive {
            Some(bucket) => Some(bucket.clone()),
            None => configured()?,
        };
        let archive = bucket.as_ref().map(Archived::open).transpose();
        Ok(Kept::new(spool(journal), archive.map_err(|error| Failure::Usage(error.into()))?))
    }
}

/// The spool of a journal.
pub(super) fn spool(journal: &Path) -> PathBuf {
    State(journal.parent().unwrap_or(Path::new("."))).spool()
}

impl EverySource {
    /// Reads records, with the words by which their place is named, and from where their payloads are.
    pub fn read<T>(&self, read: impl FnOnce(&Records<'_>, &str) -> Result<T, Failure>) -> Result<T, Failure> {
        if self.clickhouse {
            let (settings, runtime) = (schema::settings(self.payloads.trail.config())?, schema::runtime()?);
            return read(&Records::ClickHouse(&settings, &runtime), "ClickHouse");
        }
        let journal = self.payloads.trail.journal()?;
        read(&Records::Journal(&journal), &format!("the journal {}", journal.display()))
    }

    /// Where the payloads are.
    pub fn kept(&self) -> Result<Kept, Failure> {
        self.payloads.kept(&self.payloads.trail.journal()?)
    }

    /// That somebody looks at so many payloads is on record before there is anything to see.
    pub fn note(&self, id: &str, payloads: usize) -> Result<(), Failure> {
        let journal = self.payloads.trail.journal()?;
        if payloads == 0 {
            return Ok(());
        }
        if self.clickhouse && journal.try_exists().is_ok_and(|exists| !exists) {
            eprintln!(
                "snowfence: no agent has a journal here: that you look is on record in the logs of ClickHouse and of the object store alone"
            );
            return Ok(());
        }
        note(&journal, id, payloads)
    }
}

fn note(journal: &Path, id: &str, payloads: usize) -> Result<(), Failure> {
    let state = journal.parent().unwrap_or(Path::new("."));
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
