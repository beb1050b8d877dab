//! Files: whatever storage a stage lies on, the driver moves them by the agent, and what opens the storage stays there.

mod common;

use anyhow::Result;
use sandbox::{Environment, Sandbox, node};
use serde_json::{Value, json};

use common::{ADBC, arrived, client, events, eventually, journal, requests_of_agent};

/// Stages of every kind, by what the emulated account is told in a comment.
const STAGES: [&str; 4] = ["", "/* unencrypted */", "/* on azure */", "/* on gcs */"];

/// Everything is allowed: `GET` is not, by the default policy.
fn sandbox(driver: Environment) -> Result<Sandbox> {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/everything.cedar");
    Sandbox::builder().driver(driver).policy(policy).start()
}

/// What the storage was asked, by the agent and by nobody else.
fn storage_requests(sandbox: &Sandbox) -> Result<Vec<Value>> {
    let hosts = ["amazonaws.com", "blob.core.windows.net", "storage.googleapis.com"];
    requests_of_agent(sandbox, |line| {
        let host = line["headers"]["host"].as_str().unwrap_or_default();
        hosts.iter().any(|name| host.ends_with(name))
    })
}

/// Python that moves a file there and back. `there_and_back` says whether it came back as it was.
const MOVE: &str = r#"
import tempfile
work = tempfile.mkdtemp()
def there_and_back(cursor, size, comment, options="auto_compress=false"):
    content = os.urandom(size)
    with open(f"{work}/data one.bin", "wb") as file:
        file.write(content)
    out = tempfile.mkdtemp(dir=work)
    cursor.execute(f"put 'file://{work}/data one.bin' '@~/in box' overwrite=true {options} {comment}")
    cursor.execute(f"get '@~/in box/data one.bin' 'file://{out}' {comment}")
    with open(f"{out}/data one.bin", "rb") as file:
        return file.read() == content
"#;

fn files_go_there_and_back(driver: Environment) -> Result<()> {
    let mut sandbox = sandbox(driver)?;
    let pod = sandbox.pod("loader")?;
    let said = client(
        &pod,
        &format!(
            r#"{MOVE}
cursor = connect().cursor()
for comment in {STAGES:?}:
    say(comment=comment, **attempt(lambda: there_and_back(cursor, 300_000, comment)))
say(comment="nothing in it", **attempt(lambda: there_and_back(cursor, 0, "")))
say(comment="large", **attempt(lambda: there_and_back(cursor, 30_000_000, "")))"#
        ),
    )?;
    assert_eq!(said.len(), STAGES.len() + 2, "{said:?}");
    for one in &said {
        assert_eq!(one["rows"], true, "{one}");
    }
    let requests = storage_requests(&sandbox)?;
    assert!(
        requests.iter().any(|one| one["query"].as_str().is_some_and(|it| it.contains("uploadId"))),
        "in pieces"
    );
    Ok(())
}

#[test]
fn connector_5_moves_files() -> Result<()> {
    files_go_there_and_back(Environment::Connector5)
}

#[test]
fn connector_4_moves_files() -> Result<()> {
    files_go_there_and_back(Environment::Connector4)
}

#[test]
fn adbc_moves_files() -> Result<()> {
    let mut sandbox = sandbox(Environment::Adbc)?;
    let pod = sandbox.pod("loader")?;
    let output = pod.python(&format!(
        r"
{ADBC}
{MOVE}
with connect() as connection:
    cursor = connection.cursor()
    for comment in {STAGES:?}:
        try:
            print(json.dumps([comment, there_and_back(cursor, 300_000, comment)]))
        except Exception as error:
            print(json.dumps([comment, str(error)]))
"
    ))?;
    let said = output.into_stdout()?;
    let said: Vec<Value> = said.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    assert_eq!(said, STAGES.map(|comment| json!([comment, true])));
    storage_requests(&sandbox)?;
    Ok(())
}

