//! Statements that are held for a person: their clients wait, whoever may rule does, and what is approved runs once.

mod common;

use std::fs;
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use sandbox::services::{Claims, Service};
use sandbox::{Builder, Credential, Environment, Pod, Sandbox, network, node, services};
use serde_json::{Value, json};

use common::curl::ask;
use common::reader::Reader;
use common::{ADBC, RAW, arrived, by_node, check_ocsf, client, delivered_once, events, eventually, journal};

const UPDATE: &str = "update customers set credit = 0";
const WHY: &str = "month-end correction, ticket 4711";

/// A node where stewards rule.
fn approving(builder: Builder) -> Result<Sandbox> {
    builder.set("approvals", "groups", vec!["stewards".to_owned()]).start()
}

/// The token of somebody in a group.
fn token(sandbox: &Sandbox, subject: &str, group: &str) -> Result<String> {
    sandbox.token(&Claims { groups: vec![group.to_owned()], ..Claims::analyst(subject) })
}

/// What `snowfence approvals` says of a ruling, and how it ends.
fn rule(sandbox: &Sandbox, (verb, id): (&str, &str), token: &str) -> Result<(bool, String)> {
    let file = sandbox.agent_state().join("token");
    fs::write(&file, format!("{token}\n"))?;
    let file = file.to_str().context("a path")?.to_owned();
    let output = sandbox.snowfence(["approvals", verb, id, "--token-file", &file, "--reason", WHY])?;
    Ok((output.status == 0, format!("{}{}", output.stdout, output.stderr)))
}

/// Waits until so many statements are held, and returns them as they are listed.
fn held(sandbox: &Sandbox, count: usize) -> Result<Vec<Value>> {
    let mut held = Vec::new();
    eventually(&format!("{count} statements are held"), || {
        let listed = sandbox.snowfence(["approvals", "list", "--format", "json"])?.into_stdout()?;
        held = listed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(held.len() == count)
    })?;
    Ok(held)
}

fn id(held: &Value) -> Result<String> {
    Ok(held["id"].as_str().context("an identifier")?.to_owned())
}

/// Has a client try something while others rule.
fn meanwhile(pod: &Pod, tries: fn(&Pod) -> Result<Vec<Value>>) -> JoinHandle<Result<Vec<Value>>> {
    let pod = pod.clone();
    thread::spawn(move || tries(&pod))
}

fn said(client: JoinHandle<Result<Vec<Value>>>) -> Result<Vec<Value>> {
    client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
}

/// A driver tries an update that is approved, the same again, which is denied, and goes on.
fn waits(driver: Environment, tries: fn(&Pod) -> Result<Vec<Value>>) -> Result<()> {
    let mut sandbox = approving(Sandbox::builder().driver(driver))?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    let client = meanwhile(&pod, tries);

    let first = held(&sandbox, 1)?.remove(0);
    assert_eq!((&first["sql"], &first["policy"]), (&json!(UPDATE), &json!("bulk-writes-held")), "{first}");
    assert_eq!(
        (&first["caller"]["subject"], &first["is_approved"]),
        (&json!("reports@sandbox"), &json!(false)),
        "{first}"
    );
    assert!(!arrived(&sandbox)?.iter().any(|sql| sql == UPDATE), "nothing of it goes upstream meanwhile");
    let first = id(&first)?;
    assert!(rule(&sandbox, ("approve", &first), &steward)?.0);
    let second = loop {
        let second = id(&held(&sandbox, 1)?[0])?;
        if second != first {
            break second;
        }
    };
    assert!(rule(&sandbox, ("deny", &second), &steward)?.0);

    let said = said(client)?;
    let [approved, denied, after] = said.as_slice() else { panic!("{said:?}") };
    assert!(approved["rows"].to_string().contains("300"), "{approved}");
    let message: Vec<&str> = denied["message"].as_str().unwrap_or_default().split_whitespace().collect();
    let expected = format!("Snowfence refused UPDATE: kim denied it: {WHY} (policy bulk-writes-held");
    assert!(message.join(" ").contains(&expected), "{denied}");
    assert!(after["rows"].to_string().contains("300"), "{after}");
    assert_eq!(arrived(&sandbox)?.iter().filter(|sql| *sql == UPDATE).count(), 1, "it runs once");
    let trail = "SELECT id, verdict, status, ruling, approver, reason, query_id != '' AS ran FROM trail WHERE verdict = 'hold' ORDER BY seq";
    let told = |id: &str, status: &str, ruling: &str, ran: u8| json!({ "id": id, "verdict": "hold", "status": status, "ruling": ruling, "approver": "kim", "reason": WHY, "ran": ran });
    let expected = [told(&first, "succeeded", "approved", 1), told(&second, "refused", "denied", 0)];
    assert_eq!(journal(&sandbox, trail)?, expected);
    let verified = sandbox.snowfence(["audit", "verify"])?;
    ensure!(verified.status == 0, "{verified:?}");
    Ok(())
}

