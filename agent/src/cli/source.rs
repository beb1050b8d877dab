//! Which trail a command reads.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{ConfigFile, Failure};
use crate::app::State;
use crate::audit::payload::{Archived, Kept};
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
        let spool = State(journal.parent().unwrap_or(Path::new("."))).spool();
        let configured = || {
            let payloads = if self.trail.is_own() { self.trail.config.load()?.payloads } else { None };
            Ok::<_, Failure>(payloads.and_then(|payloads| payloads.archive).map(|archive| archive.bucket))
        };
        let bucket = match &self.archive {
            Some(bucket) => Some(bucket.clone()),
            None => configured()?,
        };
        let archive = bucket.as_ref().map(Archived::open).transpose();
        Ok(Kept::new(spool, archive.map_err(|error| Failure::Usage(error.into()))?))
    }
}
