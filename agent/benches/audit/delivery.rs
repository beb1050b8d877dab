//! How fast a journal is delivered to ClickHouse, and by whose doing.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use snowfence::audit::Journal;
use snowfence::audit::clickhouse::{self, Settings, Writer};
use snowfence::audit::delivery::Monitor;
use tokio::runtime::{Builder, Runtime};

use super::{Figures, STATEMENTS, count};

/// What the requests of a batch have, and no other.
const TOKEN: &str = "insert_deduplication_token";

/// Names of threads.
const READING: &str = "reading";
const DROPPING: &str = "dropping";

pub fn measure(
    runtime: &Runtime,
    journal: &Journal,
    command: &str,
    folder: &Path,
    figures: &mut Figures,
) -> Result<()> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let server = Server::start(command, port, &folder.join("clickhouse"))?;
    let url = format!("http://127.0.0.1:{port}");
    runtime.block_on(answers(&url))?;
    for database in ["dropped", "snowfence"] {
        let settings = Settings::new(vec![url.clone()], database);
        runtime.block_on(clickhouse::apply(&settings, false, |_| ()))?;
    }
    let agent = std::process::id();
    // The agent has one thread for its deliveries, too.
    let control = Builder::new_current_thread().enable_all().thread_name(READING).build()?;
    let place = Builder::new_multi_thread().enable_all().thread_name(DROPPING).build()?;
    let dropping = place.block_on(Dropping::start(&url))?;
    let before = Parts::now()?;
    let dropped = Work::of(&[agent], || deliver(&control, journal, &dropping.url, "dropped"))?;
    dropped.show("delivered to a place that drops them", figures);
    Parts::now()?.show(&before, figures);
    let inserts = dropping.taken();
    let bytes = inserts.iter().map(|insert| insert.body.len()).sum();
    figures.show("  on the wire, for each", "bytes", count(bytes) / count(STATEMENTS));
    let taken = Work::of(&[server.0.id()], || runtime.block_on(replay(&url, inserts)))?;
    taken.show("taken by ClickHouse", figures);
    let delivered = Work::of(&[agent, server.0.id()], || deliver(&control, journal, &url, "snowfence"))?;
    delivered.show("delivered to ClickHouse", figures);
    let sql = "SELECT toString(sum(bytes_on_disk)) FROM system.parts WHERE active AND database = 'snowfence'";
    let bytes = runtime.block_on(ask(&url, sql))?;
    let bytes: Value = serde_json::from_str(bytes.trim())?;
    let bytes: f64 = bytes.as_f64().context("ClickHouse says no number")?;
    figures.show("ClickHouse, for each statement with its outcome", "bytes", bytes / count(STATEMENTS));
    Ok(())
}

/// What all statements took.
struct Work {
    time: Duration,
    /// Of all threads of some processes.
    processor: Duration,
}

impl Work {
    fn of(processes: &[u32], work: impl FnOnce() -> Result<()>) -> Result<Self> {
        let all = || {
            processes
                .iter()
                .try_fold(Duration::ZERO, |sum, process| Ok::<_, anyhow::Error>(sum + processor(*process)?))
        };
        let (began, before) = (Instant::now(), all()?);
        work()?;
        Ok(Self { time: began.elapsed(), processor: all()?.saturating_sub(before) })
    }

    /// The processor's time says what a quiet machine would do; the other what this one did.
    fn show(&self, what: &str, figures: &mut Figures) {
        let statements = count(STATEMENTS);
        figures.show(&format!("statements {what}"), "1/s", statements / self.time.as_secs_f64());
        figures.show("  by a processor's second", "1/s", statements / self.processor.as_secs_f64());
    }
}

/// What the threads of this process have had of the processors.
#[derive(Default)]
struct Parts {
    /// The one that sends is the first one.
    sending: Duration,
    reading: Duration,
    dropping: Duration,
}

impl Parts {
    fn now() -> Result<Self> {
        let mut parts = Self::default();
        for thread in std::fs::read_dir("/proc/self/task")? {
            let thread = thread?;
            let part = match std::fs::read_to_string(thread.path().join("comm"))?.trim() {
                READING => &mut parts.reading,
                DROPPING => &mut parts.dropping,
                _ if thread.file_name() == *std::process::id().to_string() => &mut parts.sending,
                _ => continue,
            };
            *part += processor_of(&thread.path().join("stat"))?;
        }
        Ok(parts)
    }

