//! `snowfence ca`.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::json;

use super::{ConfigFile, Failure, Format, Output};
use crate::app::State;
use crate::tls::Authority;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Print the internal CA's certificate in PEM, for the clients' trust stores
    #[command(
        after_help = "The agent makes the CA at its first start.\n\nExample:\n  sudo snowfence ca print > snowfence-ca.pem"
    )]
    Print {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    let Command::Print { config, output } = command;
    let config = config.load()?;
    let directory = State(&config.agent.state_dir).authority();
    let pem = Authority::read_certificate(&directory).map_err(|error| {
        Failure::Failed(
            anyhow::Error::new(error).context("no internal CA yet (the agent makes it at its first start)"),
        )
    })?;
    let mut out = io::stdout().lock();
    match output.format {
        Format::Text => out.write_all(pem.as_bytes())?,
        Format::Json => writeln!(out, "{}", json!({ "certificate": pem }))?,
    }
    Ok(())
}
