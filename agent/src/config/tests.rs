use super::*;

const GOOD: &str = r#"
[agent]
node = "node-1"

[[accounts]]
host = "Acme.eu-west-1.snowflakecomputing.com"

[[issuers]]
issuer = "https://idp.example"
audience = "snowfence"
jwks_url = "https://idp.example/jwks"

[[rules]]
name = "analysts"
groups = ["analysts"]
cgroups = ["/kubepods/*/pod-*", "/system.slice/**"]
user = "SVC"
credential = "svc"

[credentials.svc]
type = "password"
secret = "env:SVC_PASSWORD"
"#;

fn problems(text: &str) -> Vec<(usize, String, String)> {
    match parse(Path::new("t.toml"), text) {
        Err(ConfigError::Invalid { problems, .. }) => {
            problems.into_iter().map(|problem| (problem.line, problem.key, problem.message)).collect()
        }
        other => panic!("expected problems, got {other:?}"),
    }
}

#[test]
fn a_good_file_is_read_with_its_defaults() {
    let config = parse(Path::new("t.toml"), GOOD).unwrap();
    assert_eq!(config.accounts[0].host, "acme.eu-west-1.snowflakecomputing.com");
    assert_eq!(config.capture.listen_port, 15443);
    assert!(config.is_snowflake("x.snowflakecomputing.com"));
    assert!(!config.is_snowflake("evilsnowflakecomputing.com"));
    let globs = config.rules[0].cgroups.as_ref().unwrap();
    assert!(globs.is_match("/kubepods/a/pod-1"));
    assert!(!globs.is_match("/kubepods/a/b/pod-1"));
    assert!(globs.is_match("/system.slice/a/b"));
}

#[test]
fn every_problem_is_reported_at_once_with_its_place() {
    let text = r#"
[agent]
nodes = "x"

[capture]
listen_port = "many"
networks = ["10.0.0.0/40"]

[[accounts]]
host = "acme.example.com"

[[issuers]]
issuer = "https://idp.example"
audience = 5

[[rules]]
name = "a"
user = "U"
credential = "svc"

[credentials.svc]
type = "pasword"
secret = "hunter2"
"#;
    let found = problems(text);
    let keys: Vec<_> = found.iter().map(|(line, key, _)| (*line, key.as_str())).collect();
    assert_eq!(
        keys,
        [
            (3, "agent.nodes"),
            (6, "capture.listen_port"),
            (14, "issuers[0].audience"),
            (22, "credentials.svc.type"),
        ]
    );
    assert!(found[0].2.contains("unknown field"), "{}", found[0].2);
}

#[test]
fn wrong_meanings_are_reported_at_once_too() {
    let text = GOOD
        .replace("eu-west-1.snowflakecomputing.com", "example.com")
        .replace("https://idp.example/jwks", "http://idp.example/jwks")
        .replace("env:SVC_PASSWORD", "hunter2")
        .replace("\"/kubepods/*/pod-*\"", "\"kubepods\"");
    let found = problems(&text);
    let keys: Vec<_> = found.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "accounts[0].host",
            "issuers[0].jwks_url",
            "rules[0].cgroups[0]",
            "rules[0].credential",
            "credentials.svc.secret"
        ]
    );
    assert!(found.iter().all(|(_, _, message)| !message.contains("hunter2")), "the secret is not repeated");
}

#[test]
fn a_missing_key_and_a_syntax_error_name_their_place() {
    let found = problems(&GOOD.replace("user = \"SVC\"\n", ""));
    assert!(found[0].1 == "rules[0]" && found[0].2.contains("missing field `user`"), "{found:?}");
    let found = problems("[agent\n");
    assert_eq!(found[0].0, 1);
}

#[test]
fn a_secret_shows_nothing() {
    assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(…)");
}

#[test]
fn scopes_say_what_is_wrong_with_them() {
    let scopes = r#"
[capture]
mode = "all"

[[capture.scopes]]
name = ""
cgroups = ["kubepods.slice/**"]

[[capture.scopes]]
name = "nobody"

[[capture.scopes]]
name = "units by their paths"
units = ["/system.slice/backup.service"]

[[capture.scopes]]
name = "pods"
pods = { namespaces = ["agents-["] }

[metrics]
listen = "9464"

[kubernetes]
node = ""
api_server = "10.0.0.1:6443"
"#;
    let found = problems(&format!("{GOOD}{scopes}"));
    let keys: Vec<_> = found.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "capture.scopes[0].name",
            "capture.scopes[0].cgroups[0]",
            "capture.scopes[1].name",
            "capture.scopes[2].units[0]",
            "capture.scopes[3].pods[0]",
            "metrics.listen",
            "kubernetes.node",
            "kubernetes.api_server",
        ],
        "{found:?}"
    );
}

