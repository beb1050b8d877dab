//! The battery of bypasses: each way around the agent that is known (`python/bypass`, one small function each) is taken
//! from a pod, by an ordinary user and by root with NET_ADMIN and NET_RAW. None leads to Snowflake, and what was tried is
//! on record.
//!
//! What arrived by another way than the agent is told by a witness on Snowflake's side, which sees every packet, and by
//! the emulated Snowflake's own log. The last test takes all ways without an agent: there, all lead to Snowflake.

mod common;

use std::fmt::Write as _;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sandbox::{Builder, Pod, Sandbox, network, python};
use serde::Deserialize;
use serde_json::Value;

use common::journal;

/// What a way's end takes to be told of everywhere.
const AFTERMATH: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_mins(10);
/// The variable that says that this is an emulated machine, which is slow and has no driver.
const PLAIN: &str = "SNOWFENCE_PLAIN";
/// With times as the logs write them.
const EVENTS: &str = "SELECT kind, cgroup, detail,
    strftime('%Y-%m-%dT%H:%M:', time / 1000000, 'unixepoch')
        || printf('%09.6f+00:00', time % 60000000 / 1000000.0) AS time
    FROM events ORDER BY seq";

/// As `python -m bypass` lists it.
#[derive(Clone, Debug, Deserialize)]
struct Way {
    name: String,
    what: String,
    ends: String,
    events: Vec<String>,
    in_all: String,
    /// What else is true of it.
    is: Vec<String>,
}

/// How a way ended for who took it.
#[derive(Clone, Debug, Deserialize)]
struct Trip {
    end: String,
    detail: String,
    /// Times are texts of one form, so they sort as they are.
    began: String,
    ended: String,
}

/// A way that was taken.
struct Taken {
    way: Way,
    trip: Trip,
    /// Where from.
    cgroup: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum User {
    Ordinary,
    Root,
}

#[test]
fn every_program_is_taken_by_the_kernel_and_attached() -> Result<()> {
    let sandbox = world().start()?;
    let said = sandbox.snowfence(["doctor", "--format", "json"])?.into_stdout()?;
    let said: Value = serde_json::from_str(&said)?;
    let findings = said["findings"].as_array().context("findings")?;
    let of = |check: &str| findings.iter().find(|finding| finding["check"] == check);
    ensure!(findings.iter().all(|finding| finding["state"] != "bad"), "{said}");
    ensure!(of("verifier").is_some_and(|verifier| verifier["state"] == "good"), "{said}");
    let coverage = &said["agent"]["coverage"];
    ensure!(
        coverage["devices"] == serde_json::json!(["outside"]),
        "the perimeter is not on the uplink: {coverage}"
    );
    ensure!(coverage["unguarded"] == serde_json::json!([]), "{coverage}");
    // Elsewhere it is up to the machine; the emulated ones are booted with BPF among the security modules.
    let is_refused = &coverage["packet_sockets"];
    ensure!(
        *is_refused == true || std::env::var_os(PLAIN).is_none(),
        "packet sockets are not refused: {said}"
    );
    Ok(())
}

#[test]
fn the_threat_table_names_every_way_and_what_stops_it() -> Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../ARCHITECTURE.md");
    let text = std::fs::read_to_string(path)?;
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with('|'))
        .map(|line| line.split('|').map(str::trim).collect())
        .filter(|row: &Vec<&str>| row.len() == 7)
        .collect();
    for way in ways()? {
        let name = format!("`{}`", way.name);
        let row = rows.iter().find(|row| row[5].split(' ').any(|shown| shown == name));
        let row = row.with_context(|| format!("{name} is in no row of the threat table"))?;
        let is_stopped = row[2] != "**not stopped**";
        ensure!(is_stopped != way.is("only_all"), "{name}: mode endpoints, says the table: {}", row[2]);
        ensure!(row[3] != "**not stopped**" && !row[4].is_empty(), "{name}: {row:?}");
    }
    // The others are tests, of which each is where it is said to be.
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let sources: Vec<String> = std::fs::read_dir(folder)?
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "rs"))
        .map(|entry| std::fs::read_to_string(entry.path()))
        .collect::<Result<_, _>>()?;
    let names: Vec<String> = ways()?.into_iter().map(|way| way.name).collect();
    for row in rows.iter().filter(|row| row[5].contains('`')) {
        for shown in row[5].split('`').filter(|word| !word.trim().is_empty()) {
            let is_test = sources.iter().any(|source| source.contains(&format!("fn {shown}()")));
            ensure!(is_test || names.iter().any(|name| name == shown), "there is no test {shown}");
        }
    }
    Ok(())
}

