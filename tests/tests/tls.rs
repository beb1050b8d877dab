//! TLS towards clients: what every TLS library expects of a server, and what a client hears that does not know the CA.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use sandbox::{Environment, Pod, Sandbox, network, node, services};
use serde_json::{Value, json};

use common::{Ended, client, eventually, journal};

/// One request over TLS. `meet` says how the connection came about, and what became of the request.
const TLS: &str = r#"
import http.client, socket, ssl, subprocess
host, alias = os.environ["SNOWFLAKE_HOST"], os.environ["SANDBOX_ALIAS"]

def context(version=None):
    context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
    if version:
        # The library would not even try the old ones.
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
    return context

def meet(context, name=host, asks=None, session=None):
    plain = socket.create_connection((host, 443), 30)
    with context.wrap_socket(plain, server_hostname=name, session=session) as tls:
        head = f"POST /telemetry/send HTTP/1.1\r\nHost: {asks or name}\r\nContent-Length: 2\r\n\r\n" + "{}"
        tls.sendall(head.encode())
        # With the answer come the tickets of TLS 1.3.
        status = int(tls.recv(4000).split()[1])
        names = [value for kind, value in tls.getpeercert()["subjectAltName"]]
        met = dict(version=tls.version(), reused=tls.session_reused, status=status, names=names)
        return met, tls.session
"#;

/// Runs Python that shakes hands by itself.
fn shaking(pod: &Pod, source: &str) -> Result<Vec<Value>> {
    client(pod, &format!("{TLS}{source}"))
}

#[test]
fn tls_1_2_and_1_3_work_and_nothing_older() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = shaking(
        &pod,
        r"
versions = ssl.TLSVersion
for version in (versions.TLSv1_3, versions.TLSv1_2, versions.TLSv1_1):
    say(**attempt(lambda: meet(context(version))[0]))
",
    )?;
    for (one, version) in said.iter().zip(["TLSv1.3", "TLSv1.2"]) {
        let met = &one["rows"];
        assert_eq!((&met["version"], &met["status"]), (&json!(version), &json!(200)), "{one}");
    }
    assert!(said[2]["message"].as_str().is_some_and(|it| it.contains("alert")), "{}", said[2]);
    eventually("the old version is on record", || {
        let events = journal(&sandbox, "SELECT detail FROM events WHERE kind = 'handshake_failed'")?;
        Ok(events.len() == 1 && !events[0]["detail"].to_string().contains("internal CA"))
    })
}

#[test]
fn a_session_is_resumed_by_its_own_name_only() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = shaking(
        &pod,
        r"
for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
    trust = context(version)
    first, session = meet(trust)
    again, session = meet(trust, session=session)
    other, _ = meet(trust, name=alias, session=session)
    # The name that counts is that of this handshake, not of the one in which the session began.
    _, session = meet(trust)
    smuggled, _ = meet(trust, name=alias, asks=host, session=session)
    say(first=first, again=again, other=other, smuggled=smuggled)
",
    )?;
    assert_eq!(said.len(), 2);
    for one in &said {
        assert_eq!(one["first"]["reused"], false, "{one}");
        assert_eq!(one["again"]["reused"], true, "{one}");
        assert_eq!((&one["other"]["reused"], &one["other"]["status"]), (&json!(false), &json!(200)), "{one}");
        assert_eq!(one["other"]["names"], json!([pod.environment()["SANDBOX_ALIAS"]]), "{one}");
        assert_eq!(
            (&one["smuggled"]["reused"], &one["smuggled"]["status"]),
            (&json!(false), &json!(421)),
            "{one}"
        );
    }
    eventually("the other Host is on record", || {
        let events = journal(&sandbox, "SELECT account FROM events WHERE kind = 'host_mismatch'")?;
        Ok(events.len() == 2
            && events.iter().all(|event| event["account"] == pod.environment()["SANDBOX_ALIAS"]))
    })
}

