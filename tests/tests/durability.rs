//! Record first: whatever dies, a statement that reached Snowflake has a record, and ClickHouse has each record once.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sandbox::Sandbox;
use sandbox::services::Service;
use serde_json::Value;

use common::{arrived, client, delivered_once, eventually, journal, metric, source};

/// Runs numbered statements, one after the other, and connects again whenever that fails.
const WORKER: &str = r#"
import threading
def work(worker):
    connection, number = None, 0
    while not os.path.exists(os.environ["HOME"] + "/stop"):
        number += 1
        try:
            if connection is None:
                connection = connect(login_timeout=5, network_timeout=5)
            connection.cursor().execute(f"select '{worker}-{number}'")
        except Exception:
            connection = None
            time.sleep(0.05)
    say(worker=worker, tried=number)
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
os._exit(0)
"#;

#[test]
fn killed_at_any_moment_the_agent_loses_no_record_and_duplicates_none() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("worker")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let worker = pod.start("statements", [python, "-c".into(), source(WORKER)])?;
    for pause in [900, 350, 1200, 50, 700] {
        sleep(Duration::from_millis(pause));
        sandbox.kill_agent()?;
        let before = arrived(&sandbox)?.len();
        sleep(Duration::from_millis(300));
        ensure!(arrived(&sandbox)?.len() == before, "with the agent dead nothing reaches Snowflake");
        sandbox.start_agent()?;
        // Between two deaths the work goes on.
        eventually("statements arrive again", || Ok(arrived(&sandbox)?.len() > before))?;
    }
    pod.run(["sh", "-c", "touch $HOME/stop"])?.into_stdout()?;
    sleep(Duration::from_secs(1));
    drop(worker);

    // Each statement that arrived was recorded before: as often as it arrived, or more.
    let mut recorded: HashMap<String, usize> = HashMap::new();
    for row in journal(&sandbox, "SELECT sql FROM statements")? {
        *recorded.entry(row["sql"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let arrived = arrived(&sandbox)?;
    ensure!(arrived.len() > 20, "the test ran {} statements: too few to mean anything", arrived.len());
    for sql in &arrived {
        match recorded.get_mut(sql) {
            Some(count) if *count > 0 => *count -= 1,
            _ => panic!("reached Snowflake without a record: {sql}"),
        }
    }
    delivered_once(&sandbox)
}

#[test]
fn a_dead_clickhouse_delays_nothing_and_loses_nothing() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let work = r#"
cursor = connect().cursor()
began = time.monotonic()
for number in range(30):
    cursor.execute(f"select {number}").fetchall()
say(seconds=time.monotonic() - began)
"#;
    client(&pod, work)?;
    sandbox.kill_service(Service::ClickHouse)?;
    let said = client(&pod, work)?;
    let seconds = said[0]["seconds"].as_f64().unwrap_or(f64::MAX);
    assert!(seconds < 20.0, "thirty statements without ClickHouse took {seconds} s: somebody waited for it");
    // Even a new agent, which finds no ClickHouse at its start, serves.
    sandbox.stop_agent()?;
    sandbox.start_agent()?;
    client(&pod, work)?;
    sandbox.start_clickhouse()?;
    delivered_once(&sandbox)
}

#[test]
fn sessions_survive_a_restart() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let client = pod.start(
        "client",
        [
            python,
            "-c".into(),
            source(
                r#"
def wait_for(name):
    while not os.path.exists(os.environ["HOME"] + "/" + name):
        time.sleep(0.05)
connection = connect()
cursor = connection.cursor()
cursor.execute_async("select 'before'")
query = cursor.sfqid
open(os.environ["HOME"] + "/connected", "w").close()
wait_for("restarted")
cursor.get_results_from_sfqid(query)
assert cursor.fetchall() == [("before",)]
cursor.execute("select 'after'")
"#,
            ),
        ],
    )?;
    pod.run(["sh", "-c", "until [ -e $HOME/connected ]; do sleep 0.1; done"])?.into_stdout()?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    pod.run(["touch", &format!("{}/restarted", pod.environment()["HOME"])])?.into_stdout()?;
    eventually("the old session serves", || {
        Ok(arrived(&sandbox)?.iter().any(|sql| sql == "select 'after'"))
    })?;
    drop(client);
    let log = sandbox.upstream_log()?;
    let logins = log.iter().filter(|line| line["path"] == "/session/v1/login-request").count();
    assert_eq!(logins, 1, "nobody had to log in again");
    Ok(())
}

