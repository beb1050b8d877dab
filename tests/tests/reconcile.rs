//! The trail held against Snowflake's own history: what came by the agent is all there, what went around it is found, with
//! the login that it began with.

mod common;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sandbox::configuration::put;
use sandbox::services::{ACCOUNT_HOST, DATABASE, SCHEMA, SERVICE_USER};
use sandbox::{Credential, Pod, Sandbox, network, services};
use serde_json::{Value, json};
use toml::Table;

use common::curl::ask;
use common::{by_node, client, eventually, journal, source};

const AUDITOR: &str = "SNOWFENCE_AUDITOR";
const AUDITORS_PASSWORD: &str = "an-auditors-password-1180";
/// What somebody has found out who should not have.
const REAL_PASSWORD: &str = "the-real-password-of-the-service-user";

/// Logs in to Snowflake itself and runs statements, the last of them as what a driver runs for itself.
const AROUND: &str = r#"
import http.client, json, socket, ssl, sys, uuid
address, host, authority, password, *statements = sys.argv[1:]
context = ssl.create_default_context(cafile=authority)
class Around(http.client.HTTPSConnection):
    def connect(self):
        self.sock = context.wrap_socket(socket.create_connection((address, 443), 30), server_hostname=host)
def post(path, body, token):
    connection = Around(host)
    headers = {"Content-Type": "application/json", "Authorization": f'Snowflake Token="{token}"'}
    connection.request("POST", f"{path}?requestId={uuid.uuid4()}", json.dumps(body), headers)
    answer = json.loads(connection.getresponse().read())
    assert answer["success"], answer
    return answer["data"]
login = dict(LOGIN_NAME="svc_agents", PASSWORD=password, CLIENT_APP_ID="Rogue", CLIENT_APP_VERSION="6.6.6")
token = post("/session/v1/login-request", dict(data=login), "None")["token"]
for statement in statements:
    internal = statement is statements[-1]
    post("/queries/v1/query-request", dict(sqlText=statement, sequenceId=1, isInternal=internal), token)
"#;

/// A sandbox whose agent compares, with a user of its own, at once.
fn sandbox(settings: &[(&str, toml::Value)]) -> Result<Sandbox> {
    let mut table = Table::new();
    for (key, value) in
        [("credential", "auditor".into()), ("user", AUDITOR.into()), ("settle_minutes", 0.into())]
            .into_iter()
            .chain(settings.iter().map(|(key, value)| (*key, value.clone())))
    {
        table.insert(key.to_owned(), value);
    }
    let configure = move |configuration: &mut Table| {
        let state = configuration["agent"]["state_dir"].as_str().context("a state_dir")?;
        let mut credential = Table::new();
        credential.insert("type".into(), "password".into());
        credential.insert("secret".into(), format!("file:{state}/../auditor").into());
        put(configuration, "credentials", "auditor", credential.into())?;
        put(configuration, "audit", "reconcile", table.into())
    };
    let mut sandbox = Sandbox::builder()
        .credential(Credential::KeyPair)
        .set("metrics", "listen", "127.0.0.1:9464")
        .configure(configure)
        .without_agent()
        .start()?;
    fs::write(sandbox.state().secret("auditor"), AUDITORS_PASSWORD)?;
    let file = sandbox.state().secret("credentials.json");
    let mut users: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    users[SERVICE_USER]["password"] = REAL_PASSWORD.into();
    users[AUDITOR] = json!({ "password": AUDITORS_PASSWORD });
    fs::write(&file, users.to_string())?;
    sandbox.start_agent()?;
    Ok(sandbox)
}

