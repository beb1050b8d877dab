//! Mode `all`: every outbound connection passes through the agent. What is not Snowflake's must not notice.

mod common;

use anyhow::Result;
use sandbox::{Sandbox, network};

use common::{client, eventually, journal, serve};

/// Servers that are not Snowflake's: one that speaks first, one that says who has come, one that echoes until its client is
/// done, one that sends a lot.
const SERVERS: &str = r#"
import hashlib, socket, threading
def serve(port, handle):
    listener = socket.create_server(("10.77.1.4", port))
    def loop():
        while True:
            stream, peer = listener.accept()
            threading.Thread(target=handle, args=(stream, peer), daemon=True).start()
    threading.Thread(target=loop, daemon=True).start()
def greets(stream, peer):
    stream.sendall(b"220 mail.example ready\r\n")
    stream.sendall(b"250 " + stream.recv(100).upper())
    stream.close()
def tells(stream, peer):
    stream.sendall(peer[0].encode())
    stream.close()
def echoes(stream, peer):
    received = b""
    while piece := stream.recv(65536):
        received += piece
    stream.sendall(received.upper())
    stream.close()
def sends(stream, peer):
    for number in range(1600):
        stream.sendall(bytes([number % 256]) * 65536)
    stream.close()
def resets(stream, peer):
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.recv(1)
    stream.close()
for port, handle in ((25, greets), (7001, tells), (7, echoes), (7002, sends), (7003, resets)):
    serve(port, handle)
print("ready", flush=True)
threading.Event().wait()
"#;

#[test]
fn other_connections_are_passed_on_as_they_are() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("capture", "mode", "all").start()?;
    let _server = serve(&network::outside(sandbox.id()), SERVERS, None)?;
    let pod = sandbox.pod("web")?;
    let said = client(
        &pod,
        r#"
import socket, urllib.request
def dial(port):
    return socket.create_connection(("10.77.1.4", port), 20)
def greeted():
    with dial(25) as stream:
        greeting = stream.recv(100)
        stream.sendall(b"helo\r\n")
        return [greeting.decode(), stream.recv(100).decode()]
def told():
    with dial(7001) as stream:
        return [stream.recv(100).decode(), stream.getpeername()]
def echoed():
    with dial(7) as stream:
        sent = b"abc" * 300_000
        stream.sendall(sent)
        stream.shutdown(socket.SHUT_WR)
        received = b""
        while piece := stream.recv(65536):
            received += piece
        return received == sent.upper()
def fetched():
    with dial(7002) as stream:
        total = 0
        while piece := stream.recv(1 << 20):
            assert piece[0] == total // 65536 % 256
            total += len(piece)
        return total
def reset():
    with dial(7003) as stream:
        stream.sendall(b"x")
        return stream.recv(100)
def nobody():
    with dial(7004) as stream:
        stream.sendall(b"x")
        return stream.recv(100)
for action in (greeted, told, echoed, fetched, reset, nobody):
    say(**attempt(action))
say(**attempt(lambda: urllib.request.urlopen(os.environ["SANDBOX_CLICKHOUSE"] + "/ping", timeout=20).read().decode()))
"#,
    )?;
    assert_eq!(
        said[0]["rows"],
        serde_json::json!(["220 mail.example ready\r\n", "250 HELO\r\n"]),
        "{}",
        said[0]
    );
    assert_eq!(
        said[1]["rows"],
        serde_json::json!(["10.77.2.2", ["10.77.1.4", 7001]]),
        "each end sees the other's own address: {}",
        said[1]
    );
    assert_eq!(said[2]["rows"], true, "a connection whose one direction has ended: {}", said[2]);
    assert_eq!(said[3]["rows"], 1600 * 65536, "{}", said[3]);
    assert_eq!(said[4]["error"], "ConnectionResetError", "{}", said[4]);
    assert_eq!(said[5]["error"], "ConnectionResetError", "where nobody listens: {}", said[5]);
    assert_eq!(said[6]["rows"], "Ok.\n", "{}", said[6]);
    let events = journal(&sandbox, "SELECT kind, detail FROM events WHERE kind NOT LIKE 'agent_%'")?;
    assert!(events.is_empty(), "nothing of that is an attempt: {events:?}");
    Ok(())
}

#[test]
fn the_drivers_work_as_ever() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("capture", "mode", "all").start()?;
    let pod = sandbox.pod("agent")?;
    let said = client(&pod, "say(rows=connect().cursor().execute('select 1').fetchall())")?;
    assert_eq!(said[0]["rows"], serde_json::json!([[1]]));
    eventually("the statement is in the trail", || {
        Ok(!journal(&sandbox, "SELECT sql FROM statements WHERE sql = 'select 1'")?.is_empty())
    })
}

#[test]
fn udp_where_snowflake_could_be_is_refused_and_any_other_is_not() -> Result<()> {
    let mut sandbox = Sandbox::builder().set("capture", "mode", "all").start()?;
    let pod = sandbox.pod("agent")?;
    let said = client(
        &pod,
        r#"
import socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
say(**attempt(lambda: udp.sendto(b"x", ("10.77.1.4", 443))))
say(**attempt(lambda: udp.sendto(b"x", ("10.77.1.4", 123))))
say(**attempt(lambda: socket.getaddrinfo(os.environ["SNOWFLAKE_HOST"], 443)[0][4][1]))
"#,
    )?;
    assert_eq!(said[0]["error"], "PermissionError", "{}", said[0]);
    assert_eq!(said[1]["rows"], 1, "{}", said[1]);
    assert_eq!(said[2]["rows"], 443, "{}", said[2]);
    Ok(())
}
