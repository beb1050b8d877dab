//! Whatever is killed, and whenever: no statement without a record, no record twice, the chain holds, and every answer that
//! a client got is kept as it got it.

mod common;

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sandbox::services::Service;
use serde_json::Value;

use common::reader::{Reader, program};
use common::{RAW, arrived, delivered_once, eventually, journal, source};

/// How many kills; a run by hand may want more.
const KILLS: &str = "SNOWFENCE_TEST_KILLS";
const USUAL: u64 = 10;

/// Runs numbered statements, and writes down each answer that it got whole.
const WORKER: &str = r#"
import hashlib, threading
home = os.environ["HOME"]
def work(worker):
    token, number = None, 0
    with open(f"{home}/answers-{worker}", "w", buffering=1) as answers:
        while not os.path.exists(home + "/stop"):
            number += 1
            sql = f"select '{worker}-{number}', repeat('x', {number % 50 * 100})"
            try:
                token = token or login()
                answer = ask(token, sql)
                # What is refused meanwhile is tried again with another session.
                if json.loads(answer)["success"]:
                    print(json.dumps(dict(sql=sql, answer=answer)), file=answers)
                else:
                    token = None
            except Exception:
                time.sleep(0.05)
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
open(home + "/stopped", "w").close()
"#;

/// Numbers that look random, and are the same in every run.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

#[test]
fn killed_again_and_again_nothing_is_lost_doubled_or_unproven() -> Result<()> {
    let kills = std::env::var(KILLS).ok().map_or(Ok(USUAL), |kills| kills.parse())?;
    let reader = Reader::new()?;
    let mut sandbox = reader.sandbox("")?.start()?;
    let pod = sandbox.pod("worker")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let worker = pod.start("statements", [python, "-c".into(), source(&format!("{RAW}{WORKER}"))])?;
    let mut chance = Chance(7);
    for _ in 0..kills {
        sleep(Duration::from_millis(50 + chance.below(900)));
        if chance.below(4) == 0 {
            sandbox.kill_service(Service::ClickHouse)?;
            sleep(Duration::from_millis(chance.below(500)));
            sandbox.start_clickhouse()?;
        } else {
            let before = arrived(&sandbox)?.len();
            sandbox.kill_agent()?;
            sandbox.start_agent()?;
            eventually("statements arrive again", || Ok(arrived(&sandbox)?.len() > before))?;
        }
    }
    let home = pod.environment()["HOME"].clone();
    pod.run(["touch", &format!("{home}/stop")])?.into_stdout()?;
    eventually("the clients have ended", || Ok(Path::new(&home).join("stopped").exists()))?;
    drop(worker);
    delivered_once(&sandbox)?;
    sandbox.stop_agent()?;

    recorded_before_they_arrived(&sandbox)?;
    let open = journal(&sandbox, "SELECT sql FROM trail WHERE status = 'open'")?;
    assert!(open.is_empty(), "without an outcome: {open:?}");
    proven(&sandbox)?;
    kept(&sandbox, &reader, Path::new(&home))
}

/// Each statement that arrived was recorded before: as often as it arrived, or more.
fn recorded_before_they_arrived(sandbox: &sandbox::Sandbox) -> Result<()> {
    let mut recorded: HashMap<String, usize> = HashMap::new();
    for row in journal(sandbox, "SELECT sql FROM statements")? {
        *recorded.entry(row["sql"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let arrived = arrived(sandbox)?;
    ensure!(arrived.len() > 50, "the test ran {} statements: too few to mean anything", arrived.len());
    for sql in &arrived {
        match recorded.get_mut(sql) {
            Some(count) if *count > 0 => *count -= 1,
            _ => panic!("reached Snowflake without a record: {sql}"),
        }
    }
    Ok(())
}

fn proven(sandbox: &sandbox::Sandbox) -> Result<()> {
    let own = sandbox.snowfence(["audit", "verify", "--format", "json"])?.into_stdout()?;
    let own: Value = serde_json::from_str(own.trim())?;
    let key = sandbox.snowfence(["audit", "key"])?.into_stdout()?;
    let file = sandbox.agent_state().join("journal.db").display().to_string();
    let other: Value = serde_json::from_str(&program("proof.py", &["journal", &file, key.trim()])?)?;
    assert_eq!((&own["unsigned"], &other["wrong"]), (&0.into(), &Value::Array(vec![])), "{own}");
    assert_eq!(own["verified"], other["proven"]);
    Ok(())
}

/// What clients got whole is kept, whole or as far as it was passed on when the agent died.
fn kept(sandbox: &sandbox::Sandbox, reader: &Reader, home: &Path) -> Result<()> {
    let mut kept: HashMap<String, Vec<String>> = HashMap::new();
    for payload in reader.read(sandbox)? {
        let body =
            |key: &str| -> Result<Vec<u8>> { Ok(STANDARD.decode(payload[key].as_str().context("a body")?)?) };
        let asked: Value = serde_json::from_slice(&body("request_body")?).unwrap_or_default();
        let sql = asked["sqlText"].as_str().unwrap_or_default().to_owned();
        kept.entry(sql).or_default().push(String::from_utf8_lossy(&body("answer_body")?).into_owned());
    }
    let mut answers = 0;
    for worker in 0..3 {
        for line in fs::read_to_string(home.join(format!("answers-{worker}")))?.lines() {
            let line: Value = serde_json::from_str(line)?;
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let found = kept.get(&text("sql")).is_some_and(|kept| kept.contains(&text("answer")));
            ensure!(found, "the answer to {} is not kept as the client got it", text("sql"));
            answers += 1;
        }
    }
    ensure!(answers > 50, "the clients got {answers} answers: too few to mean anything");
    Ok(())
}
