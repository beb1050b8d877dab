//! What large results cost the agent: its memory while eight clients fetch one at once, and the time that a client waits for
//! one, and for many small ones, with payloads kept and without. Two sandboxes are up that differ in that alone.

use std::{fmt::Write as _, fs, process::Command, thread};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use toml::Table;

use super::{Plan, pairs::Pairs, probe::POD};
use crate::{Pod, Sandbox, network};

const CLIENTS: usize = 8;
/// Each of the clients that fetch at once fetches so much: more holds the emulated storage up for too long.
const LARGE_MEBIBYTES: u64 = 256;
/// The one whose time is measured fetches so much.
const TIMED_MEBIBYTES: u32 = 128;
/// Small answers are timed so many at a time, one after the other on one connection.
const STATEMENTS: u32 = 200;
const MEBIBYTE: u64 = 1024 * 1024;
/// The goal for memory above rest.
const MOST_MEBIBYTES: u64 = 64;
/// The goal for the time with payloads, as a ratio.
const MOST_RATIO: f64 = 1.1;
/// In a second of a process's time, as Linux tells it.
const TICKS: f64 = 100.0;
/// Nobody has the other half of it.
const RECIPIENT: &str = "age1rhr5ulvxqavdus8ra0n7nuz2ers0gheprzffm325mc30prt06dmsk5lqjm";

/// What both clients begin with: a session.
const SESSION: &str = r#"
import http.client, json, os, ssl, sys, time, urllib.parse, uuid
host = os.environ["SNOWFLAKE_HOST"]
trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
def connection():
    return http.client.HTTPSConnection(host, context=trust, timeout=600)
asked = connection()
def post(path, data, token):
    headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
    asked.request("POST", f"{path}?requestId={uuid.uuid4()}", json.dumps(data), headers)
    return json.loads(asked.getresponse().read())["data"]