#[test]
fn node_moves_files() -> Result<()> {
    let mut sandbox = sandbox(Environment::Connector5)?;
    let modules = node::modules()?;
    let pod = sandbox.pod("loader")?.with("NODE_PATH", &modules.to_string_lossy());
    let said = common::by_node(
        &pod,
        &format!(
            r"
const work = fs.mkdtempSync('/tmp/files-');
for (const comment of {STAGES:?}) {{
  const content = crypto.randomBytes(300000);
  fs.writeFileSync(`${{work}}/data.bin`, content);
  const out = fs.mkdtempSync(`${{work}}/out-`);
  try {{
    await run(`PUT file://${{work}}/data.bin @~/inbox overwrite=true auto_compress=false ${{comment}}`);
    await run(`GET @~/inbox/data.bin file://${{out}} ${{comment}}`);
    say([comment, content.equals(fs.readFileSync(`${{out}}/data.bin`))]);
  }} catch (error) {{ say([comment, error.message]); }}
}}"
        ),
    )?;
    assert_eq!(said, STAGES.map(|comment| json!([comment, true])));
    storage_requests(&sandbox)?;
    Ok(())
}

/// With pandas: connector 5.x, and 4.x.
#[test]
fn data_frames_and_large_binds_go_by_a_stage() -> Result<()> {
    for driver in [Environment::SqlAlchemy, Environment::Snowpark] {
        let mut sandbox = Sandbox::builder().driver(driver).start()?;
        let pod = sandbox.pod("loader")?;
        let said = client(
            &pod,
            r#"
import pandas
import snowflake.connector
from snowflake.connector.pandas_tools import write_pandas
snowflake.connector.paramstyle = "qmark"
connection = connect()
cursor = connection.cursor()
cursor.execute("create table frame (a int, b varchar)")
frame = pandas.DataFrame(dict(A=range(1000), B=[f"row {n}" for n in range(1000)]))
say(**attempt(lambda: write_pandas(connection, frame, "FRAME")[:3]))
say(**attempt(lambda: cursor.execute("select count(*), cast(sum(a) as int), max(b) from frame").fetchall()))
cursor.execute("create table bound (a int, b varchar)")
say(**attempt(lambda: cursor.executemany("insert into bound values (?, ?)", [(n, f"row {n}") for n in range(70_000)]).rowcount))
say(**attempt(lambda: cursor.execute("select count(*), cast(sum(a) as int), max(b) from bound").fetchall()))"#,
        )?;
        assert_eq!(said[0]["rows"], json!([true, 1, 1000]), "{}", said[0]);
        assert_eq!(texts(&said[1]["rows"][0]), ["1000", "499500", "row 999"], "{}", said[1]);
        assert_eq!(said[2]["rows"], 70_000, "{}", said[2]);
        assert_eq!(texts(&said[3]["rows"][0]), ["70000", "2449965000", "row 9999"], "{}", said[3]);
        assert!(arrived(&sandbox)?.iter().any(|sql| sql.contains("BIND")), "the binds went by a stage");
        assert!(storage_requests(&sandbox)?.len() >= 2);
    }
    Ok(())
}

fn texts(row: &Value) -> Vec<String> {
    let row = row.as_array().cloned().unwrap_or_default();
    row.iter().map(|value| value.to_string().trim_matches('"').to_owned()).collect()
}

#[test]
fn a_download_is_refused_by_default() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("loader")?;
    let said = client(
        &pod,
        r#"say(**attempt(lambda: connect().cursor().execute("get @~/x file:///tmp/never-there").fetchall()))"#,
    )?;
    assert_eq!((&said[0]["errno"], &said[0]["sqlstate"]), (&json!(3001), &json!("42501")), "{}", said[0]);
    assert!(arrived(&sandbox)?.iter().all(|sql| !sql.contains("never-there")));
    Ok(())
}

