//! What the jobs need on this machine: found out, and installed on Debian and Ubuntu.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{build, privilege::Privilege, programs};

/// The variable that names the cache of Python environments.
const CACHE_VARIABLE: &str = "SNOWFENCE_CACHE";

/// Something that has to be on the machine.
#[derive(Clone, Copy)]
pub struct Need {
    pub what: &'static str,
    /// Debian's package that has it.
    pub package: &'static str,
    pub is_there: fn() -> bool,
}

const NEEDS: [Need; 7] = [
    Need { what: "ip", package: "iproute2", is_there: || programs::find("ip").is_some() },
    Need { what: "nft", package: "nftables", is_there: || programs::find("nft").is_some() },
    Need { what: "openssl", package: "openssl", is_there: || programs::find("openssl").is_some() },
    Need { what: "a C compiler", package: "gcc", is_there: || programs::find("cc").is_some() },
    Need {
        what: "the C library's headers",
        package: "libc6-dev",
        is_there: || Path::new("/usr/include/stdio.h").exists(),
    },
    Need {
        what: "systemd-analyze",
        package: "systemd",
        is_there: || programs::find("systemd-analyze").is_some(),
    },
    Need { what: "Python 3.11 or newer with venv", package: "python3-venv", is_there: has_python },
];

/// What the tests need besides: clients that are not Python's.
const CLIENTS: [Need; 3] = [
    Need { what: "curl", package: "curl", is_there: || programs::find("curl").is_some() },
    Need { what: "node", package: "nodejs", is_there: || programs::find("node").is_some() },
    Need { what: "npm", package: "npm", is_there: || programs::find("npm").is_some() },
];

/// Interpreters of the system, the default one first.
const INTERPRETERS: [&str; 5] = [
    "/usr/bin/python3",
    "/usr/bin/python3.13",
    "/usr/bin/python3.12",
    "/usr/bin/python3.11",
    "/usr/local/bin/python3",
];

/// Installs all that any job needs.
pub fn run(root: &Path) -> Result<()> {
    packages()?;
    let sandbox = build::sandbox(root, build::Options::default())?;
    python(&sandbox)?;
    clients(&sandbox)
}

/// Installs the clients that are not Python's, as the user that called.
pub fn clients(sandbox: &Path) -> Result<()> {
    install(&CLIENTS)?;
    programs::run(Command::new(sandbox).arg("node")).context("install the packages for Node")
}

/// Installs what every job needs.
pub fn packages() -> Result<()> {
    install(&NEEDS)
}

/// Installs what is missing of this.
pub fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !(need.is_there)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let what = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
    if !Path::new("/etc/debian_version").exists() || programs::find("apt-get").is_none() {
        bail!("this machine lacks {what}: install it with your package manager and run this again");
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if !has_new_python() && packages.contains(&"python3-venv") && is_offered("python3.11-venv") {
        // The system's own Python is too old: a newer one goes beside it.
        packages.push("python3.11-venv");
    }
    eprintln!("this machine lacks {what}: installing {}", packages.join(" "));
    let privilege = Privilege::acquire("installing packages")?;
    let variables = [(OsString::from("DEBIAN_FRONTEND"), OsString::from("noninteractive"))];
    programs::run(privilege.command("apt-get", &variables).args(["update", "-qq"]))?;
    programs::run(
        privilege
            .command("apt-get", &variables)
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(&packages),
    )?;
    let still: Vec<&str> = missing.iter().filter(|need| !(need.is_there)()).map(|need| need.what).collect();
    ensure!(still.is_empty(), "still missing after the installation: {}", still.join(", "));
    Ok(())
}

/// Makes the Python environments as the user that called, and returns the interpreter of each by its name.
pub fn python(sandbox: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let listing =
        programs::output(Command::new(sandbox).arg("python")).context("make the Python environments")?;
    let lines = listing.lines().filter_map(|line| line.split_once(' '));
    Ok(lines.map(|(name, path)| (name.to_owned(), PathBuf::from(path))).collect())
}

/// The variables that the sandbox needs as root: where this user's cache is, and how to talk to the terminal.
pub fn variables_for_root() -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> =
        ["TERM", "NO_COLOR", "RUST_BACKTRACE", "SNOWFENCE_LOG", CACHE_VARIABLE]
            .into_iter()
            .filter_map(|name| Some((name.into(), std::env::var_os(name)?)))
            .collect();
    let named = variables.iter().any(|(name, _)| name == CACHE_VARIABLE);
    if let Some(home) = std::env::var_os("HOME").filter(|_| !named && !rustix::process::geteuid().is_root()) {
        variables.push((CACHE_VARIABLE.into(), Path::new(&home).join(".cache/snowfence").into()));
    }
    variables
}

fn has_python() -> bool {
    interpreter().is_some()
}

/// The system's Python.
pub fn interpreter() -> Option<PathBuf> {
    let program = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))";
    INTERPRETERS.iter().find(|path| python_says(path, program)).map(PathBuf::from)
}

/// Whether the system's default Python is new enough, with venv or without.
fn has_new_python() -> bool {
    let Some(path) = INTERPRETERS.first() else { return false };
    !Path::new(path).exists() || python_says(path, "import sys; sys.exit(sys.version_info < (3, 11))")
}

fn python_says(interpreter: &str, program: &str) -> bool {
    let mut command = Command::new(interpreter);
    command.args(["-c", program]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn is_offered(package: &str) -> bool {
    let mut command = Command::new("apt-cache");
    command.args(["show", package]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Whether this machine can run sandboxes; what it lacks, if not.
pub fn kernel() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    ensure!(mounts.contains(" - cgroup2 "), "no cgroup v2 hierarchy is mounted");
    ensure!(Path::new("/sys/fs/bpf").is_dir(), "this kernel has no BPF file system (/sys/fs/bpf)");
    ensure!(Path::new("/proc/self/ns/net").exists(), "this kernel has no network namespaces");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_gets_the_callers_cache() {
        let variables = variables_for_root();
        let names: Vec<_> = variables.iter().map(|(name, _)| name.to_string_lossy()).collect();
        let is_root = rustix::process::geteuid().is_root();
        let is_set = std::env::var_os(CACHE_VARIABLE).is_some();
        assert_eq!(names.contains(&CACHE_VARIABLE.into()), is_set || !is_root);
        assert!(!names.contains(&"SSL_CERT_FILE".into()));
    }

    #[test]
    fn an_interpreter_that_is_not_there_says_nothing() {
        assert!(!python_says("/nonexistent/python3", "pass"));
    }
}