#[test]
fn a_scope_has_what_holds_for_all_where_it_says_nothing() {
    let scopes = r#"
[capture]
mode = "all"
raw_sockets = "refuse"

[[capture.scopes]]
name = "backup"
units = ["backup-*"]
mode = "off"
"#;
    let config = parse(Path::new("t.toml"), &format!("{GOOD}{scopes}")).unwrap();
    let scope = &config.capture.scopes[0];
    assert_eq!((scope.mode, scope.raw_sockets), (Mode::Off, RawSockets::Refuse));
    assert!(scope.units.is_match("backup-nightly.service") && !scope.cgroups.is_match("/"));
}

#[test]
fn suffixes_are_as_many_and_as_long_as_the_kernel_compares() {
    let many: Vec<String> = (0..9).map(|length| format!("\"{}.example\"", "a".repeat(length + 1))).collect();
    let long = format!("\"{}.example\"", "b".repeat(60));
    let found =
        problems(&format!("{GOOD}[capture]\nsuffixes = [\"snowflakecomputing.com\", {}]\n", many.join(", ")));
    assert!(
        found
            .iter()
            .any(|(_, key, message)| key == "capture.suffixes" && message.contains("different lengths"))
    );
    let found = problems(&format!("{GOOD}[capture]\nsuffixes = [\"snowflakecomputing.com\", {long}]\n"));
    assert!(found.iter().any(|(_, key, _)| key == "capture.suffixes[1]"), "{found:?}");
}

#[test]
fn payloads_are_kept_for_public_keys_alone() {
    let key = age::x25519::Identity::generate();
    let with = |recipients: &str| format!("{GOOD}\n[audit.payloads]\nrecipients = [{recipients}]\n");
    let good = with(&format!("\"{}\"", key.to_public()));
    let payloads = parse(Path::new("t.toml"), &good).unwrap().payloads.unwrap();
    assert_eq!((payloads.spool_limit, payloads.keep.as_secs()), (10 << 30, 30 * 86400));
    let secret = "\"AGE-SECRET-KEY-1QQPQ\"";
    for (recipients, message) in
        [("", "at least one"), ("\"age1nobody\"", "a public key of age"), (secret, "this is a secret key")]
    {
        let found = problems(&with(recipients));
        assert!(found.len() == 1 && found[0].2.contains(message), "{recipients}: {found:?}");
    }
    let small = format!("{good}spool_mebibytes = 1\nkeep_days = 0\n");
    let keys: Vec<_> = problems(&small).into_iter().map(|(_, key, _)| key).collect();
    assert_eq!(keys, ["audit.payloads.spool_mebibytes", "audit.payloads.keep_days"]);
}

#[test]
fn the_journal_is_kept_as_long_as_payloads_and_no_shorter_than_it_is_delivered() {
    let parse = |more: &str| parse(Path::new("t.toml"), &format!("{GOOD}\n{more}"));
    let days = |more: &str| parse(more).unwrap().journal.keep.map(|keep| keep.as_secs() / 86400);
    let clickhouse = "[audit.clickhouse]\nurl = \"http://ch:8123\"\n";
    assert_eq!(days(clickhouse), Some(30));
    assert_eq!(days(""), None, "it is delivered nowhere");
    assert_eq!(days("[audit.journal]\nkeep_days = 400"), Some(400));
    let payloads = "[audit.payloads]\nrecipients = [\"age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p\"]\nkeep_days = 90\n";
    assert_eq!(days(&format!("{clickhouse}{payloads}")), Some(90));
    let short = parse(&format!("{payloads}[audit.journal]\nkeep_days = 30\nmax_mebibytes = 1"));
    let ConfigError::Invalid { problems, .. } = short.unwrap_err() else { panic!("it is read") };
    let keys: Vec<&str> = problems.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["audit.journal.keep_days", "audit.journal.max_mebibytes"]);
}

#[test]
fn what_is_compared_is_checked() {
    let with =
        |more: &str| format!("{GOOD}\n[audit.reconcile]\ncredential = \"svc\"\nuser = \"auditor\"\n{more}");
    let read = |more: &str| parse(Path::new("t.toml"), &with(more)).unwrap().reconcile.unwrap();
    let usual = read("");
    let host = "acme.eu-west-1.snowflakecomputing.com".to_owned();
    assert_eq!(usual.accounts, [Covered { host, users: vec!["SVC".to_owned()] }]);
    assert_eq!(usual.against, Against::Journal);
    assert_eq!((usual.settle, usual.every), (Duration::from_mins(5), None));
    assert_eq!(read("history = \"account_usage\"").settle, Duration::from_hours(3));
    assert_eq!(read("users = [\"ada\", \"ADA\", \"bob\"]").accounts[0].users, ["ADA", "BOB"]);
    let clickhouse = "[audit.clickhouse]\nurl = \"http://localhost:8123\"";
    assert_eq!(read(clickhouse).against, Against::ClickHouse);
    for (key, more) in [
        ("accounts[0]", "accounts = [\"other.snowflakecomputing.com\"]"),
        ("users", "users = []"),
        ("addresses[0]", "addresses = [\"10.0.0.0/40\"]"),
        ("against", "against = \"clickhouse\""),
        ("every_minutes", "every_minutes = 0"),
    ] {
        let keys: Vec<String> = problems(&with(more)).into_iter().map(|(_, key, _)| key).collect();
        assert_eq!(keys, [format!("audit.reconcile.{key}")]);
    }
    let strange =
        with("").replace("credential = \"svc\"\nuser = \"auditor\"", "credential = \"no\"\nuser = \"\"");
    assert_eq!(problems(&strange).len(), 2);
}

