//! Large results: they come whole, in any format, by the agent alone; and what leads to them is of use to nobody else.

mod common;

use std::{fs, thread};

use anyhow::{Context, Result};
use sandbox::{Environment, Sandbox, bench};
use serde_json::Value;

use common::{ADBC, RAW, client, eventually, journal, requests_of_agent};

/// So many that most of them are in parts.
const ROWS: u64 = 90_000;

fn rows(comment: &str) -> String {
    format!(
        "select {comment} seq4() as n, 'row ' || seq4() as t, case when seq4() % 7 = 0 then null else seq4() * 1.5 end as x from table(generator(rowcount => {ROWS}))"
    )
}

/// Reads it all, row by row; says what there is of it.
fn read(statement: &str) -> String {
    format!(
        r#"
def read(cursor):
    rows = cursor.execute({statement:?}).fetchall()
    return [len(rows), len({{row[0] for row in rows}}), sum(int(row[0]) for row in rows),
            sum(row[2] is None for row in rows), rows[70000][1] == f"row {{rows[70000][0]}}"]
"#
    )
}

fn expected() -> Value {
    serde_json::json!([ROWS, ROWS, ROWS * (ROWS - 1) / 2, ROWS.div_ceil(7), true])
}

/// What arrived at the storage: requests, of which none is from anybody but the agent.
fn storage_requests(sandbox: &Sandbox) -> Result<Vec<Value>> {
    requests_of_agent(sandbox, |line| line["path"].as_str().is_some_and(|it| it.starts_with("/results/")))
}

fn comes_whole(driver: Environment) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver).start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        &format!(
            r#"{}
connection = connect()
cursor = connection.cursor()
say(**attempt(lambda: read(cursor)))
cursor.execute("alter session set python_connector_query_result_format = 'JSON'")
say(**attempt(lambda: read(cursor)))
say(**attempt(lambda: cursor.execute("select count(*) from customers").fetchall()))"#,
            read(&rows(""))
        ),
    )?;
    assert_eq!(said[0]["rows"], expected(), "Arrow: {}", said[0]);
    assert_eq!(said[1]["rows"], expected(), "JSON: {}", said[1]);
    assert_eq!(said[2]["rows"][0][0].to_string().trim_matches('"'), "300", "{}", said[2]);
    assert!(storage_requests(&sandbox)?.len() >= 8);
    let outcomes = journal(
        &sandbox,
        "SELECT status, rows FROM outcomes JOIN statements ON statements.id = outcomes.statement
         WHERE sql LIKE '%generator%'",
    )?;
    assert!(outcomes.len() == 2 && outcomes.iter().all(|one| one["rows"] == ROWS), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_large_result_comes_whole_to_connector_5() -> Result<()> {
    comes_whole(Environment::Connector5)
}

#[test]
fn a_large_result_comes_whole_to_connector_4() -> Result<()> {
    comes_whole(Environment::Connector4)
}

#[test]
fn a_large_result_comes_whole_by_adbc() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Adbc).start()?;
    let pod = sandbox.pod("reports")?;
    let output = pod.python(&format!(
        r#"
{ADBC}
with connect() as connection:
    cursor = connection.cursor()
    cursor.execute({:?})
    n, t, x = cursor.fetch_arrow_table().columns
    numbers = [int(value) for value in n.to_pylist()]
    print(json.dumps([len(n), len(set(numbers)), sum(numbers), x.null_count, t[70000].as_py() == f"row {{numbers[70000]}}"]))
"#,
        rows("")
    ))?;
    let said: Value = serde_json::from_str(output.into_stdout()?.trim())?;
    assert_eq!(said, expected());
    assert!(storage_requests(&sandbox)?.len() >= 4);
    Ok(())
}

#[test]
fn a_part_that_breaks_off_is_taken_up_where_it_broke() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        &format!(
            "{}\nsay(**attempt(lambda: read(connect().cursor())))",
            read(&rows("/* parts break off */ /* parts by key */"))
        ),
    )?;
    assert_eq!(said[0]["rows"], expected(), "{}", said[0]);
    let requests = storage_requests(&sandbox)?;
    let resumed = requests.iter().filter(|request| request["headers"]["range"].is_string()).count();
    assert_eq!(
        (resumed, requests.len()),
        (5, 10),
        "each of the parts broke once, and was asked for its rest"
    );
    Ok(())
}

