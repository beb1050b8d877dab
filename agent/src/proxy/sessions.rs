//! The sessions that clients hold: opaque tokens on their side, Snowflake's tokens on ours.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::vault::{Sealed, Vault};
use crate::audit::Caller;
use crate::capture::Flow;
use crate::config::Secret;
use crate::identity::{Identity, Principal};
use crate::snowflake::{ClientToken, QueryId, TokenHash};

/// Sessions at a time; each costs about two kilobytes.
const SESSIONS: usize = 20_000;
/// After a renewal the token before it is still good, for requests that are under way.
const TOKENS_PER_SESSION: usize = 4;
/// Snowflake keeps results for a day.
const QUERY_LIFETIME: Duration = Duration::from_hours(24);
const QUERIES: u64 = 100_000;
/// Snowflake ends a session that was idle for four hours.
const IDLE: Duration = Duration::from_mins(4 * 60 + 10);

/// A session with Snowflake that a client opened.
pub struct Session {
    pub id: Uuid,
    pub principal: Principal,
    /// The account's host name.
    pub account: String,
    pub role: String,
    /// The workload that the session is bound to.
    cgroup_id: u64,
    cgroup: String,
    upstream: Mutex<UpstreamTokens>,
    used: Mutex<Instant>,
}

/// Snowflake's tokens. They stay here.
#[derive(Clone)]
pub struct UpstreamTokens {
    pub session: Secret,
    pub master: Secret,
}

/// The tokens that a client is given.
pub struct ClientTokens {
    pub session: ClientToken,
    pub master: ClientToken,
}

/// What a session is made from.
pub struct NewSession {
    pub id: Uuid,
    pub principal: Principal,
    pub account: String,
    pub role: String,
    pub upstream: UpstreamTokens,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TokenKind {
    Session,
    Master,
}

#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("the request carries no session token")]
    NoToken,
    #[error("the session token is unknown")]
    Unknown,
    #[error("the session token was given to another workload")]
    OtherWorkload,
    #[error("the session token is for another account")]
    OtherAccount,
    #[error("there are {SESSIONS} sessions open: close some")]
    TooMany,
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// Whose a query is.
#[derive(Clone)]
pub struct Owner {
    caller: Caller,
    account: String,
    rule: String,
}

/// A statement that Snowflake still runs: its outcome comes with the result.
#[derive(Clone, Copy)]
pub struct Pending {
    pub statement: Uuid,
    pub since: Instant,
}

pub struct Sessions {
    vault: Vault,
    tokens: RwLock<Tokens>,
    queries: Cache<QueryId, Owner>,
    pending: Cache<QueryId, Pending>,
}

#[derive(Default)]
struct Tokens {
    by_hash: HashMap<TokenHash, (TokenKind, Arc<Session>)>,
    /// The hashes of each session, oldest first.
    by_session: HashMap<Uuid, Vec<TokenHash>>,
}

impl Sessions {
    /// The sessions of the vault whose callers the rules still admit.
    pub fn new(vault: Vault, identity: &Identity) -> Self {
        let mut tokens = Tokens::default();
        for sealed in vault.load() {
            let caller = Caller { issuer: sealed.issuer, subject: sealed.subject, groups: sealed.groups };
            let Some(principal) = identity.readmit(caller, &sealed.cgroup, &sealed.account, &sealed.rule)
            else {
                vault.remove(sealed.id);
                continue;
            };
            let session = Arc::new(Session {
                id: sealed.id,
                principal,
                account: sealed.account,
                role: sealed.role,
                cgroup_id: sealed.cgroup_id,
                cgroup: sealed.cgroup,
                upstream: Mutex::new(UpstreamTokens {
                    session: Secret::new(sealed.session_token.to_string()),
                    master: Secret::new(sealed.master_token.to_string()),
                }),
                used: Mutex::new(Instant::now()),
            });
            for (hash, kind) in sealed.tokens {
                tokens.add(&session, TokenHash::from_bytes(hash), kind);
            }
        }
        tracing::info!(sessions = tokens.by_session.len(), "sessions taken over");
        Self { vault, tokens: RwLock::new(tokens), queries: queries(), pending: queries() }
    }

    /// Opens a session for a workload and gives the tokens for its client.
    pub fn open(&self, new: NewSession, flow: &Flow) -> Result<ClientTokens, SessionError> {
        let session = Arc::new(Session {
            id: new.id,
            principal: new.principal,
            account: new.account,
            role: new.role,
            cgroup_id: flow.cgroup_id,
            cgroup: flow.cgroup.clone(),
            upstream: Mutex::new(new.upstream),
            used: Mutex::new(Instant::now()),
        });
        self.drop_idle();
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if tokens.by_session.len() >= SESSIONS {
            return Err(SessionError::TooMany);
        }
        let issued = tokens.issue(&session)?;
        let sealed = session.sealed(&tokens);
        drop(tokens);
        self.keep(&sealed);
        Ok(issued)
    }

