//! Python environments, made once for each state of their requirements and reused by every run.
//!
//! They lie in a cache that the pods' user can read: `/var/cache/snowfence` for root, `~/.cache/snowfence` for anybody
//! else, or where `SNOWFENCE_CACHE` says. The interpreter is the system's, because one under somebody's home may not be
//! executable for others.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread::{self, ScopedJoinHandle},
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};

use crate::state;

/// The variable that names the cache.
pub const CACHE_VARIABLE: &str = "SNOWFENCE_CACHE";
const OLDEST_PYTHON: (u32, u32) = (3, 11);
/// In this order: the system's default first, then newer ones that may be installed beside it.
const INTERPRETERS: [&str; 5] = [
    "/usr/bin/python3",
    "/usr/bin/python3.13",
    "/usr/bin/python3.12",
    "/usr/bin/python3.11",
    "/usr/local/bin/python3",
];
/// Lines of pip's output that are shown when it fails.
const LAST_LINES: usize = 15;

/// The environments that the sandbox uses, each with a file of pinned requirements.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Environment {
    /// ADBC, with the driver in Go.
    Adbc,
    /// The Snowflake CLI.
    Cli,
    /// ClickHouse's engine.
    ClickHouse,
    /// snowflake-connector-python 4.x, pure Python.
    Connector4,
    /// snowflake-connector-python 5.x, with a core in Rust.
    Connector5,
    /// The checkers of what `deploy/` ships.
    Deploy,
    /// An S3 with object lock.
    Objects,
    /// What checks events against the schema of OCSF.
    Ocsf,
    /// What reads payloads, and verifies the trail, as another program than the agent does.
    Payloads,
    /// Snowpark, on the connector 4.x, with pandas.
    Snowpark,
    /// SQLAlchemy, on the connector 5.x, with pandas.
    SqlAlchemy,
    /// The emulated Snowflake and the identity provider.
    Upstream,
}

impl Environment {
    pub const ALL: [Self; 12] = [
        Self::Adbc,
        Self::Cli,
        Self::ClickHouse,
        Self::Connector4,
        Self::Connector5,
        Self::Deploy,
        Self::Objects,
        Self::Ocsf,
        Self::Payloads,
        Self::Snowpark,
        Self::SqlAlchemy,
        Self::Upstream,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Adbc => "adbc",
            Self::Cli => "cli",
            Self::ClickHouse => "clickhouse",
            Self::Connector4 => "connector4",
            Self::Connector5 => "connector5",
            Self::Deploy => "deploy",
            Self::Objects => "objects",
            Self::Ocsf => "ocsf",
            Self::Payloads => "payloads",
            Self::Snowpark => "snowpark",
            Self::SqlAlchemy => "sqlalchemy",
            Self::Upstream => "upstream",
        }
    }

    /// The environment's interpreter. Fails when the environment was not made yet.
    pub fn python(self) -> Result<PathBuf> {
        let folder = self.folder(&base_interpreter()?)?;
        let ready = folder.join(COMPLETE).is_file();
        ensure!(ready, "the Python environment {} is not there: run `cargo xtask setup`", self.name());
        Ok(folder.join("bin/python"))
    }

    fn requirements(self) -> PathBuf {
        programs().join("requirements").join(format!("{}.txt", self.name()))
    }

    fn folder(self, base: &Base) -> Result<PathBuf> {
        let path = self.requirements();
        let requirements = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let mut hasher = DefaultHasher::new();
        (requirements, &base.path, &base.version).hash(&mut hasher);
        Ok(cache()?.join("python").join(format!("{}-{:016x}", self.name(), hasher.finish())))
    }

    /// Makes the environment unless it is there. Another process that makes it at the same time is waited for.
    fn make(self, base: &Base, say: &(dyn Fn(&str) + Sync)) -> Result<()> {
        let folder = self.folder(base)?;
        if folder.join(COMPLETE).is_file() {
            return Ok(());
        }
        let parent = folder.parent().context("find the cache")?;
        state::make_public_folder(parent)?;
        let lock = File::create(parent.join(format!("{}.lock", self.name()))).context("make a lock file")?;
        flock(&lock, FlockOperation::LockExclusive).context("wait for another set-up")?;
        if folder.join(COMPLETE).is_file() {
            return Ok(());
        }
        let started = Instant::now();
        say(&format!(
            "Python environment {}: installing from {}",
            self.name(),
            self.requirements().display()
        ));
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
        }
        run(Command::new(&base.path).args(["-m", "venv"]).arg(&folder))
            .context("make a Python environment (Debian's package python3-venv)")?;
        run(Command::new(folder.join("bin/python"))
            .args([
                "-m",
                "pip",
                "install",
                "--no-input",
                "--disable-pip-version-check",
                "--prefer-binary",
                "-r",
            ])
            .arg(self.requirements()))
        .with_context(|| format!("install {}", self.requirements().display()))?;
        fs::write(folder.join(COMPLETE), "").context("finish the environment")?;
        say(&format!("Python environment {}: ready after {} s", self.name(), started.elapsed().as_secs()));
        Ok(())
    }
}

