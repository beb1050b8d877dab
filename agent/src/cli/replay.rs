//! `snowfence replay`: a recorded session once more, for people, for scripts, or for the driver that it was recorded from.

mod player;
mod terminal;

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use clap::Args;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use super::audit::Source;
use super::{Failure, Format, Output, run, show, table};
use crate::app::State;
use crate::audit::RecordedSession;
use crate::audit::payload::{SpoolFolder, identities};
use crate::replay::{Server, Step, Summary, Teller};
use crate::tls::{Authority, server_config_of};

/// Gaps that are worth a line where nobody waits for them, in microseconds.
const GAP: i64 = 1_000_000;
/// Lines of a statement or a text that are shown.
const LINES: usize = 60;
/// Of what was never asked, so many are named.
const NAMED: usize = 20;
/// What stands before a line that belongs to the one above.
const INDENT: &str = "           ";

#[derive(Args)]
pub(super) struct ReplayArguments {
    /// The identifier of a session: column `session` of the view `trail`
    session: Uuid,
    /// A file with an identity (`AGE-SECRET-KEY-1…`) that the payloads were sealed to
    #[arg(long, short, value_name = "FILE")]
    identity: PathBuf,
    /// How fast: 2 is twice as fast as it was
    #[arg(long, value_name = "N", default_value_t = 1.0, value_parser = parse_speed)]
    speed: f64,
    /// Do not wait between the steps
    #[arg(long)]
    no_wait: bool,
    /// Of each result, or part of one, show so many rows
    #[arg(long, value_name = "N", default_value_t = 20)]
    rows: usize,
    /// Answer a driver at this address with what was recorded
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["no_wait", "speed", "rows"])]
    serve: Option<SocketAddr>,
    /// Where to write the certificate that the driver is to trust
    #[arg(long, value_name = "FILE", requires = "serve")]
    ca_out: Option<PathBuf>,
    /// Serve without TLS
    #[arg(long, requires = "serve", conflicts_with = "ca_out")]
    plain: bool,
    /// Let each answer take the time that it took
    #[arg(long, requires = "serve")]
    timing: bool,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    output: Output,
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<(), Failure> {
    let journal = arguments.source.journal()?;
    let state = journal.parent().unwrap_or(Path::new("."));
    let identities = identities(&arguments.identity).map_err(|error| Failure::Usage(error.into()))?;
    let spool = Box::new(SpoolFolder(State(state).spool()));
    let id = arguments.session;
    let session = RecordedSession::load(&journal, id, spool, identities.into_boxed_slice())?;
    let Some(session) = session else {
        return Err(Failure::Failed(anyhow!(
            "the journal {} knows no session {id}: `snowfence audit query 'SELECT time, subject, session, sql FROM trail'` shows which there are",
            journal.display()
        )));
    };
    if !session.payloads.is_empty() {
        show::note(&journal, state, &id.to_string(), session.payloads.len())?;
    }
    match arguments.serve {
        Some(address) => serve(arguments, session, address),
        None => tell(arguments, Teller::new(session, arguments.rows)),
    }
}

