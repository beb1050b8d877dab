//! SIEM sinks: whatever dies on either side, each record of the journal is in each sink, in its order, as a valid event.

mod common;

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sandbox::{Environment, Sandbox, certificates, network};
use serde_json::Value;

use common::{check_ocsf, client, eventually, journal, serve};

const TOKEN: &str = "3f0c6a1e-splunk-token-5b1d";

/// Both keep what they have taken, a JSON object a line, on the disk before they say that they have it.
const KEEPING: &str = r#"
import gzip, http.server, json, os, socket, socketserver, ssl, sys
folder = sys.argv[1]
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(folder + "/server.pem", folder + "/server.key")
def keep(name, lines):
    with open(f"{folder}/{name}", "a") as file:
        file.write("".join(line + "\n" for line in lines))
        file.flush()
        os.fsync(file.fileno())
"#;

/// Splunk's collector: knows one token, says 503 while there is a file `down`, and does not like `poison`.
const COLLECTOR: &str = r#"
class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if os.path.exists(folder + "/down"):
            return self.answer(503, 9, "Server is busy")
        if self.headers.get("Authorization") != "Splunk " + open(folder + "/expected").read():
            return self.answer(403, 4, "Invalid token")
        events, decoder, text, at = [], json.JSONDecoder(), body.decode(), 0
        while at < len(text):
            event, at = decoder.raw_decode(text, at)
            assert event["sourcetype"] == "snowfence:ocsf" and event["host"] == "sandbox" and float(event["time"]) > 1e9
            events.append(event["event"])
            at += len(text[at:]) - len(text[at:].lstrip())
        lines = [json.dumps(event) for event in events]
        if any("poison" in line for line in lines):
            return self.answer(400, 6, "Invalid data format")
        keep("splunk.jsonl", lines)
        self.answer(200, 0, "Success")
    def answer(self, status, code, text):
        body = json.dumps(dict(text=text, code=code)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
server = http.server.ThreadingHTTPServer(("10.77.1.4", 8088), Collector)
server.socket = tls.wrap_socket(server.socket, server_side=True)
print("ready", flush=True)
server.serve_forever()
"#;

/// RFC 5425: octet counting. Like many receivers it says no goodbye of TLS.
const SYSLOG: &str = r#"
class Receiver(socketserver.StreamRequestHandler):
    def handle(self):
        with tls.wrap_socket(self.request, server_side=True) as stream:
            left = b""
            while True:
                while (head := left.split(b" ", 1))[0].isdigit() and len(head) == 2 and len(head[1]) >= int(head[0]):
                    message, left = head[1][: int(head[0])], head[1][int(head[0]):]
                    assert len(message) <= 8192
                    priority, time, host, program, process, table, rest = message.decode().split(" ", 6)
                    assert (host, program, process) == ("sandbox", "snowfence", "-") and priority.endswith(">1")
                    element, event = rest.split("] ", 1)
                    assert element.startswith('[snowfence@32473 node="sandbox" seq="'), element
                    keep("syslog.jsonl", [event])
                if not (more := stream.recv(65536)):
                    return
                left += more
socketserver.ThreadingTCPServer.allow_reuse_address = True
server = socketserver.ThreadingTCPServer(("10.77.1.4", 6514), Receiver)
print("ready", flush=True)
server.serve_forever()
"#;

fn sinks(folder: &Path) -> Result<toml::Value> {
    let folder = folder.display();
    let text = format!(
        r#"
[[siem]]
name = "lines"
kind = "file"
path = "{folder}/file.jsonl"

[[siem]]
name = "syslog"
kind = "syslog"
url = "tls://10.77.1.4:6514"
ca_bundle = "{folder}/ca.pem"

[[siem]]
name = "splunk"
kind = "http"
url = "https://10.77.1.4:8088/services/collector/event"
format = "splunk_hec"
token = "file:{folder}/token"
ca_bundle = "{folder}/ca.pem"
gzip = true
batch_records = 20
"#
    );
    let mut table: toml::Table = toml::from_str(&text)?;
    table.remove("siem").context("the sinks")
}

/// What a running agent says of a sink.
fn sink(sandbox: &Sandbox, name: &str) -> Result<Value> {
    let said: Value = serde_json::from_str(&sandbox.snowfence(["doctor", "--format", "json"])?.stdout)?;
    let sinks = said["agent"]["sinks"].as_array().context("sinks")?;
    sinks.iter().find(|sink| sink["name"] == name).cloned().context("the sink")
}

fn events(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// The numbers of the records in a sink, in the order of their first arrival.
fn arrived(path: &Path) -> Result<Vec<i64>> {
    let mut seen = HashSet::new();
    let numbers = events(path)?.into_iter().filter_map(|event| event["metadata"]["sequence"].as_i64());
    Ok(numbers.filter(|seq| seen.insert(*seq)).collect())
}

fn recorded(sandbox: &Sandbox, from: &str) -> Result<Vec<i64>> {
    let rows = journal(sandbox, &format!("SELECT seq FROM ({from}) ORDER BY seq"))?;
    Ok(rows.iter().filter_map(|row| row["seq"].as_i64()).collect())
}

const ALL: &str =
    "SELECT seq FROM sessions UNION ALL SELECT seq FROM statements UNION ALL SELECT seq FROM approvals
    UNION ALL SELECT seq FROM outcomes UNION ALL SELECT seq FROM running UNION ALL SELECT seq FROM events UNION ALL SELECT seq FROM payloads UNION ALL SELECT seq FROM checkpoints";
const POISON: &str = "SELECT seq FROM statements WHERE sql LIKE '%poison%'
    UNION ALL SELECT o.seq FROM outcomes o JOIN statements s ON s.id = o.statement WHERE s.sql LIKE '%poison%'";

#[test]
fn each_sink_has_each_record_in_order_whatever_dies() -> Result<()> {
    sandbox::python::prepare(&[Environment::Ocsf], &|_| {})?;
    let place = tempfile::tempdir()?;
    let folder = place.path();
    let files = certificates::Files {
        authority: folder.join("ca.pem"),
        certificate: folder.join("server.pem"),
        key: folder.join("server.key"),
    };
    certificates::write(&["10.77.1.4"], &files)?;
    fs::write(folder.join("expected"), TOKEN)?;
    fs::write(folder.join("token"), "an old one, of no use")?;
    let siem = sinks(folder)?;
    let change = move |configuration: &mut toml::Table| {
        configuration.insert("siem".into(), siem);
        Ok(())
    };
    let builder = Sandbox::builder().configure(change).set("metrics", "listen", "127.0.0.1:9464");
    let mut sandbox = builder.without_agent().start()?;
    let outside = network::outside(sandbox.id());
    let collector = || serve(&outside, &format!("{KEEPING}{COLLECTOR}"), Some(folder));
    let syslog = || serve(&outside, &format!("{KEEPING}{SYSLOG}"), Some(folder));
    let (first_collector, first_syslog) = (collector()?, syslog()?);
    sandbox.start_agent()?;
    let pod = sandbox.pod("agent")?;
    let work = |from: u32| {
        let source = format!(
            r#"
cursor = connect().cursor()
for number in range({from}, {from} + 25):
    say(**attempt(lambda: cursor.execute(f"select {{number}}").fetchall()))
say(**attempt(lambda: cursor.execute("drop table customers")))
say(**attempt(lambda: cursor.execute("select '\u202e\u0001 ü \U0001f409 \"]\\' as \"odd\"")))
say(**attempt(lambda: cursor.execute("select '" + "x" * 100000 + "'")))
"#
        );
        client(&pod, &source)
    };

    // The token is wrong: that is nobody's record's fault. The others do not wait for it.
    work(0)?;
    eventually("the token is refused", || {
        Ok(sink(&sandbox, "splunk")?["error"].as_str().is_some_and(|error| error.contains("HTTP 403")))
    })?;
    eventually("the file has it all", || Ok(sink(&sandbox, "lines")?["pending"] == 0))?;
    assert_eq!(sink(&sandbox, "splunk")?["delivered"], 0);
    fs::write(folder.join("token"), TOKEN)?;
    eventually("a new token needs no restart", || Ok(sink(&sandbox, "splunk")?["pending"] == 0))?;

    // One record is not taken; those around it are.
    client(&pod, "connect().cursor().execute(\"select 'poison'\")")?;
    work(100)?;
    eventually("it is given up", || Ok(sink(&sandbox, "splunk")?["given_up"].as_u64() >= Some(2)))?;
    let metrics = network::inside(&network::node(sandbox.id()), || {
        Ok(ureq::get("http://127.0.0.1:9464/metrics").call()?.body_mut().read_to_string()?)
    })?;
    for line in [
        "snowfence_sink_given_up_records_total{sink=\"splunk\"} 2",
        "snowfence_sink_given_up_records_total{sink=\"lines\"} 0",
        "snowfence_sink_errors_total{sink=\"syslog\"} 0",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }

    // Everybody dies at some time.
    fs::write(folder.join("down"), "")?;
    work(200)?;
    sandbox.kill_agent()?;
    sandbox.start_agent()?;
    drop((first_collector, first_syslog));
    work(300)?;
    eventually("both are missed", || {
        let failing = |name| Ok::<_, anyhow::Error>(!sink(&sandbox, name)?["error"].is_null());
        Ok(failing("splunk")? && failing("syslog")?)
    })?;
    sandbox.kill_agent()?;
    fs::remove_file(folder.join("down"))?;
    let _receivers = (collector()?, syslog()?);
    sandbox.start_agent()?;
    work(400)?;
    sandbox.replace_agent()?;
    work(500)?;
    let poison = recorded(&sandbox, POISON)?;
    assert_eq!(poison.len(), 2, "the statement and its outcome");
    eventually("all has arrived, in its order", || {
        let all = recorded(&sandbox, ALL)?;
        let taken: Vec<i64> = all.iter().copied().filter(|seq| !poison.contains(seq)).collect();
        let has =
            |name: &str, records: &[i64]| Ok::<_, anyhow::Error>(arrived(&folder.join(name))? == records);
        Ok(all.len() > 300
            && has("file.jsonl", &all)?
            && has("syslog.jsonl", &all)?
            && has("splunk.jsonl", &taken)?)
    })?;
    let told = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'record_given_up'")?;
    for seq in poison {
        let record = format!("record {seq} ");
        let is_told = |row: &&Value| row["detail"].as_str().is_some_and(|text| text.contains(&record));
        assert_eq!(told.iter().filter(is_told).count(), 1, "{told:?}");
    }
    assert_eq!(told.len(), 2, "{told:?}");
    for name in ["file.jsonl", "syslog.jsonl", "splunk.jsonl"] {
        check_ocsf(&folder.join(name))?;
    }
    let log = sandbox.agent_log()?;
    assert!(!log.contains(TOKEN) && log.contains("is given up there"));

    // By what a security team would look for it.
    let all = events(&folder.join("splunk.jsonl"))?;
    let refused = all.iter().find(|event| {
        event["class_uid"] == 6005 && event["query_info"]["query_string"] == "drop table customers"
    });
    let refused = refused.context("the refused statement")?;
    assert_eq!(refused["disposition"], "Blocked");
    assert_eq!(refused["activity_name"], "Delete");
    assert_eq!(refused["actor"]["user"]["name"], "agent@sandbox");
    assert!(refused["actor"]["process"]["file"]["path"].as_str().is_some_and(|path| path.contains("python")));
    Ok(())
}