#[test]
fn names_with_underscores_and_hyphens_get_a_certificate_that_clients_take() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = shaking(
        &pod,
        r#"
for name in ("my_org-my_account", "org--a-b", "xy12345.us-east-2.aws", "a_b.privatelink", "_", "ACME"):
    name += ".snowflakecomputing.com"
    met = attempt(lambda: meet(context(), name)[0])
    address = os.environ["SANDBOX_UPSTREAM"]
    curl = subprocess.run(["curl", "-sS", "--http1.1", "--connect-to", f"{name}:443:{address}", "--cacert", os.environ["SSL_CERT_FILE"],
                           "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}", f"https://{name}/telemetry/send"],
                          capture_output=True, text=True)
    say(name=name, python=met.get("rows", met), curl=curl.stdout + curl.stderr)
node = """
const tls = require('tls');
const name = 'my_org-my_account.snowflakecomputing.com';
const socket = tls.connect({ host: process.env.SNOWFLAKE_HOST, port: 443, servername: name },
  () => { console.log(socket.authorized); socket.end(); });
"""
say(node=subprocess.run(["node", "-e", node], capture_output=True, text=True).stdout.strip())
"#,
    )?;
    let (node, names) = said.split_last().context("what was said")?;
    for one in names {
        let name = one["name"].as_str().unwrap_or_default().to_ascii_lowercase();
        assert_eq!(
            (&one["python"]["names"], &one["python"]["status"]),
            (&json!([name]), &json!(200)),
            "{one}"
        );
        assert_eq!(one["curl"], "200", "{one}");
    }
    assert_eq!(node["node"], "true");
    Ok(())
}

#[test]
fn a_leaf_is_short_lived_and_points_to_no_responder() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let said = shaking(
        &pod,
        r#"
with context().wrap_socket(socket.create_connection((host, 443), 30), server_hostname=host) as tls:
    leaf, pem = tls.getpeercert(), ssl.DER_cert_to_PEM_cert(tls.getpeercert(True))
text = subprocess.run(["openssl", "x509", "-noout", "-text"], input=pem, capture_output=True, text=True, check=True).stdout
begins, ends = (ssl.cert_time_to_seconds(leaf[key]) for key in ("notBefore", "notAfter"))
say(days=(ends - begins) / 86400, left=(ends - time.time()) / 86400, keys=sorted(leaf), text=text)
"#,
    )?;
    let (days, left) = (said[0]["days"].as_f64().unwrap_or(99.0), said[0]["left"].as_f64().unwrap_or(0.0));
    // Drivers that want certificate revocation lists make an exception for what is valid for less than seven days.
    assert!(days < 7.0 && left > 3.0, "{days} days, {left} left");
    let text = said[0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("Subject Alternative Name"), "{text}");
    for pointer in ["CRL Distribution", "Authority Information Access", "OCSP", "URI:"] {
        assert!(!text.contains(pointer), "{text}");
    }
    Ok(())
}

#[test]
fn a_driver_that_insists_on_a_list_of_revoked_certificates_gets_one_where_that_is_configured() -> Result<()> {
    const CONNECT: &str =
        "say(**attempt(lambda: connect(crl_check_mode='ENABLED').cursor().execute('select 1').fetchall()))";
    let mut without = Sandbox::builder().driver(Environment::Connector5).start()?;
    let said = client(&without.pod("reports")?, CONNECT)?;
    assert!(said[0]["error"].is_string(), "{}", said[0]);

    let mut sandbox =
        Sandbox::builder().driver(Environment::Connector5).set("clients", "revocation_list", true).start()?;
    let pod = sandbox.pod("reports")?;
    let said = client(&pod, CONNECT)?;
    assert_eq!(said[0]["rows"], json!([[1]]), "{}", said[0]);
    // OpenSSL checks the signature, the issuer and the dates.
    let said = shaking(
        &pod,
        r#"
import urllib.request
with urllib.request.urlopen(f"http://{host}/snowfence.crl", timeout=30) as answer:
    kind, found = answer.headers["content-type"], answer.read()
pem = subprocess.run(["openssl", "crl", "-inform", "DER"], input=found, capture_output=True, check=True).stdout.decode()
trust = context()
trust.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
unlisted = attempt(lambda: meet(trust)[0])
path = os.path.join(os.environ["HOME"], "list.pem")
open(path, "w").write(pem)
trust.load_verify_locations(path)
say(kind=kind, unlisted=unlisted, listed=meet(trust)[0])
"#,
    )?;
    assert_eq!(said[0]["kind"], "application/pkix-crl");
    assert!(
        said[0]["unlisted"]["message"].as_str().is_some_and(|it| it.contains("CRL")),
        "it checks: {}",
        said[0]
    );
    assert_eq!(said[0]["listed"]["status"], 200);
    Ok(())
}

