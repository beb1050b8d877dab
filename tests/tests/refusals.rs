//! What each driver makes of a refusal by the built-in policy: its usual exception, with the code, the state and the
//! reason; it asks once, nothing reaches Snowflake, and its session stays usable.

mod common;

use anyhow::{Result, ensure};
use sandbox::{Environment, Pod, Sandbox, node};
use serde_json::{Value, json};

use common::{ADBC, arrived, by_node, client, journal};

/// A statement, what the driver's exception says of it, and the verdict in the record.
const REFUSED: [(&str, &str, &str); 5] = [
    ("drop table customers", "DROP TABLE: it is destructive (policy destructive-denied", "deny"),
    ("grant role analyst to user eve", "GRANT: it administers the account (policy admin-denied", "deny"),
    (
        "copy into @~/out from customers",
        "COPY INTO LOCATION: it moves data out of, or between, accounts and storage (policy exfiltration-denied",
        "deny",
    ),
    ("frobnicate the customers", "UNKNOWN: what it does cannot be determined (policy opaque-denied", "deny"),
    (
        "update customers set credit = 0",
        "UPDATE: it needs the approval of a person, and nobody is configured who may give it (`[approvals]`) (policy bulk-writes-held",
        "hold",
    ),
];

/// Tries each of the texts that it is given by a `run` of its own; a driver keeps the code under one of three names.
const TRY_ALL: &str = r#"
def refused(sql):
    try:
        return dict(rows=run(sql))
    except Exception as error:
        said = getattr(error, "orig", error)
        codes = (getattr(said, name, None) for name in ("vendor_code", "sql_error_code", "errno"))
        return dict(error=type(error).__name__, code=next((code for code in codes if code), None),
                    state=getattr(said, "sqlstate", None), message=str(error))

before = run("select current_session()")
for sql in json.loads(TEXTS):
    say(**refused(sql))
assert run("select current_session()") == before
say(rows=run("select count(*) from customers"))
"#;

#[test]
fn connector_5() -> Result<()> {
    refused_by_connector(Environment::Connector5)
}

#[test]
fn connector_4() -> Result<()> {
    refused_by_connector(Environment::Connector4)
}

