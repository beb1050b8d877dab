//! `snowfence config`.

use std::io::{self, Write};

use clap::Subcommand;
use serde_json::json;

use super::{ConfigFile, Failure, Format, Output};
use crate::audit::siem;
use crate::config::{self, Config, ConfigError, SiemTarget, schema};
use crate::policy::Policy;
use crate::storage::Bucket;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Check the configuration file, the policy that it names, and that its secrets, and the certificates for sinks, can be read
    #[command(after_help = "Example:\n  snowfence config check --config snowfence.toml")]
    Check {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
        /// Do not read secrets and certificates: for checking a file on another machine than the agent's
        #[arg(long)]
        without_secrets: bool,
    },
    /// Print the JSON schema of the configuration file
    #[command(after_help = "Example:\n  snowfence config schema > snowfence.schema.json")]
    Schema {
        /// A schema is JSON in either format: `text` is indented
        #[command(flatten)]
        output: Output,
    },
}

pub(super) fn run(command: Command) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match command {
        Command::Schema { output } => {
            match output.format {
                Format::Text => serde_json::to_writer_pretty(&mut out, &schema()),
                Format::Json => serde_json::to_writer(&mut out, &schema()),
            }
            .map_err(io::Error::from)?;
            writeln!(out)?;
        }
        Command::Check { config, output, without_secrets } => {
            let checked = check(&config, without_secrets);
            if output.format == Format::Json {
                let problems = match &checked {
                    Err(ConfigError::Invalid { problems, .. }) => json!(problems),
                    Err(error) => json!([{ "message": error.to_string() }]),
                    Ok(_) => json!([]),
                };
                writeln!(out, "{}", json!({ "valid": checked.is_ok(), "problems": problems }))?;
            }
            let checked = checked?;
            if output.format == Format::Text {
                writeln!(
                    out,
                    "{}: valid ({} accounts, {} issuers, {} rules, {} policy)",
                    config.config.display(),
                    checked.accounts.len(),
                    checked.issuers.len(),
                    checked.rules.len(),
                    if checked.policy_file.is_some() { "own" } else { "built-in" },
                )?;
            }
        }
    }
    Ok(())
}

fn check(file: &ConfigFile, without_secrets: bool) -> Result<Config, ConfigError> {
    let config = config::load(&file.config)?;
    let mut unusable: Vec<(Vec<String>, String)> = Vec::new();
    if let Err(error) = Policy::load(config.policy_file.as_deref()) {
        unusable.push((vec!["policy".into(), "file".into()], error.to_string()));
    }
    if !without_secrets {
        for credential in &config.credentials {
            if let Err(error) = credential.secret.read() {
                let path = vec!["credentials".into(), credential.name.clone(), "secret".into()];
                unusable.push((path, error.to_string()));
            }
        }
        let password = config.clickhouse.as_ref().and_then(|clickhouse| clickhouse.password.as_ref());
        if let Some(Err(error)) = password.map(config::SecretReference::read) {
            let path = ["audit", "clickhouse", "password"].map(ToOwned::to_owned).to_vec();
            unusable.push((path, error.to_string()));
        }
        let archive = config.payloads.as_ref().and_then(|payloads| payloads.archive.as_ref());
        let archive = archive.map(|archive| (&["audit", "payloads", "archive"][..], &archive.bucket));
        let checkpoints = config.checkpoints.as_ref().map(|bucket| (&["audit", "checkpoints"][..], bucket));
        for (path, bucket) in archive.into_iter().chain(checkpoints) {
            if let Err(error) = Bucket::open(bucket) {
                unusable.push((path.iter().map(ToString::to_string).collect(), error.to_string()));
            }
        }
        for (index, sink) in config.siem.iter().enumerate() {
            if let Err(error) = siem::check(sink) {
                unusable
                    .push((vec!["siem".into(), index.to_string(), "ca_bundle".into()], error.to_string()));
            }
            if let SiemTarget::Http { token: Some(token), .. } = &sink.target
                && let Err(error) = token.read()
            {
                unusable.push((vec!["siem".into(), index.to_string(), "token".into()], error.to_string()));
            }
        }
    }
    if unusable.is_empty() { Ok(config) } else { Err(config::unusable(&file.config, &unusable)) }
}
