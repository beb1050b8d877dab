//! The side of whoever rules: a person whose token names a group that may, and who did not ask for the statement.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{HeldStatement, Open, Ruled, State, Taking};
use crate::audit::{AuditError, Caller, Event, EventKind, Ruling};
use crate::identity::IdentityError;
use crate::proxy::Proxy;

/// A shorter part of an identifier could be meant for another one.
const PART: usize = 6;
/// Of a reason, so many characters are recorded.
const REASON: usize = 1000;

/// What somebody rules.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The identifier of the statement, or the end of it.
    pub statement: String,
    pub approve: bool,
    pub reason: String,
    /// Of who rules, by the identity provider.
    pub token: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ApprovalError {
    #[error("nobody may rule on statements: the agent's configuration has no [approvals]")]
    NotConfigured,
    #[error("the agent is ending, and what waits here with it")]
    Ending,
    #[error("no statement {0} waits: it was ruled on, has expired, or its client has gone")]
    Unknown(String),
    #[error("{0} is too short: give at least the last {PART} characters of the identifier")]
    TooShort(String),
    #[error("{0} stands for several statements that wait: give more of the identifier")]
    Ambiguous(String),
    #[error("the token is not accepted: {0}")]
    Token(#[from] IdentityError),
    #[error("{subject} may not rule: the token names none of the groups {groups}")]
    NotAnApprover { subject: String, groups: String },
    #[error("{subject} may not rule: tokens of {issuer} are not for that")]
    NotTheIssuer { subject: String, issuer: String },
    #[error("{0} has asked for this statement: somebody else has to rule on it")]
    OwnStatement(String),
    #[error("the ruling cannot be recorded, and so does not count: {0}")]
    Unrecorded(#[from] AuditError),
}

impl Proxy {
    /// Rules on a held statement.
    pub async fn rule(&self, rule: &Rule) -> Result<HeldStatement, ApprovalError> {
        if self.approvals.lock().is_closed {
            return Err(ApprovalError::Ending);
        }
        let about = self.approvals.find(&rule.statement)?;
        let approver = match self.approver(&rule.token, &about).await {
            Ok(approver) => approver,
            Err((error, caller)) => {
                let detail = format!("statement {}: {error}", about.id);
                let event = Event { caller, ..Event::new(EventKind::ApprovalRefused, detail) };
                self.counts.events(event.kind, 1);
                if let Err(error) = self.journal.append(vec![event.into()]).await {
                    tracing::error!(%error, "that somebody wanted to rule could not be recorded");
                }
                return Err(error);
            }
        };
        let reason: String = rule.reason.chars().take(REASON).collect();
        let taken = self.approvals.take(about.id, Taking::Waiting);
        let taken = taken.ok_or_else(|| ApprovalError::Unknown(about.id.to_string()))?;
        tracing::info!(id = %about.id, approver = approver.subject, approve = rule.approve, "a held statement is ruled on");
        if rule.approve {
            match self.journal.append_approval(&taken.open.recorded, &approver, reason).await {
                Ok(recorded) => {
                    let open = Open { recorded, ..*taken.open };
                    self.approvals.set(about.id, State::Approved(Box::new(open)));
                    Ok(HeldStatement { is_approved: true, ..about })
                }
                Err(error) => {
                    self.approvals.put_back(taken);
                    Err(error.into())
                }
            }
        } else {
            self.end(taken, Ruled { ruling: Ruling::Denied, approver, reason }).await?;
            Ok(about)
        }
    }

    /// Who rules, if that is somebody who may; otherwise why not, and who it is as far as the token says.
    async fn approver(
        &self,
        token: &str,
        about: &HeldStatement,
    ) -> Result<Caller, (ApprovalError, Option<Caller>)> {
        let approver = self.identity.caller(token).await.map_err(|error| (error.into(), None))?;
        match self.approvals.may_rule(&approver, about) {
            Ok(()) => Ok(approver),
            Err(error) => Err((error, Some(approver))),
        }
    }
}

impl super::Approvals {
    /// The one that waits for a person and is meant.
    fn find(&self, text: &str) -> Result<HeldStatement, ApprovalError> {
        if self.settings.is_none() {
            return Err(ApprovalError::NotConfigured);
        }
        if text.len() < PART {
            return Err(ApprovalError::TooShort(text.to_owned()));
        }
        let mut meant = self.list().into_iter().filter(|one| !one.is_approved && one.is_named(text));
        match (meant.next(), meant.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err(ApprovalError::Unknown(text.to_owned())),
            (Some(_), Some(_)) => Err(ApprovalError::Ambiguous(text.to_owned())),
        }
    }

    fn may_rule(&self, approver: &Caller, about: &HeldStatement) -> Result<(), ApprovalError> {
        let settings = self.settings.as_ref().ok_or(ApprovalError::NotConfigured)?;
        let subject = || approver.subject.clone();
        if settings.issuer.as_ref().is_some_and(|issuer| *issuer != approver.issuer) {
            return Err(ApprovalError::NotTheIssuer { subject: subject(), issuer: approver.issuer.clone() });
        }
        if !settings.groups.iter().any(|group| approver.groups.contains(group)) {
            let groups = settings.groups.join(", ");
            return Err(ApprovalError::NotAnApprover { subject: subject(), groups });
        }
        if approver.issuer == about.caller.issuer && approver.subject == about.caller.subject {
            return Err(ApprovalError::OwnStatement(approver.subject.clone()));
        }
        Ok(())
    }
}

impl fmt::Debug for Rule {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { statement, approve, reason, token: _ } = self;
        f.debug_struct("Rule")
            .field("statement", statement)
            .field("approve", approve)
            .field("reason", reason)
            .finish_non_exhaustive()
    }
}
