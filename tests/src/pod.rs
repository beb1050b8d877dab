//! Pods: covered workloads with an address, a user and an environment of their own, in which any program can run.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{Gid, Uid, chown};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Cgroup,
    container::Container,
    launch::{self, Place},
    network,
    process::{self, Plan, Process},
    services::{self, text},
    signals,
    state::{State, make_folder},
};

/// How long a program in a pod may run unless the caller says otherwise.
const DEADLINE: Duration = Duration::from_mins(5);
const NOBODY: u32 = 65534;
const DESCRIPTION: &str = "pod.json";

/// A pod. It stays usable for as long as its sandbox is up.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pod {
    name: String,
    logs: PathBuf,
    place: Place,
    environment: BTreeMap<String, String>,
}

/// What a pod is made of.
#[derive(Debug)]
pub struct Specification<'a> {
    pub name: &'a str,
    /// Counted from zero; decides the pod's address.
    pub index: usize,
    pub root: bool,
    /// Files of the machine and the paths at which the pod sees them.
    pub files: Vec<(PathBuf, PathBuf)>,
    pub environment: BTreeMap<String, String>,
}

/// How a program in a pod ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// As a shell reports it.
    pub status: u8,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    pub fn succeeded(&self) -> bool {
        self.status == 0
    }

    /// The output of a program that must have succeeded.
    pub fn into_stdout(self) -> Result<String> {
        ensure!(self.succeeded(), "exit status {}:\n{}{}", self.status, self.stdout, self.stderr);
        Ok(self.stdout)
    }
}

