//! The decision on a statement, by Cedar policies. Pure: no I/O but reading the policy file, no clock.
//!
//! A text is as good as its worst statement: each is decided on alone, and one that is denied denies the whole.
//! A statement that is denied but would be allowed with `context.approved` set is held for approval.

#![forbid(unsafe_code)]

mod cedar;

use std::path::{Path, PathBuf};

use crate::sql::Classification;

pub use cedar::{DEFAULT, Policy, SCHEMA};

/// Who asks, from where, as whom.
#[derive(Debug, Clone, Default)]
pub struct Subject<'a> {
    pub issuer: &'a str,
    pub subject: &'a str,
    pub groups: &'a [String],
    /// The Snowflake account's host name.
    pub account: &'a str,
    pub cgroup: &'a str,
    pub uid: u32,
    /// The configuration rule that admitted the caller.
    pub rule: &'a str,
    pub user: &'a str,
    /// The role that the rule fixes; `None` where it leaves it open.
    pub role: Option<&'a str>,
}

/// What the policy says of one statement or of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    pub verdict: Verdict,
    /// The `@id` of the policy that decided.
    pub policy: String,
}

/// From best to worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Allow,
    /// Allowed once a person has approved it.
    Hold,
    Deny,
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("{}: cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}:{line}:{column}: {message}", path.display())]
    Invalid { path: PathBuf, line: usize, column: usize, message: String },
}

impl Policy {
    /// Decides on a whole text: the worst of its statements, and what decided on that one.
    pub fn decide(&self, subject: &Subject<'_>, classification: &Classification) -> Decision {
        let mut worst: Option<Decision> = None;
        for statement in &classification.statements {
            let decision = self.decide_statement(subject, statement);
            if worst.as_ref().is_none_or(|known| decision.verdict > known.verdict) {
                worst = Some(decision);
            }
        }
        worst.unwrap_or_else(|| self.decide_empty(subject))
    }
}

/// The name of a value of a closed set, as it is in JSON and in policies.
pub fn label(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

impl PolicyError {
    fn read(path: &Path, source: std::io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