fn by_connector(pod: &Pod) -> Result<Vec<Value>> {
    const TRIES: &str = r"
cursor = connect().cursor()
def run(sql):
    return cursor.execute(sql).fetchall()
for sql in [UPDATE, UPDATE, 'select count(*) from customers']:
    say(**attempt(lambda: run(sql)))
";
    client(pod, &format!("UPDATE = '{UPDATE}'\n{TRIES}"))
}

#[test]
fn connector_5_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::Connector5, by_connector)
}

#[test]
fn connector_4_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::Connector4, by_connector)
}

#[test]
fn sqlalchemy_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::SqlAlchemy, |pod| {
        const TRIES: &str = r#"
from snowflake.sqlalchemy import URL
from sqlalchemy import create_engine, text
of = os.environ
connection = create_engine(URL(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"]), isolation_level="AUTOCOMMIT").connect()
say(rows=connection.execute(text(UPDATE)).rowcount)
for sql in [UPDATE, "select count(*) from customers"]:
    say(**attempt(lambda: [list(row) for row in connection.execute(text(sql))]))
"#;
        client(pod, &format!("UPDATE = '{UPDATE}'\n{TRIES}"))
    })
}

#[test]
fn snowpark_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::Snowpark, |pod| {
        const TRIES: &str = r#"
from snowflake.snowpark import Session
of = os.environ
session = Session.builder.configs(dict(
    account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"],
    database=of["SNOWFLAKE_DATABASE"], schema=of["SNOWFLAKE_SCHEMA"])).create()
for sql in [UPDATE, UPDATE, "select count(*) from customers"]:
    say(**attempt(lambda: [list(row) for row in session.sql(sql).collect()]))
"#;
        client(pod, &format!("UPDATE = '{UPDATE}'\n{TRIES}"))
    })
}

#[test]
fn adbc_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::Adbc, |pod| {
        const TRIES: &str = r"
connection = connect()
connection.adbc_connection.set_autocommit(True)
cursor = connection.cursor()
def run(sql):
    cursor.execute(sql)
    return cursor.fetchall()
for sql in [UPDATE, UPDATE, 'select count(*) from customers']:
    say(**attempt(lambda: run(sql)))
";
        client(pod, &format!("UPDATE = '{UPDATE}'\n{ADBC}{TRIES}"))
    })
}

#[test]
fn node_sdk_waits_until_somebody_rules() -> Result<()> {
    waits(Environment::Connector5, |pod| {
        let modules = node::modules()?;
        let texts = json!([UPDATE, UPDATE, "select count(*) as n from customers"]);
        let source = format!("for (const sql of {texts}) say(await attempt(sql));");
        by_node(&pod.clone().with("NODE_PATH", &modules.to_string_lossy()), &source)
    })
}

/// A session without a database.
fn qualified() -> String {
    UPDATE.replace("customers", &format!("{}.{}.customers", services::DATABASE, services::SCHEMA))
}

/// Asks by itself: a driver would go on asking for the result.
fn raw(pod: &Pod, source: &str) -> Result<Vec<Value>> {
    client(pod, &format!("UPDATE = '{}'\n{RAW}{RAW_HELD}{source}", qualified()))
}

const RAW_HELD: &str = r#"
def submit(token, sql, request=None, **more):
    headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
    target = f"/queries/v1/query-request?requestId={request or uuid.uuid4()}"
    return json.loads(send("POST", target, headers, json.dumps(dict(sqlText=sql, sequenceId=1, **more)))[2])

def result(token, query):
    headers = {"Authorization": f'Snowflake Token="{token}"'}
    return json.loads(send("GET", f"/queries/{query}/result", headers)[2])
"#;

