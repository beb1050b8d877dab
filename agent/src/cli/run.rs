//! `snowfence run` and `snowfence detach`.

use std::io::{self, IsTerminal, Write};

use serde_json::json;
use tracing_subscriber::EnvFilter;

use super::{ConfigFile, Failure, Format};
use crate::app::{self, AppError, RunOptions};
use crate::capture;

pub(super) fn run(config: &ConfigFile, take_over: bool) -> Result<(), Failure> {
    let config = config.load()?;
    log();
    app::run(config, RunOptions { take_over }).map_err(|error| match error {
        AppError::Credential { .. }
        | AppError::ClickHousePassword(_)
        | AppError::SiemToken { .. }
        | AppError::Policy(_)
        | AppError::Keys(_) => Failure::Usage(error.into()),
        _ => Failure::Failed(error.into()),
    })
}

pub(super) fn detach(config: &ConfigFile, format: Format) -> Result<(), Failure> {
    let config = config.load()?;
    let detached =
        capture::detach(&app::capture_settings(&config)).map_err(|error| Failure::Failed(error.into()))?;
    let mut out = io::stdout().lock();
    match format {
        Format::Json => writeln!(out, "{}", json!({ "programs": detached.programs, "maps": detached.maps }))?,
        Format::Text if detached.programs.is_empty() && detached.maps.is_empty() => {
            writeln!(out, "Nothing was attached.")?;
        }
        Format::Text => {
            let list = |names: &[String]| names.join(", ");
            writeln!(out, "Removed programs: {}", list(&detached.programs))?;
            writeln!(out, "Removed maps: {}", list(&detached.maps))?;
            writeln!(out, "Connections to Snowflake go their own way again.")?;
        }
    }
    Ok(())
}

/// Logs to standard error: for people on a terminal, as JSON elsewhere. `SNOWFENCE_LOG` says how much.
pub(super) fn log() {
    let filter = EnvFilter::try_from_env("SNOWFENCE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    if io::stderr().is_terminal() { builder.init() } else { builder.json().flatten_event(true).init() }
}
