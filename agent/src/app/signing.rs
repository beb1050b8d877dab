//! Signing of the journal: begun, and ended when the journal goes to a successor.

use std::path::Path;

use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::audit::Journal;
use crate::audit::chain::{KeyError, Notary, SigningKey};

pub struct Signing {
    key: SigningKey,
    control: Handle,
    running: Option<(CancellationToken, JoinHandle<()>)>,
}

impl Signing {
    pub fn new(key: &Path, control: &Handle) -> Result<Self, KeyError> {
        Ok(Self { key: SigningKey::open(key)?, control: control.clone(), running: None })
    }

    /// Begins where it ended.
    pub fn start(&mut self, journal: &Journal) {
        let end = CancellationToken::new();
        let notary = Notary::new(journal.clone(), self.key.clone());
        self.running = Some((end.clone(), self.control.spawn(notary.run(end.cancelled_owned()))));
    }

    /// Signs what there is, and ends.
    pub async fn stop(&mut self) {
        if let Some((end, running)) = self.running.take() {
            end.cancel();
            let _ = running.await;
        }
    }
}