/// From a place that no agent covers.
fn go_around(sandbox: &Sandbox, statements: &[&str]) -> Result<()> {
    let authority = services::certificate_files(sandbox.state()).authority;
    let output = Command::new("nsenter")
        .arg(format!("--net={}", network::outside(sandbox.id()).display()))
        .args(["/usr/bin/python3", "-c", AROUND, network::UPSTREAM, ACCOUNT_HOST])
        .arg(authority)
        .arg(REAL_PASSWORD)
        .args(statements)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// What a comparison said: its findings, and its summary.
struct Said {
    findings: Vec<Value>,
    summary: Value,
    succeeded: bool,
}

impl Said {
    fn statements(&self) -> Vec<&str> {
        let mut texts: Vec<&str> =
            self.findings.iter().filter_map(|finding| finding["text"].as_str()).collect();
        texts.sort_unstable();
        texts
    }

    fn logins(&self) -> Vec<&Value> {
        self.findings.iter().filter(|finding| finding["finding"] == "unrecorded_login").collect()
    }
}

fn reconcile(sandbox: &Sandbox, more: &[&str]) -> Result<Said> {
    let arguments = ["audit", "reconcile", "--format", "json"].iter().chain(more);
    let output = sandbox.snowfence(arguments)?;
    let lines = output.stdout.lines().map(serde_json::from_str);
    let mut findings: Vec<Value> = lines.collect::<Result<_, _>>()?;
    let summary = findings.pop().with_context(|| output.stderr.clone())?;
    Ok(Said { findings, summary, succeeded: output.succeeded() })
}

fn events(sandbox: &Sandbox) -> Result<usize> {
    Ok(journal(sandbox, "SELECT id FROM events WHERE kind LIKE 'unrecorded_%'")?.len())
}

/// Nothing is under way but what nobody asks for again.
fn settled(sandbox: &Sandbox) -> Result<()> {
    let open = "SELECT id FROM trail WHERE verdict = 'allow' AND status = 'open' AND id NOT IN (SELECT statement FROM running)";
    eventually("every outcome is recorded", || Ok(journal(sandbox, open)?.is_empty()))
}

fn by_the_sql_api(pod: &Pod, sql: &str, count: &str) -> Result<Value> {
    let body = json!({ "statement": sql, "database": DATABASE, "schema": SCHEMA, "timeout": 60,
        "parameters": { "multi_statement_count": count } });
    let said = ask(pod, "POST", "/api/v2/statements", &["-d", &body.to_string()])?;
    ensure!(said.status == 200, "{said:?}");
    Ok(said.body)
}

const BY_PYTHON: &str = r#"
connection = connect()
cursor = connection.cursor()
cursor.execute("select count(*) from customers").fetchall()
cursor.execute(f"select * from table(result_scan('{cursor.sfqid}'))")
say(**attempt(lambda: cursor.execute("select nothing from nowhere")))
say(**attempt(lambda: cursor.execute("drop table customers")))
cursor.execute("select 1; select 2", num_statements=2).fetchall()
cursor.execute_async("select 40 + 2")
cursor.get_results_from_sfqid(cursor.sfqid)
say(rows=cursor.fetchall())
# One that nobody asks for again.
cursor.execute_async("select 'never fetched'")
for number in range(600):
    cursor.execute(f"select {number}").fetchall()
connection.close()
"#;

const LONG: &str = r#"connect().cursor().execute("call system$wait(4)")"#;

#[test]
fn what_goes_around_the_agent_is_found_and_nothing_else() -> Result<()> {
    let mut sandbox = sandbox(&[("against", "journal".into()), ("role", AUDITOR.into())])?;
    let pod = sandbox.pod("reports")?;
    let said = client(&pod, BY_PYTHON)?;
    assert_eq!((said.len(), &said[2]["rows"]), (3, &json!([[42]])), "{said:?}");
    let node = pod.clone().with("NODE_PATH", &sandbox::node::modules()?.to_string_lossy());
    by_node(&node, "say(await attempt('select 3'));")?;
    by_the_sql_api(&pod, "select 5", "1")?;
    by_the_sql_api(&pod, "select 6; select 7", "2")?;
    sandbox.snowfence(["endpoints", "sync"])?.into_stdout()?;
    settled(&sandbox)?;

    let said = reconcile(&sandbox, &[])?;
    assert_eq!((said.findings.as_slice(), said.succeeded), (&[] as &[Value], true), "{}", said.summary);
    assert!(said.summary["statements"].as_u64() >= Some(610), "{}", said.summary);
    assert_eq!(said.summary["logins"], 5, "two by drivers, two by the SQL API, one of the agent's");
    let shown = sandbox.snowfence(["audit", "reconcile"])?.into_stdout()?;
    assert!(shown.contains("statements from 20") && shown.contains("are in the trail"), "{shown}");

    go_around(&sandbox, &["select 'around', 1", "select 'around', 2"])?;
    let said = reconcile(&sandbox, &["--user", "svc_agents"])?;
    assert_eq!(
        (said.statements(), said.succeeded),
        (vec!["select 'around', 1", "select 'around', 2"], false)
    );
    assert_eq!((said.findings.len(), &said.summary["new"]), (3, &3.into()), "{:?}", said.findings);
    let login = said.logins()[0];
    for finding in &said.findings {
        assert_eq!(
            (&finding["user"], &finding["address"], &finding["client"]),
            (&SERVICE_USER.into(), &network::UPSTREAM.into(), &"Rogue 6.6.6".into()),
            "{finding}"
        );
    }
    assert_eq!(login["factor"], "PASSWORD");
    assert_eq!(events(&sandbox)?, 3);
    let detail = journal(&sandbox, "SELECT account, detail FROM events WHERE kind = 'unrecorded_statement'")?;
    assert_eq!(detail[0]["account"], ACCOUNT_HOST);
    assert!(!detail[0].to_string().contains(REAL_PASSWORD));

    let metrics = network::inside(&network::node(sandbox.id()), || {
        Ok(ureq::get("http://127.0.0.1:9464/metrics").call()?.body_mut().read_to_string()?)
    })?;
    for line in [
        "snowfence_reconcile_missing_statements_total 2",
        "snowfence_reconcile_strange_logins_total 1",
        "snowfence_reconcile_failures_total 0",
        "snowfence_events_total{kind=\"unrecorded_login\"} 1",
    ] {
        assert!(metrics.lines().any(|metric| metric == line), "{line} is not in\n{metrics}");
    }

    // What is known already is no new event, after a restart neither.
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let said = reconcile(&sandbox, &[])?;
    assert_eq!((said.findings.len(), &said.summary["new"], events(&sandbox)?), (3, &0.into(), 3));

    // A statement of which the agent never heard the end.
    let before = said.summary["statements"].as_u64().context("a count")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let mut long = pod.start("long", [python, "-c".into(), source(LONG)])?;
    let arrived = || Ok(common::arrived(&sandbox)?.iter().any(|sql| sql.contains("wait")));
    eventually("it is at Snowflake", arrived)?;
    long.kill()?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let unknown =
        "SELECT query_id FROM trail WHERE sql LIKE '%wait%' AND status = 'unknown' AND query_id = ''";
    assert_eq!(journal(&sandbox, unknown)?.len(), 1);
    eventually("Snowflake has ended it", || {
        Ok(reconcile(&sandbox, &[])?.summary["statements"].as_u64() > Some(before))
    })?;
    go_around(&sandbox, &["select 'around', 3"])?;
    let said = reconcile(&sandbox, &[])?;
    assert_eq!(
        (said.statements(), &said.summary["new"]),
        (vec!["select 'around', 1", "select 'around', 2", "select 'around', 3"], &2.into())
    );
    assert!(!sandbox.snowfence(["audit", "reconcile", "--user", "nobody"])?.succeeded());
    Ok(())
}

#[test]
fn the_timer_finds_it_and_each_agent_begins_where_the_last_one_ended() -> Result<()> {
    let mut sandbox =
        sandbox(&[("against", "journal".into()), ("role", AUDITOR.into()), ("every_minutes", 1.into())])?;
    let pod = sandbox.pod("reports")?;
    client(&pod, "connect().cursor().execute('select 1').fetchall()")?;
    settled(&sandbox)?;
    sandbox.kill_agent()?;
    go_around(&sandbox, &["select 'around'"])?;
    sandbox.start_agent()?;
    eventually("it is found", || Ok(events(&sandbox)? == 2))?;
    let reached = sandbox.agent_state().join("reconciled.json");
    eventually("it is remembered how far it came", || Ok(reached.exists()))?;
    sandbox.kill_agent()?;
    go_around(&sandbox, &["select 'again'"])?;
    sandbox.start_agent()?;
    eventually("the next is found", || Ok(events(&sandbox)? == 4))?;
    assert_eq!(reconcile(&sandbox, &[])?.summary["new"], 0);
    Ok(())
}

#[test]
fn with_the_views_of_the_account_addresses_are_certain_and_rights_are_missed() -> Result<()> {
    let settings = [("history", "account_usage".into()), ("role", AUDITOR.into())];
    let mut sandbox = sandbox(&settings)?;
    let pod = sandbox.pod("reports")?;
    client(&pod, "connect().cursor().execute('select 1; select 2', num_statements=2).fetchall()")?;
    by_the_sql_api(&pod, "select 6; select 7", "2")?;
    settled(&sandbox)?;
    let delivered = "SELECT count() AS n FROM snowfence.outcomes FINAL";
    let recorded = journal(&sandbox, "SELECT count(*) AS n FROM outcomes")?[0]["n"].to_string();
    eventually("ClickHouse has it", || Ok(sandbox.clickhouse(delivered)?.trim() == recorded))?;
    let said = reconcile(&sandbox, &[])?;
    assert_eq!((said.findings.as_slice(), said.succeeded), (&[] as &[Value], true), "{}", said.summary);
    go_around(&sandbox, &["select 'around'"])?;
    let said = reconcile(&sandbox, &[])?;
    assert_eq!((said.statements(), said.logins().len()), (vec!["select 'around'"], 1));
    eventually("ClickHouse knows what was found", || {
        let known = "SELECT count() FROM snowfence.events WHERE kind LIKE 'unrecorded_%'";
        Ok(sandbox.clickhouse(known)?.trim() == "2")
    })?;
    assert_eq!(reconcile(&sandbox, &[])?.summary["new"], 0);
    for finding in &said.findings {
        assert_eq!((&finding["address"], finding["by_time"] == true), (&network::UPSTREAM.into(), false));
    }

    // Without the role, Snowflake says no.
    let file = sandbox.configuration();
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replace(&format!("role = \"{AUDITOR}\""), "role = \"PUBLIC\""))?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let said = reconcile(&sandbox, &[])?;
    assert!(
        !said.succeeded && said.summary["error"].to_string().contains("not authorized"),
        "{}",
        said.summary
    );

    // With too few rights the functions show less, and that is not taken for proof.
    fs::write(&file, fs::read_to_string(&file)?.replace("account_usage", "information_schema"))?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    let said = reconcile(&sandbox, &[])?;
    assert!(!said.succeeded && said.summary["error"].to_string().contains("may not see"), "{}", said.summary);
    Ok(())
}
