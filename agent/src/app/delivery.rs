//! Delivery to ClickHouse and to SIEM sinks: begun, and ended when the journal goes to a successor.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::audit::delivery::{Monitor, Progress};
use crate::audit::{Journal, clickhouse, siem};
use crate::config::{Config, SecretReference, Siem, SiemTarget};

pub struct Delivery {
    clickhouse: Option<clickhouse::Settings>,
    siem: Vec<(Arc<Siem>, Arc<watch::Sender<Progress>>)>,
    control: Handle,
    running: Option<(CancellationToken, JoinSet<()>)>,
}

impl Delivery {
    pub fn new(config: &Config, control: &Handle) -> Result<Self, AppError> {
        // What cannot be used is found at the start.
        for sink in &config.siem {
            siem::check(sink)?;
            if let SiemTarget::Http { token: Some(token), .. } = &sink.target {
                token.read().map_err(|source| AppError::SiemToken { sink: sink.name.clone(), source })?;
            }
        }
        let siem = config.siem.iter().map(|sink| (Arc::new(sink.clone()), Arc::default())).collect();
        Ok(Self { clickhouse: settings(config)?, siem, control: control.clone(), running: None })
    }

    /// Begins where it ended.
    pub fn start(&mut self, journal: &Journal) -> Result<(), AppError> {
        let end = CancellationToken::new();
        let mut running = JoinSet::new();
        if let Some(settings) = &self.clickhouse {
            let writer = clickhouse::Writer::new(journal.clone(), settings.clone())?;
            running.spawn_on(writer.run(end.clone().cancelled_owned()), &self.control);
        }
        for (settings, progress) in &self.siem {
            let sink = siem::Sink::new(journal, settings)?;
            let delivering = sink.run(Arc::clone(progress), end.clone().cancelled_owned());
            running.spawn_on(delivering, &self.control);
        }
        self.running = Some((end, running));
        Ok(())
    }

    /// Ends, and waits for the end.
    pub async fn stop(&mut self) {
        if let Some((end, mut running)) = self.running.take() {
            end.cancel();
            while running.join_next().await.is_some() {}
        }
    }

    /// How far the SIEM sinks are, from now on.
    pub fn monitors(&self, journal: &Journal) -> Vec<Monitor> {
        self.siem.iter().map(|(sink, progress)| Monitor::new(&sink.name, journal, progress)).collect()
    }
}

fn settings(config: &Config) -> Result<Option<clickhouse::Settings>, AppError> {
    let Some(target) = &config.clickhouse else { return Ok(None) };
    let password = target.password.as_ref().map(SecretReference::read).transpose();
    let password = password.map_err(AppError::ClickHousePassword)?;
    let mut settings = clickhouse::Settings::new(target.url.clone(), target.database.clone());
    settings.user.clone_from(&target.user);
    settings.password = password;
    Ok(Some(settings))
}