fn tell(arguments: &ReplayArguments, mut teller: Teller) -> Result<(), Failure> {
    let moments = teller.moments();
    let mut out = io::BufWriter::new(io::stdout().lock());
    if arguments.output.format == Format::Json {
        for moment in moments {
            serde_json::to_writer(&mut out, &teller.step(moment)).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        out.flush()?;
        return Ok(());
    }
    for line in beginning(&teller) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    if !arguments.no_wait && io::stdin().is_terminal() && io::stdout().is_terminal() {
        return player::play(&mut teller, &moments, arguments.speed, &mut out);
    }
    let mut last = 0;
    for moment in moments {
        if moment.at - last >= GAP {
            writeln!(out, "{INDENT}… {}", seconds(moment.at - last))?;
        }
        last = moment.at;
        for line in lines(&teller.step(moment)) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()?;
    Ok(())
}

/// Whose session it is.
fn beginning(teller: &Teller) -> [String; 2] {
    let session = &teller.session().session;
    let began = session.time;
    let whose = format!(
        "session {} of {} as {} ({}), role {}, at {}",
        session.id,
        session.caller.subject,
        session.user,
        session.rule,
        if session.role.is_empty() { "-" } else { &session.role },
        session.account
    );
    let by = format!(
        "began {} by {}, pid {}, cgroup {}: {}",
        iso(began),
        session.workload.comm,
        session.workload.pid,
        session.workload.cgroup,
        session.client
    );
    [whose, by].map(|line| harmless(&line))
}

/// A step as it is shown.
fn lines(step: &Step) -> Vec<String> {
    let mut lines = vec![heading(step)];
    let mut add = |text: &str| {
        let shown = text.lines().take(LINES).map(|line| format!("{INDENT}{}", harmless(line)));
        lines.extend(shown);
        if text.lines().nth(LINES).is_some() {
            lines.push(format!("{INDENT}…"));
        }
    };
    match step.statement {
        Some(_) => add(&step.asked),
        None => add(&table::cut(&step.asked)),
    }
    if !step.bindings.is_null() {
        add(&format!("bound: {}", step.bindings));
    }
    if let Some(result) = &step.table {
        let headings: Vec<String> = result.columns.iter().map(|column| column.name.clone()).collect();
        let cells = |row: &Vec<Option<String>>| {
            row.iter().map(|cell| cell.clone().unwrap_or_else(|| "NULL".to_owned())).collect()
        };
        let rows: Vec<Vec<String>> = result.rows.iter().map(cells).collect();
        let headings = if headings.is_empty() {
            vec![String::new(); rows.first().map_or(0, Vec::len)]
        } else {
            headings.iter().map(|name| table::cut(name)).collect()
        };
        let mut laid_out = Vec::new();
        // There is no failure in memory.
        let _ = table::print(&mut laid_out, &headings, &rows);
        let laid_out = String::from_utf8_lossy(&laid_out);
        lines.extend(laid_out.lines().map(|line| format!("{INDENT}{line}")));
        if result.cut {
            lines.push(format!("{INDENT}… [more rows: --rows shows them]"));
        }
        return with_problem(lines, step);
    }
    add(&step.text);
    with_problem(lines, step)
}

fn with_problem(mut lines: Vec<String>, step: &Step) -> Vec<String> {
    if !step.message.is_empty() {
        let code = if step.code.is_empty() { String::new() } else { format!("{}: ", step.code) };
        lines.push(format!("{INDENT}{}", harmless(&format!("{code}{}", step.message))));
    }
    if !step.problem.is_empty() {
        lines.push(format!("{INDENT}⚠ {}", harmless(&step.problem)));
    }
    lines
}

fn heading(step: &Step) -> String {
    let is_answer = step.what == "answer";
    let mut facts = Vec::new();
    if !step.verdict.is_empty() {
        facts.push(format!("{} ({})", step.verdict, step.policy));
    }
    if !step.status.is_empty() {
        facts.push(step.status.clone());
    } else if let Some(http) = step.http {
        facts.push(format!("HTTP {http}"));
    }
    facts.extend(step.rows.map(|rows| if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }));
    if step.parts > 0 {
        facts.push(format!("{} more parts", step.parts));
    }
    facts.extend(step.bytes.map(|bytes| format!("{bytes} bytes")));
    facts.extend(step.duration_us.map(|micros| format!("{} ms", micros / 1000)));
    if !step.query_id.is_empty() {
        facts.push(step.query_id.clone());
    }
    let at = format!("{}.{:03}", step.at_us / 1_000_000, step.at_us / 1000 % 1000);
    let arrow = if is_answer { '←' } else { '→' };
    let operation = if step.operation.is_empty() { "?" } else { &step.operation };
    let heading = format!("[{at:>8}] {arrow} {operation}  {}", facts.join(", "));
    harmless(&heading).trim_end().to_owned()
}

fn harmless(text: &str) -> String {
    table::harmless(text).collect()
}

fn seconds(micros: i64) -> String {
    format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10)
}

fn iso(micros: i64) -> String {
    let nanos = i128::from(micros) * 1000;
    crate::replay::timestamp(nanos).map_or_else(|| micros.to_string(), |time| format!("{time} UTC"))
}

fn serve(arguments: &ReplayArguments, session: RecordedSession, address: SocketAddr) -> Result<(), Failure> {
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
fn tls(
    account: &str,
    address: IpAddr,
) -> Result<(Authority, Arc<rustls::ServerConfig>), crate::tls::TlsError> {
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

fn parse_speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "expected a number, such as 2 or 0.5".to_owned())?;
    if (0.01..=1000.0).contains(&speed) { Ok(speed) } else { Err("expected 0.01 to 1000".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::{Column, Table};

    #[test]
    fn a_step_is_laid_out_and_steers_no_terminal() {
        let request = Step {
            at_us: 1_234_567,
            what: "request",
            operation: "query".into(),
            statement: Some(Uuid::nil()),
            asked: "select\n\u{1b}[31m1".into(),
            verdict: "allow".into(),
            policy: "reads-allowed".into(),
            ..Step::default()
        };
        assert_eq!(
            lines(&request),
            ["[   1.234] → query  allow (reads-allowed)", "           select", "            [31m1"]
        );
        let column = |name: &str| Column { name: name.into(), kind: "text".into() };
        let answer = Step {
            at_us: 2_000_000,
            what: "answer",
            operation: "query".into(),
            status: "succeeded".into(),
            rows: Some(70),
            parts: 2,
            bytes: Some(10),
            duration_us: Some(765_433),
            query_id: "q\u{7}".into(),
            table: Some(Table {
                columns: vec![column("N"), column("\u{1b}[2J")],
                rows: vec![
                    vec![Some("1".into()), None],
                    vec![Some("22".into()), Some("\u{202e}x\ny".into())],
                ],
                cut: true,
            }),
            ..Step::default()
        };
        assert_eq!(
            lines(&answer),
            [
                "[   2.000] ← query  succeeded, 70 rows, 2 more parts, 10 bytes, 765 ms, q",
                "           N    [2J",
                "           1   NULL",
                "           22   x y",
                "           … [more rows: --rows shows them]",
            ]
        );
        let refused = Step {
            what: "answer",
            status: "refused".into(),
            code: "003001".into(),
            message: "no".into(),
            ..Step::default()
        };
        assert_eq!(lines(&refused), ["[   0.000] ← ?  refused", "           003001: no"]);
    }

    #[test]
    fn a_speed_is_a_number_that_makes_sense() {
        assert!(parse_speed("2").is_ok_and(|speed| speed > 1.9));
        for wrong in ["0", "-1", "NaN", "inf", "x", ""] {
            assert!(parse_speed(wrong).is_err(), "{wrong}");
        }
    }
}
