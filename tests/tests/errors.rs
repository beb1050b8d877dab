//! Snowflake, or the way to it, is out of order: a driver tries again where that helps, and only there; nothing runs twice.

mod common;

use anyhow::{Result, ensure};
use sandbox::{Environment, Sandbox, node};
use serde_json::{Value, json};

use common::{ADBC, client, events, eventually, journal};

/// How often a statement reached Snowflake, and how often it ran there.
fn asked_and_run(sandbox: &Sandbox, part: &str) -> Result<(usize, usize)> {
    let log = sandbox.upstream_log()?;
    let of: Vec<&Value> =
        log.iter().filter(|line| line["sql"].as_str().is_some_and(|sql| sql.contains(part))).collect();
    Ok((of.len(), of.iter().filter(|line| line["executed"] == true).count()))
}

fn errors_end_well(driver: Environment) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver).start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        r#"
connection = connect()
cursor = connection.cursor()
cursor.execute("create table written (a int)")
for trouble in ("answers 503 once", "answers 429 once", "the answer breaks off once"):
    say(trouble=trouble, **attempt(lambda: cursor.execute(f"insert into written values (1) /* {trouble} */").rowcount))
for status in (307, 308, 400, 403, 404):
    began = time.monotonic()
    ended = attempt(lambda: cursor.execute(f"select 1 /* answers {status} */").fetchall())
    say(status=status, seconds=time.monotonic() - began, **ended)
say(**attempt(lambda: cursor.execute("select count(*) from written").fetchall()))"#,
    )?;
    for one in &said[..3] {
        assert_eq!(one["rows"], 1, "{one}");
        let trouble = one["trouble"].as_str().unwrap_or_default();
        assert_eq!(asked_and_run(&sandbox, trouble)?, (2, 1), "{trouble}");
    }
    for one in &said[3..8] {
        let message = one["message"].as_str().unwrap_or_default();
        assert_eq!(one["errno"], 1003, "{one}");
        assert!(message.contains("Snowfence") && message.contains(&one["status"].to_string()), "{one}");
        assert!(one["seconds"].as_f64().is_some_and(|seconds| seconds < 10.0), "{one}");
        let part = format!("answers {} ", one["status"]);
        assert_eq!(asked_and_run(&sandbox, &part)?, (1, 1), "{part}");
    }
    assert!(said[8]["rows"][0][0].to_string().contains('3'), "the connection is usable: {}", said[8]);
    // What may have run is not called failed.
    let outcomes = journal(
        &sandbox,
        "SELECT status FROM outcomes JOIN statements ON statements.id = outcomes.statement
         WHERE sql LIKE '%breaks off once%' ORDER BY outcomes.time",
    )?;
    assert_eq!(outcomes, [json!({ "status": "unknown" }), json!({ "status": "succeeded" })]);
    assert!(events(&sandbox)?.contains(&"upstream_failed".to_owned()));
    Ok(())
}

#[test]
fn errors_end_well_for_connector_5() -> Result<()> {
    errors_end_well(Environment::Connector5)
}

#[test]
fn errors_end_well_for_connector_4() -> Result<()> {
    errors_end_well(Environment::Connector4)
}

/// Speaks plain HTTP to port 80 of the account's address.
const PLAIN: &str = r#"
import http.client
address = os.environ["SANDBOX_UPSTREAM"].rsplit(":", 1)[0]
def plain(host, target):
    began = time.monotonic()
    connection = http.client.HTTPConnection(address, 80, timeout=20)
    connection.request("GET", target, headers={"Host": host})
    return [connection.getresponse().status, time.monotonic() - began < 1]
"#;

#[test]
fn a_question_for_revoked_certificates_is_answered_at_once() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        &format!(
            r#"{PLAIN}
say(**attempt(lambda: plain("ocsp.snowflakecomputing.com", "/ocsp_response_cache.json")))
say(**attempt(lambda: plain("ocsp." + os.environ["SNOWFLAKE_HOST"], "/ocsp_response_cache.json")))"#
        ),
    )?;
    assert_eq!(said, [json!({ "rows": [404, true] }), json!({ "rows": [404, true] })]);
    assert!(!events(&sandbox)?.contains(&"not_tls".to_owned()));
    let said = client(
        &pod,
        &format!(
            r#"{PLAIN}say(**attempt(lambda: plain(os.environ["SNOWFLAKE_HOST"], "/session/v1/login-request")))"#
        ),
    )?;
    assert_eq!(said[0]["rows"], json!([404, true]), "{}", said[0]);
    eventually("whatever else is asked there is on record", || {
        Ok(events(&sandbox)?.contains(&"not_tls".to_owned()))
    })
}

