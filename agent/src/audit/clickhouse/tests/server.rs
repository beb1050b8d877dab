//! The ClickHouse engine as a server, for tests.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::*;

/// The command of a ClickHouse server that takes `--listen ADDRESS:PORT --data DIRECTORY`, words separated by spaces.
const SERVER: &str = "SNOWFENCE_TEST_CLICKHOUSE";

/// A ClickHouse that can be killed and started again.
pub(super) struct Server {
    port: u16,
    data: PathBuf,
    /// More arguments of the command.
    pub(super) more: Vec<String>,
    process: Option<Child>,
}

impl Server {
    pub(super) fn new(data: PathBuf) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        Self { port, data, more: Vec::new(), process: None }
    }

    pub(super) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(super) fn start(&mut self) {
        let command =
            std::env::var(SERVER).unwrap_or_else(|_| panic!("set {SERVER} to the server's command"));
        let mut words = command.split_whitespace();
        let process = Command::new(words.next().unwrap())
            .args(words)
            .args(["--listen", &format!("127.0.0.1:{}", self.port), "--data"])
            .arg(&self.data)
            .args(&self.more)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
    }

    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// The lines that a query answers; waits for a server that starts.
    pub(super) async fn lines(&self, sql: &str) -> Vec<String> {
        let client = ::clickhouse::Client::default().with_url(self.url());
        for _ in 0..600 {
            match fetch(&client, sql).await {
                Ok(text) => return text.lines().map(str::to_owned).collect(),
                Err(::clickhouse::error::Error::Network(_)) => sleep(Duration::from_millis(100)).await,
                Err(error) => panic!("{sql}: {error}"),
            }
        }
        panic!("no answer from {}", self.url());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn fetch(client: &::clickhouse::Client, sql: &str) -> ::clickhouse::error::Result<String> {
    let bytes = client.query(&sql.replace('?', "??")).fetch_bytes("TSVRaw")?.collect().await?;
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

/// Runs a writer until all is delivered.
pub(super) async fn deliver_all(journal: &Journal, settings: Settings) {
    let writer = Writer::new(journal.clone(), settings).unwrap();
    let (progress, monitor) = watched(journal);
    let delivered = async {
        while monitor.status().pending > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_mins(2), writer.run(progress, delivered))
        .await
        .unwrap_or_else(|_| panic!("not delivered: {:?}", monitor.status()));
}
