//! The main job on real input, told as it happens. Each step shows what happened, not what should have, and is checked.

use std::{
    env,
    io::{IsTerminal as _, stdout},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{Pod, Sandbox, certificates::UPSTREAM_CA_NAME, sandbox::SERVICE_PASSWORD, services};

/// How long ClickHouse may lag behind the journal.
const DELIVERY_DEADLINE: Duration = Duration::from_secs(30);
const READ: &str = "select country, count(*) as customers from customers where country is not null group by country order by country";
const DROP: &str = "drop table customers";
/// Nothing but the connector, used as its manual says. Prints a JSON object a statement.
const CLIENT: &str = include_str!("demo/client.py");
/// A client that dials the address itself and trusts only what it wants to trust.
const OWN_TLS: &str = include_str!("demo/own_tls.py");

/// Tells the story; whether each step showed what it claims. `progress` is told about the set-up.
pub fn run(binary: Option<PathBuf>, progress: fn(&str)) -> Result<bool> {
    let mut builder = Sandbox::builder().progress(progress);
    if let Some(binary) = binary {
        builder = builder.binary(binary);
    }
    let mut sandbox = builder.start()?;
    let pod = sandbox.pod("reports")?;
    let mut story = Story::new();
    story.say(&format!(
        "An AI agent runs in the pod \"reports\" with the unmodified Python connector. All it has is a token of its own\n\
         identity provider; the Snowflake password of {} is known to Snowfence alone.",
        services::SERVICE_USER
    ));
    story.step("It reads a table, then drops it, then goes on", || read_and_drop(&pod))?;
    story.step("It dials Snowflake's real address, with TLS settings of its own", || own_tls(&pod))?;
    story.step("The security team asks ClickHouse what happened", || trail(&sandbox))?;
    story.step("What arrived at Snowflake", || arrived(&sandbox, &pod))?;
    Ok(story.end())
}

/// What a step showed.
struct Scene {
    /// Lines to show, as they came.
    shown: Vec<String>,
    /// What the step claims, and whether it is so.
    claims: Vec<(String, bool)>,
}

fn read_and_drop(pod: &Pod) -> Result<Scene> {
    let python = pod.environment().get("SANDBOX_PYTHON").context("find the pod's Python")?;
    let output = pod.run([python.as_str(), "-c", CLIENT, READ, DROP, "select 'still here' as connection"])?;
    let mut shown = Vec::new();
    let mut outcomes = Vec::new();
    for line in output.stdout.lines() {
        let outcome: Value = serde_json::from_str(line).with_context(|| format!("read {line:?}"))?;
        shown.push(format!("> {}", text(&outcome, "sql")));
        match outcome.get("error") {
            Some(_) => shown.push(text(&outcome, "error")),
            None => shown.extend(rows(&outcome).iter().map(|row| format!("  {row}"))),
        }
        outcomes.push(outcome);
    }
    if !output.succeeded() {
        shown.push(output.stderr.trim().to_owned());
    }
    let outcome = |index: usize| outcomes.get(index).unwrap_or(&Value::Null);
    let refusal = text(outcome(1), "error");
    Ok(Scene {
        shown,
        claims: vec![
            ("the read came back with rows".into(), !rows(outcome(0)).is_empty()),
            (
                "DROP TABLE raised the driver's usual exception, with Snowflake's code for a missing right"
                    .into(),
                refusal.starts_with("ProgrammingError") && refusal.contains("003001 (42501)"),
            ),
            ("the connection stayed usable".into(), rows(outcome(2)).len() == 1),
        ],
    })
}

fn own_tls(pod: &Pod) -> Result<Scene> {
    let output = pod.run(["/usr/bin/env", "python3", "-c", OWN_TLS])?;
    let seen: Value = serde_json::from_str(output.stdout.trim())
        .with_context(|| format!("read {:?}, {:?}", output.stdout, output.stderr))?;
    let (verified, issuer, peer) = (text(&seen, "verified"), text(&seen, "issuer"), text(&seen, "peer"));
    Ok(Scene {
        shown: vec![
            format!("connected to {peer}"),
            format!("trusting only Snowflake's own CA ({UPSTREAM_CA_NAME}): {verified}"),
            format!("trusting both: the certificate it met is issued by {issuer}"),
        ],
        claims: vec![
            (
                "Snowflake's own certificate was not what it met".into(),
                verified.contains("certificate verify failed"),
            ),
            ("it met Snowfence's".into(), issuer.contains("Snowfence") && !issuer.contains(UPSTREAM_CA_NAME)),
        ],
    })
}

fn trail(sandbox: &Sandbox) -> Result<Scene> {
    let query = "SELECT formatDateTime(time, '%H:%i:%S') AS time, cgroup AS workload, subject, effect, verdict, \
                 policy, sql FROM snowfence.trail ORDER BY seq";
    let started = Instant::now();
    let rows = loop {
        // The tables are made by the agent when it first reaches ClickHouse.
        let rows = sandbox.clickhouse_rows(query);
        if rows.as_ref().is_ok_and(|rows| has(rows, DROP) && has(rows, READ))
            || started.elapsed() > DELIVERY_DEADLINE
        {
            break rows?;
        }
        thread::sleep(Duration::from_millis(200));
    };
    let verdict_on = |sql: &str| {
        rows.iter().find(|row| text(row, "sql") == sql).map(|row| text(row, "verdict")).unwrap_or_default()
    };
    let columns = ["time", "subject", "effect", "verdict", "policy", "sql"];
    let mut shown = vec![format!("> {query}")];
    shown.extend(table(&columns, &rows));
    let workload = format!("/snowfence-{}/pods/reports", sandbox.id());
    Ok(Scene {
        shown,
        claims: vec![
            ("the read is recorded as allowed".into(), verdict_on(READ) == "allow"),
            ("the DROP is recorded as denied".into(), verdict_on(DROP) == "deny"),
            (
                "each record names the workload, as the kernel attests it, and the token's subject".into(),
                !rows.is_empty()
                    && rows.iter().all(|row| {
                        text(row, "workload") == workload && text(row, "subject") == "reports@sandbox"
                    }),
            ),
        ],
    })
}

fn arrived(sandbox: &Sandbox, pod: &Pod) -> Result<Scene> {
    let log = sandbox.upstream_log()?;
    let whole = log.iter().map(Value::to_string).collect::<Vec<_>>().join("\n");
    let statements: Vec<String> =
        log.iter().map(|line| text(line, "sql")).filter(|sql| !sql.is_empty()).collect();
    let logins = log.iter().filter(|line| text(line, "path") == "/session/v1/login-request");
    let users: Vec<String> = logins.map(|line| text(line, "user")).collect();
    let token = pod.environment().get("SNOWFLAKE_TOKEN").context("find the pod's token")?;
    ensure!(!token.is_empty(), "the pod has no token");
    let mut shown = vec![format!("{} requests; logins as: {}", log.len(), users.join(", "))];
    shown.extend(statements.iter().map(|sql| format!("  {sql}")));
    Ok(Scene {
        shown,
        claims: vec![
            ("the read arrived".into(), statements.iter().any(|sql| sql == READ)),
            ("the DROP never did".into(), !whole.to_lowercase().contains("drop table")),
            ("the login was Snowfence's own".into(), whole.contains(SERVICE_PASSWORD)),
            ("the client's token never arrived".into(), !whole.contains(token.as_str())),
        ],
    })
}

/// Writes the story, and remembers whether all of it was true.
struct Story {
    colours: bool,
    number: usize,
    broken: usize,
}

impl Story {
    fn new() -> Self {
        let colours = stdout().is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours, number: 0, broken: 0 }
    }

    fn say(&self, text: &str) {
        println!("\n{}", self.paint(Colour::Bold, text));
    }

    fn step(&mut self, title: &str, play: impl FnOnce() -> Result<Scene>) -> Result<()> {
        self.number += 1;
        self.say(&format!("{}. {title}", self.number));
        let scene = play().with_context(|| format!("step {}, {title}", self.number))?;
        for line in scene.shown.iter().flat_map(|shown| shown.lines()) {
            println!("     {}", self.paint(Colour::Grey, line));
        }
        for (claim, holds) in &scene.claims {
            let (mark, colour) = if *holds { ("ok", Colour::Green) } else { ("NOT SO", Colour::Red) };
            println!("   {} {claim}", self.paint(colour, &format!("{mark}:")));
            self.broken += usize::from(!holds);
        }
        Ok(())
    }

    fn end(&self) -> bool {
        match self.broken {
            0 => self.say("All of it was so."),
            broken => self.say(&format!("{broken} of the claims did not hold.")),
        }
        self.broken == 0
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }
}