impl Pod {
    /// Makes the pod's network, control group and files.
    pub fn create(state: &State, specification: Specification<'_>) -> Result<Self> {
        let Specification { name, index, root, mut files, mut environment } = specification;
        ensure!(is_name(name), "{name:?} is no pod's name: 1 to 32 small letters, digits and dashes");
        network::add_pod(state.id(), name, index)?;
        let cgroup = Cgroup::covered(state.id())?.child("pods").child(name);
        {
            let _building = signals::building();
            cgroup.create()?;
        }
        let (uid, gid) = if root { (0, 0) } else { user() };
        let folder = state.pod(name);
        let home = folder.join("home");
        make_folder(&folder, 0o755)?;
        make_folder(&home, 0o700)?;
        chown(&home, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("give the pod its home")?;
        let (address, address6) = network::pod_addresses(index)?;
        let hosts = format!("127.0.0.1 localhost\n::1 localhost\n{address} {name}\n{address6} {name}\n");
        fs::write(folder.join("hosts"), hosts).context("write the pod's hosts")?;
        let resolver = format!("nameserver {}\noptions timeout:2 attempts:2\n", network::DNS);
        fs::write(folder.join("resolv.conf"), resolver).context("write the pod's resolv.conf")?;

        files.push((folder.join("hosts"), "/etc/hosts".into()));
        files.push((folder.join("resolv.conf"), "/etc/resolv.conf".into()));
        files.push((home.clone(), home.clone()));
        for variable in ["HOME", "TMPDIR"] {
            environment.insert(variable.into(), text(&home)?);
        }
        let place = Place {
            network: Some(network::pod(state.id(), name)),
            cgroup: cgroup.path().to_owned(),
            container: Some(Container { uid, gid, root, files }),
        };
        let pod = Self { name: name.to_owned(), logs: state.logs(), place, environment };
        // The description holds a token: it lies with the secrets.
        let description = description(state, name);
        fs::write(&description, serde_json::to_vec(&pod)?).context("describe the pod")?;
        Ok(pod)
    }

    /// A pod that another process made.
    pub fn open(state: &State, name: &str) -> Result<Self> {
        ensure!(is_name(name), "{name:?} is no pod's name");
        let path = description(state, name);
        let text = fs::read_to_string(&path).with_context(|| format!("find the pod {name}"))?;
        serde_json::from_str(&text).with_context(|| format!("read {}", path.display()))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variables that programs in the pod see, besides those of the terminal.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// The cgroup that its processes are in.
    pub fn cgroup(&self) -> &Path {
        &self.place.cgroup
    }

    /// The same pod with another value, for what is run from now on.
    #[must_use]
    pub fn with(mut self, variable: &str, value: &str) -> Self {
        self.environment.insert(variable.to_owned(), value.to_owned());
        self
    }

    /// Runs a program to its end.
    pub fn run<S: AsRef<str>>(&self, program: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_with(program, "", DEADLINE)
    }

    /// Runs Python source with the sandbox's connector.
    pub fn python(&self, source: &str) -> Result<Output> {
        let python = self.environment.get("SANDBOX_PYTHON").context("the pod has no SANDBOX_PYTHON")?;
        self.run([python.as_str(), "-c", source])
    }

    /// Runs a program with `input` on its standard input. It is killed, and this fails, when the deadline passes.
    pub fn run_with<S: AsRef<str>>(
        &self,
        program: impl IntoIterator<Item = S>,
        input: &str,
        deadline: Duration,
    ) -> Result<Output> {
        let (mut command, name) = self.command(program)?;
        let mut child = spawn(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let stdin = child.stdin.take();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        thread::scope(|scope| {
            // A program need not read its input.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            let stdout = scope.spawn(move || read(stdout));
            let stderr = scope.spawn(move || read(stderr));
            let status = process::wait(&mut child, deadline)?;
            if status.is_none() {
                child.kill().with_context(|| format!("kill {name}"))?;
                child.wait().with_context(|| format!("wait for {name}"))?;
            }
            let join = |reader: thread::ScopedJoinHandle<'_, Result<String>>| {
                reader.join().unwrap_or_else(|_| Err(anyhow!("reading what {name} says panicked")))
            };
            let (stdout, stderr) = (join(stdout)?, join(stderr)?);
            match status {
                Some(status) => Ok(Output { status: launch::status_code(status), stdout, stderr }),
                None => bail!("{name} did not end within {} s:\n{stdout}{stderr}", deadline.as_secs()),
            }
        })
    }

    /// Runs a program with this process's own standard input, output and error, and returns its status.
    pub fn run_in_the_foreground<S: AsRef<str>>(&self, program: impl IntoIterator<Item = S>) -> Result<u8> {
        let (mut command, name) = self.command(program)?;
        if let Some(terminal) = std::env::var_os("TERM") {
            command.env("TERM", terminal);
        }
        signals::leave_interrupts_to_the_foreground(true);
        let status = spawn(&mut command)?.wait().with_context(|| format!("wait for {name}"));
        signals::leave_interrupts_to_the_foreground(false);
        Ok(launch::status_code(status?))
    }

    /// Starts a program that goes on by itself, with its output in the logs under `name`.
    pub fn start<S: AsRef<str>>(&self, name: &str, program: impl IntoIterator<Item = S>) -> Result<Process> {
        let (program, arguments) = split(program)?;
        let plan = Plan {
            name: format!("{}-{name}", self.name),
            place: self.place.clone(),
            program,
            arguments,
            environment: self.environment.clone(),
        };
        Process::start(&plan, &self.logs)
    }

    fn command<S: AsRef<str>>(&self, program: impl IntoIterator<Item = S>) -> Result<(Command, String)> {
        let (program, arguments) = split(program)?;
        let mut command = launch::command(&self.place, &program, &arguments)?;
        command.envs(&self.environment);
        Ok((command, program))
    }
}

/// The names that a pod may have: they become parts of paths and namespaces.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=32).contains(&text.len()) && text.bytes().all(plain) && !text.starts_with('-')
}

/// The user that called sudo, else nobody.
fn user() -> (u32, u32) {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u32>().ok().filter(|number| *number != 0);
    match (number("SUDO_UID"), number("SUDO_GID")) {
        (Some(uid), Some(gid)) => (uid, gid),
        _ => (NOBODY, NOBODY),
    }
}

fn description(state: &State, name: &str) -> PathBuf {
    state.secret(&format!("{name}-{DESCRIPTION}"))
}

fn split<S: AsRef<str>>(program: impl IntoIterator<Item = S>) -> Result<(String, Vec<String>)> {
    let mut words = program.into_iter().map(|word| word.as_ref().to_owned());
    let program = words.next().context("name the program to run")?;
    Ok((program, words.collect()))
}

fn spawn(command: &mut Command) -> Result<Child> {
    let _building = signals::building();
    command.spawn().context("start a program in the pod")
}

fn read(pipe: Option<impl Read>) -> Result<String> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        pipe.read_to_end(&mut bytes).context("read what a program says")?;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The variables of a pod, without its token and its home.
pub fn environment(state: &State, python: &Path, role: Option<&str>) -> Result<BTreeMap<String, String>> {
    let ca = text(&state.public("internal-ca.pem"))?;
    let mut variables = services::environment();
    for (name, value) in [
        ("SNOWFLAKE_ACCOUNT", services::ACCOUNT.to_owned()),
        ("SNOWFLAKE_HOST", services::ACCOUNT_HOST.to_owned()),
        ("SNOWFLAKE_USER", services::SERVICE_USER.to_owned()),
        ("SNOWFLAKE_DATABASE", services::DATABASE.to_owned()),
        ("SNOWFLAKE_SCHEMA", services::SCHEMA.to_owned()),
        ("SNOWFLAKE_WAREHOUSE", services::WAREHOUSE.to_owned()),
        ("SSL_CERT_FILE", ca.clone()),
        ("REQUESTS_CA_BUNDLE", ca.clone()),
        ("NODE_EXTRA_CA_CERTS", ca),
        ("SANDBOX_UPSTREAM", format!("{}:443", network::UPSTREAM)),
        ("SANDBOX_UPSTREAM6", format!("[{}]:443", network::UPSTREAM6)),
        ("SANDBOX_UPSTREAM_ALT", format!("{}:443", network::UPSTREAM_ALTERNATIVE)),
        ("SANDBOX_ALIAS", services::ACCOUNT_ALIAS.to_owned()),
        ("SANDBOX_UPSTREAM_ALIAS", format!("{}:443", network::UPSTREAM_ALIAS)),
        ("SANDBOX_UPSTREAM_CA", text(&state.public("upstream-ca.pem"))?),
        ("SANDBOX_UPSTREAM_LOG", text(&state.public("upstream.jsonl"))?),
        ("SANDBOX_CLICKHOUSE", services::clickhouse_url()),
        ("SANDBOX_UNKNOWN", network::UNKNOWN.to_owned()),
        ("SANDBOX_UNKNOWN6", network::UNKNOWN6.to_owned()),
        ("SANDBOX_WITNESS_LOG", text(&state.public("witness.jsonl"))?),
        ("SANDBOX_DNS", format!("{}:53", network::DNS)),
        ("SANDBOX_DNS_OVER_HTTPS", format!("https://{}:8443/dns-query", network::DNS)),
        ("SANDBOX_HTTP_PROXY", format!("http://{}:3128", network::FORWARD_PROXY)),
        ("SANDBOX_SOCKS_PROXY", format!("socks5h://{}:1080", network::FORWARD_PROXY)),
        ("SANDBOX_CONFIG", text(&state.public("snowfence.toml"))?),
        ("SANDBOX_BIN", text(&state.public("snowfence"))?),
        ("SANDBOX_PYTHON", text(python)?),
    ] {
        variables.insert(name.to_owned(), value);
    }
    variables.extend(role.map(|role| ("SNOWFLAKE_ROLE".to_owned(), role.to_owned())));
    Ok(variables)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_folder() {
        for good in ["main", "reports-2", "a"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "..", "a/b", "A", "a_b", "-n", &"a".repeat(33)] {
            assert!(!is_name(bad), "{bad}");
        }
    }

    #[test]
    fn an_output_that_failed_is_quoted() {
        let failed = Output { status: 3, stdout: "half\n".into(), stderr: "no table\n".into() };
        let message = failed.into_stdout().unwrap_err().to_string();
        assert!(message.contains("exit status 3") && message.contains("no table"), "{message}");
    }
}