#[test]
fn telemetry_goes_where_the_configuration_says() -> Result<()> {
    for (mode, arrives, success) in
        [("answer", false, true), ("forward", true, true), ("refuse", false, false)]
    {
        let mut sandbox = Sandbox::builder().set("clients", "telemetry", mode).start()?;
        let pod = sandbox.pod("reports")?;
        let said = client(
            &pod,
            &format!(
                r#"{}
token = login()
for path in ("/telemetry/send", "/telemetry/send/sessionless"):
    say(body=json.loads(post(path, dict(logs=[dict(timestamp="1", message=dict(type="t"))], smuggled=1), token)))"#,
                common::RAW
            ),
        )?;
        for one in &said {
            assert_eq!(one["body"]["success"], success, "{mode}: {one}");
        }
        let log = sandbox.upstream_log()?;
        let sent: Vec<&Value> = log
            .iter()
            .filter(|line| line["path"].as_str().is_some_and(|it| it.contains("telemetry")))
            .collect();
        ensure!(sent.len() == usize::from(arrives), "{mode}: {sent:?}");
        for one in sent {
            assert_eq!(one["path"], "/telemetry/send", "{one}");
            assert_eq!(
                one["body"],
                json!({ "logs": [{ "timestamp": "1", "message": { "type": "t" } }] }),
                "{one}"
            );
        }
    }
    Ok(())
}

const UNTRUSTED: &str = "what answers in Snowflake's place is not trusted";

#[test]
fn a_certificate_that_the_agent_does_not_trust_ends_in_an_error_at_once() -> Result<()> {
    for driver in [Environment::Connector5, Environment::Connector4, Environment::Adbc] {
        let mut sandbox = Sandbox::builder()
            .driver(driver)
            .set("tls", "upstream_ca_bundle", "/etc/ssl/certs/ca-certificates.crt")
            .start()?;
        let connect = if driver == Environment::Adbc { ADBC } else { "" };
        let said = client(
            &sandbox.pod("reports")?,
            &format!(
                "{connect}\nbegan = time.monotonic()\nsay(**attempt(connect), seconds=time.monotonic() - began)"
            ),
        )?;
        let said = &said[0];
        assert!(said["message"].as_str().is_some_and(|it| it.contains(UNTRUSTED)), "{said}");
        assert!(said["seconds"].as_f64().is_some_and(|seconds| seconds < 10.0), "{said}");
        let log = sandbox.upstream_log()?;
        assert!(log.iter().all(|line| line["event"] != "request"), "nothing goes to who is not Snowflake");
        assert_eq!(events(&sandbox)?.iter().filter(|kind| *kind == "upstream_failed").count(), 1);
    }
    Ok(())
}

#[test]
fn errors_end_well_for_adbc_and_node() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Adbc).start()?;
    let pod = sandbox.pod("adbc")?;
    let by_adbc = client(
        &pod,
        &format!(
            r#"{ADBC}
connection = connect()
cursor = connection.cursor()
cursor.execute("create table written (a int)")
for trouble in ("answers 503 once", "answers 429 once", "the answer breaks off once", "answers 404"):
    began = time.monotonic()
    ended = attempt(lambda: cursor.execute(f"insert into written values (1) /* {{trouble}} */") and None)
    say(trouble=trouble, by="adbc", seconds=time.monotonic() - began, **ended)"#
        ),
    )?;
    let modules = node::modules()?;
    let pod = sandbox.pod("node")?.with("NODE_PATH", &modules.to_string_lossy());
    let by_node = common::by_node(
        &pod,
        r"
for (const trouble of ['answers 503 once', 'answers 429 once', 'the answer breaks off once', 'answers 404']) {
  const began = Date.now();
  const ended = await attempt(`insert into written values (2) /* ${trouble} */`);
  say({ trouble, by: 'node', seconds: (Date.now() - began) / 1000, ...ended });
}",
    )?;
    for (said, value) in by_adbc.iter().zip([1; 4]).chain(by_node.iter().zip([2; 4])) {
        let trouble = said["trouble"].as_str().unwrap_or_default();
        let (is_final, part) = (trouble == "answers 404", format!("values ({value}) /* {trouble} */"));
        // What cannot be helped by asking again is asked for once; what can is asked for again, and runs once.
        assert_eq!(asked_and_run(&sandbox, &part)?, (if is_final { 1 } else { 2 }, 1), "{said}");
        assert_eq!(said["error"].is_string(), is_final, "{said}");
        assert_eq!(said["message"].as_str().is_some_and(|it| it.contains("Snowfence")), is_final, "{said}");
        assert!(said["seconds"].as_f64().is_some_and(|seconds| seconds < 20.0), "{said}");
    }
    assert_eq!((by_adbc.len(), by_node.len()), (4, 4));
    Ok(())
}