const COMPLETE: &str = ".complete";

/// Makes the environments that are missing, side by side. `say` is told what happens.
pub fn prepare(environments: &[Environment], say: &(dyn Fn(&str) + Sync)) -> Result<()> {
    state::let_others_read();
    let base = base_interpreter()?;
    let failures: Vec<String> = thread::scope(|scope| {
        let workers: Vec<_> =
            environments.iter().map(|environment| scope.spawn(|| environment.make(&base, say))).collect();
        let results = workers.into_iter().map(ScopedJoinHandle::join);
        results
            .filter_map(|result| match result {
                Ok(done) => done.err().map(|error| format!("{error:#}")),
                Err(_) => Some("making a Python environment panicked".to_owned()),
            })
            .collect()
    });
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The system's own interpreter.
pub fn system() -> Result<PathBuf> {
    base_interpreter().map(|base| base.path)
}

/// Where the sandbox's Python programs are.
pub fn programs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("python")
}

/// Where the environments are kept.
pub fn cache() -> Result<PathBuf> {
    if let Some(named) = env::var_os(CACHE_VARIABLE) {
        return std::path::absolute(&named)
            .with_context(|| format!("find {}", PathBuf::from(named).display()));
    }
    if geteuid().is_root() {
        return Ok("/var/cache/snowfence".into());
    }
    let home = env::var_os("HOME").context("neither SNOWFENCE_CACHE nor HOME is set")?;
    Ok(PathBuf::from(home).join(".cache/snowfence"))
}

/// A Python of the system.
struct Base {
    path: PathBuf,
    /// As it describes itself, for example `3.11.2`.
    version: String,
}

fn base_interpreter() -> Result<Base> {
    let mut seen = String::new();
    for path in INTERPRETERS.map(Path::new) {
        let Ok(output) = Command::new(path).args(["-c", PROBE]).stdin(Stdio::null()).output() else {
            continue;
        };
        let answer = String::from_utf8_lossy(&output.stdout);
        let version = answer.trim();
        if output.status.success() && new_enough(version) {
            return Ok(Base { path: path.to_owned(), version: version.to_owned() });
        }
        let _ = write!(seen, "; {} is {version}", path.display());
        if !output.status.success() {
            seen.push_str(" without venv");
        }
    }
    let (major, minor) = OLDEST_PYTHON;
    bail!("no system Python {major}.{minor} or newer with venv (Debian's package python3-venv){seen}");
}

/// Prints the version, then fails where environments cannot be made.
const PROBE: &str = "import platform; print(platform.python_version(), flush=True); import ensurepip, venv";

fn new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= OLDEST_PYTHON,
        _ => false,
    }
}

/// Runs a program to its end; its last words are in the error.
pub fn run(command: &mut Command) -> Result<()> {
    // The interpreter must not look into another environment that happens to be active.
    command.env_remove("PYTHONHOME").env_remove("PYTHONPATH").env_remove("VIRTUAL_ENV").stdin(Stdio::null());
    let output = command.output().with_context(|| format!("start {}", command.get_program().display()))?;
    if !output.status.success() {
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.get(lines.len().saturating_sub(LAST_LINES)..).unwrap_or_default().join("\n");
        bail!("{} ({}):\n{last}", command.get_program().display(), output.status);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_interpreters_are_refused() {
        for good in ["3.11.2", "3.12", "3.13.0rc1", "4.0.0"] {
            assert!(new_enough(good), "{good}");
        }
        for bad in ["3.10.12", "2.7.18", "", "three", "3"] {
            assert!(!new_enough(bad), "{bad:?}");
        }
    }

    #[test]
    fn a_failed_program_is_quoted() {
        let error =
            run(Command::new("sh").args(["-c", "echo no such package >&2; exit 3"])).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("no such package"), "{error}");
    }
}
