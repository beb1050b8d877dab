//! Who asks: a token that was verified, from a workload that the kernel attests, admitted by a rule.

#![forbid(unsafe_code)]

mod fetch;
mod keys;
mod token;

use std::sync::Arc;

use crate::audit::Caller;
use crate::capture::Workload;
use crate::config::{Config, Rule};
use crate::tls::TlsError;

use keys::Keys;

/// Verifies tokens and finds the rule that admits their holder.
pub struct Identity {
    issuers: Vec<Arc<Keys>>,
    rules: Vec<Arc<Rule>>,
}

/// A caller that was authenticated and admitted. It can only be made by [`Identity::authenticate`].
#[derive(Debug, Clone)]
pub struct Principal {
    caller: Caller,
    rule: Arc<Rule>,
}

/// Why somebody is not let in. The message goes to the client and into the record, so it repeats nothing of the
/// token.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "the login carries no token: give the driver a token of your identity provider, as an OAuth token (authenticator `oauth`), an access token or the password"
    )]
    NoToken,
    #[error("the token is not a JWT")]
    NotAToken,
    #[error("the token is of an issuer that is not configured")]
    UnknownIssuer,
    #[error("the token has expired: get a new one")]
    Expired,
    #[error("the token is not valid yet: check the clocks")]
    NotYetValid,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token lacks the claim `{0}`")]
    MissingClaim(String),
    #[error("the token is signed with an algorithm that is not accepted")]
    Algorithm,
    #[error("the token is signed with a key that its issuer does not publish")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    Signature,
    #[error("the keys of the token's issuer cannot be had at the moment: try again later")]
    NoKeys,
    #[error("no rule admits this caller from this workload to this account")]
    NotAdmitted(Caller),
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("{path}: cannot be read: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{place}: not a JWKS document")]
    Malformed { place: String },
    #[error(
        "{place}: holds no public key for signatures that is accepted (RSA, EC P-256, EC P-384, Ed25519)"
    )]
    NoKey { place: String },
    #[error("{place}: {reason}: is the identity provider up and reachable from this node?")]
    Fetch { place: String, reason: String },
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Identity {
    /// Prepares the issuers. A key file must be readable; a key server need not be up yet.
    pub fn new(config: &Config) -> Result<Self, KeyError> {
        let issuers =
            config.issuers.iter().map(|issuer| Keys::new(issuer).map(Arc::new)).collect::<Result<_, _>>()?;
        Ok(Self { issuers, rules: config.rules.iter().cloned().map(Arc::new).collect() })
    }

    /// Fetches the keys of every issuer once, so that the first login need not wait. Failures are logged: the next
    /// login tries again.
    pub async fn warm_up(&self) {
        for issuer in &self.issuers {
            if let Err(error) = issuer.refresh().await {
                tracing::warn!(%error, "the identity provider's keys cannot be had yet");
            }
        }
    }

    /// Verifies a token and finds the first rule that admits its holder from this workload to this account.
    pub async fn authenticate(
        &self,
        token: Option<&str>,
        workload: &Workload,
        account: &str,
    ) -> Result<Principal, IdentityError> {
        let caller = token::verify(&self.issuers, token.ok_or(IdentityError::NoToken)?).await?;
        match self.rules.iter().find(|rule| admits(rule, &caller, &workload.cgroup, account)) {
            Some(rule) => Ok(Principal { caller, rule: Arc::clone(rule) }),
            None => Err(IdentityError::NotAdmitted(caller)),
        }
    }
}

impl Identity {
    /// Verifies a token of somebody who asks for nothing in Snowflake.
    pub async fn caller(&self, token: &str) -> Result<Caller, IdentityError> {
        token::verify(&self.issuers, token).await
    }

    /// The principal of a session that was opened before the agent restarted, if the same rule still admits its caller,
    /// whose token was verified then.
    pub fn readmit(&self, caller: Caller, cgroup: &str, account: &str, rule: &str) -> Option<Principal> {
        let first = self.rules.iter().find(|rule| admits(rule, &caller, cgroup, account))?;
        (first.name == rule).then(|| Principal { caller, rule: Arc::clone(first) })
    }
}

#[cfg(test)]
impl Principal {
    /// One that a rule of no conditions admits.
    pub fn sample(caller: Caller) -> Self {
        let rule = Rule {
            name: "everybody".to_owned(),
            issuer: None,
            groups: None,
            cgroups: None,
            account: None,
            user: "SVC_AGENTS".to_owned(),
            role: None,
            warehouse: None,
            credential: "agents".to_owned(),
            sql_api: false,
        };
        Self { caller, rule: Arc::new(rule) }
    }
}

impl Principal {
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

fn admits(rule: &Rule, caller: &Caller, cgroup: &str, account: &str) -> bool {
    rule.issuer.as_ref().is_none_or(|issuer| *issuer == caller.issuer)
        && rule.groups.as_ref().is_none_or(|groups| groups.iter().any(|group| caller.groups.contains(group)))
        && rule.cgroups.as_ref().is_none_or(|globs| globs.is_match(cgroup))
        && rule.account.as_ref().is_none_or(|known| known == account)
}

#[cfg(test)]
mod tests;