#[test]
fn a_driver_that_insists_on_such_a_list_makes_an_exception_for_leaves_that_are_short_lived() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Connector4).start()?;
    let said = client(
        &sandbox.pod("connector")?,
        "say(**attempt(lambda: connect(cert_revocation_check_mode='ENABLED').cursor().execute('select 1').fetchall()))",
    )?;
    assert_eq!(said[0]["rows"], json!([[1]]), "{}", said[0]);
    let pod = sandbox.pod("node")?.with("NODE_PATH", &node::modules()?.to_string_lossy());
    let strict = common::NODE.replace("authenticator:", "certRevocationCheckMode: 'ENABLED', authenticator:");
    let ended = pod.run([
        "node",
        "-e",
        &format!(
            "{strict}\nconnect().then(async () => {{ say(await run('select 1 as x')); await close(); }})"
        ),
    ])?;
    assert_eq!(ended.into_stdout()?.trim(), r#"[{"X":1}]"#);
    Ok(())
}

/// An internal CA has no responder for OCSP, with which a leaf would have to come.
#[test]
fn a_go_driver_that_insists_on_ocsp_cannot_connect_and_one_that_insists_on_lists_can() -> Result<()> {
    for list in [false, true] {
        let mut sandbox =
            Sandbox::builder().driver(Environment::Adbc).set("clients", "revocation_list", list).start()?;
        let said = client(
            &sandbox.pod("reports")?,
            r#"
import adbc_driver_snowflake.dbapi as snowflake
of = os.environ
def select(**options):
    with snowflake.connect(**options) as connection, connection.cursor() as cursor:
        cursor.execute("select 1")
        return str(cursor.fetchone()[0])
def by_option(name, value):
    options = {
        "account": of["SNOWFLAKE_ACCOUNT"], "auth_type": "auth_oauth", "client_option.auth_token": of["SNOWFLAKE_TOKEN"],
        "client_option.login_timeout": "10s", f"client_option.{name}": value,
    }
    options = {f"adbc.snowflake.sql.{name}": value for name, value in options.items()}
    return select(db_kwargs={"username": of["SNOWFLAKE_USER"], **options})
def by_uri(options):
    return select(uri=f"{of['SNOWFLAKE_USER']}@{of['SNOWFLAKE_ACCOUNT']}/?authenticator=oauth&token={of['SNOWFLAKE_TOKEN']}"
                      f"&loginTimeout=10&{options}")
say(**attempt(lambda: by_option("ocsp_fail_open_mode", "false")))
say(**attempt(lambda: by_uri("ocspFailOpen=false")))
say(**attempt(lambda: by_uri("certRevocationCheckMode=ENABLED")))
say(**attempt(lambda: by_uri("certRevocationCheckMode=ENABLED&disableOCSPChecks=true")))"#,
        )?;
        let message = |one: &Value| one["message"].as_str().unwrap_or_default().to_owned();
        for one in &said[..2] {
            assert!(message(one).contains("269004: no OCSP server is attached to the certificate"), "{one}");
        }
        assert!(message(&said[2]).contains("both OCSP and CRL cannot be enabled"), "{}", said[2]);
        assert_eq!(said[3]["rows"], "1", "{}", said[3]);
    }
    Ok(())
}

