//! What comparisons count.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

#[derive(Debug, Default)]
pub struct Counts {
    pub statements: Counter,
    pub missing_statements: Counter,
    pub strange_logins: Counter,
    pub failures: Counter,
    last_success: Gauge,
}

impl Counts {
    pub fn succeeded(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.last_success.set(i64::try_from(now).unwrap_or(i64::MAX));
    }

    pub fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            (
                "reconcile_statements",
                "Statements of Snowflake's history that were looked for in the trail",
                &self.statements,
            ),
            (
                "reconcile_missing_statements",
                "Statements of covered users that the trail lacks, each once",
                &self.missing_statements,
            ),
            (
                "reconcile_strange_logins",
                "Logins of covered users that no agent made, each once",
                &self.strange_logins,
            ),
            ("reconcile_failures", "Accounts that could not be compared, each time", &self.failures),
        ] {
            registry.register(name, help, counter.clone());
        }
        let help = "When all accounts were compared last, in seconds since the Unix epoch; 0: not yet";
        registry.register("reconcile_last_success_timestamp_seconds", help, self.last_success.clone());
    }
}
