//! What the kernel programs cost connections that are none of their business: those to other addresses than Snowflake's,
//! on a port that is captured. Two sandboxes are up that differ in one thing: only one has an agent.

use std::{fmt::Write as _, process::Command, thread};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Plan, Probe, pairs::Pairs, probe::POD};
use crate::{Sandbox, launch};

/// The goal for a connect().
const MOST_NANOSECONDS: f64 = 300.0;
/// The goal for the throughput of a stream.
const LEAST_RATIO: f64 = 0.99;
const KIBIBYTE: u64 = 1024;

/// The bench. Prints its result.
pub fn run(plan: &Plan) -> Result<()> {
    let cpus = thread::available_parallelism().context("count the CPUs")?.get();
    ensure!(cpus > 1, "this bench needs two CPUs: one sends, one receives");
    (plan.say)("two sandboxes: one with an agent, one without");
    let (without, with) = (start(plan, false)?, start(plan, true)?);
    let measure = |probe: Probe| -> Result<Pairs> {
        (plan.say)(&format!("{} pairs of {}", plan.pairs, probe.name()));
        let mut command = Command::new(launch::launcher()?);
        command.args(["probe", probe.name(), &plan.pairs.to_string(), without.id(), with.id()]);
        let output = command.output().context("start the probe")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).context("read what the probe says")
    };
    let (connect, send, stream) = (measure(Probe::Connect)?, measure(Probe::Send)?, measure(Probe::Stream)?);
    let cost = cost(&with)?;
    if plan.json {
        println!("{}", as_json(plan, &connect, &send, &stream, &cost)?);
    } else {
        print!("{}", as_table(plan, &connect, &send, &stream, &cost)?);
    }
    Ok(())
}

fn start(plan: &Plan, with_agent: bool) -> Result<Sandbox> {
    let mut builder = Sandbox::builder().plain();
    if let Some(binary) = &plan.binary {
        builder = builder.binary(binary);
    }
    if !with_agent {
        builder = builder.without_agent();
    }
    let mut sandbox = builder.start()?;
    sandbox.root_pod(POD)?;
    Ok(sandbox)
}

/// What the agent says that its programs cost: instructions and memory.
fn cost(sandbox: &Sandbox) -> Result<Value> {
    let said = sandbox.snowfence(["doctor", "--format", "json"])?.into_stdout()?;
    let mut said: Value = serde_json::from_str(&said).context("read what doctor says")?;
    let cost = said.get_mut("cost").map(Value::take).filter(Value::is_object);
    cost.context("doctor does not say what the programs cost")
}

fn as_json(plan: &Plan, connect: &Pairs, send: &Pairs, stream: &Pairs, cost: &Value) -> Result<Value> {
    let figure = |pairs: &Pairs| -> Result<Value> {
        Ok(json!({
            "without": pairs.without()?, "with": pairs.with()?,
            "difference": pairs.difference()?, "ratio": pairs.ratio()?,
        }))
    };
    Ok(json!({
        "pairs": plan.pairs,
        "connect_nanoseconds": figure(connect)?,
        "send_nanoseconds": figure(send)?,
        "stream_bytes_per_second": figure(stream)?,
        "cost": cost,
    }))
}

fn as_table(plan: &Plan, connect: &Pairs, send: &Pairs, stream: &Pairs, cost: &Value) -> Result<String> {
    let mut text = String::new();
    writeln!(text, "To an address that is not Snowflake's, {} pairs: min, median, max", plan.pairs)?;
    writeln!(text)?;
    writeln!(text, "{:24}{:>29}   with / without", "", "with - without")?;
    for (name, pairs) in [("connect(), TCP", connect), ("sendto(), UDP", send)] {
        writeln!(text, "{name:20} ns {:.0}  {:.3}", pairs.difference()?, pairs.ratio()?)?;
    }
    writeln!(text, "{:23} {:29}  {:.3}", "stream, TCP over veth", "", stream.ratio()?)?;
    writeln!(text)?;
    let judge = |is_met: bool| if is_met { "met" } else { "missed" };
    let slower = connect.difference()?.median;
    let is_met = slower < MOST_NANOSECONDS;
    writeln!(
        text,
        "goal: connect() at most {MOST_NANOSECONDS:.0} ns slower: {} ({slower:.0})",
        judge(is_met)
    )?;
    let ratio = stream.ratio()?.median;
    writeln!(
        text,
        "goal: stream at least {LEAST_RATIO} times as fast: {} ({ratio:.3})",
        judge(ratio > LEAST_RATIO)
    )?;
    writeln!(text)?;
    for (name, pairs, unit, divisor) in [
        ("connect(), TCP", connect, "ns", 1.0),
        ("sendto(), UDP", send, "ns", 1.0),
        ("stream, TCP over veth", stream, "Gbit/s", 1e9 / 8.0),
    ] {
        let (without, with) = (pairs.without()?.median / divisor, pairs.with()?.median / divisor);
        writeln!(text, "{name:24} {without:>9.1} {unit} without, {with:>9.1} {unit} with (medians)")?;
    }
    writeln!(text)?;
    list(&mut text, "verified instructions", &cost["verified_instructions"], 1)?;
    writeln!(text)?;
    list(&mut text, "memory of the maps, KiB", &cost["map_bytes"], KIBIBYTE)?;
    Ok(text)
}

/// Lines of what has a name and a number, the largest first, and their sum.
fn list(text: &mut String, title: &str, of: &Value, divisor: u64) -> Result<()> {
    let of = of.as_object().with_context(|| format!("find the {title}"))?;
    let mut lines: Vec<(&str, u64)> =
        of.iter().filter_map(|(name, number)| Some((name.as_str(), number.as_u64()? / divisor))).collect();
    lines.sort_by_key(|(name, number)| (std::cmp::Reverse(*number), *name));
    writeln!(text, "{title:32} {:>9}", lines.iter().map(|(_, number)| number).sum::<u64>())?;
    for (name, number) in lines {
        writeln!(text, "  {name:30} {number:>9}")?;
    }
    Ok(())
}