/// Passes what comes by HTTP/2 on to the emulated Snowflake by HTTP/1.1, and says what it was.
const GATEWAY: &str = r"
const [http2, https, fs] = ['http2', 'https', 'fs'].map(require);
const [port, address, certificate, key, log] = process.argv.slice(1);
const server = http2.createSecureServer({ cert: fs.readFileSync(certificate), key: fs.readFileSync(key) });
server.on('request', (request, response) => {
  const { ':method': method, ':path': path, ':authority': authority, ...all } = request.headers;
  const kept = ([name]) => !/^:|^(connection|keep-alive|transfer-encoding)$/.test(name);
  const headers = { ...Object.fromEntries(Object.entries(all).filter(kept)), host: authority };
  fs.appendFileSync(log, JSON.stringify({ version: request.httpVersion, authority, path: path.split('?')[0] }) + '\n');
  const options = { host: address, servername: authority, method, path, headers, rejectUnauthorized: false };
  request.pipe(https.request(options, (answer) => {
    response.writeHead(answer.statusCode, Object.fromEntries(Object.entries(answer.headers).filter(kept)));
    response.addTrailers({ 'x-late': 'after the answer' });
    answer.pipe(response);
  }));
});
server.listen(port, () => fs.appendFileSync(log, ''));
";

#[test]
fn snowflake_may_speak_http_2() -> Result<()> {
    const PORT: &str = "9443";
    let mut sandbox = Sandbox::builder().start()?;
    let pod = sandbox.pod("reports")?;
    let outside = network::outside(sandbox.id());
    let within = |program: &str| {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", outside.display())).arg(program);
        command
    };
    let log = sandbox.state().public("gateway.jsonl");
    let files = services::certificate_files(sandbox.state());
    let gateway = within("node")
        .args(["-e", GATEWAY, PORT, network::UPSTREAM])
        .args([&files.certificate, &files.key, &log])
        .spawn()
        .map(Ended)?;
    eventually("the gateway listens", || Ok(log.exists()))?;
    let rules = format!(
        "
        table inet gateway {{
            chain prerouting {{
                type nat hook prerouting priority dstnat;
                ip daddr {} tcp dport 443 redirect to :{PORT}
                ip6 daddr {} tcp dport 443 redirect to :{PORT}
            }}
        }}",
        network::UPSTREAM,
        network::UPSTREAM6
    );
    let mut nft = within("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("its input")?.write_all(rules.as_bytes())?;
    anyhow::ensure!(nft.wait()?.success(), "nft");

    let said = client(
        &pod,
        r#"
cursor = connect().cursor()
say(rows=cursor.execute("select count(*) from customers").fetchall())
say(large=len(cursor.execute("select seq4() from table(generator(rowcount => 60000))").fetchall()))
cursor.execute("create table written (a varchar)")
say(**attempt(lambda: cursor.execute("insert into written values (%s)", ["x" * 300_000]).rowcount))
say(**attempt(lambda: cursor.execute("drop table customers")))"#,
    )?;
    assert_eq!((&said[0]["rows"], &said[1]["large"]), (&json!([[300]]), &json!(60_000)));
    assert_eq!(said[2]["rows"], 1, "{}", said[2]);
    assert_eq!(said[3]["errno"], 3001, "{}", said[3]);
    let came = std::fs::read_to_string(&log)?;
    let came: Vec<Value> = came.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let statements = came.iter().filter(|line| line["path"] == "/queries/v1/query-request").count();
    assert!(statements >= 4, "{came:?}");
    for line in &came {
        assert_eq!(
            (&line["version"], &line["authority"]),
            (&json!("2.0"), &json!(services::ACCOUNT_HOST)),
            "{line}"
        );
    }
    drop(gateway);
    Ok(())
}

/// What is recorded of a client that does not know the CA, and what `doctor` says of it.
fn handshake_failed(sandbox: &Sandbox, pod: &str, settings: &[&str]) -> Result<()> {
    eventually("the failed handshake is on record, with what to set", || {
        let events =
            journal(sandbox, "SELECT account, cgroup, detail FROM events WHERE kind = 'handshake_failed'")?;
        Ok(events.iter().any(|event| {
            let detail = event["detail"].as_str().unwrap_or_default();
            event["account"] == "acme.eu-west-1.snowflakecomputing.com"
                && event["cgroup"].as_str().is_some_and(|it| it.ends_with(&format!("/pods/{pod}")))
                && settings.iter().all(|setting| detail.contains(setting))
        }))
    })
    .with_context(|| format!("{:?}", journal(sandbox, "SELECT account, cgroup, detail FROM events")))
}

/// The same pod, whose programs know no CA but the system's.
fn stranger(sandbox: &mut Sandbox) -> Result<Pod> {
    let mut pod = sandbox.pod("stranger")?;
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"] {
        pod = pod.with(variable, "/etc/ssl/certs/ca-certificates.crt");
    }
    Ok(pod)
}

