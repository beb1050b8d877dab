//! The command line as scripts and people meet it: exit codes, messages, JSON. Needs neither root nor the kernel.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const CONFIGURATION: &str = r#"
[[accounts]]
host = "acme.snowflakecomputing.com"
[[issuers]]
issuer = "https://idp.example"
audience = "snowfence"
jwks_url = "https://idp.example/jwks"
[[rules]]
name = "all"
user = "SVC"
credential = "svc"
[credentials.svc]
type = "password"
secret = "env:SNOWFENCE_TEST_SECRET"
"#;

fn snowfence(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_snowfence"))
        .args(arguments)
        .env_remove("SNOWFENCE_CONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early need not read its input.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        &["run"][..],
        &["detach"],
        &["config", "check"],
        &["config", "schema"],
        &["policy", "explain"],
        &["audit", "tail"],
        &["audit", "query"],
        &["ca", "print"],
        &["version"],
    ] {
        let output = snowfence(&[command, &["--help"]].concat(), "");
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("Example"), "{command:?}: {}", stdout(&output));
    }
}

#[test]
fn wrong_usage_ends_with_64() {
    for arguments in [&["frobnicate"][..], &[], &["policy", "explain"], &["audit", "tail", "--since", "soon"]]
    {
        let output = snowfence(arguments, "");
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", stderr(&output));
    }
    assert_eq!(snowfence(&["--version"], "").status.code(), Some(0));
}

#[test]
fn a_wrong_configuration_names_every_problem_and_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let text = CONFIGURATION
        .replace("user = \"SVC\"", "user = 5")
        .replace("[[accounts]]\nhost", "[[accounts]]\nhots");
    let path = file(directory.path(), "snowfence.toml", &text);
    let output = snowfence(&["config", "check", "--config", &path], "");
    assert_eq!(output.status.code(), Some(64));
    let message = stderr(&output);
    for expected in [&format!("{path}:3:8: accounts[0].hots"), &format!("{path}:10:8: rules[0].user")] {
        assert!(message.contains(expected), "{expected}:\n{message}");
    }
    let output = snowfence(&["config", "check", "--format", "json", "--config", &path], "");
    let report = &lines(&output)[0];
    assert_eq!(report["valid"], false);
    assert_eq!(report["problems"][1]["line"], 3);

    let missing = snowfence(&["run", "--config", "/nonexistent.toml"], "");
    assert_eq!(missing.status.code(), Some(64));
    assert_eq!(stderr(&missing).lines().count(), 1, "{}", stderr(&missing));
}

#[test]
fn a_secret_that_cannot_be_read_is_a_problem_of_the_configuration() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "snowfence.toml", CONFIGURATION);
    let output = snowfence(&["config", "check", "--config", &path], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("credentials.svc.secret"), "{}", stderr(&output));
    let output = snowfence(&["config", "check", "--without-secrets", "--config", &path], "");
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn the_schema_describes_the_file() {
    let schema: Value = serde_json::from_slice(&snowfence(&["config", "schema"], "").stdout).unwrap();
    assert!(schema["properties"]["rules"].is_object());
    assert!(schema["required"].as_array().unwrap().contains(&"accounts".into()));
}

#[test]
fn explain_answers_a_line_with_a_line() {
    let input = concat!(
        r#"{"id": 1, "sql": "select 1"}"#,
        "\n\n",
        r#"{"id": "two", "sql": "select 1; drop table t"}"#,
        "\n",
        r#"{"id": [3], "sql": ""}"#,
        "\n"
    );
    let output = snowfence(&["policy", "explain", "--format", "json", "--input", "jsonl", "-"], input);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let lines = lines(&output);
    assert_eq!(lines.len(), 3);
    assert_eq!(
        (&lines[0]["id"], &lines[0]["effect"], &lines[0]["decision"]),
        (&1.into(), &"read".into(), &"allow".into())
    );
    assert_eq!(
        (&lines[1]["id"], &lines[1]["effect"], &lines[1]["decision"]),
        (&"two".into(), &"destructive".into(), &"deny".into())
    );
    assert_eq!(lines[1]["policy"], "destructive-denied");
    let statement = lines[1]["statements"][1].as_object().unwrap();
    for key in ["kind", "effect", "actions", "objects", "features"] {
        assert!(statement.contains_key(key), "{key}");
    }
    assert_eq!((&lines[2]["effect"], &lines[2]["statements"]), (&"none".into(), &Value::Array(Vec::new())));
}

#[test]
fn explain_says_which_lines_it_could_not_read_and_goes_on() {
    let input = "nonsense\n{\"id\": 2, \"sql\": \"select 1\"}\n{\"id\": 3}\n";
    let output = snowfence(&["policy", "explain", "--format", "json", "--input", "jsonl", "-"], input);
    assert_eq!(output.status.code(), Some(1));
    let lines = lines(&output);
    assert!(lines[0]["error"].as_str().unwrap().starts_with("line 1"), "{}", lines[0]);
    assert_eq!(lines[1]["effect"], "read");
    assert!(lines[2]["error"].as_str().unwrap().starts_with("line 3"), "{}", lines[2]);
}

#[test]
fn explain_tells_a_person_what_a_statement_is() {
    let output = snowfence(&["policy", "explain", "drop table orders"], "");
    let text = stdout(&output);
    assert!(text.contains("DROP TABLE") && text.contains("destructive") && text.contains("denied"), "{text}");

    let directory = tempfile::tempdir().unwrap();
    let policy = file(directory.path(), "p.cedar", "@id(\"anything\") permit (principal, action, resource);");
    let sql = file(directory.path(), "migration.sql", "drop table orders");
    let output = snowfence(&["policy", "explain", "--policy", &policy, &sql], "");
    assert!(stdout(&output).contains("allowed by anything"), "{}", stdout(&output));

    let wrong = file(directory.path(), "w.cedar", "permit (principal, action, resource)");
    let output = snowfence(&["policy", "explain", "--policy", &wrong, "select 1"], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(stderr(&output).contains("w.cedar:1:"), "{}", stderr(&output));
}

#[test]
fn a_journal_that_is_not_there_is_said_so() {
    for arguments in [&["audit", "tail"][..], &["audit", "query", "select 1"]] {
        let output = snowfence(&[arguments, &["--journal", "/nonexistent/journal.db"]].concat(), "");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no journal at"), "{}", stderr(&output));
    }
}
