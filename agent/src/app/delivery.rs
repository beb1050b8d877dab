//! What becomes of the journal's records: they are signed, delivered to ClickHouse and to SIEM sinks, and removed in their time;
//! copies of what they are signed by go to an object store.
//! All of it begins with the journal, and ends when that goes to a successor.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{AppError, State};
use crate::audit::chain::{Copier, Notary, SigningKey};
use crate::audit::delivery::{Monitor, Progress};
use crate::audit::{Journal, Retention, clickhouse, siem};
use crate::config::{ClickHouse, Config, SecretReference, Siem, SiemTarget};
use crate::storage::Bucket;

/// For the last checkpoints.
const LAST: Duration = Duration::from_secs(5);

pub struct Delivery {
    key: SigningKey,
    keep: Option<Duration>,
    limit: u64,
    clickhouse: Option<(clickhouse::Settings, Arc<watch::Sender<Progress>>)>,
    siem: Vec<(Arc<Siem>, Arc<watch::Sender<Progress>>)>,
    checkpoints: Option<(Bucket, Arc<watch::Sender<Progress>>)>,
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
        let checkpoints = config.checkpoints.as_ref().map(Bucket::open).transpose();
        let checkpoints = checkpoints.map_err(AppError::Checkpoints)?;
        Ok(Self {
            key: SigningKey::open(&State(&config.agent.state_dir).signing_key())?,
            keep: config.journal.keep,
            limit: config.journal.limit,
            clickhouse: settings(config)?.map(|settings| (settings, Arc::default())),
            siem,
            checkpoints: checkpoints.map(|bucket| (bucket, Arc::default())),
            control: control.clone(),
            running: None,
        })
    }

    /// Begins where it ended.
    pub fn start(&mut self, journal: &Journal) -> Result<(), AppError> {
        let end = CancellationToken::new();
        let mut running = JoinSet::new();
        let mut sinks = Vec::new();
        journal.set_limit(self.limit);
        let notary = Notary::new(journal.clone(), self.key.clone());
        running.spawn_on(notary.run(end.clone().cancelled_owned()), &self.control);
        if let Some((settings, progress)) = &self.clickhouse {
            let writer = clickhouse::Writer::new(journal.clone(), settings.clone())?;
            let delivering = writer.run(Arc::clone(progress), end.clone().cancelled_owned());
            running.spawn_on(delivering, &self.control);
            sinks.push(Arc::clone(progress));
        }
        for (settings, progress) in &self.siem {
            let sink = siem::Sink::new(journal, settings)?;
            let delivering = sink.run(Arc::clone(progress), end.clone().cancelled_owned());
            running.spawn_on(delivering, &self.control);
            sinks.push(Arc::clone(progress));
        }
        if let Some((bucket, progress)) = &self.checkpoints {
            let copier = Copier::new(journal, bucket);
            let copying = copier.run(Arc::clone(progress), end.clone().cancelled_owned());
            running.spawn_on(copying, &self.control);
            sinks.push(Arc::clone(progress));
        }
        let retention = Retention { keep: self.keep, sinks };
        running.spawn_on(retention.run(journal.clone(), end.clone().cancelled_owned()), &self.control);
        self.running = Some((end, running));
        Ok(())
    }

    /// Ends, and waits for the end: what there is by then is signed.
    pub async fn stop(&mut self) {
        if let Some((end, mut running)) = self.running.take() {
            end.cancel();
            while running.join_next().await.is_some() {}
        }
    }

    /// Copies what the last steps were signed by, after the end: this may be the end of the machine.
    pub async fn copy_last_checkpoints(&self, journal: &Journal) {
        let Some((bucket, _)) = &self.checkpoints else { return };
        let copied = timeout(LAST, Copier::new(journal, bucket).finish()).await;
        if !matches!(copied, Ok(Ok(()))) {
            tracing::warn!(
                "the last checkpoints are not copied: they wait in the journal for the next start"
            );
        }
    }

    /// How far each sink is, from now on.
    pub fn monitors(&self, journal: &Journal) -> Vec<Monitor> {
        let clickhouse = self.clickhouse.iter().map(|(_, progress)| ("clickhouse", progress));
        let siem = self.siem.iter().map(|(sink, progress)| (sink.name.as_str(), progress));
        let checkpoints = self.checkpoints.iter().map(|(_, progress)| ("checkpoints", progress));
        clickhouse
            .chain(siem)
            .chain(checkpoints)
            .map(|(name, progress)| Monitor::new(name, journal, progress))
            .collect()
    }
}

/// Where ClickHouse is and what it is to have, with the password; `None` where there is none.
pub fn settings(config: &Config) -> Result<Option<clickhouse::Settings>, AppError> {
    let Some(target) = &config.clickhouse else { return Ok(None) };
    let password = target.password.as_ref().map(SecretReference::read).transpose();
    let password = password.map_err(AppError::ClickHousePassword)?;
    Ok(Some(clickhouse::Settings { password, ..without_password(target) }))
}

/// The same without the password, for what asks ClickHouse nothing.
pub fn without_password(target: &ClickHouse) -> clickhouse::Settings {
    clickhouse::Settings {
        ca_bundle: target.ca_bundle.clone(),
        cluster: target.cluster.clone(),
        user: target.user.clone(),
        apply_schema: target.apply_schema,
        retention: target.retention_days,
        ..clickhouse::Settings::new(target.urls.clone(), target.database.clone())
    }
}