#[test]
fn an_ordinary_user_finds_no_way_around() -> Result<()> {
    let mut battery = Battery::start("endpoints")?;
    battery.take(User::Ordinary, |way| !way.is("only_all"))?;
    battery.judge()
}

#[test]
fn root_of_a_container_finds_no_way_around() -> Result<()> {
    let mut battery = Battery::start("endpoints")?;
    battery.take(User::Root, |way| !way.is("only_all"))?;
    battery.judge()
}

#[test]
fn in_mode_all_an_ordinary_user_finds_no_way_around() -> Result<()> {
    let mut battery = Battery::start("all")?;
    battery.take(User::Ordinary, |_| true)?;
    battery.judge()
}

#[test]
fn in_mode_all_root_of_a_container_finds_no_way_around() -> Result<()> {
    let mut battery = Battery::start("all")?;
    battery.take(User::Root, |_| true)?;
    battery.judge()
}

#[test]
fn without_the_agent_all_ways_lead_to_snowflake() -> Result<()> {
    let sandbox = world().without_agent().start()?;
    let mut battery = Battery { sandbox, mode: "off", taken: Vec::new() };
    battery.take(User::Root, |way| way.is("leads"))?;
    let arrivals = battery.arrivals()?;
    let mut complaints = String::new();
    for Taken { way, trip, .. } in &battery.taken {
        if arrivals.iter().all(|line| !trip.covers(line)) {
            let _ = writeln!(complaints, "{}: nothing arrived: {} {}", way.name, trip.end, trip.detail);
        }
    }
    ensure!(complaints.is_empty(), "these ways lead nowhere by themselves:\n{complaints}");
    Ok(())
}

struct Battery {
    sandbox: Sandbox,
    mode: &'static str,
    taken: Vec<Taken>,
}

impl Battery {
    fn start(mode: &'static str) -> Result<Self> {
        let sandbox = world().set("capture", "mode", mode);
        Ok(Self { sandbox: sandbox.start()?, mode, taken: Vec::new() })
    }

    fn take(&mut self, user: User, chosen: impl Fn(&Way) -> bool) -> Result<()> {
        let ways = ways()?.into_iter().filter(|way| chosen(way) && (user == User::Root || !way.is("root")));
        let (altering, harmless): (Vec<Way>, Vec<Way>) = ways.partition(|way| way.is("alters"));
        ensure!(harmless.len() > 30, "there are only {} ways", harmless.len());
        // Each way has an address of Snowflake's to itself.
        let mut number = 2;
        let groups = std::iter::once(harmless).chain(altering.into_iter().map(|way| vec![way]));
        for (index, group) in groups.enumerate() {
            let name = format!("pod-{index}");
            let pod = match user {
                User::Ordinary => self.sandbox.pod(&name)?,
                User::Root => self.sandbox.root_pod(&name)?,
            };
            let hosts = self.sandbox.state().pod(&name).join("hosts");
            let unlisted = format!("10.77.3.{} unlisted.snowflakecomputing.com\n", 254 - index);
            std::fs::write(&hosts, std::fs::read_to_string(&hosts)? + &unlisted)?;
            let count = group.len();
            self.travel(&pod, group, number)?;
            number += count;
        }
        sleep(AFTERMATH);
        Ok(())
    }

    fn travel(&mut self, pod: &Pod, ways: Vec<Way>, number: usize) -> Result<()> {
        let cgroup = pod.cgroup().strip_prefix(sandbox::cgroup::mount_point()?)?;
        let cgroup = format!("/{}", cgroup.display());
        let trips = run(pod, &ways, number)?;
        ensure!(trips.len() == ways.len(), "{} of {} ways came to an end", trips.len(), ways.len());
        let taken = ways.into_iter().zip(trips);
        self.taken.extend(taken.map(|(way, trip)| Taken { way, trip, cgroup: cgroup.clone() }));
        Ok(())
    }