#[test]
fn what_opens_a_stage_stays_with_the_agent() -> Result<()> {
    let mut sandbox = sandbox(Environment::Connector5)?;
    let (pod, other) = (sandbox.pod("loader")?, sandbox.pod("other")?);
    let said = client(
        &pod,
        &format!(
            r#"{}
token = login()
answer = ask(token, "put file:///tmp/a.csv @~/secret")
data = json.loads(answer)["data"]
bearer = data["stageInfo"]["creds"]["GCS_ACCESS_TOKEN"]
def put(name, **headers):
    return send("PUT", "/snowfence/files/" + name, headers, b"x" * 10)[0]
fine = {{"Authorization": f"Bearer {{bearer}}"}}
say(keys=sorted(data), leaks=[word for word in ("amazonaws", "AWS", "acme-stage", "customer") if word in answer],
    stage=data["stageInfo"]["locationType"], token=bearer,
    put=put("a.csv.gz", **fine), none=put("a.csv"), changed=put("a.csv", Authorization="Bearer " + bearer[:-9] + "AAAAAAAAA"),
    session=put("a.csv", Authorization="Bearer " + token),
    up=put("..", **fine), down=put("b%2fc", **fine), encoded=put("%2e%2e", **fine), nothing=put("", **fine),
    head=send("HEAD", "/snowfence/files/a.csv.gz", fine)[0], no_head=send("HEAD", "/snowfence/files/b.csv.gz", fine)[0],
    get=send("GET", "/snowfence/files/" + bearer, {{}})[0])"#,
            common::RAW
        ),
    )?;
    let said = &said[0];
    assert_eq!((&said["leaks"], &said["stage"]), (&json!([]), &json!("GCS")), "{said}");
    assert_eq!(
        (&said["put"], &said["head"], &said["no_head"]),
        (&json!(200), &json!(200), &json!(404)),
        "{said}"
    );
    for refused in ["none", "changed", "session", "get"] {
        assert_eq!(said[refused], 422, "{refused}: {said}");
    }
    for unknown in ["up", "down", "encoded", "nothing"] {
        assert_eq!(said[unknown], 404, "{unknown}: {said}");
    }
    let by_another = client(
        &other,
        &format!(
            "{}\nsay(status=send('PUT', '/snowfence/files/b.csv', {{'Authorization': 'Bearer ' + {}}}, b'x')[0])",
            common::RAW,
            said["token"]
        ),
    )?;
    assert_eq!(by_another[0]["status"], 422, "{}", by_another[0]);
    let uploads: Vec<Value> =
        journal(&sandbox, "SELECT detail, subject FROM events WHERE kind = 'file_uploaded'")?;
    assert_eq!(uploads.len(), 1, "{uploads:?}");
    let detail = uploads[0]["detail"].as_str().unwrap_or_default();
    let ten_times_x = "fc11d6f28e59d3cc33c0b14ceb644bf0902ebd63d61218dffe9e7dac7c254542";
    let expected = format!("a.csv.gz: 10 bytes, SHA-256 {ten_times_x}; query ");
    assert!(detail.contains(&expected), "{detail}");
    Ok(())
}

#[test]
fn a_file_that_the_statement_does_not_name_is_not_touched() -> Result<()> {
    let mut sandbox = sandbox(Environment::Connector5)?;
    let pod = sandbox.pod("loader")?;
    let said = client(
        &pod,
        r#"
open("/tmp/named.csv", "w").write("1")
say(**attempt(lambda: connect().cursor().execute("put file:///tmp/named.csv @~/x /* other file */").fetchall()))"#,
    )?;
    let message = said[0]["message"].as_str().unwrap_or_default();
    assert!(message.contains("other local files than the statement"), "{}", said[0]);
    assert!(storage_requests(&sandbox)?.is_empty());
    assert!(events(&sandbox)?.contains(&"transfer_failed".to_owned()));
    Ok(())
}

#[test]
fn credentials_of_a_stage_that_expire_are_asked_for_again() -> Result<()> {
    let mut sandbox = sandbox(Environment::Connector5)?;
    let pod = sandbox.pod("loader")?;
    let said = client(
        &pod,
        r#"
open("/tmp/late.csv", "w").write("1")
once = "put file:///tmp/late.csv @~/late overwrite=true /* expired credentials once */"
say(**attempt(lambda: [row[6] for row in connect().cursor().execute(once).fetchall()]))
always = "put file:///tmp/late.csv @~/late overwrite=true /* expired credentials */"
say(**attempt(lambda: connect().cursor().execute(always).fetchall()))"#,
    )?;
    assert_eq!(said[0]["rows"], json!(["UPLOADED"]), "{}", said[0]);
    assert!(said[1]["error"].is_string(), "it ends: {}", said[1]);
    eventually("it is on record", || Ok(events(&sandbox)?.contains(&"transfer_failed".to_owned())))
}

#[test]
fn a_file_that_breaks_off_is_taken_up_where_it_broke() -> Result<()> {
    let mut sandbox = sandbox(Environment::Connector5)?;
    let pod = sandbox.pod("loader")?;
    let said = client(
        &pod,
        &format!(
            r#"{MOVE}
say(**attempt(lambda: there_and_back(connect().cursor(), 3_000_000, "/* breaks off */")))"#
        ),
    )?;
    assert_eq!(said[0]["rows"], true, "{}", said[0]);
    let requests = storage_requests(&sandbox)?;
    assert!(requests.iter().any(|one| one["headers"]["range"].is_string()), "it was asked for its rest");
    Ok(())
}
