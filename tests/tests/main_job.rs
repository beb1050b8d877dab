//! The main job: an unmodified client reads, is refused a `DROP`, goes on, and leaves a trail.

mod common;

use anyhow::Result;
use sandbox::{Environment, Sandbox};

use common::{arrived, client, eventually, journal};

#[test]
fn a_client_with_connector_5_reads_is_refused_a_drop_and_goes_on() -> Result<()> {
    reads_is_refused_and_goes_on(Environment::Connector5)
}

#[test]
fn a_client_with_connector_4_reads_is_refused_a_drop_and_goes_on() -> Result<()> {
    reads_is_refused_and_goes_on(Environment::Connector4)
}

fn reads_is_refused_and_goes_on(driver: Environment) -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(driver).start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(
        &pod,
        r#"
connection = connect()
cursor = connection.cursor()
run = lambda *statement: attempt(lambda: cursor.execute(*statement).fetchall())
say(**run("select count(*) from customers"))
say(**run("drop table customers"))
say(**run("/* harmless */ select 1 --\n; drop table customers"))
say(**run("select %s, %s", (7, "Zoë ☃")))
say(**run("create temporary table mine (a int)"))
say(**run("insert into mine values (1), (2)"))
say(**run("select count(a) from mine"))
say(**run("select no_such_column from customers"))
say(**run("begin"), also=run("rollback"))
say(session=connection.session_id)
connection.close()
"#,
    )?;
    assert_eq!(said[0]["rows"][0][0], 300);
    for refused in &said[1..3] {
        assert_eq!(refused["error"], "ProgrammingError", "{refused}");
        assert_eq!(refused["errno"], 3001);
        assert_eq!(refused["sqlstate"], "42501");
        let message = refused["message"].as_str().unwrap_or_default();
        assert!(message.contains("DROP TABLE") && message.contains("destructive-denied"), "{message}");
        assert!(message.contains("request "), "{message}");
    }
    assert_eq!(said[3]["rows"][0][1], "Zoë ☃");
    assert_eq!(said[6]["rows"][0][0], 2);
    assert_eq!(said[7]["error"], "ProgrammingError", "Snowflake's own error comes through: {}", said[7]);
    assert!(said[8]["error"].is_null() && said[8]["also"]["error"].is_null(), "{}", said[8]);

    // Neither a refused statement nor the client's token has reached Snowflake, nor its password the client.
    let statements = arrived(&sandbox)?;
    assert!(statements.iter().any(|sql| sql.contains("count(*)")), "{statements:?}");
    assert!(
        statements.iter().all(|sql| !sql.to_lowercase().contains("drop table customers")),
        "{statements:?}"
    );
    let log = serde_json::to_string(&sandbox.upstream_log()?)?;
    assert!(!log.contains(&pod.environment()["SNOWFLAKE_TOKEN"]), "the client's token went upstream");
    assert!(!log.contains("snowfence:"), "a token of the agent's went upstream");

    // The trail has each statement once, in the journal and in ClickHouse, with who asked.
    let trail = journal(
        &sandbox,
        "SELECT verdict, status, cgroup, subject, rows, policy, sql FROM trail ORDER BY time",
    )?;
    let first = &trail[0];
    assert_eq!(first["verdict"], "allow");
    assert_eq!(first["status"], "succeeded");
    assert_eq!(first["rows"], 1);
    assert_eq!(first["subject"], "reports@sandbox");
    assert!(first["cgroup"].as_str().unwrap_or_default().ends_with("/pods/reports"), "{first}");
    assert_eq!((trail[1]["verdict"].as_str(), trail[1]["status"].as_str()), (Some("deny"), Some("refused")));
    eventually("ClickHouse has the trail", || {
        Ok(sandbox.clickhouse_rows("SELECT sql FROM snowfence.trail").unwrap_or_default().len()
            == trail.len())
    })?;
    let delivered = sandbox.clickhouse_rows("SELECT sql FROM snowfence.trail ORDER BY time")?;
    let sql = |rows: &[serde_json::Value]| rows.iter().map(|row| row["sql"].clone()).collect::<Vec<_>>();
    assert_eq!(sql(&delivered), sql(&trail));
    Ok(())
}

#[test]
fn the_client_holds_nothing_of_snowflakes() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Connector4).start()?;
    let pod = sandbox.pod("reports")?;
    // The connector keeps its tokens where anybody can look, and renews the session when told that it has expired.
    let said = client(
        &pod,
        r#"
connection = connect()
rest = connection.rest
before = rest.token
rest._token_request("RENEW")
say(before=before, after=rest.token, master=rest.master_token,
    rows=connection.cursor().execute("select 1").fetchall())
try:
    say(issued=str(rest._token_request("ISSUE")))
except Exception as error:
    say(refused=str(error))
"#,
    )?;
    let client_tokens = [&said[0]["before"], &said[0]["after"], &said[0]["master"]];
    assert_eq!(said[0]["rows"][0][0], 1, "the renewed session works");
    assert_ne!(said[0]["before"], said[0]["after"]);
    let log = serde_json::to_string(&sandbox.upstream_log()?)?;
    for token in client_tokens {
        let token = token.as_str().unwrap_or_default();
        assert!(token.starts_with("snowfence:"), "the client holds a token of the agent's: {token}");
        assert!(!log.contains(token));
    }
    assert!(said[1]["refused"].is_string(), "a further token is not issued: {}", said[1]);
    Ok(())
}