#[test]
fn what_cannot_be_recorded_is_not_let_through() -> Result<()> {
    let mut sandbox = Sandbox::builder().without_agent().start()?;
    let state = sandbox.agent_state();
    let disk = SmallDisk::mount(&state)?;
    sandbox.start_agent()?;
    let pod = sandbox.pod("agent")?;
    let run = r#"
cursor = connect().cursor()
say(**attempt(lambda: cursor.execute("select 'small'").fetchall()))
"#;
    assert_eq!(client(&pod, run)?[0]["rows"][0][0], "small");
    disk.fill();
    let said = client(
        &pod,
        r#"
def run():
    return connect().cursor().execute("select '" + "x" * 500000 + "'").fetchall()
say(**attempt(run))
"#,
    )?;
    let message = said[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("cannot record"), "{}", said[0]);
    assert!(arrived(&sandbox)?.iter().all(|sql| sql.len() < 1000), "it did not reach Snowflake");
    disk.free()?;
    assert_eq!(client(&pod, run)?[0]["rows"][0][0], "small", "with room again, work goes on");
    sandbox.stop_agent()?;
    Ok(())
}

/// Runs numbered statements in one session.
const NUMBERED: &str = r#"
cursor = connect().cursor()
for number in range(40):
    cursor.execute(f"select 'PART-{number:03}', '" + "x" * 300 + "'").fetchall()
"#;

#[test]
fn of_a_damaged_journal_all_is_kept_that_can_be_read_and_what_is_missing_is_named() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("metrics", "listen", "127.0.0.1:9464").start()?;
    let pod = sandbox.pod("agent")?;
    client(&pod, &NUMBERED.replace("PART", "early"))?;
    delivered_once(&sandbox)?;
    sandbox.kill_service(Service::ClickHouse)?;
    client(&pod, &NUMBERED.replace("PART", "late"))?;
    sandbox.stop_agent()?;

    // One page of what was delivered, and one of what was not.
    let file = sandbox.agent_state().join("journal.db");
    let mut bytes = fs::read(&file)?;
    for text in ["'early-020'", "'late-020'"] {
        let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).context(text)?;
        for byte in bytes.iter_mut().skip(at / 4096 * 4096).take(64) {
            *byte ^= 0x55;
        }
    }
    fs::write(&file, &bytes)?;
    let refused = sandbox.snowfence(["audit", "query", "SELECT sql FROM statements"])?;
    assert!(!refused.succeeded() && refused.stderr.contains("the agent's next start"), "{}", refused.stderr);

    sandbox.start_agent()?;
    client(&pod, "connect().cursor().execute(\"select 'after'\").fetchall()")?;
    assert_eq!(metric(&sandbox, "snowfence_journal_salvages")?, "1");
    assert!(sandbox.agent_log()?.contains("the journal was damaged"), "the log says so");
    let told = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'journal_salvaged'")?;
    let told: Value = serde_json::from_str(told[0]["detail"].as_str().context("a detail")?)?;
    let aside = told["set_aside"].as_str().context("a file")?;
    assert_eq!(fs::read(aside)?, bytes, "the damaged file is as it was");

    sandbox.start_clickhouse()?;
    let rows = |table: &str| -> Result<(Vec<i64>, Vec<i64>)> {
        let seq = |row: &Value| row["seq"].as_i64().or_else(|| row["seq"].as_str()?.parse().ok());
        let of = |rows: Vec<Value>| rows.iter().filter_map(seq).collect();
        let here = journal(&sandbox, &format!("SELECT seq FROM {table} ORDER BY seq"))?;
        let there = sandbox.clickhouse_rows(&format!("SELECT seq FROM snowfence.{table} ORDER BY seq"));
        Ok((of(here), there.map(of).unwrap_or_default()))
    };
    let missing: Vec<(i64, i64)> = serde_json::from_value(told["runs"].clone())?;
    let is_missing = |seq: &i64| missing.iter().any(|(first, last)| (first..=last).contains(&seq));
    for table in ["sessions", "statements", "outcomes", "events", "checkpoints"] {
        eventually("ClickHouse has what was not delivered", || {
            let (here, there) = rows(table)?;
            Ok(here.iter().all(|seq| there.contains(seq)))
        })?;
        let (here, there) = rows(table)?;
        assert!(there.windows(2).all(|pair| pair[0] < pair[1]), "{table}: each once: {there:?}");
        let only: Vec<&i64> = there.iter().filter(|seq| !here.contains(seq)).collect();
        assert!(only.iter().all(|seq| is_missing(seq)), "{table}: {only:?} are in ClickHouse alone");
        assert_eq!(only.is_empty(), table != "statements", "{table}: what was delivered early is there");
    }

    sandbox.stop_agent()?;
    let verified = sandbox.snowfence(["audit", "verify", "--format", "json"])?;
    assert!(!verified.succeeded(), "that the agent says so excuses nothing");
    let report: Value = serde_json::from_str(verified.stdout.trim())?;
    let problems = report["problems"].as_array().context("problems")?;
    let found: Vec<(i64, i64)> = problems
        .iter()
        .filter(|problem| problem["problem"] == "missing")
        .filter_map(|problem| Some((problem["first"].as_i64()?, problem["last"].as_i64()?)))
        .collect();
    assert_eq!((&found, found.len()), (&missing, problems.len()), "{report}");
    assert_eq!(report["unsigned"], 0, "what came later is signed: {report}");
    let said = sandbox.snowfence(["audit", "verify"])?.stdout;
    assert!(said.contains("it can be feigned") && said.contains(aside), "{said}");
    Ok(())
}

