//! A recorded session of each driver once more: the driver prints the same, asks for nothing else, and gets the same bytes.

mod common;

use anyhow::Result;
use sandbox::{Credential, Environment, Pod, python};

use common::recorded::{PLAIN, Recorded, SERVE, connectors_work};
use common::{ADBC, node_program, source};

const LARGE: &str = "select seq4() as n, 'row ' || seq4() as t from table(generator(rowcount => 60000))";
/// Of a result: how many rows, their sum, and the last one.
const DIGEST: &str = r"
def digest(rows):
    return [len(rows), sum(int(row[0]) for row in rows), list(rows[-1])]
";

fn by_adbc() -> String {
    source(&format!(
        r#"{ADBC}{DIGEST}
connection = connect()
cursor = connection.cursor()
def rows(sql, *binds):
    cursor.execute(sql, binds or None)
    return cursor.fetchall()
say(at=[connection.adbc_current_catalog, connection.adbc_current_db_schema])
say(**attempt(lambda: rows("select ?, ?", 7, "it's")))
say(**attempt(lambda: rows("select 'again'")))
say(**attempt(lambda: rows("select 'again'")))
say(**attempt(lambda: digest(rows({LARGE:?}))))
say(**attempt(lambda: cursor.adbc_execute_schema("select id, name, credit from customers").names))
say(**attempt(lambda: connection.adbc_get_table_schema("CUSTOMERS").names))
say(**attempt(lambda: rows("select * from no_such_table")))
say(**attempt(lambda: rows("drop table customers")))
cursor.close()
connection.close()"#
    ))
}

