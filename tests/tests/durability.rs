//! Record first: whatever dies, a statement that reached Snowflake has a record, and ClickHouse has each record once.

mod common;

use std::collections::HashMap;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Result, ensure};
use sandbox::Sandbox;

use common::{arrived, client, delivered_once, eventually, journal, source};

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
    sandbox.kill_service(sandbox::services::Service::ClickHouse)?;
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
