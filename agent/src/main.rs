//! The `snowfence` binary: it only hands the arguments on.

use std::process::ExitCode;

fn main() -> ExitCode {
    snowfence::cli::main()
}