#[test]
fn a_connector_that_does_not_know_the_ca_is_on_record_with_its_variables() -> Result<()> {
    for driver in [Environment::Connector5, Environment::Connector4] {
        let mut sandbox = Sandbox::builder().driver(driver).start()?;
        let pod = stranger(&mut sandbox)?;
        let said = client(&pod, "say(**attempt(lambda: connect(login_timeout=5)))")?;
        assert!(said[0]["error"].is_string(), "{}", said[0]);
        handshake_failed(&sandbox, "stranger", &["UnknownCA", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])?;
    }
    Ok(())
}

#[test]
fn clients_that_do_not_know_the_ca_are_told_apart_and_doctor_says_what_to_set() -> Result<()> {
    let mut sandbox = Sandbox::builder().driver(Environment::Adbc).start()?;
    let pod = stranger(&mut sandbox)?;
    // It tries again and again.
    let mut driver = pod
        .start("adbc", [&pod.environment()["SANDBOX_PYTHON"], "-c", &format!("{}connect()", common::ADBC)])?;
    handshake_failed(&sandbox, "stranger", &["BadCertificate", "SSL_CERT_FILE (Go driver"])?;
    driver.kill()?;
    let failed = pod.run(["node", "-e", "require('https').get('https://' + process.env.SNOWFLAKE_HOST)"])?;
    assert!(failed.stderr.contains("certificate"), "{failed:?}");
    handshake_failed(&sandbox, "stranger", &["takes by NODE_EXTRA_CA_CERTS (Node SDK)"])?;
    let failed = pod.run(["sh", "-c", "curl -sS https://$SNOWFLAKE_HOST/"])?;
    assert!(failed.stderr.contains("certificate"), "{failed:?}");
    handshake_failed(
        &sandbox,
        "stranger",
        &["UnknownCA", "takes by CURL_CA_BUNDLE or SSL_CERT_FILE (curl)"],
    )?;

    let said = sandbox.snowfence(["doctor", "--format", "json"])?.into_stdout()?;
    let said: Value = serde_json::from_str(&said)?;
    let failed = said["failed_handshakes"].as_array().context("the failed handshakes")?;
    assert!(failed[0]["cgroup"].as_str().is_some_and(|it| it.ends_with("/pods/stranger")), "{failed:?}");
    assert!(
        failed[0]["detail"].as_str().is_some_and(|it| it.contains("(curl)")),
        "the last is first: {failed:?}"
    );
    let text = sandbox.snowfence(["doctor"])?.into_stdout()?;
    for trust in said["trust"].as_array().context("by what clients take the CA")? {
        let [of, by] = ["client", "setting"].map(|key| trust[key].as_str().unwrap_or_default());
        assert!(text.contains(&format!("{of}: {by}\n")), "{text}");
    }
    assert!(text.contains("/pods/stranger  acme.eu-west-1.snowflakecomputing.com  received"), "{text}");
    Ok(())
}