    /// The session that a token stands for, if it is used from the workload and for the account that it was given for.
    pub fn find(
        &self,
        token: Option<&str>,
        kind: TokenKind,
        flow: &Flow,
        account: &str,
    ) -> Result<Arc<Session>, SessionError> {
        let hash = TokenHash::of(token.ok_or(SessionError::NoToken)?);
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        match tokens.by_hash.get(&hash) {
            Some((_, session)) if session.cgroup_id != flow.cgroup_id => Err(SessionError::OtherWorkload),
            Some((_, session)) if session.account != account => Err(SessionError::OtherAccount),
            Some((found, session)) if *found == kind => {
                *session.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(Arc::clone(session))
            }
            _ => Err(SessionError::Unknown),
        }
    }

    /// Replaces Snowflake's tokens and gives new ones for the client.
    pub fn renew(
        &self,
        session: &Arc<Session>,
        upstream: UpstreamTokens,
    ) -> Result<ClientTokens, SessionError> {
        *session.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        let issued = tokens.issue(session)?;
        let sealed = session.sealed(&tokens);
        drop(tokens);
        self.keep(&sealed);
        Ok(issued)
    }

    /// Forgets a session and its tokens.
    pub fn close(&self, session: &Session) {
        self.vault.remove(session.id);
        self.tokens.write().unwrap_or_else(PoisonError::into_inner).remove(session.id);
    }

    /// Forgets the sessions that Snowflake has forgotten.
    fn drop_idle(&self) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        let is_idle =
            |session: &Session| session.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > IDLE;
        let idle: Vec<_> = tokens
            .by_hash
            .values()
            .filter(|(_, session)| is_idle(session))
            .map(|(_, session)| session.id)
            .collect();
        for id in idle {
            self.vault.remove(id);
            tokens.remove(id);
        }
    }

    /// Keeps a session for the next start of the agent. Without it the client would have to log in again, no more.
    fn keep(&self, sealed: &Sealed) {
        if let Err(error) = self.vault.store(sealed) {
            tracing::warn!(%error, "a session cannot be kept for the next start: its client will have to log in again");
        }
    }

    /// Notes that a query belongs to a session's caller.
    pub fn own(&self, query: QueryId, session: &Session) {
        let owner = Owner {
            caller: session.principal.caller().clone(),
            account: session.account.clone(),
            rule: session.principal.rule().name.clone(),
        };
        self.queries.insert(query, owner);
    }

    /// Whether a query is the session's caller's, admitted by the same rule.
    pub fn owns(&self, session: &Session, query: &QueryId) -> bool {
        self.queries.get(query).is_some_and(|owner| {
            owner.caller.issuer == session.principal.caller().issuer
                && owner.caller.subject == session.principal.caller().subject
                && owner.account == session.account
                && owner.rule == session.principal.rule().name
        })
    }

    /// Notes that a query's outcome is still to come.
    pub fn wait(&self, query: QueryId, pending: Pending) {
        self.pending.insert(query, pending);
    }

    /// The statement whose outcome a query's result is, once.
    pub fn finish(&self, query: &QueryId) -> Option<Pending> {
        self.pending.remove(query)
    }
}

fn queries<V: Clone + Send + Sync + 'static>() -> Cache<QueryId, V> {
    Cache::builder().max_capacity(QUERIES).time_to_live(QUERY_LIFETIME).build()
}

impl Session {
    /// What the next agent needs of the session.
    fn sealed(&self, tokens: &Tokens) -> Sealed {
        let caller = self.principal.caller();
        let upstream = self.upstream();
        let hashes = tokens.by_session.get(&self.id).into_iter().flatten();
        Sealed {
            id: self.id,
            issuer: caller.issuer.clone(),
            subject: caller.subject.clone(),
            groups: caller.groups.clone(),
            rule: self.principal.rule().name.clone(),
            account: self.account.clone(),
            role: self.role.clone(),
            cgroup: self.cgroup.clone(),
            cgroup_id: self.cgroup_id,
            session_token: Zeroizing::new(upstream.session.expose().to_owned()),
            master_token: Zeroizing::new(upstream.master.expose().to_owned()),
            tokens: hashes
                .filter_map(|hash| tokens.by_hash.get(hash).map(|(kind, _)| (*hash.as_bytes(), *kind)))
                .collect(),
        }
    }

    pub fn upstream(&self) -> UpstreamTokens {
        self.upstream.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Tokens {
    fn issue(&mut self, session: &Arc<Session>) -> Result<ClientTokens, SessionError> {
        let random = || ClientToken::random().ok_or(SessionError::NoRandomness);
        let issued = ClientTokens { session: random()?, master: random()? };
        self.add(session, issued.session.hash(), TokenKind::Session);
        self.add(session, issued.master.hash(), TokenKind::Master);
        Ok(issued)
    }

    fn add(&mut self, session: &Arc<Session>, hash: TokenHash, kind: TokenKind) {
        let hashes = self.by_session.entry(session.id).or_default();
        hashes.push(hash);
        self.by_hash.insert(hash, (kind, Arc::clone(session)));
        let surplus = hashes.len().saturating_sub(TOKENS_PER_SESSION);
        for hash in hashes.drain(..surplus) {
            self.by_hash.remove(&hash);
        }
    }

    fn remove(&mut self, session: Uuid) {
        for hash in self.by_session.remove(&session).unwrap_or_default() {
            self.by_hash.remove(&hash);
        }
    }
}
