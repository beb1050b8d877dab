//! Scopes: which workloads are covered, and how.

mod common;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sandbox::cgroup::Cgroup;
use sandbox::launch::Place;
use sandbox::process::{Plan, Process};
use sandbox::{Sandbox, network, python, services};
use toml::{Table, Value};

use common::{HANDSHAKE, client, eventually, serve};

const DIAL: &str = r#"say(**attempt(lambda: handshake(address("SANDBOX_UPSTREAM"), host)))"#;

fn scope(name: &str, facts: &[(&str, Value)]) -> Value {
    let mut scope = Table::new();
    scope.insert("name".to_owned(), name.into());
    scope.extend(facts.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    scope.into()
}

fn list(text: &str) -> Value {
    Value::Array(vec![text.into()])
}

fn with(scopes: Vec<Value>) -> Result<Sandbox> {
    let configured = Sandbox::builder().set("capture", "scopes", scopes);
    configured.start()
}

/// Whether a pod's connection to Snowflake leads to the agent.
fn is_captured(pod: &sandbox::Pod) -> Result<bool> {
    let said = client(pod, &format!("{HANDSHAKE}{DIAL}"))?;
    said[0]["rows"]["internal"].as_bool().with_context(|| format!("nobody was met: {}", said[0]))
}

#[test]
fn a_scope_that_is_off_goes_its_own_way_and_its_neighbour_does_not() -> Result<()> {
    let off = scope("free", &[("cgroups", list("/snowfence-*/pods/free")), ("mode", "off".into())]);
    let mut sandbox = with(vec![off])?;
    let (free, bound) = (sandbox.pod("free")?, sandbox.pod("bound")?);
    assert!(!is_captured(&free)?);
    assert!(is_captured(&bound)?);
    let sources: Vec<_> = sandbox.witness_log()?.iter().map(|line| line["source"].clone()).collect();
    assert!(!sources.is_empty() && sources.iter().all(|source| source == "10.77.2.2"), "{sources:?}");

    // It may even say a name where nobody knows it; its neighbour may not.
    let unknown =
        |number: u8| format!("{HANDSHAKE}say(**attempt(lambda: handshake(('10.77.3.{number}', 443), host)))");
    assert_eq!(client(&free, &unknown(20))?[0]["rows"]["internal"], false);
    assert!(client(&bound, &unknown(21))?[0]["error"].is_string());
    Ok(())
}

#[test]
fn the_default_may_be_off_for_a_host_on_which_few_are_covered() -> Result<()> {
    let bound = scope("bound", &[("cgroups", list("/snowfence-*/pods/bound")), ("mode", "endpoints".into())]);
    let mut sandbox =
        Sandbox::builder().set("capture", "mode", "off").set("capture", "scopes", vec![bound]).start()?;
    let (free, bound) = (sandbox.pod("free")?, sandbox.pod("bound")?);
    assert!(!is_captured(&free)?);
    assert!(is_captured(&bound)?);
    Ok(())
}

#[test]
fn where_everybody_is_off_everybody_goes_his_own_way() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("capture", "mode", "off").start()?;
    let free = sandbox.pod("free")?;
    assert!(!is_captured(&free)?, "past the perimeter too");
    Ok(())
}

#[test]
fn raw_sockets_are_allowed_where_a_scope_says_so() -> Result<()> {
    let tools =
        scope("tools", &[("cgroups", list("/snowfence-*/pods/tools")), ("raw_sockets", "allow".into())]);
    let mut sandbox = with(vec![tools])?;
    let raw = r"
import socket
say(**attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).fileno() > 0))";
    assert_eq!(client(&sandbox.root_pod("tools")?, raw)?[0]["rows"], true);
    assert_eq!(client(&sandbox.root_pod("other")?, raw)?[0]["error"], "PermissionError");
    Ok(())
}

