//! `snowfence-sandbox`: the part of `cargo xtask sandbox` and `cargo xtask demo` that needs root, and the launcher of every
//! process in a sandbox.

use std::process::ExitCode;

use clap::Parser as _;
use sandbox::command_line::Arguments;

fn main() -> ExitCode {
    match Arguments::parse().run() {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("snowfence-sandbox: {error:#}");
            ExitCode::from(FAILED)
        }
    }
}

/// As `env` and `chroot`: this program itself failed, not the one that it was to run.
const FAILED: u8 = 125;