fn by_snowpark() -> String {
    source(&format!(
        r#"{DIGEST}
from snowflake.snowpark import Session
from snowflake.snowpark.functions import col
of = os.environ
session = Session.builder.configs(dict(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"])).create()
def rows(sql, *binds):
    return session.sql(sql, params=binds or None).collect()
def by_itself(sql):
    job = session.sql(sql).collect_nowait()
    while not job.is_done():
        time.sleep(0.1)
    return job.result()
say(at=[session.get_current_database(), session.get_current_schema()])
say(**attempt(lambda: rows("select ?, ?", 7, "it's")))
say(**attempt(lambda: session.table("customers").filter(col("id") < 3).select("id", "credit").sort("id").collect()))
say(**attempt(lambda: session.table("customers").select("id", "name", "credit").schema.fields))
say(**attempt(lambda: session.create_dataframe([[1, None], [None, "b"]], schema=["a", "b"]).collect()))
say(**attempt(lambda: digest(rows({LARGE:?}))))
say(**attempt(lambda: digest(list(session.sql({LARGE:?}).to_local_iterator()))))
say(**attempt(lambda: by_itself("select system$wait(1)")))
say(**attempt(lambda: rows("select * from no_such_table")))
say(**attempt(lambda: rows("drop table customers")))
say(**attempt(session.close))"#
    ))
}

fn by_sqlalchemy() -> String {
    source(&format!(
        r#"{DIGEST}
from snowflake.sqlalchemy import URL
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, inspect, select, text
of = os.environ
engine = create_engine(URL(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"]))
connection = engine.connect()
people = Table("people", MetaData(), Column("id", Integer), Column("name", String(40)), prefixes=["TEMPORARY"])
def rows(statement, *binds):
    return [tuple(row) for row in connection.execute(statement, *binds)]
def write():
    people.create(connection)
    connection.execute(people.insert(), [{{"id": 1, "name": "Zoë"}}, {{"id": 2, "name": None}}])
    updated = connection.execute(people.update().where(people.c.id == 2).values(name="Ann")).rowcount
    connection.commit()
    return [updated, rows(select(people).order_by(people.c.id))]
say(**attempt(lambda: rows(text("select :number, :text"), dict(number=7, text="it's"))))
say(**attempt(lambda: rows(text("select 'again'"))))
say(**attempt(lambda: rows(text("select 'again'"))))
say(**attempt(lambda: digest(rows(text({LARGE:?})))))
say(**attempt(lambda: inspect(connection).get_columns("customers")))
say(**attempt(write))
say(**attempt(lambda: rows(text("select * from no_such_table"))))
say(**attempt(lambda: rows(text("drop table customers"))))
connection.close()
engine.dispose()"#
    ))
}

/// The CLI ends where a statement fails.
fn by_cli(last: &str) -> String {
    source(&format!(
        r#"
import hashlib, subprocess, tempfile
from pathlib import Path
of = os.environ
# It keeps its configuration there, and warns of one that is somebody else's.
of["HOME"] = tempfile.mkdtemp()
command = [str(Path(sys.executable).with_name("snow")), "sql", "--query", "select 'small' as t; select 42 as a;> " + {LARGE:?} + "; {last}"]
command += ["--temporary-connection", "--account", of["SNOWFLAKE_ACCOUNT"], "--user", of["SNOWFLAKE_USER"]]
command += ["--authenticator", "oauth", "--token", of["SNOWFLAKE_TOKEN"], "--format", "json"]
command += ["--database", of["SNOWFLAKE_DATABASE"], "--schema", of["SNOWFLAKE_SCHEMA"]]
done = subprocess.run(command, capture_output=True, text=True)
# It draws a box around what it says.
message = " ".join(done.stderr.replace("│", " ").split())
rows = done.stdout.encode()
_, _, message = message.replace("─", "").partition("╭ Error")
say(status=done.returncode, rows=[len(rows), hashlib.sha256(rows).hexdigest()], message=message)"#
    ))
}

fn by_curl() -> String {
    source(&format!(
        r#"{DIGEST}
import subprocess, uuid
of = os.environ
def curl(method, path, body=None):
    command = ["curl", "-sS", "--compressed", "-X", method, "-w", "\n%{{http_code}}", "--cacert", of["SSL_CERT_FILE"]]
    command += ["-H", f"Authorization: Bearer {{of['SNOWFLAKE_TOKEN']}}", "-H", "Content-Type: application/json"]
    command += ["-H", "Accept: application/json", "-H", "User-Agent: reports/1.0"]
    command += ["-d", json.dumps(body)] if body is not None else []
    command.append(f"https://{{of['SNOWFLAKE_HOST']}}{{path}}")
    answer, _, status = subprocess.run(command, capture_output=True, text=True, check=True).stdout.rpartition("\n")
    answer = json.loads(answer)
    return int(status), answer, answer.get("statementHandle")
def ask(sql, query="", **more):
    return curl("POST", "/api/v2/statements" + query, dict(statement=sql, database="ANALYTICS", schema="PUBLIC", **more))
def rest(method, handle, more=""):
    return curl(method, f"/api/v2/statements/{{handle}}{{more}}")
say(small=ask("select ?", bindings={{"1": {{"type": "TEXT", "value": "it's"}}}}))
_, first, handle = ask({LARGE:?})
parts = range(1, len(first["resultSetMetaData"]["partitionInfo"]))
say(large=digest(sum((rest("GET", handle, f"?partition={{part}}")[1]["data"] for part in parts), first["data"])))
_, several, _ = ask("select 1; select 2", parameters={{"MULTI_STATEMENT_COUNT": "0"}})
say(several=[rest("GET", handle) for handle in several["statementHandles"]])
def by_itself(sql, then):
    status, _, handle = ask(sql, f"?async=true&requestId={{uuid.uuid4()}}")
    then(handle)
    while (answer := rest("GET", handle))[0] == 202:
        time.sleep(0.1)
    return [status, answer]
say(by_itself=by_itself("select system$wait(1)", lambda handle: None))
say(cancelled=by_itself("select system$wait(300)", lambda handle: say(cancel=rest("POST", handle, "/cancel"))))
say(error=ask("select * from no_such_table"))
say(refusal=ask("drop table customers"))"#
    ))
}

fn by_node() -> String {
    node_program(&format!(
        r"
const finished = (sqlText, more) => new Promise((done, fail) => connection.execute({{
  sqlText, ...more, complete: (error, statement) => (error ? fail(error) : done(statement)),
}}));
say(await attempt('select ? as t, 1.50 as n', ['bound']));
const rows = await run({LARGE:?});
say([rows.length, rows.reduce((sum, row) => sum + Number(row.N), 0), rows[rows.length - 1]]);
const described = await finished('select id, name, credit from customers', {{ describeOnly: true }});
say(described.getColumns().map((column) => [column.getName(), column.getType()]));
const queryId = (await finished('select system$wait(1)', {{ asyncExec: true }})).getQueryId();
while (connection.isStillRunning(await connection.getQueryStatusThrowIfError(queryId))) {{
  await new Promise((done) => {{ setTimeout(done, 100); }});
}}
for await (const row of (await connection.getResultsFromQueryId({{ queryId }})).streamRows()) say(row);
say(await attempt('select * from no_such_table'));
say(await attempt('drop table customers'));"
    ))
}

/// JDBC and ODBC as their transcripts have them, in one session.
fn by_transcripts(driver: &str) -> String {
    source(&format!(
        r#"
from pathlib import Path
sys.path.insert(0, {programs:?})
from transcript import Player
folder = Path({folder:?})
names = ["connect", "parts", "refusal", "error", "asynchronous", "slow", "heartbeat", "abort"]
steps = [step for name in names for step in json.loads((folder / f"{{name}}.json").read_text())["steps"]]
# A part that is asked for without its lease is of no session.
is_of_session = lambda step: step.get("do") not in ("login", "close") and step.get("answer", {{}}).get("status", 200) == 200
session = list(filter(is_of_session, steps))
player = Player(folder)
for step in [steps[0], *session, steps[-1]]:
    player.play(step)
say(steps=len(session))"#,
        programs = python::programs().display().to_string(),
        folder = concat!(env!("CARGO_MANIFEST_DIR"), "/transcripts/").to_owned() + driver,
    ))
}

fn client(work: &str) -> impl FnOnce(&Pod) -> Result<String> {
    move |pod| pod.python(work)?.into_stdout()
}

fn is_repeated(recorded: &Recorded, lines: usize, client: &[&str]) -> Result<()> {
    assert_eq!(recorded.said.lines().count(), lines, "{}", recorded.said);
    recorded.is_repeated_byte_for_byte(client)
}

fn is_repeated_by_connector(driver: Environment) -> Result<()> {
    let work = connectors_work();
    let recorded = Recorded::new(driver, client(&work))?;
    assert!(recorded.said.contains("Snowfence refused DROP TABLE"), "{}", recorded.said);
    let python = recorded.python();
    is_repeated(&recorded, 9, &[python, "-c", &work])?;
    recorded.is_repeated(SERVE, &[python, "-c", &work])?;
    let elsewhere = r#"connect(host="127.0.0.1", port=8080, protocol="http")"#;
    recorded.is_repeated(PLAIN, &[python, "-c", &work.replace("= connect()", &format!("= {elsewhere}"))])
}

#[test]
fn connector_5_gets_the_same_bytes_once_more() -> Result<()> {
    is_repeated_by_connector(Environment::Connector5)
}

#[test]
fn connector_4_gets_the_same_bytes_once_more() -> Result<()> {
    is_repeated_by_connector(Environment::Connector4)
}

#[test]
fn node_gets_the_same_bytes_once_more() -> Result<()> {
    let work = by_node();
    let recorded =
        Recorded::new(Environment::Connector5, |pod| pod.run(["node", "-e", &work])?.into_stdout())?;
    is_repeated(&recorded, 6, &["node", "-e", &work])?;
    recorded.is_repeated(SERVE, &["node", "-e", &work])?;
    let elsewhere = work.replace("account: of", "accessUrl: 'http://127.0.0.1:8080', account: of");
    recorded.is_repeated(PLAIN, &["node", "-e", &elsewhere])
}

/// They speak by the connectors.
#[test]
fn snowpark_and_sqlalchemy_get_the_same_bytes_once_more() -> Result<()> {
    let work = by_snowpark();
    let recorded = Recorded::new(Environment::Snowpark, client(&work))?;
    is_repeated(&recorded, 11, &[recorded.python(), "-c", &work])?;
    let work = by_sqlalchemy();
    let recorded = recorded.next(Environment::SqlAlchemy, client(&work))?;
    is_repeated(&recorded, 8, &[recorded.python(), "-c", &work])
}

#[test]
fn adbc_and_the_cli_get_the_same_bytes_once_more() -> Result<()> {
    let work = by_adbc();
    let mut recorded = Recorded::new(Environment::Adbc, client(&work))?;
    is_repeated(&recorded, 9, &[recorded.python(), "-c", &work])?;
    recorded.is_repeated(SERVE, &[recorded.python(), "-c", &work])?;
    for (last, message) in [
        ("select * from no_such_table", "002003 (42S02)"),
        ("drop table customers", "Snowfence refused DROP TABLE"),
    ] {
        let work = by_cli(last);
        recorded = recorded.next(Environment::Cli, client(&work))?;
        assert!(recorded.said.contains(message), "{}", recorded.said);
        is_repeated(&recorded, 1, &[recorded.python(), "-c", &work])?;
    }
    Ok(())
}

#[test]
fn jdbc_and_odbc_get_the_same_bytes_once_more() -> Result<()> {
    let work = by_transcripts("jdbc");
    let recorded = Recorded::new(Environment::Connector5, client(&work))?;
    is_repeated(&recorded, 1, &[recorded.python(), "-c", &work])?;
    let work = by_transcripts("odbc");
    let recorded = recorded.next(Environment::Connector5, client(&work))?;
    is_repeated(&recorded, 1, &[recorded.python(), "-c", &work])
}

#[test]
fn curl_gets_the_same_bytes_once_more() -> Result<()> {
    let work = by_curl();
    let recorded = Recorded::with(Environment::Connector5, Credential::KeyPair, client(&work))?;
    is_repeated(&recorded, 8, &[recorded.python(), "-c", &work])?;
    recorded.is_repeated(SERVE, &[recorded.python(), "-c", &work])
}
