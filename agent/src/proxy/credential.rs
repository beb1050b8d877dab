//! The agent's own credentials.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Proxy;
use crate::config::Rule;
use crate::snowflake::Proof;

impl Proxy {
    /// The proof that the agent is the rule's user. The reason for a failure names no secret.
    pub fn proof(&self, rule: &Rule, account: &str) -> Result<Proof, String> {
        let name = &rule.credential;
        let Some((kind, reference)) = self.credentials.get(name) else {
            return Err(format!("the credential `{name}` is not configured"));
        };
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(credential = name, %error, "a credential cannot be used");
            format!("the agent's credential `{name}` cannot be used: its log says why")
        };
        let secret = reference.read().map_err(|error| failed(&error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Proof::new(*kind, &secret, account, &rule.user, now).map_err(|error| failed(&error))
    }
}