#[test]
fn only_somebody_else_of_the_group_may_rule_and_each_try_is_on_record() -> Result<()> {
    let mut sandbox = approving(Sandbox::builder())?;
    let pod = sandbox.pod("reports")?;
    let asked = raw(&pod, "token = login(); say(token=token, answer=submit(token, UPDATE, bindings={'1': dict(type='FIXED', value='42')}))")?.remove(0);
    assert_eq!(
        (&asked["answer"]["code"], &asked["answer"]["success"]),
        (&json!("333333"), &json!(true)),
        "{asked}"
    );
    let listed = held(&sandbox, 1)?.remove(0);
    assert_eq!(
        listed["with"], r#"{"bindings":{"1":{"type":"FIXED","value":"42"}}}"#,
        "whoever rules sees what is bound"
    );
    let id = id(&listed)?;
    assert_eq!(asked["answer"]["data"]["queryId"], json!(id));

    let own = token(&sandbox, "reports@sandbox", "stewards")?;
    let stranger = token(&sandbox, "eve", "analysts")?;
    let expired = sandbox.token(&Claims { lifetime_seconds: -3600, ..Claims::analyst("kim") })?;
    for (token, why) in [
        (own.as_str(), "reports@sandbox has asked for this statement: somebody else has to rule on it"),
        (&stranger, "eve may not rule: the token names none of the groups stewards"),
        (&expired, "the token is not accepted: the token has expired: get a new one"),
        ("", "the token is not accepted: the token is not a JWT"),
    ] {
        let (done, told) = rule(&sandbox, ("approve", &id), token)?;
        assert!(!done && told.contains(why), "{told}");
        assert!(token.is_empty() || !told.contains(token), "{told}");
    }
    let refused =
        journal(&sandbox, "SELECT subject, detail FROM events WHERE kind = 'approval_refused' ORDER BY seq")?;
    let subjects: Vec<&Value> = refused.iter().map(|event| &event["subject"]).collect();
    assert_eq!(
        subjects,
        [&json!("reports@sandbox"), &json!("eve"), &Value::Null, &Value::Null],
        "{refused:?}"
    );
    let (done, told) = rule(&sandbox, ("approve", "ffffffff"), &own)?;
    assert!(!done && told.contains("no statement ffffffff waits"), "{told}");
    assert_eq!(held(&sandbox, 1)?[0]["is_approved"], json!(false));
    assert!(!arrived(&sandbox)?.iter().any(|sql| *sql == qualified()));
    assert!(!sandbox.agent_log()?.contains(&own), "no token is logged");
    Ok(())
}

#[test]
fn a_statement_is_one_however_often_it_is_sent_and_nobody_elses() -> Result<()> {
    let mut sandbox = approving(Sandbox::builder())?;
    let steward = token(&sandbox, "kim", "stewards")?;
    let (pod, other) = (sandbox.pod("reports")?, sandbox.pod("others")?);
    let said = raw(
        &pod,
        r#"
token, request = login(), str(uuid.uuid4())
more = dict(shape=dict(describeOnly=True), later=dict(asyncExec=True), staged=dict(bindStage="@SYSTEM$BIND/1"))
refused = {name: submit(token, UPDATE, **more)["message"] for name, more in more.items()}
first = submit(token, UPDATE, request)
again = submit(token, UPDATE, request)
meanwhile = [submit(token, sql)["message"] for sql in ("use schema information_schema", "select 1", UPDATE)]
say(first=first["data"]["queryId"], again=again["data"]["queryId"], token=token, meanwhile=meanwhile)
say(**refused)
"#,
    )?;
    assert_eq!(said[0]["first"], said[0]["again"], "{said:?}");
    for (name, why) in [
        ("shape", "the driver does not wait for it"),
        ("later", "the driver does not wait for it"),
        ("staged", "its values, which are in a stage"),
    ] {
        assert!(said[1][name].as_str().unwrap_or_default().contains(why), "{said:?}");
    }
    for message in said[0]["meanwhile"].as_array().context("messages")? {
        assert!(message.as_str().unwrap_or_default().contains("(policy session-waits"), "{said:?}");
    }
    let id = id(&held(&sandbox, 1)?[0])?;
    assert!(rule(&sandbox, ("approve", &id[24..]), &steward)?.0, "the end of the identifier is enough");
    let ask = format!("say(answer=result(login(), '{id}'))");
    let strange = raw(&other, &ask)?.remove(0);
    assert!(
        strange["answer"]["message"].as_str().unwrap_or_default().contains("does not know this query"),
        "{strange}"
    );
    let strange = raw(&pod, &ask)?.remove(0);
    assert_eq!(strange["answer"]["success"], json!(false), "by another session it does not run: {strange}");
    assert!(!arrived(&sandbox)?.iter().any(|sql| *sql == qualified()));
    let token = said[0]["token"].as_str().context("a token")?;
    let ask = "answers = [result(token, query) for _ in range(3)]\nsay(answers=answers, after=submit(token, 'select 1')['success'])";
    let ran = raw(&pod, &format!("token, query = '{token}', '{id}'\n{ask}"))?.remove(0);
    assert_eq!(ran["after"], json!(true), "the session goes on");
    let answers = ran["answers"].as_array().context("answers")?;
    for answer in answers {
        assert_eq!(
            (&answer["success"], &answer["data"]["rowset"][0][0]),
            (&json!(true), &json!("300")),
            "{answer}"
        );
    }
    assert_eq!(arrived(&sandbox)?.iter().filter(|sql| **sql == qualified()).count(), 1, "it runs once");
    Ok(())
}