#[test]
fn a_disk_that_turns_read_only_lets_no_statement_through() -> Result<()> {
    let mut sandbox =
        Sandbox::builder().without_agent().set("metrics", "listen", "127.0.0.1:9464").start()?;
    let mut disk = RealDisk::mount(&sandbox.agent_state(), &sandbox.state().secret("disk"))?;
    sandbox.start_agent()?;
    let pod = sandbox.pod("agent")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let home = pod.environment()["HOME"].clone();
    let connected = r#"
cursor = connect().cursor()
cursor.execute("select 'before'").fetchall()
open(os.environ["HOME"] + "/connected", "w").close()
while not os.path.exists(os.environ["HOME"] + "/read-only"):
    time.sleep(0.05)
said = attempt(lambda: cursor.execute("select 'meanwhile'").fetchall())
with open(os.environ["HOME"] + "/said.new", "w") as file:
    json.dump(said, file)
os.rename(file.name, os.environ["HOME"] + "/said")
"#;
    let client_process = pod.start("client", [python, "-c".into(), source(connected)])?;
    let has = |name: &str| Path::new(&home).join(name).exists();
    eventually("the client is connected", || Ok(has("connected")))?;
    disk.turn_read_only()?;
    pod.run(["touch", &format!("{home}/read-only")])?.into_stdout()?;
    eventually("the client has an answer", || Ok(has("said")))?;
    drop(client_process);
    let said: Value = serde_json::from_str(&fs::read_to_string(Path::new(&home).join("said"))?)?;
    assert!(said["message"].as_str().unwrap_or_default().contains("cannot record"), "{said}");
    let login = client(&pod, "say(**attempt(lambda: connect().cursor().execute(\"select 'meanwhile'\")))")?;
    assert!(login[0]["message"].as_str().unwrap_or_default().contains("cannot record"), "{}", login[0]);
    assert_eq!(metric(&sandbox, "snowfence_journal_refuses")?, "1");
    assert!(sandbox.agent_log()?.contains("cannot write the journal"), "the log says so");
    assert!(!arrived(&sandbox)?.iter().any(|sql| sql.contains("meanwhile")), "it did not reach Snowflake");

    sandbox.stop_agent()?;
    disk.replace()?;
    sandbox.start_agent()?;
    client(&pod, "connect().cursor().execute(\"select 'after'\").fetchall()")?;
    let recorded: Vec<Value> = journal(&sandbox, "SELECT sql FROM statements ORDER BY seq")?;
    let recorded: Vec<&str> = recorded.iter().filter_map(|row| row["sql"].as_str()).collect();
    assert!(arrived(&sandbox)?.iter().all(|sql| recorded.contains(&sql.as_str())), "{recorded:?}");
    assert_eq!(recorded.last(), Some(&"select 'after'"));
    delivered_once(&sandbox)?;
    sandbox.stop_agent()?;
    let said = sandbox.snowfence(["audit", "verify"])?;
    assert!(said.succeeded(), "{}", said.stdout);
    Ok(())
}

