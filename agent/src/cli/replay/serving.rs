//! Has a recorded session answer a driver.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use rustls::ServerConfig;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::super::{Failure, Format, run, table};
use super::ReplayArguments;
use super::layout::harmless;
use crate::audit::RecordedSession;
use crate::replay::{Server, Summary};
use crate::tls::{Authority, TlsError, server_config_of};

/// Of what was never asked, so many are named.
const NAMED: usize = 20;

pub fn serve(
    arguments: &ReplayArguments,
    session: RecordedSession,
    address: SocketAddr,
) -> Result<(), Failure> {
    if session.payloads.is_empty() {
        return Err(Failure::Failed(anyhow!(
            "there are no payloads of the session {}: are payloads kept (`[audit.payloads]`)?",
            session.session.id
        )));
    }
    if !arguments.plain && arguments.ca_out.is_none() {
        let hint = "say where to write the CA that the driver is to trust (--ca-out FILE), or serve without TLS (--plain)";
        return Err(Failure::Usage(anyhow!(hint)));
    }
    run::log();
    let (id, account) = (session.session.id, session.session.account.clone());
    let (server, failed) = Server::new(session, arguments.timing);
    if let Some((count, error)) = failed {
        tracing::warn!(%error, "{count} requests of the recording cannot be read, and are not answered");
    }
    let server = Arc::new(server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await;
        let listener =
            listener.with_context(|| format!("{address} cannot be served")).map_err(Failure::Failed)?;
        let address = listener.local_addr()?;
        let tls = match &arguments.ca_out {
            None => None,
            Some(path) => {
                let (authority, config) =
                    tls(&account, address.ip()).map_err(|error| Failure::Failed(error.into()))?;
                let written = fs::write(path, authority.certificate_pem());
                written
                    .with_context(|| format!("{}: cannot be written", path.display()))
                    .map_err(Failure::Failed)?;
                Some(config)
            }
        };
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        introduce(arguments, id, &account, address, server.requests())?;
        let stop = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let summary = server.serve(listener, tls, stop).await;
        Ok(conclude(arguments.output.format, &summary)?)
    })
}

/// A CA that lives as long as this program, and what it vouches for.
fn tls(account: &str, address: IpAddr) -> Result<(Authority, Arc<ServerConfig>), TlsError> {
    let address = if address.is_unspecified() { Ipv4Addr::LOCALHOST.into() } else { address };
    let names = [account.to_owned(), "localhost".to_owned()];
    let authority = Authority::ephemeral(&names)?;
    let config = server_config_of(&authority, names.into_iter().chain([address.to_string()]).collect())?;
    Ok((authority, config))
}

fn introduce(
    arguments: &ReplayArguments,
    id: Uuid,
    account: &str,
    address: SocketAddr,
    requests: usize,
) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let scheme = if arguments.plain { "http" } else { "https" };
    let ca = arguments.ca_out.as_ref().map(|path| path.display().to_string());
    if arguments.output.format == Format::Json {
        let url = format!("{scheme}://{address}");
        writeln!(out, "{}", json!({ "serving": url, "account": account, "requests": requests, "ca": ca }))?;
        return out.flush();
    }
    let account = harmless(account);
    writeln!(
        out,
        "Session {id} of {account} is answered at {scheme}://{address} until Ctrl-C: {requests} requests."
    )?;
    writeln!(out, "Whoever reaches this address can read it. Any token is taken.")?;
    if let Some(ca) = ca {
        writeln!(
            out,
            "The driver has to trust {ca}: SSL_CERT_FILE, REQUESTS_CA_BUNDLE or NODE_EXTRA_CA_CERTS."
        )?;
        writeln!(
            out,
            "As it was: serve at port 443 where {account} leads here (/etc/hosts), and run the program as it is."
        )?;
    }
    let (host, port) = (address.ip(), address.port());
    writeln!(
        out,
        "From elsewhere: connect(…, host=\"{host}\", port={port}, protocol=\"{scheme}\") in Python,"
    )?;
    writeln!(
        out,
        "accessUrl: \"{scheme}://{address}\" in Node; the addresses of parts of results are changed to that."
    )?;
    out.flush()
}

fn conclude(format: Format, summary: &Summary) -> io::Result<()> {
    let Summary { answered, unmatched, never_asked } = summary;
    let mut out = io::stdout().lock();
    if format == Format::Json {
        let said = json!({ "answered": answered, "unmatched": unmatched, "never_asked": never_asked });
        return writeln!(out, "{said}");
    }
    writeln!(out, "{answered} requests answered, {unmatched} unmatched, {} never asked", never_asked.len())?;
    for asked in never_asked.iter().take(NAMED) {
        writeln!(out, "  never asked: {}", table::cut(asked))?;
    }
    Ok(())
}