#[test]
fn snowpark() -> Result<()> {
    const RUN: &str = r#"
from snowflake.snowpark import Session
of = os.environ
session = Session.builder.configs(dict(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"])).create()
def run(sql):
    return [list(row) for row in session.sql(sql).collect()]
"#;
    // The state is in the text alone.
    refused_by(Environment::Snowpark, ("SnowparkSQLException", &json!(3001), &Value::Null), |pod| {
        client(pod, &trying(RUN))
    })
}

#[test]
fn sqlalchemy() -> Result<()> {
    const RUN: &str = r#"
from snowflake.sqlalchemy import URL
from sqlalchemy import create_engine, text
of = os.environ
connection = create_engine(URL(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"])).connect()
def run(sql):
    return [list(row) for row in connection.execute(text(sql))]
"#;
    refused_by(Environment::SqlAlchemy, ("ProgrammingError", &json!(3001), &json!("42501")), |pod| {
        client(pod, &trying(RUN))
    })
}

#[test]
fn adbc() -> Result<()> {
    const RUN: &str = r"
cursor = connect().cursor()
def run(sql):
    cursor.execute(sql)
    return cursor.fetchall()
";
    refused_by(Environment::Adbc, ("InternalError", &json!(3001), &json!("42501")), |pod| {
        client(pod, &trying(&format!("{ADBC}{RUN}")))
    })
}

#[test]
fn node_sdk() -> Result<()> {
    let modules = node::modules()?;
    let source = format!(
        "
const before = await attempt('select current_session() as s');
for (const sql of {}) say(await attempt(sql));
const {{ rows: [{{ S }}] }} = await attempt('select current_session() as s');
if (S !== before.rows[0].S) throw new Error('another session');
say({{ rows: [[(await run('select count(*) as n from customers'))[0].N]] }});",
        json!(texts())
    );
    refused_by(Environment::Connector5, ("OperationFailedError", &json!("003001"), &json!("42501")), |pod| {
        by_node(&pod.clone().with("NODE_PATH", &modules.to_string_lossy()), &source)
    })
}

/// Each statement is a call of its own. The code and the state are in the text, in a box.
#[test]
fn cli() -> Result<()> {
    const RUN: &str = r#"
import subprocess
of = os.environ
def snow(sql):
    command = [os.path.join(os.path.dirname(sys.executable), "snow"), "sql", "--query", sql, "--format", "json"]
    command += ["--temporary-connection", "--account", of["SNOWFLAKE_ACCOUNT"], "--user", of["SNOWFLAKE_USER"]]
    command += ["--authenticator", "oauth", "--token", of["SNOWFLAKE_TOKEN"]]
    command += ["--database", of["SNOWFLAKE_DATABASE"], "--schema", of["SNOWFLAKE_SCHEMA"]]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
for sql in json.loads(TEXTS):
    done = snow(sql)
    shown = " ".join((done.stdout + done.stderr).replace("│", " ").split())
    say(error=f"status {done.returncode}", code=None, state=None, message=shown)
say(rows=[list(json.loads(snow("select count(*) as n from customers").stdout)[0].values())])
"#;
    refused_by(Environment::Cli, ("status 1", &Value::Null, &Value::Null), |pod| {
        let said = client(pod, &format!("TEXTS = '''{}'''\n{RUN}", json!(texts())))?;
        for one in &said[..REFUSED.len()] {
            ensure!(one["message"].as_str().is_some_and(|it| it.contains("003001 (42501)")), "{one}");
        }
        Ok(said)
    })
}

fn refused_by_connector(driver: Environment) -> Result<()> {
    const RUN: &str = r"
cursor = connect().cursor()
def run(sql):
    return cursor.execute(sql).fetchall()
";
    refused_by(driver, ("ProgrammingError", &json!(3001), &json!("42501")), |pod| client(pod, &trying(RUN)))
}

fn texts() -> [&'static str; REFUSED.len()] {
    REFUSED.map(|(sql, ..)| sql)
}

/// Python that tries the texts by the `run` of the given source.
fn trying(run: &str) -> String {
    format!("{run}\nTEXTS = '''{}'''\n{TRY_ALL}", json!(texts()))
}

/// Has a driver try all texts: its exception, with its code and its state, and what is on record and what is not.
fn refused_by(
    driver: Environment,
    (class, code, state): (&str, &Value, &Value),
    tries: impl Fn(&Pod) -> Result<Vec<Value>>,
) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver).start()?;
    let said = tries(&sandbox.pod("reports")?)?;
    assert_eq!(said.len(), REFUSED.len() + 1, "{said:?}");
    let arrived = arrived(&sandbox)?;
    for (one, (sql, reason, verdict)) in said.iter().zip(REFUSED) {
        assert_eq!((&one["error"], &one["code"], &one["state"]), (&json!(class), code, state), "{one}");
        let message: Vec<&str> = one["message"].as_str().unwrap_or_default().split_whitespace().collect();
        assert!(message.join(" ").contains(&format!("Snowfence refused {reason}")), "{one}");
        let recorded = journal(
            &sandbox,
            &format!(
                "SELECT verdict, status FROM statements LEFT JOIN outcomes ON outcomes.statement = statements.id
                 WHERE sql LIKE '%{sql}%'"
            ),
        )?;
        assert_eq!(recorded, [json!({ "verdict": verdict, "status": "refused" })], "{sql}: once");
        assert!(!arrived.iter().any(|arrived| arrived.contains(sql)), "{sql}: nothing of it goes upstream");
    }
    // Of a number ADBC's driver makes a decimal, which is no number in JSON.
    let count = said[REFUSED.len()]["rows"][0][0].to_string();
    assert_eq!(count.trim_matches('"'), "300", "it goes on: {}", said[REFUSED.len()]);
    Ok(())
}
