//! Clients besides the connectors: each as it comes, with default settings, the internal CA and a token.

mod common;

use anyhow::Result;
use sandbox::{Environment, Sandbox, node};
use serde_json::{Value, json};

use common::{arrived, by_node, client, journal};

#[test]
fn node_reads_is_refused_and_goes_on() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let modules = node::modules()?;
    let pod = sandbox.pod("reports")?.with("NODE_PATH", &modules.to_string_lossy());
    let said = by_node(
        &pod,
        r"
say(await attempt('select count(*) as N from customers'));
say(await attempt('drop table customers'));
say(await attempt('select ? as A, ? as B', [7, 'Zoë ☃']));
say(await attempt('select no_such_column from customers'));
await attempt('create temporary table mine (a int)');
say(await attempt('insert into mine values (1), (2)'));
say(await attempt('select count(a) as N from mine'));
const rows = (await attempt('select seq4() as N, null as X from table(generator(rowcount => 90000))')).rows;
say([rows.length, new Set(rows.map((row) => row.N)).size, rows.reduce((sum, row) => sum + row.N, 0)]);
say(await attempt('select 1 as STILL'));",
    )?;
    assert_eq!(said[0]["rows"], json!([{ "N": 300 }]), "{}", said[0]);
    assert_eq!((&said[1]["code"], &said[1]["state"]), (&json!("003001"), &json!("42501")), "{}", said[1]);
    assert!(said[1]["message"].as_str().is_some_and(|it| it.contains("DROP TABLE")), "{}", said[1]);
    assert_eq!(said[2]["rows"], json!([{ "A": 7, "B": "Zoë ☃" }]), "{}", said[2]);
    assert!(said[3]["code"].is_string() && said[3]["rows"].is_null(), "Snowflake's own: {}", said[3]);
    assert!(said[4]["error"].is_null(), "{}", said[4]);
    assert_eq!(said[5]["rows"], json!([{ "N": 2 }]), "{}", said[5]);
    assert_eq!(said[6], json!([90_000, 90_000, 4_049_955_000_u64]), "a result in parts");
    assert_eq!(said[7]["rows"], json!([{ "STILL": 1 }]));

    assert!(arrived(&sandbox)?.iter().all(|sql| !sql.contains("drop table")));
    let refused = journal(&sandbox, "SELECT sql, verdict FROM statements WHERE verdict = 'deny'")?;
    assert_eq!((refused.len(), &refused[0]["sql"]), (1, &json!("drop table customers")), "once: {refused:?}");
    Ok(())
}

#[test]
fn the_cli_reads_and_is_refused() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Cli).start()?;
    let pod = sandbox.pod("shell")?;
    let snow = |sql: &str| {
        pod.run(["sh", "-c", r#"exec "$(dirname "$SANDBOX_PYTHON")/snow" sql --temporary-connection --format json \
            --account "$SNOWFLAKE_ACCOUNT" --user "$SNOWFLAKE_USER" --authenticator oauth --token "$SNOWFLAKE_TOKEN" \
            --database "$SNOWFLAKE_DATABASE" --schema "$SNOWFLAKE_SCHEMA" --query "$1""#, "sh", sql])
    };
    let read: Value = serde_json::from_str(&snow("select count(*) as N from customers")?.into_stdout()?)?;
    assert_eq!(read, json!([{ "N": 300 }]));
    let large: Value = serde_json::from_str(
        &snow("select count(*) as N, sum(n) as S from (select seq4() as n from table(generator(rowcount => 1000)))")?
            .into_stdout()?,
    )?;
    assert_eq!(large[0]["N"], 1000, "{large}");
    let refused = snow("drop table customers")?;
    assert!(!refused.succeeded(), "{}", refused.stdout);
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert!(said.contains("003001") && said.contains("DROP TABLE"), "{said}");
    assert!(arrived(&sandbox)?.iter().all(|sql| !sql.contains("drop table")));
    Ok(())
}

#[test]
fn sqlalchemy_reads_writes_and_is_refused() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::SqlAlchemy).start()?;
    let pod = sandbox.pod("app")?;
    let said = client(
        &pod,
        r#"
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine, select, text
from snowflake.sqlalchemy import URL
of = os.environ
engine = create_engine(
    URL(account=of["SNOWFLAKE_ACCOUNT"], user=of["SNOWFLAKE_USER"], database=of["SNOWFLAKE_DATABASE"],
        schema=of["SNOWFLAKE_SCHEMA"], authenticator="oauth", token=of["SNOWFLAKE_TOKEN"]))
people = Table("people", MetaData(), Column("id", Integer, primary_key=True, autoincrement=False), Column("name", String(20)))
with engine.connect() as connection:
    say(rows=connection.execute(text("select count(*) from customers")).scalar())
    connection.execute(text("create temporary table people (id int, name varchar(20))"))
    connection.execute(people.insert(), [dict(id=1, name="Zoë"), dict(id=2, name="Ann")])
    say(rows=[list(row) for row in connection.execute(select(people).where(people.c.id > 1))])
    say(**attempt(lambda: connection.execute(text("drop table customers"))))
    say(rows=connection.execute(text("select 7")).scalar())
    connection.rollback()"#,
    )?;
    assert_eq!(said[0]["rows"], 300, "{}", said[0]);
    assert_eq!(said[1]["rows"], json!([[2, "Ann"]]), "{}", said[1]);
    assert_eq!(said[2]["error"], "ProgrammingError", "{}", said[2]);
    assert!(said[2]["message"].as_str().is_some_and(|it| it.contains("003001 (42501)")), "{}", said[2]);
    assert_eq!(said[3]["rows"], 7, "{}", said[3]);
    Ok(())
}
