//! TLS on both sides: the internal CA and the leaves that clients see, the roots that Snowflake is verified with, and
//! the look at a ClientHello that decides whether a connection is Snowflake's at all.

mod authority;
mod hello;
mod leaf;
mod names;
mod scan;
pub mod trust;
mod upstream;

use std::path::PathBuf;

pub use authority::{Authority, LIST, Listed};
pub use hello::{Hello, HelloError, read_hello};
pub use leaf::{server_config, server_config_of};
pub use names::{Peek, Peeker};
pub use scan::{Hit, Scanner};
pub use upstream::{certificate_names, client_config};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: cannot be written: {source}", path.display())]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "{}: the internal CA's key is readable by others (mode {mode:o}): `chmod 600` it, and make a new CA if anybody may have read it",
        path.display()
    )]
    KeyExposed { path: PathBuf, mode: u32 },
    #[error("{}: not the internal CA's {what} in PEM: {reason}", path.display())]
    Damaged { path: PathBuf, what: &'static str, reason: String },
    #[error(
        "the internal CA in {} may not sign for `{name}`: it was made for other capture.suffixes. Move it away to have a new one made, and give clients the new certificate (`snowfence ca print`)",
        path.display()
    )]
    Constrained { path: PathBuf, name: String },
    #[error("a certificate cannot be made: {0}")]
    Generate(#[from] rcgen::Error),
    #[error("{}: holds no certificate in PEM", path.display())]
    NoRoots { path: PathBuf },
    #[error("this machine has no root certificates: install ca-certificates or set tls.upstream_ca_bundle")]
    NoSystemRoots,
    #[error("TLS cannot be set up: {0}")]
    Rustls(#[from] rustls::Error),
}
