//! Delivery to ClickHouse: begun, and ended when the journal goes to a successor.

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::audit::{AuditError, Journal, clickhouse};
use crate::config::{Config, SecretReference};

pub struct Delivery {
    settings: Option<clickhouse::Settings>,
    control: Handle,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Delivery {
    pub fn new(config: &Config, control: &Handle) -> Result<Self, AppError> {
        let settings = settings(config)?;
        Ok(Self { settings, control: control.clone(), running: None })
    }

    /// Begins where it ended.
    pub fn start(&mut self, journal: &Journal) -> Result<(), AuditError> {
        let Some(settings) = &self.settings else { return Ok(()) };
        let end = CancellationToken::new();
        let writer = clickhouse::Writer::new(journal.clone(), settings.clone())?;
        self.running = Some((end.clone(), self.control.spawn(writer.run(end.cancelled_owned()))));
        Ok(())
    }

    /// Ends, and waits for the end.
    pub async fn stop(&mut self) {
        if let Some((end, running)) = self.running.take() {
            end.cancel();
            let _ = running.await;
        }
    }
}

pub(super) fn settings(config: &Config) -> Result<Option<clickhouse::Settings>, AppError> {
    let Some(target) = &config.clickhouse else { return Ok(None) };
    let password = target.password.as_ref().map(SecretReference::read).transpose();
    let password = password.map_err(AppError::ClickHousePassword)?;
    let mut settings = clickhouse::Settings::new(target.url.clone(), target.database.clone());
    settings.user.clone_from(&target.user);
    settings.password = password;
    Ok(Some(settings))
}
