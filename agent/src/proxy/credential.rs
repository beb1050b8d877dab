//! As whom the agent asks: its own credentials, and the tag that names the caller.

use std::time::{SystemTime, UNIX_EPOCH};

use super::Proxy;
use crate::audit::Caller;
use crate::config::{QueryTag, Rule};
use crate::snowflake::{Proof, query_tag};

impl Proxy {
    /// The tag for the queries of a caller that sets none; `None` where there is to be none.
    pub fn query_tag(&self, caller: &Caller) -> Option<String> {
        match self.config.query_tag {
            QueryTag::Caller => query_tag(&caller.issuer, &caller.subject, &self.config.agent.node),
            QueryTag::Client => None,
        }
    }

    /// The proof that the agent is the rule's user.
    pub fn proof(&self, rule: &Rule, account: &str) -> Result<Proof, String> {
        self.proof_of(&rule.credential, &rule.user, account)
    }

    /// The proof that the agent is a user, by the credential of this name. The reason for a failure names no secret.
    pub fn proof_of(&self, name: &str, user: &str, account: &str) -> Result<Proof, String> {
        let Some((kind, reference)) = self.credentials.get(name) else {
            return Err(format!("the credential `{name}` is not configured"));
        };
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(credential = name, %error, "a credential cannot be used");
            format!("the agent's credential `{name}` cannot be used: its log says why")
        };
        let secret = reference.read().map_err(|error| failed(&error))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Proof::new(*kind, &secret, account, user, now).map_err(|error| failed(&error))
    }
}