#[test]
fn what_is_cancelled_closed_or_not_allowed_any_more_does_not_run() -> Result<()> {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/src/policy/default.cedar");
    let mut sandbox = approving(Sandbox::builder().policy(policy))?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    let said = raw(
        &pod,
        r#"
token = login()
headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
def post(path, data):
    return json.loads(send("POST", path, headers, json.dumps(data))[2])
request = str(uuid.uuid4())
by_request = submit(token, UPDATE, request)["data"]["queryId"]
one = post(f"/queries/v1/abort-request?requestId={uuid.uuid4()}", dict(requestId=request))
by_query = submit(token, UPDATE)["data"]["queryId"]
other = post(f"/queries/{by_query}/abort-request?requestId={uuid.uuid4()}", {})
say(done=[one["success"], other["success"]], after=[result(token, query) for query in (by_request, by_query)])
open_still = submit(token, UPDATE)["data"]["queryId"]
post("/session?delete=true", {})
"#,
    )?
    .remove(0);
    assert_eq!(said["done"], json!([true, true]), "{said}");
    for answer in said["after"].as_array().context("answers")? {
        assert_eq!((&answer["code"], &answer["success"]), (&json!("000604"), &json!(false)), "{answer}");
    }
    held(&sandbox, 0)?;
    let rulings = "SELECT ruling, status, approver FROM trail WHERE verdict = 'hold'";
    assert_eq!(
        journal(&sandbox, rulings)?,
        vec![json!({ "ruling": "withdrawn", "status": "refused", "approver": "" }); 3]
    );

    let said = raw(&pod, "token = login()\nsay(token=token, answer=submit(token, UPDATE))")?.remove(0);
    let id = id(&held(&sandbox, 1)?[0])?;
    assert!(rule(&sandbox, ("approve", &id), &steward)?.0);
    let policy = sandbox.state().public("policy.cedar");
    fs::write(policy, "@id(\"reads\") permit (principal, action == Action::\"read\", resource);")?;
    sandbox.signal_agent(Signal::HUP)?;
    eventually("the policy is reloaded", || {
        Ok(events(&sandbox)?.contains(&"configuration_reloaded".to_owned()))
    })?;
    let token = said["token"].as_str().context("a token")?;
    let after = raw(&pod, &format!("say(answer=result('{token}', '{id}'))"))?.remove(0);
    let message = after["answer"]["message"].as_str().unwrap_or_default();
    assert!(message.contains("Snowfence refused UPDATE: no policy allows it"), "{after}");
    assert!(!arrived(&sandbox)?.iter().any(|sql| *sql == qualified()));
    Ok(())
}

#[test]
fn an_agent_that_ends_forwards_nothing_and_says_what_may_have_run() -> Result<()> {
    let mut sandbox = approving(Sandbox::builder())?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    // Killed, it cannot say that what was approved was not on its way.
    for (is_killed, approved, waiting) in
        [(true, "approved unknown", " refused"), (false, "approved refused", "withdrawn refused")]
    {
        let said = raw(
            &pod,
            "tokens = [login(), login()]\nsay(tokens=tokens, ids=[submit(token, UPDATE)['data']['queryId'] for token in tokens])",
        )?
        .remove(0);
        let ids: Vec<String> = serde_json::from_value(said["ids"].clone())?;
        held(&sandbox, 2)?;
        assert!(rule(&sandbox, ("approve", &ids[0]), &steward)?.0);
        if is_killed {
            sandbox.kill_agent()?;
        } else {
            sandbox.stop_agent()?;
        }
        sandbox.start_agent()?;
        held(&sandbox, 0)?;
        let (done, told) = rule(&sandbox, ("approve", &ids[1]), &steward)?;
        assert!(!done && told.contains("waits"), "{told}");
        let ask = "say(answers=[result(token, query) for token, query in zip(said['tokens'], said['ids'])])";
        let after = raw(&pod, &format!("said = json.loads('{said}')\n{ask}"))?.remove(0);
        for answer in after["answers"].as_array().context("answers")? {
            assert!(answer["message"].to_string().contains("has to be asked again"), "{answer}");
        }
        for (id, expected) in [(&ids[0], approved), (&ids[1], waiting)] {
            let told = journal(
                &sandbox,
                &format!("SELECT ruling || ' ' || status AS told FROM trail WHERE id = '{id}'"),
            )?;
            assert_eq!(told, [json!({ "told": expected })], "killed: {is_killed}");
        }
    }
    assert!(!arrived(&sandbox)?.iter().any(|sql| *sql == qualified()));
    Ok(())
}