    /// What came to Snowflake by another way than the agent.
    fn arrivals(&self) -> Result<Vec<Value>> {
        let agent = [format!("{}:", network::NODE), format!("[{}]:", network::NODE6)];
        let is_from_elsewhere = |line: &Value| {
            let peer = line["peer"].as_str().unwrap_or_default();
            line["event"] != "connection" && !agent.iter().any(|agent| peer.starts_with(agent))
        };
        let requests = self.sandbox.upstream_log()?.into_iter().filter(is_from_elsewhere);
        Ok(self.sandbox.witness_log()?.into_iter().chain(requests).collect())
    }

    fn judge(&self) -> Result<()> {
        let arrivals = self.arrivals()?;
        let events = journal(&self.sandbox, EVENTS)?;
        let mut complaints = String::new();
        for Taken { way, trip, cgroup } in &self.taken {
            let during = |lines: &[Value]| lines.iter().filter(|line| trip.covers(line)).cloned().collect();
            let mut arrived: Vec<Value> = during(&arrivals);
            if way.is("asked") && self.mode == "all" {
                // Of what the agent asks, Snowflake sees a handshake from the pod, but no request.
                arrived.retain(|line| line["event"] == "request" || line["event"] == "malformed");
            }
            let recorded: Vec<Value> = during(&events);
            let (ends, kinds) = way.expected(self.mode);
            let is_told = kinds.is_empty()
                || recorded.iter().any(|event| {
                    event["cgroup"] == **cgroup && kinds.iter().any(|kind| event["kind"] == **kind)
                });
            let is_as_expected = if ends == "stopped" { trip.end != "snowflake" } else { trip.end == ends };
            if !arrived.is_empty() || !is_told || !is_as_expected || trip.end == "impossible" {
                let _ =
                    writeln!(complaints, "{}: {}\n  ended {}: {}", way.name, way.what, trip.end, trip.detail);
                let _ = writeln!(complaints, "  expected {ends}, and one of {kinds:?}");
                for line in recorded {
                    let _ = writeln!(complaints, "  recorded {line}");
                }
                for line in arrived {
                    let _ = writeln!(complaints, "  arrived {line}");
                }
            }
        }
        let is_stray = |line: &&Value| !self.taken.iter().any(|taken| taken.trip.covers(line));
        for stray in arrivals.iter().filter(is_stray) {
            let _ = writeln!(complaints, "arrived by no way: {stray}");
        }
        ensure!(complaints.is_empty(), "{complaints}");
        Ok(())
    }
}

impl Way {
    fn is(&self, fact: &str) -> bool {
        self.is.iter().any(|known| known == fact)
    }

    /// How it is to end, and what is to be recorded of it.
    fn expected(&self, mode: &str) -> (&str, &[String]) {
        if mode == "all" && !self.in_all.is_empty() {
            (&self.in_all, &[])
        } else {
            (&self.ends, &self.events)
        }
    }
}

impl Trip {
    /// Whether something may come of it, by the time at which it happened.
    fn covers(&self, line: &Value) -> bool {
        let time = line["time"].as_str().unwrap_or_default();
        self.began.as_str() <= time && time < self.ended.as_str()
    }
}

/// The world around the agent. On other kernels than this machine's, which are emulated, it is as little as will do.
fn world() -> Builder {
    if std::env::var_os(PLAIN).is_some() { Sandbox::builder().plain() } else { Sandbox::builder() }
}

fn ways() -> Result<Vec<Way>> {
    let mut command = std::process::Command::new(python::system()?);
    let output = command.args(["-m", "bypass", "list"]).current_dir(python::programs()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout)?.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Takes ways one after the other.
fn run(pod: &Pod, ways: &[Way], number: usize) -> Result<Vec<Trip>> {
    let python = pod.environment().get("SANDBOX_PYTHON").context("the pod has no SANDBOX_PYTHON")?;
    let number = number.to_string();
    let path = python::programs();
    let pod = pod.clone().with("PYTHONPATH", path.to_str().context("a path that is UTF-8")?);
    let pause = if std::env::var_os(PLAIN).is_some() { "0.5" } else { "0.2" };
    let command = [python.as_str(), "-m", "bypass", "run", "--number", &number, "--pause", pause];
    let command = command.into_iter().chain(ways.iter().map(|way| way.name.as_str()));
    let output = pod.run_with(command, "", PATIENCE)?.into_stdout()?;
    output.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}
