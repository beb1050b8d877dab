//! Snowflake's REST interfaces, by curl: objects, the Cortex services, MCP servers. Each call is judged and recorded like a
//! statement.

mod common;

use anyhow::{Context, Result};
use sandbox::{Credential, Pod, Sandbox, services};
use serde_json::{Value, json};

use common::curl::{Said, ask, sandbox_of};
use common::{eventually, journal};

const TABLES: &str = "/api/v2/databases/analytics/schemas/public/tables";
const COMPLETE: &str = "/api/v2/cortex/inference:complete";
const MCP: &str = "/api/v2/databases/analytics/schemas/public/mcp-servers/tools";
/// The same with sessions.
const SESSIONS: &str = "/api/v2/databases/analytics/schemas/public/mcp-servers/sessions";
const TASKS: &str = "/api/v2/databases/analytics/schemas/public/tasks";
const RESULTS: &str = "/api/v2/results";

/// The calls that reached Snowflake, as `METHOD path`.
fn calls(sandbox: &Sandbox) -> Result<Vec<String>> {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let lines = sandbox.upstream_log()?.into_iter().filter(|line| line["event"] == "request");
    Ok(lines.map(|line| format!("{} {}", text(&line, "method"), text(&line, "path"))).collect())
}

/// The account, and an agent whose policy allows whatever is no DROP.
fn permissive() -> Result<Sandbox> {
    let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/policies/no-drop.cedar");
    Sandbox::builder().credential(Credential::KeyPair).policy(policy).start()
}

fn call_tool(pod: &Pod, tool: &str, arguments: &Value) -> Result<Value> {
    let params = json!({ "name": tool, "arguments": arguments });
    let body = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params });
    let said = ask(pod, "POST", MCP, &["-d", &body.to_string()])?;
    assert_eq!((said.status, &said.body["id"]), (200, &json!(7)), "{said:?}");
    Ok(said.body)
}

/// Executes a task, whose result comes later.
fn begin(pod: &Pod, task: &str) -> Result<(String, Said)> {
    let begun = ask(pod, "POST", &format!("{TASKS}/{task}:execute?asyncExec=true"), &[])?;
    assert_eq!((begun.status, &begun.body["code"]), (202, &json!("392604")), "{begun:?}");
    let handle = begun.body["resultHandler"].as_str().context("a handle")?.to_owned();
    assert_eq!(begun.header("location"), Some(format!("{RESULTS}/{handle}").as_str()), "{begun:?}");
    Ok((handle, begun))
}

/// A request to an MCP server, in a session if one is given.
fn say(pod: &Pod, server: &str, method: &str, session: Option<&str>) -> Result<Said> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": {} }).to_string();
    let header = session.map(|session| format!("Mcp-Session-Id: {session}"));
    let options: Vec<&str> =
        ["-d", &body].into_iter().chain(header.iter().flat_map(|it| ["-H", it])).collect();
    ask(pod, "POST", server, &options)
}

#[test]
fn objects_are_read_and_each_call_is_on_record() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let pod = sandbox.pod("reports")?;
    let listed = ask(&pod, "GET", &format!("{TABLES}?like=cust%25"), &[])?;
    let names: Vec<&Value> =
        listed.body.as_array().with_context(|| format!("{listed:?}"))?.iter().map(|it| &it["name"]).collect();
    assert_eq!((listed.status, names), (200, vec![&json!("CUSTOMERS")]), "{listed:?}");
    let described = ask(&pod, "GET", &format!("{TABLES}/customers"), &[])?;
    assert_eq!((described.status, &described.body["name"]), (200, &json!("CUSTOMERS")), "{described:?}");
    let missing = ask(&pod, "GET", &format!("{TABLES}/no_such_table"), &[])?;
    assert!(missing.status == 422 && missing.body["code"] != "003001", "Snowflake's own: {missing:?}");

    eventually("each call has its outcome", || {
        let trail = journal(&sandbox, "SELECT sql, kind, effect, objects, status FROM trail ORDER BY time")?;
        let row = |sql: &str, kind: &str, objects: &str, status: &str| json!({ "sql": sql, "kind": kind, "effect": "read", "objects": json!([objects]).to_string(), "status": status });
        let (list, one) = (format!("GET {TABLES}?like=cust%25"), format!("GET {TABLES}/customers"));
        Ok(trail
            == [
                row(&list, "SHOW", "ANALYTICS.PUBLIC", "succeeded"),
                row(&one, "DESCRIBE TABLE", "ANALYTICS.PUBLIC.CUSTOMERS", "succeeded"),
                row(
                    &format!("GET {TABLES}/no_such_table"),
                    "DESCRIBE TABLE",
                    "ANALYTICS.PUBLIC.NO_SUCH_TABLE",
                    "failed",
                ),
            ])
    })?;
    let log = serde_json::to_string(&sandbox.upstream_log()?)?;
    assert!(!log.contains(&pod.environment()["SNOWFLAKE_TOKEN"]), "the caller's token went upstream");
    Ok(())
}