/// A process of the host, in the cgroup of a unit and in the host's own network.
fn of_unit(sandbox: &Sandbox, unit: &str, program: &str) -> Result<Process> {
    let cgroup = Cgroup::covered(sandbox.id())?.child("system.slice").child(unit);
    cgroup.create()?;
    let plan = Plan {
        name: format!("unit-{unit}"),
        place: Place {
            network: Some(network::node(sandbox.id())),
            cgroup: cgroup.path().to_owned(),
            container: None,
        },
        program: python::system()?.display().to_string(),
        arguments: vec!["-c".into(), program.into()],
        environment: services::environment(),
    };
    Process::start(&plan, &sandbox.state().logs())
}

/// Prints whether the agent was met.
const OF_UNIT: &str = r#"
import socket, ssl
plain = socket.create_connection(("10.77.1.2", 443), 20)
tls = ssl._create_unverified_context().wrap_socket(plain, server_hostname="acme.eu-west-1.snowflakecomputing.com")
print(b"Snowfence internal CA" in tls.getpeercert(True), flush=True)
"#;

#[test]
fn units_of_the_host_are_told_apart_by_their_names() -> Result<()> {
    let backup = scope("backup", &[("units", list("backup-*.service")), ("mode", "off".into())]);
    let sandbox = with(vec![backup])?;
    for (unit, captured) in [("backup-nightly.service", "False\n"), ("agent.service", "True\n")] {
        let cgroup = Cgroup::covered(sandbox.id())?.child("system.slice").child(unit);
        cgroup.create()?;
        // A new cgroup has its scope a moment after it was made.
        eventually(&format!("{unit} is in its scope"), || {
            let mut process = of_unit(&sandbox, unit, OF_UNIT)?;
            let ended = process.wait(Duration::from_secs(30))?.context("it hangs")?;
            ensure!(ended.success(), "{}", process.last_words());
            Ok(process.output()? == captured)
        })?;
    }
    Ok(())
}

#[test]
fn a_process_that_changes_its_cgroup_does_not_escape() -> Result<()> {
    let off = scope("free", &[("units", list("free.service")), ("mode", "off".into())]);
    let sandbox = with(vec![off])?;
    let covered = Cgroup::covered(sandbox.id())?;
    covered.child("system.slice/moved.service/below").create()?;
    covered.child("elsewhere").create()?;
    for place in ["system.slice/moved.service/below", "elsewhere"] {
        let moves = format!("open({:?}, 'w').write('0')\n", covered.path().join(place).join("cgroup.procs"));
        let mut process = of_unit(&sandbox, "agent.service", &format!("{moves}{OF_UNIT}"))?;
        let ended = process.wait(Duration::from_secs(30))?.context("it hangs")?;
        ensure!(ended.success(), "{}", process.last_words());
        assert_eq!(process.output()?, "True\n", "{place}");
    }
    Ok(())
}

#[test]
fn a_scope_that_matches_nothing_is_warned_of() -> Result<()> {
    let typo = scope("the batch jobs", &[("units", list("btach-*.service")), ("mode", "all".into())]);
    let sandbox = with(vec![typo])?;
    let log = sandbox.agent_log()?;
    let warning =
        log.lines().find(|line| line.contains("the batch jobs")).context("nothing is said of it")?;
    assert!(warning.contains("WARN") && warning.contains("matches no cgroup"), "{warning}");
    Ok(())
}

/// As much of the API server as the watch of pods needs: it answers to `list` and `watch` with the pod in a file, whose
/// change it tells of. Whoever has no token, or asks for pods of other nodes, or for more than their metadata, is refused.
const API_SERVER: &str = r#"
import http.server, json, os, sys, time, urllib.parse
folder = sys.argv[1]
def pod(version):
    labels = json.load(open(folder + "/labels.json"))
    metadata = {"name": "agents-0", "namespace": "agents-prod", "uid": "7f3c", "labels": labels, "resourceVersion": str(version)}
    return {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}
