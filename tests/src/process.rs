//! A process of the sandbox: where its output goes, how it is waited for, and how it ends.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open},
};
use serde::{Deserialize, Serialize};

use crate::{
    launch::{self, Place},
    signals,
};

/// How often a condition that nobody signals is looked at.
const GLANCE: Duration = Duration::from_millis(20);
/// How many of its last lines say why a process ended.
const LAST_LINES: usize = 12;

/// Everything that is needed to start a process, also for somebody who did not plan it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Plan {
    /// Also the name of its logs, `<name>.out` and `<name>.log`.
    pub name: String,
    pub place: Place,
    pub program: String,
    pub arguments: Vec<String>,
    pub environment: BTreeMap<String, String>,
}

/// A running process. It is killed when the value is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
    log: PathBuf,
    /// Where its own part of the output begins: logs outlive restarts.
    output_start: u64,
}

impl Process {
    /// Starts what `plan` says, with its output and its log in files under `logs`.
    pub fn start(plan: &Plan, logs: &Path) -> Result<Self> {
        let output = logs.join(format!("{}.out", plan.name));
        let log = logs.join(format!("{}.log", plan.name));
        let output_file = append(&output)?;
        let output_start = output_file.metadata()?.len();
        let mut command = launch::command(&plan.place, &plan.program, &plan.arguments)?;
        command.envs(&plan.environment).stdin(Stdio::null()).stdout(output_file).stderr(append(&log)?);
        let _building = signals::building();
        let child = command.spawn().with_context(|| format!("start {}", plan.name))?;
        Ok(Self { name: plan.name.clone(), child, output, log, output_start })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the line `{"ready": true…}` in its output.
    pub fn wait_for_ready_line(&mut self, deadline: Duration) -> Result<()> {
        let (path, start) = (self.output.clone(), self.output_start);
        self.wait_until(deadline, || {
            let mut file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
            file.seek(SeekFrom::Start(start))?;
            let mut output = String::new();
            file.read_to_string(&mut output).with_context(|| format!("read {}", path.display()))?;
            Ok(output.lines().any(is_ready_line))
        })
    }

    /// Waits until `ready` says so. Fails with the process's last words when it ends or the deadline passes before.
    pub fn wait_until(&mut self, deadline: Duration, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        while !ready()? {
            if let Some(status) = self.child.try_wait().context("look after a process")? {
                bail!("{} ended with {status} before it was ready:\n{}", self.name, self.last_words());
            }
            if started.elapsed() > deadline {
                let seconds = deadline.as_secs();
                bail!("{} was not ready after {seconds} s:\n{}", self.name, self.last_words());
            }
            thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("look after a process")?.is_none())
    }

    /// Waits for its end; none when the deadline passed before.
    pub fn wait(&mut self, deadline: Duration) -> Result<Option<ExitStatus>> {
        wait(&mut self.child, deadline)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(Pid::from_child(&self.child), signal).with_context(|| format!("signal {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// SIGTERM, and waits for an orderly end.
    pub fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.runs()? {
            self.signal(Signal::TERM)?;
        }
        match self.wait(deadline)? {
            Some(status) => Ok(status),
            None => bail!("{} did not end within {} s of SIGTERM", self.name, deadline.as_secs()),
        }
    }

    /// All that it wrote to its output so far.
    pub fn output(&self) -> Result<String> {
        let text = fs::read(&self.output).with_context(|| format!("read {}", self.output.display()))?;
        let start = usize::try_from(self.output_start)?;
        Ok(String::from_utf8_lossy(text.get(start..).unwrap_or_default()).into_owned())
    }

    /// The last lines of its log.
    pub fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&text), LAST_LINES)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has usually ended by now.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for a child's end; none when the deadline passed before.
pub fn wait(child: &mut Child, deadline: Duration) -> Result<Option<ExitStatus>> {
    if let Some(status) = child.try_wait().context("look after a process")? {
        return Ok(Some(status));
    }
    wait_for_end(Pid::from_child(child), Some(deadline))?;
    child.try_wait().context("look after a process")
}

/// Waits for the end of any process, this one's child or not. Without a deadline, as long as it takes.
pub fn wait_for_end(pid: Pid, deadline: Option<Duration>) -> Result<()> {
    let handle = match pidfd_open(pid, PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(error) => bail!("open process {pid:?}: {error}"),
    };
    let started = Instant::now();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_sub(started.elapsed()));
        let left = left.map(Timespec::try_from).transpose().context("wait that long")?;
        match poll(&mut [PollFd::new(&handle, PollFlags::IN)], left.as_ref()) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => bail!("wait for process {pid:?}: {error}"),
        }
    }
}

fn append(path: &Path) -> Result<File> {
    File::options().create(true).append(true).open(path).with_context(|| format!("open {}", path.display()))
}

fn is_ready_line(line: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(line)
        .is_ok_and(|value| value.get("ready") == Some(&true.into()))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_a_line_that_says_ready_is_one() {
        assert!(is_ready_line(r#"{"ready": true, "listen": ["10.77.1.2:443"]}"#));
        for other in
            ["", "ready", r#"{"ready": false}"#, r#"{"ready": "true"}"#, "{\"ready\": true", "[true]"]
        {
            assert!(!is_ready_line(other), "{other:?}");
        }
    }

    #[test]
    fn last_words_are_the_last_lines() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a\n", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn waiting_ends_with_the_process_or_with_the_deadline() {
        let mut child = Command::new("sleep").arg("30").spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(50)).unwrap().is_none());
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let status = wait(&mut child, Duration::from_secs(10)).unwrap().unwrap();
        assert_eq!(launch::status_code(status), 143);
    }
}