#[test]
fn sinks_have_their_defaults_and_say_what_is_wrong_with_them() {
    let good = r#"
[[siem]]
name = "lines"
kind = "file"
path = "/var/log/trail.jsonl"

[[siem]]
name = "syslog"
kind = "syslog"
url = "tls://[fd00::1]"

[[siem]]
name = "splunk"
kind = "http"
url = "https://splunk.example:8088/services/collector/event"
format = "splunk_hec"
token = "env:SPLUNK_TOKEN"
"#;
    let config = parse(Path::new("t.toml"), &format!("{GOOD}{good}")).unwrap();
    let [lines, syslog, splunk] = config.siem.as_slice() else { panic!("three sinks") };
    assert!(matches!(lines.target, SiemTarget::File { max_bytes: 104_857_600, keep_files: 5, .. }));
    let SiemTarget::Syslog { host, port: 6514, tls: true, max_message_bytes: 8192, .. } = &syslog.target
    else {
        panic!("{syslog:?}")
    };
    assert_eq!(host, "fd00::1");
    assert!(matches!(splunk.target, SiemTarget::Http { format: SiemFormat::SplunkHec, gzip: false, .. }));

    let wrong = r#"
[[siem]]
name = "Lines"
kind = "file"
path = "trail.jsonl"
token = "env:T"
only = []

[[siem]]
name = "a"
kind = "syslog"
url = "udp://syslog.example:514"
max_message_bytes = 100

[[siem]]
name = "a"
kind = "http"
url = "http://splunk.example:8088/"
format = "splunk_hec"
keep_files = 3

[[siem]]
name = "b"
kind = "http"
url = "https://user:hunter2@splunk.example:8088/"
token = "hunter2"
batch_records = 0
verdicts = ["maybe"]
"#;
    let text = format!("{GOOD}{wrong}");
    assert_eq!(problems(&text)[0].1, "siem[3].verdicts[0]");
    let found = problems(&text.replace("verdicts = [\"maybe\"]", ""));
    let keys: Vec<_> = found.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(
        keys,
        [
            "siem[0].name",
            "siem[0].path",
            "siem[0].token",
            "siem[0].only",
            "siem[1].url",
            "siem[1].max_message_bytes",
            "siem[2].token",
            "siem[2].name",
            "siem[2].url",
            "siem[2].keep_files",
            "siem[3].url",
            "siem[3].token",
            "siem[3].batch_records",
        ],
        "{found:?}"
    );
    assert!(found.iter().all(|(_, _, message)| !message.contains("hunter2")), "the secret is not repeated");
}

#[test]
fn clickhouse_has_one_url_or_several() {
    let with = |text: &str| parse(Path::new("t.toml"), &format!("{GOOD}\n[audit.clickhouse]\n{text}"));
    let urls = |text: &str| with(text).unwrap().clickhouse.unwrap().urls;
    assert_eq!(urls(r#"url = "http://a:8123""#), ["http://a:8123"]);
    assert_eq!(urls(r#"url = ["http://a:8123", "https://b"]"#), ["http://a:8123", "https://b"]);
    let clickhouse = with("url = 'http://a'\nretention_days = { events = 7 }").unwrap().clickhouse.unwrap();
    assert!(clickhouse.apply_schema);
    assert_eq!((clickhouse.retention_days.events, clickhouse.retention_days.sessions), (Some(7), None));
    for (text, key) in [
        ("url = []", "audit.clickhouse.url"),
        (r#"url = ["http://a", "b"]"#, "audit.clickhouse.url"),
        ("url = 'http://a'\ncluster = 'a b'", "audit.clickhouse.cluster"),
        ("url = 'http://a'\nretention_days = { events = 0 }", "audit.clickhouse.retention_days.events"),
    ] {
        let found = problems(&format!("{GOOD}\n[audit.clickhouse]\n{text}"));
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].1, key, "{text}");
    }
}