class Server(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        allowed = self.headers["Authorization"] == "Bearer api-token" and url.path == "/api/v1/pods"
        allowed = allowed and query.get("fieldSelector") == "spec.nodeName=worker-17"
        if not allowed or "PartialObjectMetadata" not in self.headers["Accept"]:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        if "watch" not in query:
            metadata = {"resourceVersion": "1"}
            body = json.dumps({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList", "metadata": metadata, "items": [pod(1)]}).encode()
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return self.wfile.write(body)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        version = 1
        last = os.stat(folder + "/labels.json").st_mtime_ns
        while True:
            time.sleep(0.05)
            now = os.stat(folder + "/labels.json").st_mtime_ns
            if now != last:
                last, version = now, version + 1
                line = json.dumps({"type": "MODIFIED", "object": pod(version)}).encode() + b"\n"
                self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("10.77.1.5", 6443), Server)
print("ready", flush=True)
server.serve_forever()
"#;

#[test]
fn pods_are_in_and_out_of_a_scope_as_their_labels_change() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let labels = folder.path().join("labels.json");
    std::fs::write(&labels, r#"{"app": "agents"}"#)?;
    let token = folder.path().join("token");
    std::fs::write(&token, "api-token")?;
    let token = token.display().to_string();
    let mut pods = Table::new();
    pods.insert("namespaces".into(), list("agents-*"));
    pods.insert("labels".into(), toml::from_str::<Table>("snowfence = 'off'")?.into());
    let free = scope("free", &[("pods", pods.into()), ("mode", "off".into())]);
    let mut sandbox = Sandbox::builder()
        .configure(move |configuration| {
            sandbox::configuration::put(configuration, "capture", "scopes", vec![free].into())?;
            for (key, value) in [
                ("node", "worker-17"),
                ("api_server", "http://10.77.1.5:6443"),
                ("token_file", token.as_str()),
            ] {
                sandbox::configuration::put(configuration, "kubernetes", key, value.into())?;
            }
            Ok(())
        })
        .start()?;
    let _server = serve(&network::outside(sandbox.id()), API_SERVER, Some(folder.path()))?;

    let pod = sandbox.pod("pod7f3c")?;
    assert!(is_captured(&pod)?, "its labels are not those of the scope");
    std::fs::write(&labels, r#"{"app": "agents", "snowfence": "off"}"#)?;
    eventually("the pod is free", || Ok(!is_captured(&pod)?))?;
    std::fs::write(&labels, r#"{"app": "agents", "snowfence": "on"}"#)?;
    eventually("the pod is bound again", || is_captured(&pod))
}

#[test]
fn connections_of_a_workload_end_when_its_scope_is_switched_on() -> Result<()> {
    let free = scope("free", &[("cgroups", list("/snowfence-*/pods/agent")), ("mode", "off".into())]);
    let mut sandbox = with(vec![free])?;
    let pod = sandbox.pod("agent")?;
    let python = pod.environment()["SANDBOX_PYTHON"].clone();
    let talk = format!(
        "{HANDSHAKE}{}",
        r#"
context = ssl._create_unverified_context()
tls = context.wrap_socket(socket.create_connection(address("SANDBOX_UPSTREAM"), 20), server_hostname=host)
open(os.environ["HOME"] + "/connected", "w").close()
say(**attempt(lambda: len(tls.recv(1))))"#
    );
    let mut old = pod.start("old", [python, "-c".into(), common::source(&talk)])?;
    pod.run(["sh", "-c", "until [ -e $HOME/connected ]; do sleep 0.05; done"])?.into_stdout()?;
    // The next agent knows of no such scope.
    let path = sandbox.configuration();
    let mut configuration: Table = toml::from_str(&std::fs::read_to_string(&path)?)?;
    let capture = configuration.get_mut("capture").and_then(Value::as_table_mut).context("[capture]")?;
    capture.remove("scopes");
    std::fs::write(&path, toml::to_string(&configuration)?)?;
    sandbox.replace_agent()?;
    let ended = old.wait(Duration::from_secs(20))?.context("the old connection lives on")?;
    assert!(ended.success(), "{}", old.last_words());
    assert!(is_captured(&pod)?);
    Ok(())
}