/// Numbers of ANSI escape sequences.
#[derive(Clone, Copy)]
enum Colour {
    Bold = 1,
    Red = 31,
    Green = 32,
    Grey = 90,
}

fn has(rows: &[Value], sql: &str) -> bool {
    rows.iter().any(|row| text(row, "sql") == sql)
}

fn rows(outcome: &Value) -> &[Value] {
    outcome.get("rows").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A field as text; empty where it is missing.
fn text(value: &Value, field: &str) -> String {
    match value.get(field) {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Rows under each other, columns aligned.
fn table(columns: &[&str], rows: &[Value]) -> Vec<String> {
    let heading = columns.iter().map(|column| (*column).to_owned()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|column| text(row, column)).collect::<Vec<_>>());
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(cells).collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    lines
        .iter()
        .map(|line| {
            let cells = line.iter().enumerate().map(|(column, cell)| format!("{cell:<0$}", width(column)));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [json!({"sql": "select 1", "verdict": "allow"}), json!({"sql": "x", "verdict": null})];
        assert_eq!(table(&["sql", "verdict"], &rows), ["sql       verdict", "select 1  allow", "x"]);
    }

    #[test]
    fn one_false_claim_breaks_the_story() {
        let mut story = Story { colours: false, number: 0, broken: 0 };
        let scene = |holds| move || Ok(Scene { shown: vec![], claims: vec![("it is so".into(), holds)] });
        story.step("true", scene(true)).unwrap();
        assert!(story.end());
        story.step("false", scene(false)).unwrap();
        assert!(!story.end());
        assert!(story.step("error", || Err(anyhow::anyhow!("no"))).is_err());
    }

    #[test]
    fn colours_are_only_for_terminals() {
        assert_eq!(Story { colours: false, number: 0, broken: 0 }.paint(Colour::Red, "x"), "x");
        assert_eq!(Story { colours: true, number: 0, broken: 0 }.paint(Colour::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
