//! Root, where a job needs it. Whoever is not root is told why, and asked for the password once.

use std::{
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use crate::programs;

/// sudo forgets the password after some minutes, often five.
const REFRESH: Duration = Duration::from_mins(1);

/// The right to run programs as root.
#[derive(Debug)]
pub struct Privilege {
    sudo: Option<PathBuf>,
}

impl Privilege {
    /// Asks for it, saying `why`. It stays until this process ends.
    pub fn acquire(why: &str) -> Result<Self> {
        if rustix::process::geteuid().is_root() {
            return Ok(Self { sudo: None });
        }
        let Some(sudo) = programs::find("sudo") else {
            bail!("{why} needs root, and there is no sudo: run this as root");
        };
        let mut without_asking = Command::new(&sudo);
        without_asking.args(["-n", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
        if !without_asking.status().context("start sudo")?.success() {
            eprintln!("{why} needs root: sudo asks for your password");
            programs::run(Command::new(&sudo).arg("-v")).with_context(|| format!("{why} needs root"))?;
        }
        keep_alive(sudo.clone());
        Ok(Self { sudo: Some(sudo) })
    }

    /// The command that runs `program` as root, with nothing but `variables` added to what sudo leaves.
    pub fn command(&self, program: impl AsRef<OsStr>, variables: &[(OsString, OsString)]) -> Command {
        let Some(sudo) = &self.sudo else {
            let mut command = Command::new(program);
            command.envs(variables.iter().map(|(name, value)| (name, value)));
            return command;
        };
        let mut command = Command::new(sudo);
        command.args(["-n", "--", "env"]);
        for (name, value) in variables {
            let mut assignment = name.clone();
            assignment.push("=");
            assignment.push(value);
            command.arg(assignment);
        }
        command.arg(program);
        command
    }
}

fn keep_alive(sudo: PathBuf) {
    thread::spawn(move || {
        loop {
            thread::sleep(REFRESH);
            // If it is refused, the next command says so.
            let _ =
                Command::new(&sudo).args(["-n", "-v"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_pass_through_sudo() {
        let variables = [("A".into(), "b c".into())];
        let through = Privilege { sudo: Some("/usr/bin/sudo".into()) };
        assert_eq!(programs::shown(&through.command("ls", &variables)), "/usr/bin/sudo -n -- env A=b c ls");
        let direct = Privilege { sudo: None }.command("ls", &variables);
        assert_eq!(programs::shown(&direct), "ls");
        assert_eq!(direct.get_envs().count(), 1);
    }
}
