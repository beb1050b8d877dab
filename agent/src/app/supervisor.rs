//! Whoever started the agent: it is told when the agent is ready, and which process the agent is.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;

/// Tells systemd, if it asked for it (`Type=notify`), that this process is the service's main one, and ready.
pub fn ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let message = format!("MAINPID={}\nREADY=1\n", std::process::id());
    let bytes = socket.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&socket),
    };
    let told = UnixDatagram::unbound()
        .and_then(|datagram| datagram.send_to_addr(message.as_bytes(), &address?).map(drop));
    if let Err(error) = told {
        tracing::warn!(%error, "the service manager cannot be told that the agent is ready");
    }
}

/// Starts the program that is on the disk now, to take over from this one. Returns its process id.
pub fn launch(config: &Path) -> Option<u32> {
    // After an upgrade the kernel says of the old file that it is deleted.
    let program = std::env::current_exe().ok()?;
    let program = program.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
    let started = Command::new(&program).args(["run", "--take-over", "--config"]).arg(config).spawn();
    match started {
        Ok(child) => {
            tracing::info!(pid = child.id(), program, "started a successor");
            Some(child.id())
        }
        Err(error) => {
            tracing::error!(program, %error, "a successor cannot be started: this agent goes on");
            None
        }
    }
}
