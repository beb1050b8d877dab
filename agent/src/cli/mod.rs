//! The command line. Exit codes: 0 done, 1 failed, 64 bad usage or configuration.

#![forbid(unsafe_code)]

mod approvals;
mod audit;
mod authority;
mod configuration;
mod doctor;
mod endpoints;
mod explain;
mod export;
mod reconcile;
mod replay;
mod run;
mod schema;
mod show;
mod source;
mod table;
mod verify;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::json;

use crate::admin::{AdminError, Answer, Client, Request};
use crate::app::State;
use crate::config::{self, Config, ConfigError};
use crate::policy::PolicyError;

const FAILED: u8 = 1;
const BAD_USAGE: u8 = 64;

/// Captures, decides on and records every Snowflake statement of this host.
#[derive(Parser)]
#[command(name = "snowfence", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent until it is told to stop (SIGTERM); SIGHUP reloads the policy, SIGUSR2 upgrades
    #[command(
        after_help = "SNOWFENCE_LOG says what is logged: error, warn, info (default), debug, or by module.\n\nAn upgrade without a gap: put the new binary in the place of the old one and send SIGUSR2, or start\nthe new one with --take-over beside the old one, which then waits to be stopped.\n\nExamples:\n  sudo snowfence run --config /etc/snowfence/snowfence.toml\n  sudo systemctl kill --signal=USR2 --kill-whom=main snowfence"
    )]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Take over from an agent that runs, if one does: its listeners, sessions and journal
        #[arg(long)]
        take_over: bool,
    },
    /// Take the kernel programs down: connections to Snowflake go their own way again
    #[command(
        after_help = "Without this, a stopped agent leaves connections to Snowflake refused, and all connections of\nworkloads in mode \"all\".\n\nExample:\n  sudo snowfence detach"
    )]
    Detach {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Say what this host has of what the agent needs, what is missing, what that weakens, and how to mend it
    #[command(
        after_help = "Ends with 1 if the agent cannot work here, or if the one that runs does not cover everything.\n\nExamples:\n  sudo snowfence doctor\n  sudo snowfence doctor --format json | jq '.findings[] | select(.state != \"good\")'"
    )]
    Doctor {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// The addresses that are captured
    #[command(subcommand)]
    Endpoints(endpoints::Command),
    /// Check the configuration file, or print its schema
    #[command(subcommand)]
    Config(configuration::Command),
    /// Try statements against the policy, offline
    #[command(subcommand)]
    Policy(explain::Command),
    /// Statements that wait for a person: see them, approve or deny them
    #[command(subcommand)]
    Approvals(approvals::Command),
    /// Read the journal of this node
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show a recorded session as its client saw it, or answer a driver with it: needs an identity that payloads are sealed to
    #[command(
        after_help = "On a terminal it plays: space pauses, n or → goes on at once, + and - change the speed, / searches, q ends.
Each replay is itself an event of the trail (`payloads_read`).

Examples:
  sudo snowfence replay 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11 --identity security.key --speed 4
  sudo snowfence replay 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11 -i security.key --format json | jq -r .asked
  snowfence replay --export 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11.jsonl --key keys -i security.key
  sudo snowfence replay 0199f3a1-7c1e-7d0a-9b1e-5d2f0c4e8a11 -i security.key --serve 127.0.0.1:8443 --ca-out replay-ca.pem"
    )]
    Replay(replay::ReplayArguments),
    /// The schema in ClickHouse
    #[command(subcommand)]
    Schema(schema::Command),
    /// The internal certificate authority
    #[command(subcommand)]
    Ca(authority::Command),
    /// Print the version
    #[command(after_help = "Example:\n  snowfence version --format json")]
    Version(Output),
}

/// What the agent with this configuration answers.
fn ask(config: &Config, request: &Request) -> Result<Answer, Failure> {
    let failed = |error: AdminError| Failure::Failed(error.into());
    Client::connect(&State(&config.agent.state_dir).socket()).map_err(failed)?.ask(request).map_err(failed)
}

/// Where the configuration is, unless it is said otherwise.
const CONFIG: &str = "/etc/snowfence/snowfence.toml";

#[derive(Args)]
struct ConfigFile {
    /// The configuration file
    #[arg(
        long,
        short,
        value_name = "FILE",
        env = "SNOWFENCE_CONFIG",
        default_value = CONFIG
    )]
    config: PathBuf,
}

#[derive(Args)]
struct Output {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// For scripts: one JSON value a line
    Json,
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
enum Failure {
    /// The usage or the configuration is at fault.
    Usage(anyhow::Error),
    Failed(anyhow::Error),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(BAD_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let done = match arguments.command {
        Command::Run { config, take_over } => run::run(&config, take_over),
        Command::Detach { config, output } => run::detach(&config, output.format),
        Command::Doctor { config, output } => doctor::run(&config, output.format),
        Command::Endpoints(command) => endpoints::run(command),
        Command::Config(command) => configuration::run(command),
        Command::Policy(command) => explain::run(command),
        Command::Approvals(command) => approvals::run(&command),
        Command::Audit(command) => audit::run(command),
        Command::Replay(arguments) => replay::replay(&arguments),
        Command::Schema(command) => schema::run(command),
        Command::Ca(command) => authority::run(command),
        Command::Version(output) => version(output.format),
    };
    let (code, error) = match done {
        Ok(()) => return ExitCode::SUCCESS,
        Err(Failure::Usage(error)) => (BAD_USAGE, error),
        Err(Failure::Failed(error)) => {
            // A reader that has seen enough, such as `head`, is no failure.
            let closed =
                error.downcast_ref::<io::Error>().map(io::Error::kind) == Some(io::ErrorKind::BrokenPipe);
            if closed {
                return ExitCode::SUCCESS;
            }
            (FAILED, error)
        }
    };
    eprintln!("snowfence: {}", in_one_line(&error));
    ExitCode::from(code)
}

/// An error with its causes, each said once: many say their cause themselves.
fn in_one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |text, cause| match text.as_str() {
        "" => cause,
        known if known.contains(&cause) => text,
        _ => format!("{text}: {cause}"),
    })
}

fn version(format: Format) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    let mut out = io::stdout().lock();
    match format {
        Format::Text => writeln!(out, "snowfence {version}")?,
        Format::Json => writeln!(out, "{}", json!({ "version": version }))?,
    }
    Ok(())
}

impl ConfigFile {
    fn load(&self) -> Result<Config, Failure> {
        Ok(config::load(&self.config)?)
    }

    /// Whether nobody has named one, and there is none.
    fn is_missing(&self) -> bool {
        self.config.as_os_str() == CONFIG && !self.config.exists()
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<PolicyError> for Failure {
    fn from(error: PolicyError) -> Self {
        Self::Usage(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.into())
    }
}