    fn show(&self, before: &Self, figures: &mut Figures) {
        let mut show = |what, now: Duration, before: Duration| {
            figures.show(what, "1/s", count(STATEMENTS) / now.saturating_sub(before).as_secs_f64());
        };
        show("  by a second of the thread that reads", self.reading, before.reading);
        show("  by a second of the thread that sends", self.sending, before.sending);
        show("  by a processor's second of the place", self.dropping, before.dropping);
    }
}

/// What a process has had of the processors.
fn processor(process: u32) -> Result<Duration> {
    processor_of(&Path::new("/proc").join(process.to_string()).join("stat"))
}

/// In steps of 10 ms.
fn processor_of(stat: &Path) -> Result<Duration> {
    let text = std::fs::read_to_string(stat)?;
    let (_, fields) = text.rsplit_once(')').context("a process without a name")?;
    // User and system time are the 14th and 15th field, and the name is the second one.
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

/// Delivers everything.
fn deliver(runtime: &Runtime, journal: &Journal, url: &str, database: &str) -> Result<()> {
    // The last batch is not full: a wait for others would be counted.
    let settings = Settings { interval: Duration::ZERO, ..Settings::new(vec![url.to_owned()], database) };
    let writer = Writer::new(journal.clone(), settings)?;
    let progress = Arc::default();
    let monitor = Monitor::new("clickhouse", journal, &progress);
    let last = journal.written().borrow().last_seq;
    runtime.block_on(writer.run(progress, async {
        while monitor.status().delivered < last {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }));
    let error = monitor.status().error;
    ensure!(error.is_none(), "{error:?}");
    Ok(())
}

/// An insert that was dropped.
struct Insert {
    path: String,
    body: Bytes,
}

/// Makes the same inserts, each after the one before, as the front of the tests does no two at once.
async fn replay(url: &str, inserts: Vec<Insert>) -> Result<()> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    for Insert { path, body } in inserts {
        let answer = client.request(Request::post(format!("{url}{path}")).body(Full::new(body))?).await?;
        ensure!(answer.status().is_success(), "{:?}", answer.into_body().collect().await?.to_bytes());
    }
    Ok(())
}

/// Something between an agent and ClickHouse that drops inserts, and says that they have arrived.
struct Dropping {
    url: String,
    taken: Arc<Mutex<Vec<Insert>>>,
}

impl Dropping {
    async fn start(clickhouse: &str) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let client = Client::builder(TokioExecutor::new()).build_http();
        let front = Arc::new(Front { clickhouse: clickhouse.to_owned(), client, taken: Arc::default() });
        let taken = Arc::clone(&front.taken);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let front = Arc::clone(&front);
                tokio::spawn(async move {
                    let serve = service_fn(|request| front.answer(request));
                    // An agent that breaks off fails its delivery, and with it the bench.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), serve)
                        .await;
                });
            }
        });
        Ok(Self { url, taken })
    }

    fn taken(&self) -> Vec<Insert> {
        std::mem::take(&mut *self.taken.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct Front {
    clickhouse: String,
    client: Client<HttpConnector, Incoming>,
    taken: Arc<Mutex<Vec<Insert>>>,
}

impl Front {
    async fn answer(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>> {
        let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
        if path.contains(TOKEN) {
            let body = request.into_body().collect().await?.to_bytes();
            self.taken.lock().unwrap_or_else(PoisonError::into_inner).push(Insert { path, body });
            return Ok(Response::default());
        }
        let (parts, body) = request.into_parts();
        let asked =
            Request::builder().method(parts.method).uri(format!("{}{path}", self.clickhouse)).body(body)?;
        let (parts, body) = self.client.request(asked).await?.into_parts();
        Ok(Response::from_parts(parts, Full::new(body.collect().await?.to_bytes())))
    }
}

struct Server(Child);

impl Server {
    fn start(command: &str, port: u16, data: &Path) -> Result<Self> {
        let mut words = command.split_whitespace();
        let program = words.next().context("SNOWFENCE_TEST_CLICKHOUSE is empty")?;
        let mut server = Command::new(program);
        server.args(words).args(["--listen", &format!("127.0.0.1:{port}"), "--data"]).arg(data);
        Ok(Self(server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().context("start ClickHouse")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already needs no end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn answers(url: &str) -> Result<()> {
    for _ in 0..300 {
        if ask(url, "SELECT 1").await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("ClickHouse does not answer at {url}")
}

async fn ask(url: &str, sql: &str) -> Result<String> {
    let answer =
        ::clickhouse::Client::default().with_url(url).query(sql).fetch_bytes("TSVRaw")?.collect().await?;
    Ok(String::from_utf8(answer.to_vec())?)
}