#[test]
fn what_changes_an_object_is_refused_and_reaches_nothing() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let pod = sandbox.pod("reports")?;
    for (method, path, body, kind) in [
        ("DELETE", format!("{TABLES}/customers"), None, "DROP TABLE"),
        (
            "POST",
            format!("{TABLES}?createMode=orReplace"),
            Some(r#"{"name":"customers"}"#),
            "REST POST TABLE",
        ),
        ("PUT", "/api/v2/warehouses/wh".to_owned(), Some(r#"{"name":"wh"}"#), "REST PUT WAREHOUSE"),
        ("POST", "/api/v2/users".to_owned(), Some(r#"{"name":"eve"}"#), "REST POST USER"),
    ] {
        let options: Vec<&str> = body.iter().flat_map(|body| ["-d", body]).collect();
        let said = ask(&pod, method, &path, &options)?;
        let message = said.body["message"].as_str().unwrap_or_default();
        assert_eq!((said.status, &said.body["code"]), (403, &json!("003001")), "{said:?}");
        assert!(message.contains("Snowfence refused") && message.contains(kind), "{message}");
        let id = said.body["request_id"].as_str().context("an id")?;
        let recorded = journal(&sandbox, &format!("SELECT kind, status FROM trail WHERE id = '{id}'"))?;
        assert_eq!(recorded, [json!({ "kind": kind, "status": "refused" })], "the id leads to the record");
    }
    let file = "/api/v2/databases/analytics/schemas/public/stages/s/files/a.csv:presigned-url";
    for (method, path, kind) in [
        ("POST", "/api/v2/warehouses/wh:suspend", "ALTER WAREHOUSE"),
        ("POST", "/api/v2/warehouses/wh:abort?ifExists=true", "ALTER WAREHOUSE"),
        ("POST", &format!("{TASKS}/wait_0:execute"), "EXECUTE TASK"),
        ("POST", &format!("{TABLES}/customers:undrop"), "UNDROP TABLE"),
        ("POST", &format!("{TABLES}/customers:swap-with?targetName=orders"), "ALTER TABLE"),
        ("POST", &format!("{TABLES}/customers:clone?createMode=orReplace"), "CREATE TABLE"),
        ("POST", "/api/v2/users/eve:set-tags", "ALTER USER"),
    ] {
        let said = ask(&pod, method, path, &[])?;
        let message = said.body["message"].as_str().unwrap_or_default();
        assert!(said.status == 403 && message.contains(&format!("refused {kind}")), "{path}: {said:?}");
    }
    let swapped = journal(&sandbox, "SELECT objects, effect FROM trail WHERE sql LIKE '%swap-with%'")?;
    let objects = json!(["ANALYTICS.PUBLIC.CUSTOMERS", "ANALYTICS.PUBLIC.ORDERS"]).to_string();
    assert_eq!(swapped, [json!({ "objects": objects, "effect": "destructive" })], "both are named");
    for path in ["/api/v2/warehouses/wh:undrop", "/api/v2/warehouses/wh:use", file] {
        assert_eq!(ask(&pod, "POST", path, &[])?.status, 404, "{path}");
    }
    for path in [file, "/api/v2/secrets", "/api/v2/databases/%2e%2e/users"] {
        assert_eq!(ask(&pod, "GET", path, &["--path-as-is"])?.status, 404, "{path}");
    }
    let misspelt = ask(&pod, "GET", &format!("{TABLES}?liek=x"), &[])?;
    assert_eq!(misspelt.status, 400, "a filter that is not understood is not left out: {misspelt:?}");
    assert_eq!(calls(&sandbox)?, Vec::<String>::new(), "nothing of it reached Snowflake");
    let events = journal(&sandbox, "SELECT kind FROM events WHERE kind = 'unknown_operation'")?;
    assert_eq!(events.len(), 6);
    Ok(())
}

#[test]
fn a_policy_may_allow_what_the_built_in_one_does_not() -> Result<()> {
    let mut sandbox = permissive()?;
    let pod = sandbox.pod("reports")?;
    let agent = json!({ "messages": [{ "role": "user", "content": "tidy up" }] }).to_string();
    let ran =
        ask(&pod, "POST", "/api/v2/databases/analytics/schemas/public/agents/tidy:run", &["-d", &agent])?;
    assert_eq!(ran.status, 200, "{ran:?}");
    let suspended = ask(&pod, "POST", &format!("/api/v2/warehouses/{}:suspend", services::WAREHOUSE), &[])?;
    assert_eq!(suspended.status, 200, "{suspended:?}");
    let clone = format!("{TABLES}/customers:clone");
    assert_eq!(ask(&pod, "POST", &clone, &["-d", r#"{"name":"twin"}"#])?.status, 200);
    let wrong = ask(&pod, "POST", &format!("{TASKS}/other:resume"), &[])?;
    assert_eq!((wrong.status, &wrong.body["code"]), (404, &json!("002003")), "Snowflake's own: {wrong:?}");
    eventually("what was done is on record, as the statement that does the same", || {
        let trail = journal(
            &sandbox,
            "SELECT kind, objects, status FROM trail WHERE sql LIKE 'POST %:%' AND kind != 'CORTEX AGENT' ORDER BY time",
        )?;
        let row = |kind: &str, objects: &[&str], status: &str| json!({ "kind": kind, "objects": json!(objects).to_string(), "status": status });
        let tables = ["ANALYTICS.PUBLIC.TWIN", "ANALYTICS.PUBLIC.CUSTOMERS"];
        Ok(trail
            == [
                row("ALTER WAREHOUSE", &[services::WAREHOUSE], "succeeded"),
                row("CREATE TABLE", &tables, "succeeded"),
                row("ALTER TASK", &["ANALYTICS.PUBLIC.OTHER"], "failed"),
            ])
    })?;
    let dropped = ask(&pod, "DELETE", &format!("{TABLES}/customers"), &[])?;
    assert_eq!(dropped.status, 403, "a policy on DROP holds here too: {dropped:?}");
    let mut strict = sandbox_of(Credential::KeyPair)?;
    let refused = ask(&strict.pod("reports")?, "POST", "/api/v2/cortex/agent:run", &["-d", &agent])?;
    let message = refused.body["message"].as_str().unwrap_or_default();
    assert!(refused.status == 403 && message.contains("cannot be determined"), "{refused:?}");
    Ok(())
}

#[test]
fn a_result_that_comes_later_is_fetched_by_its_caller_alone() -> Result<()> {
    let mut sandbox = permissive()?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let (handle, _) = begin(&pod, "wait_2")?;
    let path = format!("{RESULTS}/{handle}");
    assert_eq!(
        journal(&sandbox, "SELECT status FROM trail")?,
        [json!({ "status": "open" })],
        "it has not ended"
    );
    for (pod, path) in [
        (&thief, path.clone()),
        (&thief, format!("{path}?page=0")),
        (&pod, format!("{RESULTS}/01b1c2d3-0000-1111-2222-333344445555")),
    ] {
        let said = ask(pod, "GET", &path, &[])?;
        assert_eq!((said.status, &said.body["code"]), (404, &json!("003001")), "{said:?}");
    }
    assert!(!calls(&sandbox)?.iter().any(|call| call.starts_with("GET")), "nothing of it reached Snowflake");
    let refused =
        journal(&sandbox, "SELECT subject FROM events WHERE kind = 'session_refused' ORDER BY time")?;
    let subjects = ["thief@sandbox", "thief@sandbox", "reports@sandbox"].map(|it| json!({ "subject": it }));
    assert_eq!(refused, subjects);

    let botched = ask(&pod, "GET", &path, &["-A", ""])?;
    assert_eq!(botched.status, 400, "Snowflake's own, who wants to know what asks: {botched:?}");

    let ended = ask(&pod, "GET", &path, &[])?;
    assert!(ended.status == 200 && ended.body["status"].is_string(), "{ended:?}");
    let outcome = |handle: &str| {
        journal(&sandbox, &format!("SELECT kind, status, code FROM trail WHERE query_id = '{handle}'"))
    };
    let row = |status: &str, code: &str| json!({ "kind": "EXECUTE TASK", "status": status, "code": code });
    eventually("its end is on record", || Ok(outcome(&handle)? == [row("succeeded", "")]))?;
    assert_eq!(ask(&pod, "GET", &path, &[])?.status, 200, "as often as one likes");
    for query in ["?page=x", "?wait=1"] {
        assert_eq!(ask(&pod, "GET", &format!("{path}{query}"), &[])?.status, 400, "{query}");
    }

    let (failing, _) = begin(&pod, "fail")?;
    let failed = ask(&pod, "GET", &format!("{RESULTS}/{failing}"), &[])?;
    assert_eq!((failed.status, &failed.body["code"]), (422, &json!("002003")), "{failed:?}");
    eventually("its failure is on record", || Ok(outcome(&failing)? == [row("failed", "002003")]))?;
    begin(&pod, "far_0").context("the account's own address becomes a path")?;
    let away = ask(&pod, "POST", &format!("{TASKS}/away_0:execute?asyncExec=true"), &[])?;
    let message = away.body["message"].as_str().unwrap_or_default();
    assert!(away.status == 422 && message.contains("`Location`"), "another address does not: {away:?}");
    assert!(!away.head.contains("elsewhere"), "{away:?}");
    eventually("nobody will hear how that ends", || {
        let sql = "SELECT status FROM trail WHERE sql LIKE '%away_0%'";
        Ok(journal(&sandbox, sql)? == [json!({ "status": "unknown" })])
    })
}

#[test]
fn a_result_is_its_callers_by_the_next_agent_too() -> Result<()> {
    let mut sandbox = permissive()?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let (handle, _) = begin(&pod, "wait_3")?;
    let path = format!("{RESULTS}/{handle}");
    sandbox.replace_agent()?;
    assert_eq!(ask(&thief, "GET", &path, &[])?.status, 404);
    let ended = ask(&pod, "GET", &path, &[])?;
    assert_eq!(ended.status, 200, "{ended:?}");
    eventually("its outcome is recorded", || {
        let outcome = journal(&sandbox, &format!("SELECT status FROM trail WHERE query_id = '{handle}'"))?;
        Ok(outcome == [json!({ "status": "succeeded" })])
    })?;
    // What had ended is in the journal, from which an agent takes it after a kill.
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    assert_eq!(ask(&thief, "GET", &path, &[])?.status, 404);
    assert_eq!(ask(&pod, "GET", &path, &[])?.status, 200);
    Ok(())
}

#[test]
fn a_request_id_is_of_use_to_its_caller_alone() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    let path = format!("{TABLES}?requestId=6b1f0c1e-58a1-4b7a-9d55-1d2f3a4b5c6d");
    assert_eq!(ask(&pod, "GET", &path, &[])?.status, 200);
    let stolen = ask(&thief, "GET", &path, &[])?;
    assert_eq!(stolen.status, 400, "{stolen:?}");
    assert_eq!(ask(&pod, "GET", &path, &[])?.status, 200, "its caller may try again");
    assert_eq!(calls(&sandbox)?.len(), 2);
    Ok(())
}

#[test]
fn a_long_list_comes_page_by_page() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let (pod, thief) = (sandbox.pod("reports")?, sandbox.pod("thief")?);
    for number in 0..12 {
        let sql = format!("create table page_{number} (a int)");
        let body = json!({ "statement": sql, "database": "ANALYTICS", "schema": "PUBLIC" }).to_string();
        assert_eq!(ask(&pod, "POST", "/api/v2/statements", &["-d", &body])?.status, 200);
    }
    let first = ask(&pod, "GET", &format!("{TABLES}?like=page%25"), &[])?;
    let links = first.header("link").with_context(|| format!("{first:?}"))?;
    let next = links.split(',').find(|link| link.contains("next")).context("a next page")?;
    let next = next.split(['<', '>']).nth(1).context("a path")?;
    let (more, stolen) = (ask(&pod, "GET", next, &[])?, ask(&thief, "GET", next, &[])?);
    let rows = |said: &Said| said.body.as_array().map_or(0, Vec::len);
    assert_eq!((first.status, rows(&first), more.status, rows(&more)), (200, 10, 200, 2), "{more:?}");
    assert_eq!((stolen.status, &stolen.body["code"]), (404, &json!("003001")), "{stolen:?}");
    Ok(())
}

#[test]
fn a_secret_in_an_answer_stays_with_the_agent() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let said = ask(&sandbox.pod("reports")?, "GET", "/api/v2/users/ada", &[])?;
    let message = said.body["message"].as_str().unwrap_or_default();
    assert!(said.status == 422 && message.contains("withheld"), "{said:?}");
    assert!(!said.body.to_string().contains("a-secret-of-the-user"), "{said:?}");
    Ok(())
}

#[test]
fn a_language_model_is_asked_and_its_answer_comes_word_by_word() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let pod = sandbox.pod("reports")?;
    let prompt = |text: &str, stream: bool| {
        let messages = json!([{ "role": "user", "content": text }]);
        json!({ "model": "mistral-large2", "messages": messages, "stream": stream }).to_string()
    };
    let whole = ask(&pod, "POST", COMPLETE, &["-d", &prompt("who are you?", false)])?;
    assert_eq!(whole.body["choices"][0]["message"]["content"], "You asked: who are you?", "{whole:?}");

    // Each event is stamped when it comes: the first long before the last.
    let script = r#"curl -sS -N -A reports/1.0 -H 'Accept: text/event-stream, application/json' -H 'Content-Type: application/json' \
        -H "Authorization: Bearer $SNOWFLAKE_TOKEN" -d "$2" "https://$SNOWFLAKE_HOST$1" |
        while IFS= read -r line; do [ -z "$line" ] || echo "$(date +%s%N) $line"; done"#;
    let words = "one two three four five six seven eight nine ten";
    let output = pod.run(["sh", "-c", script, "sh", COMPLETE, &prompt(words, true)])?.into_stdout()?;
    let events: Vec<(u128, &str)> = output
        .lines()
        .map(|line| line.split_once(' ').context("a stamp").and_then(|(at, event)| Ok((at.parse()?, event))))
        .collect::<Result<_>>()?;
    let said: Vec<&str> = events.iter().map(|(_, event)| *event).collect();
    assert_eq!((said.len(), said.last()), (13, Some(&"data: [DONE]")), "{output}");
    assert!(said[2].contains("one") && said[11].contains("ten"), "{output}");
    let (first, last) = (events[0].0, events[12].0);
    assert!(last - first > 500_000_000, "they came at once: {output}");

    let broken =
        pod.run(["sh", "-c", script, "sh", COMPLETE, &prompt("please break off here and now", true)])?;
    assert!(!broken.stdout.contains("[DONE]"), "{}", broken.stdout);
    eventually("prompts and endings are on record", || {
        let trail = journal(&sandbox, "SELECT kind, status, features, sql FROM trail ORDER BY time")?;
        let statuses: Vec<&Value> = trail.iter().map(|row| &row["status"]).collect();
        let told = trail
            .iter()
            .all(|row| row["kind"] == "CORTEX INFERENCE" && row["features"] == r#"["ai_function"]"#);
        let prompts = trail.iter().filter(|row| row["sql"].as_str().is_some_and(|it| it.contains("mistral")));
        Ok(told && statuses == ["succeeded", "succeeded", "unknown"] && prompts.count() == 3)
    })
}

#[test]
fn analyst_and_search_answer() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::OauthToken)?;
    let pod = sandbox.pod("reports")?;
    let question = json!({ "messages": [{ "role": "user", "content": "how many?" }] }).to_string();
    let analyst = ask(&pod, "POST", "/api/v2/cortex/analyst/message", &["-d", &question])?;
    assert!(analyst.body.to_string().contains("select count(*)"), "{analyst:?}");
    let search = "/api/v2/databases/analytics/schemas/public/cortex-search-services/docs:query";
    let found = ask(&pod, "POST", search, &["-d", r#"{"query":"refunds","limit":3}"#])?;
    assert_eq!(found.body["results"][0]["text"], "found: refunds", "{found:?}");
    let objects = journal(&sandbox, "SELECT objects FROM trail WHERE kind = 'CORTEX SEARCH'")?;
    assert_eq!(objects, [json!({ "objects": r#"["ANALYTICS.PUBLIC.DOCS"]"# })]);
    Ok(())
}

#[test]
fn a_tool_that_runs_sql_is_judged_by_the_statement() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let pod = sandbox.pod("assistant")?;
    let hello = json!({ "jsonrpc": "2.0", "id": "a", "method": "initialize", "params": { "protocolVersion": "2025-06-18" } });
    let initialized = ask(&pod, "POST", MCP, &["-d", &hello.to_string()])?;
    assert_eq!(initialized.body["result"]["serverInfo"]["name"], "tools", "{initialized:?}");
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" });
    let tools = ask(&pod, "POST", MCP, &["-d", &list.to_string()])?;
    assert_eq!(tools.body["result"]["tools"][0]["name"], "sql_exec_tool", "{tools:?}");

    let read = call_tool(&pod, "sql_exec_tool", &json!({ "sql": "select count(*) as n from customers" }))?;
    let text = read["result"]["content"][0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("300") && read["result"]["isError"] == false, "{read}");
    for (tool, arguments, why) in [
        ("sql_exec_tool", json!({ "sql": "drop table customers" }), "destructive"),
        ("sql_exec_tool", json!({ "sql": "select 1; drop table customers" }), "destructive"),
        ("sql_exec_tool", json!({ "sql": "put file:///etc/passwd @~" }), "by a driver"),
        (
            "sql_exec_tool",
            json!({ "sql": "select 1", "then": "drop table customers" }),
            "cannot be determined",
        ),
        ("find_docs", json!({ "query": "refunds" }), "cannot be determined"),
    ] {
        let refused = call_tool(&pod, tool, &arguments)?;
        let message = refused["error"]["message"].as_str().unwrap_or_default();
        assert!(message.contains("Snowfence refused") && message.contains(why), "{arguments}: {refused}");
        let id = refused["error"]["data"]["statement"].as_str().context("an id")?;
        let recorded = journal(&sandbox, &format!("SELECT status FROM trail WHERE id = '{id}'"))?;
        assert_eq!(recorded, [json!({ "status": "refused" })]);
    }
    let unknown = json!({ "jsonrpc": "2.0", "id": 3, "method": "resources/read", "params": { "uri": "x" } });
    let said = ask(&pod, "POST", MCP, &["-d", &unknown.to_string()])?;
    assert_eq!(said.body["error"]["code"], -32601, "{said:?}");
    assert_eq!(calls(&sandbox)?.len(), 3, "what was refused did not reach Snowflake");
    eventually("the statement is on record, with the server and the tool", || {
        let trail = journal(
            &sandbox,
            "SELECT objects, status FROM trail WHERE kind = 'SELECT' AND status = 'succeeded'",
        )?;
        let objects = json!(["CUSTOMERS", "ANALYTICS.PUBLIC.TOOLS", "ANALYTICS.PUBLIC.TOOLS:sql_exec_tool"]);
        Ok(trail == [json!({ "objects": objects.to_string(), "status": "succeeded" })])
    })
}

#[test]
fn a_session_with_an_mcp_server_is_of_use_to_its_caller_alone() -> Result<()> {
    let mut sandbox = sandbox_of(Credential::KeyPair)?;
    let (pod, thief) = (sandbox.pod("assistant")?, sandbox.pod("thief")?);
    let begun = say(&pod, SESSIONS, "initialize", None)?;
    assert_eq!(begun.status, 200, "{begun:?}");
    let session = begun.header("mcp-session-id").with_context(|| format!("{begun:?}"))?;
    assert!(session.len() > 64 && session.bytes().all(|byte| byte.is_ascii_graphic()), "{session}");
    let listed = say(&pod, SESSIONS, "tools/list", Some(session))?;
    assert_eq!((listed.status, &listed.body["result"]["tools"][0]["name"]), (200, &json!("sql_exec_tool")));
    let asked =
        sandbox.upstream_log()?.into_iter().rfind(|line| line["path"] == SESSIONS).context("a request")?;
    let known = asked["headers"]["mcp-session-id"].as_str().context("the server's own id")?;
    assert!(known.starts_with("Session=") && !begun.head.contains(known), "the client sees another: {known}");

    let before = calls(&sandbox)?.len();
    let flipped = format!("{session}A");
    for (pod, server, session) in [
        (&thief, SESSIONS, session),
        (&pod, MCP, session),
        (&pod, SESSIONS, flipped.as_str()),
        (&pod, SESSIONS, known),
    ] {
        let said = say(pod, server, "tools/list", Some(session))?;
        let message = said.body["error"]["message"].as_str().unwrap_or_default();
        assert!(said.status == 404 && message.contains("Snowfence refused"), "{said:?}");
    }
    assert_eq!(calls(&sandbox)?.len(), before, "nothing of it reached Snowflake");
    let events = journal(&sandbox, "SELECT kind FROM events WHERE kind = 'session_refused'")?;
    assert_eq!(events.len(), 4);
    assert_eq!(say(&pod, SESSIONS, "tools/list", None)?.status, 400, "Snowflake's own");
    assert!(say(&pod, MCP, "initialize", None)?.header("mcp-session-id").is_none(), "where there is none");
    sandbox.replace_agent()?;
    assert_eq!(say(&pod, SESSIONS, "tools/list", Some(session))?.status, 200, "by the next agent too");
    Ok(())
}

#[test]
fn an_mcp_server_has_no_stream_of_its_own_and_its_sessions_end_by_time() -> Result<()> {
    let mut sandbox = permissive()?;
    let pod = sandbox.pod("assistant")?;
    for method in ["GET", "DELETE", "PUT"] {
        let said = ask(&pod, method, MCP, &["-H", "Accept: text/event-stream"])?;
        assert_eq!((said.status, said.header("allow")), (405, Some("POST")), "{method}: {said:?}");
    }
    assert_eq!(calls(&sandbox)?, Vec::<String>::new());
    let events = journal(&sandbox, "SELECT kind FROM events WHERE kind = 'unknown_operation'")?;
    assert_eq!(events.len(), 3, "each is on record");
    Ok(())
}

#[test]
fn a_rule_says_as_which_role_a_call_runs() -> Result<()> {
    let mut sandbox = Sandbox::builder()
        .credential(Credential::AccessToken)
        .configure(|configuration| {
            let rule = configuration["rules"][0].as_table_mut().context("a rule")?;
            rule.insert("role".into(), "ANALYST".into());
            rule.insert("sql_api".into(), true.into());
            Ok(())
        })
        .start()?;
    let options = ["-H", "X-Snowflake-Role: ACCOUNTADMIN", "-H", "X-Snowflake-Warehouse: HUGE"];
    let said = ask(&sandbox.pod("reports")?, "GET", "/api/v2/databases", &options)?;
    assert_eq!(said.status, 200, "{said:?}");
    let request = sandbox.upstream_log()?.into_iter().find(|line| line["path"] == "/api/v2/databases");
    let headers = &request.context("a request")?["headers"];
    assert_eq!(
        (&headers["x-snowflake-role"], headers.get("x-snowflake-warehouse")),
        (&json!("ANALYST"), Some(&json!(services::WAREHOUSE))),
        "{headers}"
    );
    Ok(())
}
