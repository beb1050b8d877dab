//! Starting a program in its place: network namespace, control group and, for pods, a container.
//!
//! The places can only be entered by a process for itself, and some of them only while it has one thread, so programs
//! are started by way of a launcher: this crate's own binary, run as `snowfence-sandbox launch PLACE -- PROGRAM …`.
//!
//! A pod's launcher stays: it is the parent of the container's first process, and passes on its exit status.

use std::{
    env,
    fs::{self, File},
    io::ErrorKind,
    os::{
        fd::AsFd as _,
        unix::process::{CommandExt as _, ExitStatusExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use anyhow::{Context, Result};
use rustix::{
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, wait},
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};
use serde::{Deserialize, Serialize};
use signal_hook::{
    consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2},
    iterator::Signals,
};

use crate::container::Container;

/// What a shell answers for a program that cannot be started, and for one that does not exist.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// A shell adds the number of the signal that ended a program to this.
const SIGNALLED: u8 = 128;
const BINARY: &str = "snowfence-sandbox";

/// Where a program runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Place {
    /// None: the machine's own.
    pub network: Option<PathBuf>,
    pub cgroup: PathBuf,
    pub container: Option<Container>,
}

/// The command that runs `program` in `place`, with nothing in its environment yet.
pub fn command(place: &Place, program: &str, arguments: &[String]) -> Result<Command> {
    let mut command = Command::new(launcher()?);
    command
        .env_clear()
        .arg("launch")
        .arg(serde_json::to_string(place)?)
        .arg("--")
        .arg(program)
        .args(arguments);
    Ok(command)
}

/// The binary of this crate. Test programs lie beside it or one folder below.
pub fn launcher() -> Result<PathBuf> {
    let own = env::current_exe().context("find this program's own path")?;
    if own.file_name().is_some_and(|name| name == BINARY) {
        return Ok(own);
    }
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(BINARY))
        .find(|path| path.is_file())
        .with_context(|| format!("{BINARY} is not built: run `cargo build -p snowfence-tests`"))
}

/// `launch`: goes to `place` and runs `program` there. Returns only the status of a program in a container, or an error.
pub fn launch(place: &str, program: &[String]) -> Result<u8> {
    let place: Place = serde_json::from_str(place).context("read the place")?;
    // The network first: a process in a covered control group is captured wherever it stands.
    if let Some(network) = &place.network {
        let network = File::open(network).with_context(|| format!("open {}", network.display()))?;
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .context("enter the network")?;
    }
    let group = place.cgroup.join("cgroup.procs");
    fs::write(&group, "0").with_context(|| format!("write {}", group.display()))?;
    let Some(container) = &place.container else {
        let (name, arguments) = split(program)?;
        return Ok(cannot_start(name, &Command::new(name).args(arguments).exec()));
    };
    // SAFETY: none of these flags touches file descriptors, and the process has one thread.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWPID | UnshareFlags::NEWIPC) }
        .context("make the container's namespaces")?;
    container.set_up_files()?;
    let signals = listen()?;
    let init = Command::new("/proc/self/exe")
        .arg("init")
        .arg(serde_json::to_string(container)?)
        .arg("--")
        .args(program)
        .spawn()
        .context("start the container's first process")?;
    tend(signals, Pid::from_child(&init))
}

/// `init`: the first process of a container. Starts `program` as the container's user, reaps whatever is left to it, and
/// ends with the program; the kernel then ends what the program left behind.
pub fn init(container: &str, program: &[String]) -> Result<u8> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("tie the container to its launcher")?;
    let container: Container = serde_json::from_str(container).context("read the container")?;
    container.set_up_processes()?;
    let (name, arguments) = split(program)?;
    let mut command = Command::new(name);
    command.args(arguments);
    if !container.root {
        command.uid(container.uid).gid(container.gid);
    }
    let signals = listen()?;
    match command.spawn() {
        Ok(child) => tend(signals, Pid::from_child(&child)),
        Err(error) => Ok(cannot_start(name, &error)),
    }
}

fn listen() -> Result<Signals> {
    Signals::new([SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]).context("wait for signals")
}

/// Stays until `child` has ended, and returns its status. Reaps other children, and passes on the signals that are sent
/// to this very process. Those of a terminal go to the whole group, so they only have to be survived. Needs no thread:
/// none can be made between leaving one's pid namespace and entering the next.
fn tend(mut signals: Signals, child: Pid) -> Result<u8> {
    loop {
        for signal in signals.wait() {
            match signal {
                SIGCHLD => {
                    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                        if pid == child {
                            return Ok(status_code(ExitStatus::from_raw(status.as_raw())));
                        }
                    }
                }
                SIGINT | SIGQUIT => {}
                other => {
                    if let Some(signal) = Signal::from_named_raw(other) {
                        // It may have ended by itself.
                        let _ = kill_process(child, signal);
                    }
                }
            }
        }
    }
}

fn split(program: &[String]) -> Result<(&String, &[String])> {
    program.split_first().context("name the program to run after --")
}

/// Says why a program did not start, and returns the exit status that a shell would give.
fn cannot_start(name: &str, error: &std::io::Error) -> u8 {
    eprintln!("{name}: {error}");
    if error.kind() == ErrorKind::NotFound && !Path::new(name).exists() { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// The exit status as a shell reports it: 128 and the signal's number for a program that was signalled.
pub fn status_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| signal + i32::from(SIGNALLED)));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_reads_as_in_a_shell() {
        assert_eq!(status_code(ExitStatus::from_raw(0)), 0);
        assert_eq!(status_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(status_code(ExitStatus::from_raw(9)), 137);
        assert_eq!(status_code(ExitStatus::from_raw(15)), 143);
    }

    #[test]
    fn a_missing_program_is_told_from_one_that_may_not_run() {
        let missing = Command::new("/nonexistent/program").spawn().unwrap_err();
        assert_eq!(cannot_start("/nonexistent/program", &missing), NOT_FOUND);
        let folder = Command::new("/etc").spawn().unwrap_err();
        assert_eq!(cannot_start("/etc", &folder), NOT_EXECUTABLE);
    }
}
