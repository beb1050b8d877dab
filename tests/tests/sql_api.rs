//! The SQL API, by curl: decided on, recorded and answered like what comes by a driver, and nobody else's.

mod common;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use sandbox::sandbox::SERVICE_PASSWORD;
use sandbox::services::{Claims, Service};
use sandbox::{Credential, Pod, Sandbox, services};
use serde_json::{Value, json};

use common::curl::{Said, ask, sandbox_of};
use common::{arrived, client, eventually, journal};

const STATEMENTS: &str = "/api/v2/statements";

fn submit_with(pod: &Pod, query: &str, sql: &str, more: Value) -> Result<Said> {
    let mut body = json!({ "statement": sql, "database": services::DATABASE, "schema": services::SCHEMA, "timeout": 60 });
    if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
        body.extend(more);
    }
    ask(pod, "POST", &format!("{STATEMENTS}{query}"), &["-d", &body.to_string()])
}

fn submit(pod: &Pod, sql: &str) -> Result<Said> {
    submit_with(pod, "", sql, json!({}))
}

fn sandbox() -> Result<Sandbox> {
    sandbox_of(Credential::KeyPair)
}

/// What arrived at Snowflake's SQL API.
fn requests(sandbox: &Sandbox) -> Result<Vec<Value>> {
    let requests = sandbox.upstream_log()?.into_iter();
    Ok(requests.filter(|line| line["path"].as_str().is_some_and(|it| it.starts_with("/api/"))).collect())
}

fn outcome(sandbox: &Sandbox, handle: &str) -> Result<Vec<Value>> {
    journal(sandbox, &format!("SELECT status, rows, code FROM trail WHERE query_id = '{handle}'"))
}

#[test]
fn curl_reads_is_refused_and_leaves_a_trail() -> Result<()> {
    let mut sandbox = sandbox()?;
    let pod = sandbox.pod("reports")?;
    let read = submit_with(
        &pod,
        "?requestId=6a39c59f-bb34-4bc5-92f1-1c21ffa3f6a5&roleName=smuggled",
        "select count(*) from customers",
        json!({ "role": "ACCOUNTADMIN", "warehouse": "HUGE", "smuggled": 1 }),
    )?;
    assert_eq!((read.status, &read.body["data"]), (200, &json!([["300"]])), "{read:?}");
    let bound = submit_with(
        &pod,
        "",
        "select ?, current_user(), current_warehouse()",
        json!({ "bindings": { "1": { "type": "TEXT", "value": "Zoë" } } }),
    )?;
    assert_eq!(
        bound.body["data"],
        json!([["Zoë", services::SERVICE_USER, services::WAREHOUSE]]),
        "{bound:?}"
    );
    for sql in ["drop table customers", "select 1; drop table customers"] {
        let refused = submit_with(&pod, "", sql, json!({ "parameters": { "multi_statement_count": "0" } }))?;
        assert_eq!((refused.status, &refused.body["code"]), (422, &json!("003001")), "{refused:?}");
        assert_eq!(refused.body["sqlState"], "42501");
        let (handle, message) = (refused.handle()?, refused.body["message"].as_str().unwrap_or_default());
        assert!(message.contains("DROP TABLE") && message.contains("destructive-denied"), "{message}");
        assert_eq!(refused.body["statementStatusUrl"], format!("{STATEMENTS}/{handle}"));
        let recorded = journal(&sandbox, &format!("SELECT sql, status FROM trail WHERE id = '{handle}'"))?;
        assert_eq!(recorded, [json!({ "sql": sql, "status": "refused" })], "the handle leads to the record");
    }
    let transfer = submit(&pod, "put file:///etc/passwd @~")?;
    assert!(transfer.status == 422 && transfer.body["message"].as_str().is_some_and(|it| it.contains("PUT")));
    let failed = submit(&pod, "select no_such_column from customers")?;
    assert!(failed.status == 422 && failed.body["code"] != "003001", "Snowflake's own: {failed:?}");

    assert_eq!(
        arrived(&sandbox)?,
        [
            "select count(*) from customers",
            "select ?, current_user(), current_warehouse()",
            "select no_such_column from customers"
        ]
    );
    let log = serde_json::to_string(&sandbox.upstream_log()?)?;
    for trace in [&pod.environment()["SNOWFLAKE_TOKEN"], "smuggled", "ACCOUNTADMIN", "HUGE"] {
        assert!(!log.contains(trace), "{trace} went upstream");
    }
    assert!(log.contains("requestId=6a39c59f-bb34-4bc5-92f1-1c21ffa3f6a5"));
    for request in requests(&sandbox)? {
        assert_eq!(request["headers"]["x-snowflake-authorization-token-type"], "KEYPAIR_JWT", "{request}");
        assert_eq!(request["user"], services::SERVICE_USER);
    }

    eventually("every statement has its outcome", || {
        Ok(journal(&sandbox, "SELECT sql FROM trail WHERE status = 'open'")?.is_empty())
    })?;
    let trail = journal(&sandbox, "SELECT session, subject, cgroup, client, rule, role FROM trail")?;
    let sessions: BTreeSet<String> = trail.iter().map(|row| row["session"].to_string()).collect();
    assert_eq!((trail.len(), sessions.len()), (6, 1), "{trail:?}");
    assert_eq!(
        (&trail[0]["subject"], &trail[0]["client"], &trail[0]["rule"]),
        (&json!("reports@sandbox"), &json!("SQL API (reports/1.0)"), &json!("analysts"))
    );
    let first = outcome(&sandbox, &read.handle()?)?;
    assert_eq!(first, [json!({ "status": "succeeded", "rows": 1, "code": "" })]);
    let other = outcome(&sandbox, &failed.handle()?)?;
    assert_eq!((&other[0]["status"], &other[0]["code"]), (&json!("failed"), &failed.body["code"]));
    Ok(())
}

