//! The sandbox itself: it has no way out, its pods are no more than pods, and it leaves nothing behind.

mod common;

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use sandbox::{Sandbox, cgroup::Cgroup, network};

use common::client;

/// Dials addresses that only the machine's own network could lead to.
const WAYS_OUT: &str = r#"
import errno, socket, time
for family, address in [
    (socket.AF_INET, "1.1.1.1"), (socket.AF_INET, "169.254.169.254"), (socket.AF_INET, "10.0.0.1"),
    (socket.AF_INET6, "2606:4700::1111"),
]:
    began = time.monotonic()
    with socket.socket(family, socket.SOCK_STREAM) as dial:
        dial.settimeout(5)
        try:
            dial.connect((address, 80))
            print(address, "reached")
        except OSError as error:
            if errno.errorcode.get(error.errno) not in ("EHOSTUNREACH", "ENETUNREACH", "EACCES"):
                print(address, error)
    if time.monotonic() - began > 2:
        print(address, "took too long")
"#;

#[test]
fn no_namespace_has_a_way_out() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    for pod in [sandbox.pod("user")?, sandbox.root_pod("root")?] {
        assert_eq!(pod.python(WAYS_OUT)?.into_stdout()?, "");
    }
    for namespace in [network::node(sandbox.id()), network::outside(sandbox.id())] {
        let output = Command::new("nsenter")
            .arg(format!("--net={}", namespace.display()))
            .args(["/usr/bin/python3", "-c", WAYS_OUT])
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{}", namespace.display());
    }
    Ok(())
}

#[test]
fn root_of_a_pod_is_not_root_of_the_machine() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let state = sandbox.agent_state();
    let pod = sandbox.root_pod("root")?;
    let said = client(
        &pod,
        &format!(
            r#"
import pathlib, socket, subprocess
run = lambda *words: subprocess.run(words, capture_output=True).returncode
say(uid=os.getuid(), network=run("ip", "link", "set", "eth0", "mtu", "1400"),
    packet=attempt(lambda: str(socket.socket(socket.AF_PACKET, socket.SOCK_RAW))).get("error"),
    mount=run("mount", "-t", "tmpfs", "x", "/mnt"),
    secrets=attempt(lambda: os.listdir("{state}")).get("error"),
    cgroups=attempt(lambda: os.listdir("/sys/fs/cgroup")).get("rows"),
    agents=[path.name for path in pathlib.Path("/proc").glob("[0-9]*") if b"snowfence\0run" in (path / "cmdline").read_bytes()])
"#,
            state = state.display()
        ),
    )?;
    let said = &said[0];
    assert_eq!(
        (&said["uid"], &said["network"], &said["packet"]),
        (&0.into(), &0.into(), &serde_json::Value::Null)
    );
    assert_ne!(said["mount"], 0, "it must not mount");
    assert_eq!(said["secrets"], "FileNotFoundError", "the agent's state is out of sight");
    assert_eq!(said["agents"], serde_json::json!([]), "so is the agent");
    assert!(said["cgroups"].as_array().is_none_or(Vec::is_empty), "and the control groups: {said}");
    Ok(())
}

#[test]
fn nothing_is_left_of_a_sandbox() -> Result<()> {
    let mut sandbox = Sandbox::builder().start()?;
    let id = sandbox.id().to_owned();
    let pod = sandbox.pod("main")?;
    let linger = pod.start("linger", ["sleep", "1000"])?;
    let folders =
        [Cgroup::covered(&id)?.path().to_owned(), sandbox.state().root().to_owned(), sandbox.state().pins()];
    assert!(folders.iter().all(|folder| folder.exists()), "{folders:?}");
    drop(sandbox);
    drop(linger);
    assert!(folders.iter().all(|folder| !folder.exists()), "{folders:?}");
    let namespaces = Command::new("ip").args(["netns", "list"]).output()?;
    assert!(!String::from_utf8_lossy(&namespaces.stdout).contains(&id));
    assert!(!std::fs::read_to_string("/proc/self/mountinfo")?.contains(&id), "a mount is left");
    for process in std::fs::read_dir("/proc")?.flatten() {
        let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&command).contains(&id), "{} is left", process.path().display());
    }
    ensure!(Path::new("/sys/fs/bpf").exists(), "what the machine had is still there");
    Ok(())
}