#[test]
fn a_session_token_that_expires_meanwhile_does_not_cost_the_approval() -> Result<()> {
    const LOGIN: &str = r#"
data = dict(ACCOUNT_NAME="acme", LOGIN_NAME="x", AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"])
tokens = json.loads(post("/session/v1/login-request", dict(data=data), "None"))["data"]
say(session=tokens["token"], master=tokens["masterToken"], id=submit(tokens["token"], UPDATE)["data"]["queryId"])
"#;
    const RENEW: &str = r#"
expired = result(said["session"], said["id"])
renewal = dict(oldSessionToken=said["session"], requestType="RENEW")
renewed = json.loads(post("/session/token-request", renewal, said["master"]))["data"]["sessionToken"]
say(expired=expired["code"], ended=result(renewed, said["id"]))
"#;
    let mut sandbox = approving(Sandbox::builder())?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    let said = raw(&pod, LOGIN)?.remove(0);
    let id = id(&held(&sandbox, 1)?[0])?;
    assert!(rule(&sandbox, ("approve", &id), &steward)?.0);
    sandbox.signal_service(Service::Upstream, Signal::USR1)?;
    let after = raw(&pod, &format!("said = json.loads('{said}')\n{RENEW}"))?.remove(0);
    assert_eq!(after["expired"], json!("390112"), "{after}");
    assert_eq!(after["ended"]["data"]["rowset"][0][0], json!("300"), "{after}");
    assert_eq!(arrived(&sandbox)?.iter().filter(|sql| **sql == qualified()).count(), 1);
    Ok(())
}

#[test]
fn by_the_sql_api_a_client_asks_for_the_result_and_may_cancel() -> Result<()> {
    let mut sandbox = approving(Sandbox::builder().credential(Credential::KeyPair))?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    let body = json!({ "statement": UPDATE, "database": services::DATABASE, "schema": services::SCHEMA })
        .to_string();
    let submit = || ask(&pod, "POST", "/api/v2/statements", &["-d", &body]);
    let begun = submit()?;
    let path = begun.body["statementStatusUrl"].as_str().context("a path")?.to_owned();
    assert_eq!((begun.status, &begun.body["code"]), (202, &json!("333334")), "{begun:?}");
    assert_eq!(ask(&pod, "GET", &path, &[])?.status, 202, "nobody has ruled");
    assert!(rule(&sandbox, ("approve", &begun.handle()?), &steward)?.0);
    for _ in 0..2 {
        let ended = ask(&pod, "GET", &path, &[])?;
        assert_eq!((ended.status, &ended.body["data"][0][0]), (200, &json!("300")), "{ended:?}");
    }
    let other = submit()?.handle()?;
    let cancelled = ask(&pod, "POST", &format!("/api/v2/statements/{other}/cancel"), &[])?;
    assert_eq!((cancelled.status, &cancelled.body["code"]), (200, &json!("000604")), "{cancelled:?}");
    let denied = submit()?.handle()?;
    assert!(rule(&sandbox, ("deny", &denied), &steward)?.0);
    let denied = ask(&pod, "GET", &format!("/api/v2/statements/{denied}"), &[])?;
    assert_eq!((denied.status, &denied.body["code"]), (422, &json!("003001")), "{denied:?}");
    assert!(denied.body["message"].to_string().contains("kim denied it"), "{denied:?}");
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let ended = ask(&pod, "GET", &path, &[])?;
    assert_eq!(
        (ended.status, &ended.body["data"][0][0]),
        (200, &json!("300")),
        "by the next agent too: {ended:?}"
    );
    assert_eq!(arrived(&sandbox)?.iter().filter(|sql| *sql == UPDATE).count(), 1, "it runs once");
    Ok(())
}

#[test]
fn who_approved_is_in_clickhouse_in_a_sink_in_an_export_and_in_the_replay() -> Result<()> {
    sandbox::python::prepare(&[Environment::Ocsf], &|_| {})?;
    let (reader, folder) = (Reader::new()?, tempfile::tempdir()?);
    let events = folder.path().join("events.jsonl");
    let mut sink = toml::Table::new();
    for (key, value) in [("name", "lines"), ("kind", "file"), ("path", events.to_str().context("a path")?)] {
        sink.insert(key.into(), value.into());
    }
    sink.insert("only".into(), vec!["statements".to_owned()].into());
    sink.insert("verdicts".into(), vec!["hold".to_owned()].into());
    let builder = reader.sandbox("")?.configure(|table| {
        table.insert("siem".into(), vec![sink].into());
        Ok(())
    });
    let mut sandbox = approving(builder)?;
    let (steward, pod) = (token(&sandbox, "kim", "stewards")?, sandbox.pod("reports")?);
    let client = meanwhile(&pod, |pod| {
        client(pod, &format!("say(**attempt(lambda: connect().cursor().execute('{UPDATE}').fetchall()))"))
    });
    let held = held(&sandbox, 1)?.remove(0);
    assert!(rule(&sandbox, ("approve", &id(&held)?), &steward)?.0);
    assert!(said(client)?[0]["rows"].to_string().contains("300"));

    delivered_once(&sandbox)?;
    let approved = "SELECT subject, approver, reason, status, rows FROM snowfence.approved(days = 1)";
    let expected = json!({ "subject": "reports@sandbox", "approver": "kim", "reason": WHY, "status": "succeeded", "rows": 1 });
    assert_eq!(sandbox.clickhouse_rows(approved)?, [expected]);
    let access = "SELECT subject, status FROM snowfence.access(object = 'CUSTOMERS', days = 1)";
    assert_eq!(
        sandbox.clickhouse_rows(access)?,
        [json!({ "subject": "reports@sandbox", "status": "succeeded" })]
    );

    eventually("the sink has what became of it", || {
        Ok(fs::read_to_string(&events).unwrap_or_default().lines().count() == 3)
    })?;
    check_ocsf(&events)?;
    let told = fs::read_to_string(&events)?;
    assert!(told.contains("UPDATE of reports@sandbox approved by kim"), "{told}");

    let session = journal(&sandbox, "SELECT session FROM trail WHERE verdict = 'hold'")?.remove(0);
    let session = session["session"].as_str().context("a session")?.to_owned();
    let file = folder.path().join("export.jsonl").to_str().context("a path")?.to_owned();
    let exported = sandbox.snowfence(["audit", "export", &session, "--to", &file])?;
    ensure!(exported.status == 0, "{exported:?}");
    let key = sandbox.snowfence(["audit", "key"])?.into_stdout()?;
    let verified = sandbox.snowfence(["audit", "verify", "--export", &file, "--key", key.trim()])?;
    ensure!(verified.status == 0, "{verified:?}");
    let (identity, outside) = (reader.identity_file(&sandbox)?, network::outside(sandbox.id()));
    for place in
        [vec![session.as_str()], vec!["--export", &file, "--key", key.trim()], vec![&session, "--clickhouse"]]
    {
        let arguments = [&["replay"][..], &place, &["--identity", &identity, "--format", "json"]].concat();
        let replayed = network::inside(&outside, || sandbox.snowfence(&arguments))?.into_stdout()?;
        let steps: Vec<Value> = replayed.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let of_update: Vec<[&Value; 2]> = steps
            .iter()
            .filter(|step| step["statement"] == held["id"])
            .map(|step| [&step["what"], &step["status"]])
            .collect();
        let expected = [
            ("request", ""),
            ("answer", "running"),
            ("request", ""),
            ("ruling", "approved"),
            ("answer", "succeeded"),
        ];
        let told: Vec<_> = of_update
            .iter()
            .map(|[what, status]| (what.as_str().unwrap_or_default(), status.as_str().unwrap_or_default()))
            .collect();
        // It asks for the result once or twice before somebody has ruled.
        assert_eq!((&told[..2], told.last()), (&expected[..2], expected.last()), "{told:?}");
        assert!(told.contains(&expected[3]), "{told:?}");
    }
    Ok(())
}