/// The account, and an agent whose rule fixes a role.
fn with_a_role(sql_api: Option<bool>) -> Result<Sandbox> {
    Sandbox::builder()
        .credential(Credential::AccessToken)
        .configure(move |configuration| {
            let rule = configuration["rules"][0].as_table_mut().context("a rule")?;
            rule.insert("role".into(), "ANALYST".into());
            rule.extend(sql_api.map(|open| ("sql_api".into(), open.into())));
            Ok(())
        })
        .start()
}

#[test]
fn a_rule_that_fixes_a_role_must_open_it() -> Result<()> {
    let mut sandbox = with_a_role(None)?;
    let said = submit(&sandbox.pod("reports")?, "select 1")?;
    assert_eq!(said.status, 403, "{said:?}");
    assert!(said.body["message"].as_str().is_some_and(|it| it.contains("sql_api = true")), "{said:?}");
    assert_eq!(requests(&sandbox)?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn a_rule_says_as_which_role_statements_run() -> Result<()> {
    let mut sandbox = with_a_role(Some(true))?;
    let pod = sandbox.pod("reports")?;
    let said = submit_with(&pod, "", "select current_role()", json!({ "role": "ACCOUNTADMIN" }))?;
    assert_eq!(said.body["data"], json!([["ANALYST"]]), "{said:?}");
    let requests = requests(&sandbox)?;
    assert_eq!(
        (&requests[0]["headers"]["x-snowflake-authorization-token-type"], &requests[0]["body"]["role"]),
        (&json!("PROGRAMMATIC_ACCESS_TOKEN"), &json!("ANALYST"))
    );
    Ok(())
}

#[test]
fn a_password_is_no_credential_for_it() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = submit(&pod, "select 1")?;
    let message = said.body["message"].as_str().unwrap_or_default();
    assert_eq!(said.status, 403, "{said:?}");
    assert!(message.contains("`svc`") && message.contains("`analysts`"), "{message}");
    assert!(!said.body.to_string().contains(SERVICE_PASSWORD));
    assert_eq!(requests(&sandbox)?, Vec::<Value>::new());
    Ok(())
}

#[test]
fn a_credential_that_snowflake_refuses_is_not_the_clients_fault() -> Result<()> {
    let mut sandbox = Sandbox::builder().credential(Credential::AccessToken).start()?;
    let pod = sandbox.pod("reports")?;
    let others = json!({ services::SERVICE_USER: { "programmatic_access_token": "another" } });
    fs::write(sandbox.state().secret("credentials.json"), others.to_string())?;
    let said = submit(&pod, "select 1")?;
    let message = said.body["message"].as_str().unwrap_or_default();
    assert_eq!(said.status, 502, "it is not the client that has to log in again: {said:?}");
    assert!(message.contains("`svc`") && message.contains("394400"), "{message}");
    assert!(!said.body.to_string().contains(SERVICE_PASSWORD));
    eventually("it is on record", || {
        let failed = journal(&sandbox, "SELECT code FROM trail WHERE status = 'failed'")?;
        let events = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'upstream_failed'")?;
        Ok(failed == [json!({ "code": "394400" })] && events.len() == 1)
    })?;
    assert!(!sandbox.agent_log()?.contains(SERVICE_PASSWORD));
    Ok(())
}

#[test]
fn nobody_is_let_in_without_a_good_token() -> Result<()> {
    let mut sandbox = Sandbox::builder().credential(Credential::OauthToken).start()?;
    let pod = sandbox.pod("reports")?;
    let nobody = Claims { groups: vec!["marketing".into()], ..Claims::analyst("ada") };
    let expired = Claims { lifetime_seconds: -600, ..Claims::analyst("ada") };
    let tokens = [
        format!("Bearer {}", sandbox.token(&nobody)?),
        format!("Bearer {}", sandbox.token(&expired)?),
        "Bearer not-a-token".to_owned(),
        "Basic dXNlcjpwYXNzd29yZA==".to_owned(),
        "Snowflake Token=\"snowfence:made-up\"".to_owned(),
    ];
    for token in &tokens {
        let said = submit(&pod.clone().with("AUTHORIZATION", token), "select 1")?;
        let code = said.body["code"].as_str().unwrap_or_default();
        assert!(said.status == 401 && code.len() == 6, "{token}: {said:?}");
        assert!(said.body["message"].as_str().unwrap_or_default().contains("Snowfence"), "{said:?}");
    }
    for (query, body) in [
        ("", "{}"),
        ("", r#"{"statement":"select 1","Statement":"drop table customers"}"#),
        ("", "not JSON"),
        ("?async=perhaps", r#"{"statement":"select 1"}"#),
        ("?requestId=%61", r#"{"statement":"select 1"}"#),
    ] {
        let said = ask(&pod, "POST", &format!("{STATEMENTS}{query}"), &["-d", body])?;
        let message = said.body["message"].as_str().unwrap_or_default();
        assert!(said.status == 400 && message.contains("Snowfence refused"), "{query} {body}: {said:?}");
    }
    assert_eq!(requests(&sandbox)?, Vec::<Value>::new(), "nothing of it reached Snowflake");
    assert_eq!(submit(&pod, "select 7")?.body["data"], json!([["7"]]), "the agent goes on");
    let events = journal(&sandbox, "SELECT kind, subject FROM events WHERE kind = 'login_refused'")?;
    assert_eq!(events.len(), 4, "{events:?}");
    assert_eq!(events[0]["subject"], "ada", "whose token it was is known");
    Ok(())
}

#[test]
fn a_refusal_reaches_a_client_that_is_still_sending() -> Result<()> {
    let mut sandbox = sandbox()?;
    let nobody = sandbox.pod("reports")?.with("AUTHORIZATION", "Bearer not-a-token");
    let body = json!({ "statement": format!("select '{}'", "x".repeat(100_000)) }).to_string();
    for _ in 0..10 {
        let said = ask(&nobody, "POST", STATEMENTS, &["-d", &body])?;
        assert!(said.status == 401 && said.head.starts_with("HTTP/2"), "{said:?}");
    }
    Ok(())
}

#[test]
fn what_takes_long_is_asked_for_again_and_cancelled() -> Result<()> {
    let mut sandbox = sandbox()?;
    let pod = sandbox.pod("reports")?;
    let begun = submit_with(&pod, "?async=true", "select system$wait(2)", json!({}))?;
    assert_eq!((begun.status, &begun.body["code"]), (202, &json!("333334")), "{begun:?}");
    let handle = begun.handle()?;
    let path = begun.body["statementStatusUrl"].as_str().context("a path")?;
    assert_eq!(path, format!("{STATEMENTS}/{handle}"));
    assert_eq!(
        journal(&sandbox, "SELECT status FROM trail")?,
        [json!({ "status": "open" })],
        "recorded before it ends"
    );
    let ended = ask(&pod, "GET", path, &[])?;
    assert_eq!((ended.status, &ended.body["data"]), (200, &json!([["waited 2 seconds"]])), "{ended:?}");
    eventually("its outcome is recorded", || {
        Ok(outcome(&sandbox, &handle)? == [json!({ "status": "succeeded", "rows": 1, "code": "" })])
    })?;
    assert_eq!(ask(&pod, "GET", path, &[])?.status, 200, "as often as one likes");

    let endless = submit_with(&pod, "?async=true", "select system$wait(600)", json!({}))?.handle()?;
    let cancelled = ask(&pod, "POST", &format!("{STATEMENTS}/{endless}/cancel"), &[])?;
    assert_eq!((cancelled.status, &cancelled.body["code"]), (200, &json!("000604")), "{cancelled:?}");
    let again = ask(&pod, "GET", &format!("{STATEMENTS}/{endless}"), &[])?;
    assert_eq!((again.status, &again.body["code"]), (422, &json!("000604")), "{again:?}");
    eventually("its end is recorded", || {
        let outcome = outcome(&sandbox, &endless)?;
        Ok(outcome == [json!({ "status": "failed", "rows": null, "code": "000604" })])
    })
}

#[test]
fn a_statement_is_its_callers_by_the_next_agent_too() -> Result<()> {
    let mut sandbox = sandbox()?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let handle = submit_with(&pod, "?async=true", "select system$wait(3)", json!({}))?.handle()?;
    sandbox.replace_agent()?;
    let path = format!("{STATEMENTS}/{handle}");
    assert_eq!(ask(&thief, "GET", &path, &[])?.status, 404);
    let ended = ask(&pod, "GET", &path, &[])?;
    assert_eq!((ended.status, &ended.body["data"]), (200, &json!([["waited 3 seconds"]])), "{ended:?}");
    eventually("its outcome is recorded", || {
        Ok(outcome(&sandbox, &handle)?.first().is_some_and(|one| one["status"] == "succeeded"))
    })
}

#[test]
fn after_a_kill_what_has_ended_is_its_callers_still() -> Result<()> {
    let mut sandbox = sandbox()?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let handle = submit(&pod, "select 'mine'")?.handle()?;
    eventually("its outcome is recorded", || Ok(!outcome(&sandbox, &handle)?.is_empty()))?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let path = format!("{STATEMENTS}/{handle}");
    assert_eq!(ask(&thief, "GET", &path, &[])?.status, 404);
    let again = ask(&pod, "GET", &path, &[])?;
    assert_eq!((again.status, &again.body["data"]), (200, &json!([["mine"]])), "{again:?}");
    let scanned = submit(&pod, &format!("select * from table(result_scan('{handle}'))"))?;
    assert_ne!(scanned.body["code"], "003001", "it may be read again: {scanned:?}");
    let stolen = submit(&thief, &format!("select * from table(result_scan('{handle}'))"))?;
    assert_eq!((stolen.status, &stolen.body["code"]), (422, &json!("003001")), "{stolen:?}");
    Ok(())
}

#[test]
fn a_large_result_comes_whole_and_several_statements_too() -> Result<()> {
    const ROWS: u64 = 12_000;
    let mut sandbox = sandbox()?;
    let pod = sandbox.pod("reports")?;
    let first = submit(&pod, &format!("select seq4() as n from table(generator(rowcount => {ROWS}))"))?;
    let parts = first.body["resultSetMetaData"]["partitionInfo"].as_array().context("partitions")?.len();
    assert!(first.status == 200 && parts == 4, "{}", first.head);
    let link = first.header("link").context("a header Link")?;
    assert!(link.contains("rel=\"next\"") && link.contains("partition=1"), "{link}");
    let handle = first.handle()?;
    let mut numbers = BTreeSet::new();
    let mut count = 0;
    for part in 0..parts {
        // Compressed, as Snowflake sends them; once as it is.
        let options: &[&str] = if part == 1 { &[] } else { &["--compressed"] };
        let said = ask(&pod, "GET", &format!("{STATEMENTS}/{handle}?partition={part}"), options)?;
        assert_eq!(
            (said.status, said.header("content-encoding").is_some()),
            (200, part != 1),
            "{}",
            said.head
        );
        for row in said.body["data"].as_array().context("rows")? {
            numbers.insert(row[0].as_str().context("a number")?.parse::<u64>()?);
            count += 1;
        }
    }
    assert_eq!((count, numbers.len() as u64, numbers.last()), (ROWS, ROWS, Some(&(ROWS - 1))));
    eventually("its outcome is recorded", || Ok(outcome(&sandbox, &handle)?[0]["rows"] == ROWS))?;

    let several = json!({ "parameters": { "multi_statement_count": "2" } });
    let said = submit_with(&pod, "", "select 1; select 2", several)?;
    let handles = said.body["statementHandles"].as_array().with_context(|| format!("{said:?}"))?;
    assert_eq!((said.status, handles.len()), (200, 2));
    let second = handles[1].as_str().context("a handle")?;
    assert_eq!(ask(&pod, "GET", &format!("{STATEMENTS}/{second}"), &[])?.body["data"], json!([["2"]]));
    Ok(())
}

#[test]
fn a_handle_is_of_use_to_its_caller_alone() -> Result<()> {
    const REQUEST: &str = "?requestId=0f9e8d7c-1111-2222-3333-444455556666";
    let mut sandbox = sandbox()?;
    let (owner, thief) = (sandbox.pod("owner")?, sandbox.pod("thief")?);
    let mine = submit_with(&owner, REQUEST, "select 'secret'", json!({}))?;
    assert_eq!(mine.status, 200, "{mine:?}");
    let path = format!("{STATEMENTS}/{}", mine.handle()?);
    let before = requests(&sandbox)?.len();
    for (method, path) in [
        ("GET", path.clone()),
        ("GET", format!("{path}?partition=0")),
        ("POST", format!("{path}/cancel")),
        ("GET", format!("{STATEMENTS}/01b1c2d3-0000-1111-2222-333344445555")),
    ] {
        let said = ask(&thief, method, &path, &[])?;
        assert_eq!((said.status, &said.body["code"]), (404, &json!("003001")), "{said:?}");
        assert!(!said.body.to_string().contains("secret"));
    }
    // Nor is the request's identifier, by which Snowflake would give the same answer again.
    let repeated = format!("{}&retry=true", REQUEST.to_uppercase().replace("REQUESTID", "requestId"));
    let said = submit_with(&thief, &repeated, "select 'secret'", json!({}))?;
    assert_eq!(said.status, 400, "{said:?}");
    assert_eq!(requests(&sandbox)?.len(), before, "nothing of it reached Snowflake");
    eventually("it is on record", || {
        let sql = "SELECT cgroup, subject FROM events WHERE kind = 'session_refused'";
        let events = journal(&sandbox, sql)?;
        let all = events.iter().all(|event| event["subject"] == "thief@sandbox");
        Ok(events.len() == 4 && all)
    })?;
    let again = submit_with(&owner, &format!("{REQUEST}&retry=true"), "select 'secret'", json!({}))?;
    assert_eq!(again.body["statementHandle"], mine.body["statementHandle"], "its own caller may repeat it");

    // The same query by the drivers' door, for the same caller and for the thief.
    let by_driver = format!(
        r#"
connection = connect()
say(**connection.rest.request("/queries/{}/result", method="get"))"#,
        mine.handle()?
    );
    let said = client(&owner, &with_rest(&by_driver))?;
    assert_eq!(said[0]["success"], true, "{}", said[0]);
    let said = client(&thief, &with_rest(&by_driver))?;
    assert_eq!(said[0]["success"], false, "{}", said[0]);
    Ok(())
}

/// By hand: connector 5 shows nobody its session.
fn with_rest(source: &str) -> String {
    format!(
        r#"
import http.client, ssl, uuid
class Rest:
    def __init__(self):
        self.host = os.environ["SNOWFLAKE_HOST"]
        self.trust = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        data = dict(AUTHENTICATOR="OAUTH", TOKEN=os.environ["SNOWFLAKE_TOKEN"])
        self.token = "None"
        self.token = self.request("/session/v1/login-request", dict(data=data))["data"]["token"]
    def request(self, path, body=None, method="post"):
        connection = http.client.HTTPSConnection(self.host, context=self.trust, timeout=60)
        headers = {{"Authorization": f'Snowflake Token="{{self.token}}"', "Content-Type": "application/json", "User-Agent": "rest"}}
        connection.request(method.upper(), path, json.dumps(body) if body else None, headers)
        return json.loads(connection.getresponse().read())
class Connection:
    def __init__(self):
        self.rest = Rest()
connect = Connection
{source}"#
    )
}

#[test]
fn the_token_of_a_session_is_good_for_it_too() -> Result<()> {
    let mut sandbox = sandbox()?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let said = client(
        &pod,
        &with_rest(
            r#"
rest = connect().rest
say(token=rest.token, answer=rest.request("/api/v2/statements", dict(statement="select 5")))"#,
        ),
    )?;
    assert_eq!(said[0]["answer"]["data"], json!([["5"]]), "{}", said[0]);
    let token = format!("Snowflake Token=\"{}\"", said[0]["token"].as_str().context("a token")?);
    let here = submit(&pod.with("AUTHORIZATION", &token), "select 6")?;
    assert_eq!((here.status, &here.body["data"]), (200, &json!([["6"]])), "{here:?}");
    let stolen = submit(&thief.with("AUTHORIZATION", &token), "select 7")?;
    assert_eq!((stolen.status, &stolen.body["code"]), (401, &json!("390111")), "{stolen:?}");
    assert_eq!(arrived(&sandbox)?, ["select 5", "select 6"]);
    let sessions = journal(&sandbox, "SELECT DISTINCT session FROM trail")?;
    assert_eq!(sessions.len(), 1, "of the session that the client opened: {sessions:?}");
    let log = serde_json::to_string(&requests(&sandbox)?)?;
    assert!(!log.contains("snowfence:"), "a token of the agent's went upstream");
    Ok(())
}

#[test]
fn an_unreachable_snowflake_is_told_as_one() -> Result<()> {
    let mut sandbox = sandbox()?;
    let pod = sandbox.pod("reports")?;
    sandbox.kill_service(Service::Upstream)?;
    let said = submit(&pod, "select 1")?;
    assert_eq!(said.status, 503, "{said:?}");
    let trail = journal(&sandbox, "SELECT sql, verdict FROM trail")?;
    assert_eq!(trail, [json!({ "sql": "select 1", "verdict": "allow" })], "it is recorded all the same");
    Ok(())
}
