//! Whoever may read payloads, with programs that know the trail by its documented format alone.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sandbox::{Builder, Environment, Sandbox};
use serde_json::Value;

/// Who may read, and how the agent is told of it.
pub struct Reader {
    identity: String,
    recipient: String,
}

impl Reader {
    pub fn new() -> Result<Self> {
        sandbox::python::prepare(&[Environment::Payloads], &|_| {})?;
        let keys: Value = serde_json::from_str(&program("payloads.py", &["keys"])?)?;
        let text = |key: &str| keys[key].as_str().map(ToOwned::to_owned).context("a key");
        Ok(Self { identity: text("identity")?, recipient: text("recipient")? })
    }

    /// A sandbox whose agent keeps payloads for this reader.
    pub fn sandbox(&self, settings: &str) -> Result<Builder> {
        Ok(Sandbox::builder().payloads(&self.recipient, toml::from_str(settings)?))
    }

    /// All payloads, each digest checked on the way.
    pub fn read(&self, sandbox: &Sandbox) -> Result<Vec<Value>> {
        self.read_from(sandbox, &sandbox.agent_state().join("spool"))
    }

    /// The same, with the pieces in another folder.
    pub fn read_from(&self, sandbox: &Sandbox, spool: &Path) -> Result<Vec<Value>> {
        let journal = sandbox.agent_state().join("journal.db");
        let text = |path: &Path| path.display().to_string();
        let said = program("payloads.py", &["read", &text(&journal), &text(spool), &self.identity])?;
        said.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    pub fn identity_file(&self, sandbox: &Sandbox) -> Result<String> {
        let path = sandbox.agent_state().join("security.key");
        fs::write(&path, format!("# the security team's\n{}\n", self.identity))?;
        Ok(path.display().to_string())
    }
}

/// What a program of the tests' own says.
pub fn program(name: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(Environment::Payloads.python()?);
    command.arg(format!("{}/python/{name}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
    let output = command.output().context("start the reader")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}
