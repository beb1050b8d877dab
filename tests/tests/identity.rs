//! Identity: who is let in, as whom, and that a session is worth nothing anywhere else.

mod common;

use anyhow::Result;
use sandbox::services::{Claims, Service};
use sandbox::{Environment, Sandbox};
use serde_json::Value;

use common::{client, eventually, journal};

const CONNECT: &str = r#"
def rows():
    return connect().cursor().execute("select 1").fetchall()
say(**attempt(rows))
"#;

#[test]
fn only_a_good_token_of_an_admitted_caller_is_let_in() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    let good = Claims::analyst("ada");
    let refusals = [
        (sandbox.token(&Claims { groups: vec!["marketing".into()], ..good.clone() })?, "no rule admits"),
        (sandbox.token(&Claims { audience: "elsewhere".into(), ..good.clone() })?, "audience"),
        (sandbox.token(&Claims { lifetime_seconds: -600, ..good.clone() })?, "expired"),
        ("not-a-token".to_owned(), "no token"),
    ];
    for (token, reason) in &refusals {
        let said = client(&pod.clone().with("SNOWFLAKE_TOKEN", token), CONNECT)?;
        assert_eq!(said[0]["error"], "DatabaseError", "{}", said[0]);
        let message = said[0]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains("Snowfence refused this login") && message.contains(reason),
            "{reason}: {message}"
        );
    }
    let said = client(&pod.clone().with("SNOWFLAKE_TOKEN", &sandbox.token(&good)?), CONNECT)?;
    assert_eq!(said[0]["rows"][0][0], 1, "{}", said[0]);

    let recorded =
        journal(&sandbox, "SELECT cgroup, pid, subject, detail FROM events WHERE kind = 'login_refused'")?;
    assert_eq!(recorded.len(), refusals.len());
    assert!(recorded.iter().all(|event| event["pid"].as_i64().unwrap_or_default() > 0), "{recorded:?}");
    assert_eq!(recorded[0]["subject"], good.subject, "whose token it was is known");
    // Whoever asked, Snowflake saw one user log in, with the agent's credential.
    let logins: Vec<_> = sandbox
        .upstream_log()?
        .into_iter()
        .filter(|line| line["path"] == "/session/v1/login-request")
        .collect();
    assert_eq!(logins.len(), 1, "a refused login does not reach Snowflake");
    assert_eq!(logins[0]["body"]["data"]["LOGIN_NAME"], "SVC_AGENTS");
    Ok(())
}

#[test]
fn snowflakes_own_history_says_who_asked() -> Result<()> {
    let tags = |sandbox: &Sandbox| -> Result<Vec<Value>> {
        let log = sandbox.upstream_log()?.into_iter();
        let logins = log.filter(|line| line["path"] == "/session/v1/login-request");
        Ok(logins.map(|line| line["body"]["data"]["SESSION_PARAMETERS"]["QUERY_TAG"].clone()).collect())
    };
    let own = r#"
rows = lambda: connect(session_parameters={"QUERY_TAG": "nightly"}).cursor().execute("select 1").fetchall()
say(**attempt(rows))
"#;
    let mut sandbox = Sandbox::builder().start()?;
    let token = sandbox.token(&Claims::analyst("ada"))?;
    let pod = sandbox.pod("agent")?.with("SNOWFLAKE_TOKEN", &token);
    client(&pod, CONNECT)?;
    client(&pod, own)?;
    let tags_by_default = tags(&sandbox)?;
    let tag: Value = serde_json::from_str(tags_by_default[0].as_str().unwrap_or_default())?;
    assert_eq!(tag["snowfence"]["subject"], "ada", "{tag}");
    assert_eq!(tags_by_default[1], "nightly", "a client's own tag is left alone");

    let mut sandbox = Sandbox::builder().set("clients", "query_tag", "client").start()?;
    client(&sandbox.pod("agent")?, CONNECT)?;
    assert_eq!(tags(&sandbox)?, [Value::Null]);
    Ok(())
}

#[test]
fn every_field_that_a_driver_has_for_a_secret_takes_the_token() -> Result<()> {
    for driver in [Environment::Connector5, Environment::Connector4] {
        let mut sandbox = Sandbox::builder().driver(driver).start()?;
        let pod = sandbox.pod("agent")?;
        let said = client(
            &pod,
            r#"
token = os.environ["SNOWFLAKE_TOKEN"]
run = lambda **options: attempt(lambda: connect(**options).cursor().execute("select 1").fetchall())
say(**run(authenticator="programmatic_access_token"))
say(**run(authenticator="snowflake", password=token, token=None))
"#,
        )?;
        assert!(said.iter().all(|said| said["rows"][0][0] == 1), "{driver:?}: {said:?}");
    }
    Ok(())
}

#[test]
fn a_session_is_worth_nothing_in_another_pod() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Connector4).start()?;
    let (victim, thief) = (sandbox.pod("victim")?, sandbox.pod("thief")?);
    let open = client(
        &victim,
        r#"
connection = connect(server_session_keep_alive=True)
connection.cursor().execute("select 1")
say(session=connection.rest.token, master=connection.rest.master_token)
os._exit(0)
"#,
    )?;
    let theft = format!(
        r#"
say(**attempt(lambda: connect(session_token={session}, master_token={master}).cursor().execute("select 1").fetchall()))
"#,
        session = open[0]["session"],
        master = open[0]["master"],
    );
    let said = client(&thief, &theft)?;
    assert!(said[0]["error"].is_string(), "{}", said[0]);
    let said = client(&victim, &theft)?;
    assert_eq!(said[0]["rows"][0][0], 1, "in its own pod it works: {}", said[0]);
    eventually("the theft is recorded", || {
        let events = journal(&sandbox, "SELECT cgroup FROM events WHERE kind = 'session_refused'")?;
        Ok(events.iter().any(|event| event["cgroup"].as_str().unwrap_or_default().ends_with("/thief")))
    })
}

#[test]
fn a_workload_that_no_rule_admits_is_refused() -> Result<()> {
    let mut sandbox = Sandbox::builder()
        .configure(|configuration| {
            let rule = configuration["rules"][0].as_table_mut();
            rule.map(|rule| rule.insert("cgroups".into(), vec!["/snowfence-*/pods/trusted"].into()));
            Ok(())
        })
        .start()?;
    let (trusted, other) = (sandbox.pod("trusted")?, sandbox.pod("other")?);
    assert_eq!(client(&trusted, CONNECT)?[0]["rows"][0][0], 1);
    let refused = client(&other, CONNECT)?;
    assert!(refused[0]["message"].as_str().unwrap_or_default().contains("no rule admits"), "{}", refused[0]);
    Ok(())
}

#[test]
fn a_dead_identity_provider_keeps_people_out_and_says_so() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("agent")?;
    assert_eq!(client(&pod, CONNECT)?[0]["rows"][0][0], 1);
    sandbox.stop_service(Service::IdentityProvider)?;
    assert_eq!(client(&pod, CONNECT)?[0]["rows"][0][0], 1, "its keys are known for a while");

    sandbox.stop_agent()?;
    sandbox.start_agent()?;
    let refused = client(&pod, CONNECT)?;
    assert!(refused[0]["message"].as_str().unwrap_or_default().contains("try again later"), "{}", refused[0]);
    assert!(
        sandbox.agent_log()?.contains("is the identity provider up"),
        "the log names the URL and what to check"
    );

    sandbox.start_service(Service::IdentityProvider)?;
    eventually("it is back", || Ok(client(&pod, CONNECT)?[0]["error"].is_null()))
}