/// The agent's wall clock, set by a file: the number of seconds that it is ahead.
const CLOCK: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *ahead;
__attribute__((constructor)) static void look(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    ahead = file < 0 ? 0 : mmap(0, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
}
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    if (!result && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        time->tv_sec += *ahead;
    return result;
}
"#;

#[test]
fn a_wall_clock_that_jumps_a_year_ahead_and_back_loses_nothing() -> Result<()> {
    const YEAR: i64 = 365 * 24 * 3600;
    let folder = tempfile::tempdir()?;
    let (code, shim, ahead) =
        (folder.path().join("clock.c"), folder.path().join("clock.so"), folder.path().join("ahead"));
    fs::write(&code, CLOCK)?;
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&shim).arg(&code).status()?;
    ensure!(status.success(), "compile the clock");
    fs::write(&ahead, 0_i64.to_ne_bytes())?;
    let set = |seconds: i64| -> Result<()> {
        let file = fs::OpenOptions::new().write(true).open(&ahead)?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, &seconds.to_ne_bytes(), 0)?)
    };
    let mut sandbox = Sandbox::builder()
        .environment("LD_PRELOAD", &shim.display().to_string())
        .environment("CLOCK_AHEAD", &ahead.display().to_string())
        .set("audit", "journal", toml::toml! { keep_days = 30 })
        .start()?;
    let pod = sandbox.pod("worker")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let worker = pod.start("statements", [python, "-c".into(), source(WORKER)])?;
    let latest = |sandbox: &Sandbox| -> Result<i64> {
        let times = ["sessions", "statements", "outcomes", "events", "checkpoints"];
        let times = times.map(|table| format!("SELECT max(time) AS time FROM {table}")).join(" UNION ALL ");
        let rows = journal(sandbox, &format!("SELECT max(time) AS time FROM ({times})"))?;
        rows[0]["time"].as_i64().context("a time")
    };
    let begin = latest(&sandbox)?;
    for years in 1..=2 {
        let before = arrived(&sandbox)?.len();
        eventually("statements arrive", || Ok(arrived(&sandbox)?.len() > before + 10))?;
        set(years * YEAR)?;
        let then = begin + (2 * years - 1) * YEAR * 1_000_000 / 2;
        eventually("it is another year", || Ok(latest(&sandbox)? > then))?;
        set(0)?;
    }
    let before = arrived(&sandbox)?.len();
    eventually("statements arrive again", || Ok(arrived(&sandbox)?.len() > before + 10))?;
    pod.run(["sh", "-c", "touch $HOME/stop"])?.into_stdout()?;
    sleep(Duration::from_secs(1));
    drop(worker);
    let mut recorded: HashMap<String, usize> = HashMap::new();
    for row in journal(&sandbox, "SELECT sql FROM statements")? {
        *recorded.entry(row["sql"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    for sql in arrived(&sandbox)? {
        let count = recorded.get_mut(&sql).filter(|count| **count > 0);
        *count.with_context(|| format!("reached Snowflake without a record: {sql}"))? -= 1;
    }
    let removed = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'records_removed'")?;
    assert!(removed.is_empty(), "nothing is old: {removed:?}");
    delivered_once(&sandbox)?;
    sandbox.stop_agent()?;
    let said = sandbox.snowfence(["audit", "verify"])?;
    assert!(said.succeeded(), "{}", said.stdout);
    Ok(())
}

/// A file system on a disk of its own, in the place of a folder.
struct RealDisk {
    folder: PathBuf,
    image: PathBuf,
}

impl RealDisk {
    fn mount(folder: &Path, image: &Path) -> Result<Self> {
        fs::File::create(image)?.set_len(64 << 20)?;
        run("mkfs.ext4", &["-q", &image.display().to_string()])?;
        let disk = Self { folder: folder.to_owned(), image: image.to_owned() };
        disk.mount_again()?;
        fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        Ok(disk)
    }

    fn mount_again(&self) -> Result<()> {
        let (image, folder) = (self.image.display().to_string(), self.folder.display().to_string());
        run("mount", &["-o", "loop,errors=remount-ro", &image, &folder]).map(drop)
    }

    /// As the kernel does it when the disk has an error.
    fn turn_read_only(&self) -> Result<()> {
        let device = run("findmnt", &["-no", "SOURCE", &self.folder.display().to_string()])?;
        let device = device.trim().trim_start_matches("/dev/");
        Ok(fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "test")?)
    }

    /// What is on it goes to another disk: the kernel lets nobody write on one that it has given up.
    fn replace(&mut self) -> Result<()> {
        let copy = self.image.with_extension("copy");
        run("umount", &[&self.folder.display().to_string()])?;
        fs::copy(&self.image, &copy)?;
        self.image = copy;
        // It says that it has mended something.
        let _ = run("e2fsck", &["-fy", &self.image.display().to_string()]);
        self.mount_again()
    }
}

impl Drop for RealDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().context(program.to_owned())?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file system of a few megabytes in the place of a folder.
struct SmallDisk<'a>(&'a std::path::Path);

impl<'a> SmallDisk<'a> {
    fn mount(path: &'a std::path::Path) -> Result<Self> {
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"])
            .arg(path)
            .status()?;
        ensure!(status.success(), "mount a small disk");
        Ok(Self(path))
    }

    fn fill(&self) {
        // All that fits; that not all does is the point.
        let _ = std::fs::write(self.0.join("filler"), vec![0; 8 << 20]);
    }

    fn free(&self) -> Result<()> {
        Ok(std::fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}