#[test]
fn what_leads_to_a_part_is_of_use_to_its_own_workload_alone() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let (pod, other) = (sandbox.pod("reports")?, sandbox.pod("other")?);
    let said = client(
        &pod,
        &format!(
            r#"{RAW}
token = login()
answer = ask(token, {statement:?})
data = json.loads(answer)["data"]
urls, headers = [chunk["url"] for chunk in data["chunks"]], data["chunkHeaders"]
status, body = fetch(urls[0], headers)
mixed = json.loads(ask(token, {statement:?}))["data"]
changed = urls[0][:-20] + ("A" if urls[0][-20] != "A" else "B") + urls[0][-19:]
say(urls=urls, headers=headers, keys=sorted(data), part=sorted(data["chunks"][0]),
    leaks=[word for word in ("amazonaws", "Signature", "customer", "AES256") if word in answer],
    status=status, length=len(body), expected=data["chunks"][0]["uncompressedSize"],
    without=fetch(urls[0], {{}})[0], changed=fetch(changed, headers)[0],
    mixed=fetch(urls[0], mixed["chunkHeaders"])[0], no_such=fetch(urls[0][:-10], headers)[0])"#,
            statement = rows("")
        ),
    )?;
    let said = &said[0];
    assert_eq!(said["leaks"], serde_json::json!([]), "{said}");
    assert_eq!(said["status"], 200, "{said}");
    assert_eq!(said["length"], said["expected"], "{said}");
    let keys = said["keys"].as_array().context("keys")?;
    assert!(!keys.iter().any(|key| key == "qrmk"), "{keys:?}");
    assert_eq!(
        said["part"],
        serde_json::json!(["compressedSize", "rowCount", "uncompressedSize", "url"]),
        "{said}"
    );
    for refused in ["without", "changed", "mixed", "no_such"] {
        assert_eq!(said[refused], 422, "{refused}: {said}");
    }

    let by_another = client(
        &other,
        &format!(
            "{RAW}\nstatus, body = fetch({}, json.loads({:?}))\nsay(status=status, body=body.decode())",
            said["urls"][0],
            said["headers"].to_string()
        ),
    )?;
    assert_eq!(by_another[0]["status"], 422, "{}", by_another[0]);
    eventually("it is on record", || {
        let events = journal(&sandbox, "SELECT cgroup, detail FROM events WHERE kind = 'session_refused'")?;
        Ok(events.iter().any(|event| {
            event["cgroup"].as_str().is_some_and(|it| it.ends_with("/pods/other"))
                && event["detail"].as_str().is_some_and(|it| it.contains("another workload"))
        }))
    })?;

    // The agent that comes after knows them too.
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let later = client(
        &pod,
        &format!(
            "{RAW}\nsay(status=fetch({}, json.loads({:?}))[0])",
            said["urls"][1],
            said["headers"].to_string()
        ),
    )?;
    assert_eq!(later[0]["status"], 200, "{}", later[0]);
    Ok(())
}

#[test]
fn eight_large_results_at_once_take_little_memory() -> Result<()> {
    const CLIENTS: usize = 8;
    const MEBIBYTES: u64 = 128;
    const MEBIBYTE: u64 = 1024 * 1024;
    let mut sandbox = Sandbox::builder().start()?;
    let agent = sandbox.agent_pid().context("the agent does not run")?;
    let fetch = format!(
        r#"{RAW}
data = json.loads(ask(login(), "select /* a part of {MEBIBYTES} MiB */ 1"))["data"]
part = data["chunks"][-1]
connection = http.client.HTTPSConnection(host, context=trust, timeout=120)
connection.request("GET", urllib.parse.urlsplit(part["url"]).path, headers=data["chunkHeaders"])
answer, length = connection.getresponse(), 0
while piece := answer.read(1 << 20):
    length += len(piece)
say(length=length)"#
    );
    // Once before: what is made at the first time is not counted.
    let pods: Vec<_> =
        (0..CLIENTS).map(|index| sandbox.pod(&format!("reader-{index}"))).collect::<Result<_>>()?;
    client(&pods[0], &fetch)?;
    let (idle, _) = bench::resident(agent)?;
    fs::write(format!("/proc/{agent}/clear_refs"), "5")?;
    let lengths = thread::scope(|scope| {
        let readers: Vec<_> = pods.iter().map(|pod| scope.spawn(|| client(pod, &fetch))).collect();
        let said = readers
            .into_iter()
            .map(|reader| reader.join().expect("no panic")?[0]["length"].as_u64().context("a length"));
        said.collect::<Result<Vec<u64>>>()
    })?;
    assert_eq!(lengths, [MEBIBYTES * MEBIBYTE; CLIENTS]);
    let (_, most) = bench::resident(agent)?;
    let more = most.saturating_sub(idle) / MEBIBYTE;
    println!("the agent took {more} MiB more than the {} MiB that it has at rest", idle / MEBIBYTE);
    assert!(more < 64, "{more} MiB");
    Ok(())
}