token = post("/session/v1/login-request", dict(data=dict(AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"])), "None")["token"]
"#;

/// Fetches a part of a result, of so many mebibytes, and prints the bytes and the seconds that it took.
const LARGE: &str = r#"
data = post("/queries/v1/query-request", dict(sqlText=f"select /* a part of {sys.argv[1]} MiB */ 1"), token)
# The emulated storage keeps some waiting for longer than the agent waits. Drivers try again then, too.
for _ in range(10):
    asked, began = connection(), time.monotonic()
    asked.request("GET", urllib.parse.urlsplit(data["chunks"][-1]["url"]).path, headers=data["chunkHeaders"])
    answer = asked.getresponse()
    if answer.status != 503:
        break
    time.sleep(1)
length, buffer = 0, memoryview(bytearray(1 << 20))
while count := answer.readinto(buffer):
    length += count
print(json.dumps([length, time.monotonic() - began]))
"#;

/// Asks so many statements, and prints how many were answered and the seconds that it took.
const SMALL: &str = r#"
began = time.monotonic()
answers = [post("/queries/v1/query-request", dict(sqlText="select 1"), token) for _ in range(int(sys.argv[1]))]
print(json.dumps([sum(answer["total"] for answer in answers), time.monotonic() - began]))
"#;

/// The agent's memory in bytes: at rest, and the most while the results were fetched.
struct Memory {
    rest: u64,
    most: u64,
}

impl Memory {
    fn more(&self) -> u64 {
        self.most.saturating_sub(self.rest) / MEBIBYTE
    }
}

/// Each without payloads, and with them.
struct Measured {
    /// Seconds for a large result.
    times: Pairs,
    /// Milliseconds of a core that the agent takes for a mebibyte of it.
    cost: [f64; 2],
    /// The same as `times`, through a limited link.
    linked: Pairs,
    /// Seconds for many small answers.
    small: Pairs,
    memory: [Memory; 2],
}

/// The bench. Prints its result.
pub fn run(plan: &Plan) -> Result<()> {
    (plan.say)("two sandboxes: one whose agent keeps payloads, one whose agent does not");
    let (mut without, mut with) = (start(plan, false)?, start(plan, true)?);
    let (pod, pod_with) = (without.pod(POD)?, with.pod(POD)?);
    (plan.say)(&format!("{} pairs of a result of {TIMED_MEBIBYTES} MiB", plan.pairs));
    let seconds = |pod: &Pod| fetch(pod, TIMED_MEBIBYTES.into());
    // What is made at the first time is not counted.
    for pod in [&pod, &pod_with] {
        seconds(pod)?;
    }
    let used = || Ok::<_, anyhow::Error>([core_seconds(&without)?, core_seconds(&with)?]);
    let before = used()?;
    let times = Pairs::measure(plan.pairs, || seconds(&pod), || seconds(&pod_with))?;
    let mebibytes = f64::from(u32::try_from(plan.pairs)?) * f64::from(TIMED_MEBIBYTES);
    let [without_before, with_before] = before;
    let [without_after, with_after] = used()?;
    let cost =
        [without_after - without_before, with_after - with_before].map(|spent| spent * 1000.0 / mebibytes);
    (plan.say)(&format!("{} pairs of the same through a link of 1 Gbit/s", plan.pairs));
    for sandbox in [&without, &with] {
        link(
            sandbox,
            &["add", "dev", "eth0", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "50ms"],
        )?;
    }
    let linked = Pairs::measure(plan.pairs, || seconds(&pod), || seconds(&pod_with))?;
    for sandbox in [&without, &with] {
        link(sandbox, &["del", "dev", "eth0", "root"])?;
    }
    (plan.say)(&format!("{} pairs of {STATEMENTS} statements with a small answer", plan.pairs));
    let small = Pairs::measure(plan.pairs, || ask(&pod), || ask(&pod_with))?;
    (plan.say)(&format!(
        "{CLIENTS} clients at once, {LARGE_MEBIBYTES} MiB each: without payloads, then with"
    ));
    let memory = [memory(&mut without)?, memory(&mut with)?];
    let measured = Measured { times, cost, linked, small, memory };
    if plan.json {
        println!("{}", measured.as_json(plan)?);
    } else {
        print!("{}", measured.as_table(plan)?);
    }
    Ok(())
}

fn start(plan: &Plan, payloads: bool) -> Result<Sandbox> {
    let mut builder = Sandbox::builder();
    if let Some(binary) = &plan.binary {
        builder = builder.binary(binary);
    }
    if payloads {
        let room = ("spool_mebibytes".to_owned(), (64 * 1024).into());
        builder = builder.payloads(RECIPIENT, Table::from_iter([room]));
    }
    builder.start()
}

/// Sets what Snowflake's side of a sandbox sends at once.
fn link(sandbox: &Sandbox, change: &[&str]) -> Result<()> {
    network::inside(&network::outside(sandbox.id()), || {
        let status = Command::new("tc").arg("qdisc").args(change).status().context("run tc")?;
        ensure!(status.success(), "tc ended with {status}");
        Ok(())
    })
}

/// Fetches a result, and says how many seconds it took.
fn fetch(pod: &Pod, mebibytes: u64) -> Result<f64> {
    let (length, seconds) = run_client(pod, LARGE, mebibytes)?;
    ensure!(length == mebibytes * MEBIBYTE, "only {length} bytes came");
    Ok(seconds)
}

/// Asks small statements, and says how many seconds it took.
fn ask(pod: &Pod) -> Result<f64> {
    let (answers, seconds) = run_client(pod, SMALL, STATEMENTS.into())?;
    ensure!(answers == u64::from(STATEMENTS), "only {answers} answers came");
    Ok(seconds)
}

/// What a client prints: how much it got, and in how many seconds.
fn run_client(pod: &Pod, client: &str, amount: u64) -> Result<(u64, f64)> {
    let (program, amount) = (format!("{SESSION}{client}"), amount.to_string());
    let said = pod.run(["sh", "-c", "exec \"$SANDBOX_PYTHON\" -c \"$1\" \"$2\"", "sh", &program, &amount])?;
    Ok(serde_json::from_str(said.into_stdout()?.trim())?)
}

fn memory(sandbox: &mut Sandbox) -> Result<Memory> {
    let agent = sandbox.agent_pid().context("the agent does not run")?;
    let pods: Vec<Pod> =
        (0..CLIENTS).map(|index| sandbox.pod(&format!("reader-{index}"))).collect::<Result<_>>()?;
    // The emulated storage makes it at the first time, and does nothing else meanwhile.
    fetch(pods.first().context("a reader")?, LARGE_MEBIBYTES)?;
    let (rest, _) = resident(agent)?;
    fs::write(format!("/proc/{agent}/clear_refs"), "5").context("begin to measure anew")?;
    thread::scope(|scope| {
        let readers: Vec<_> = pods.iter().map(|pod| scope.spawn(|| fetch(pod, LARGE_MEBIBYTES))).collect();
        readers.into_iter().try_for_each(|reader| match reader.join() {
            Ok(fetched) => fetched.map(drop),
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let (_, most) = resident(agent)?;
    Ok(Memory { rest, most })
}

/// Of the agent, since it started.
fn core_seconds(sandbox: &Sandbox) -> Result<f64> {
    let agent = sandbox.agent_pid().context("the agent does not run")?;
    let stat = fs::read_to_string(format!("/proc/{agent}/stat"))?;
    // What follows the name, which is in brackets, begins with field 3; times are 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").context("the fields of a process")?;
    let ticks: Result<Vec<f64>, _> = fields.split(' ').skip(11).take(2).map(str::parse).collect();
    Ok(ticks?.iter().sum::<f64>() / TICKS)
}

/// Of a process, in bytes: now, and the most since that was reset.
pub fn resident(pid: u32) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let of = |field: &str| -> Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).context("a field")?;
        Ok(line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>()? * 1024)
    };
    Ok((of("VmRSS")?, of("VmHWM")?))
}

impl Measured {
    fn as_json(&self, plan: &Plan) -> Result<Value> {
        let [without, with] = self
            .memory
            .each_ref()
            .map(|memory| json!({ "rest_bytes": memory.rest, "most_bytes": memory.most }));
        let spreads = |pairs: &Pairs| {
            let (without, with) = (pairs.without()?, pairs.with()?);
            Ok::<_, anyhow::Error>(json!({ "without": without, "with": with, "ratio": pairs.ratio()? }))
        };
        Ok(json!({
            "pairs": plan.pairs,
            "seconds": spreads(&self.times)?,
            "core_milliseconds_per_mebibyte": { "without": self.cost[0], "with": self.cost[1] },
            "linked": spreads(&self.linked)?,
            "small": { "statements": STATEMENTS, "seconds": spreads(&self.small)? },
            "memory": { "without": without, "with": with },
        }))
    }

    fn as_table(&self, plan: &Plan) -> Result<String> {
        let mut text = String::new();
        let judge = |is_met: bool| if is_met { "met" } else { "missed" };
        let all = format!("on a machine with {} cores for all of it", thread::available_parallelism()?);
        for (times, how) in [(&self.times, all.as_str()), (&self.linked, "through a link of 1 Gbit/s")] {
            let what = format!("A result of {TIMED_MEBIBYTES} MiB {how}");
            write_pairs(&mut text, plan, &what, times, TIMED_MEBIBYTES, " MiB/s")?;
            writeln!(
                text,
                "goal: at most {MOST_RATIO} times: {}",
                judge(times.ratio()?.median <= MOST_RATIO)
            )?;
            writeln!(text)?;
        }
        let [without, with] = self.cost;
        writeln!(text, "The agent alone: {without:.1} ms of a core for a MiB without, {with:.1} ms with")?;
        writeln!(text)?;
        let what = format!("{STATEMENTS} small answers");
        write_pairs(&mut text, plan, &what, &self.small, STATEMENTS, "/s")?;
        writeln!(text)?;
        writeln!(
            text,
            "The agent's memory while {CLIENTS} clients fetch {LARGE_MEBIBYTES} MiB each at once"
        )?;
        for (name, memory) in ["without payloads", "with payloads"].into_iter().zip(&self.memory) {
            let (more, rest) = (memory.more(), memory.rest / MEBIBYTE);
            writeln!(text, "{name:18} {more} MiB above the {rest} MiB at rest")?;
            writeln!(text, "goal: under {MOST_MEBIBYTES} MiB: {}", judge(more < MOST_MEBIBYTES))?;
        }
        Ok(text)
    }
}

/// The times of so much, and the rates that they are.
fn write_pairs(
    text: &mut String,
    plan: &Plan,
    what: &str,
    times: &Pairs,
    amount: u32,
    unit: &str,
) -> Result<()> {
    let rate = |seconds: f64| f64::from(amount) / seconds;
    let (without, with) = (rate(times.without()?.median), rate(times.with()?.median));
    writeln!(text, "{what}, {} pairs, time with payloads kept / without", plan.pairs)?;
    writeln!(text, "min, median, max   {:.3}", times.ratio()?)?;
    writeln!(text, "medians            {without:.0}{unit} without, {with:.0}{unit} with")?;
    Ok(())
}
