//! The sessions that clients hold: opaque tokens on their side, Snowflake's tokens on ours.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::vault::{Sealed, Vault};
use crate::audit::Caller;
use crate::capture::Workload;
use crate::config::Secret;
use crate::identity::{Identity, Principal};
use crate::snowflake::{ClientToken, QueryId, TokenHash};

/// Sessions at a time; each costs about two kilobytes.
const SESSIONS: usize = 20_000;
const SESSIONS_OF_A_WORKLOAD: usize = 2_000;
/// After a renewal the token before it is still good, for requests that are under way.
const TOKENS_PER_SESSION: usize = 4;
/// Snowflake keeps results for a day.
const QUERY_LIFETIME: Duration = Duration::from_hours(24);
const QUERIES: u64 = 100_000;
/// Of a session's unfinished queries, so many are remembered over a restart.
const RUNNING: usize = 64;
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
    /// The last queries that Snowflake went on running: a restart must not part them from their caller.
    running: Mutex<VecDeque<QueryId>>,
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
    #[error("there are too many sessions open: close some")]
    TooMany,
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// Whose a query is. Groups do not count: they may change from token to token.
#[derive(Clone, PartialEq, Eq)]
struct Owner {
    issuer: String,
    subject: String,
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
    /// By the client's identifiers of the requests.
    requests: Cache<String, Owner>,
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
        let (mut tokens, queries) = (Tokens::default(), owned());
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
                running: Mutex::new(sealed.running.iter().filter_map(|id| QueryId::parse(id)).collect()),
            });
            let running = session.running.lock().unwrap_or_else(PoisonError::into_inner).clone();
            for query in running {
                queries.insert(query, Owner::of(&session));
            }
            for (hash, kind) in sealed.tokens {
                tokens.add(&session, TokenHash::from_bytes(hash), kind);
            }
        }
        tracing::info!(sessions = tokens.by_session.len(), "sessions taken over");
        Self { vault, tokens: RwLock::new(tokens), queries, requests: owned(), pending: owned() }
    }

    /// Opens a session for a workload and gives the tokens for its client.
    pub fn open(&self, new: NewSession, workload: &Workload) -> Result<ClientTokens, SessionError> {
        let session = Arc::new(Session {
            id: new.id,
            principal: new.principal,
            account: new.account,
            role: new.role,
            cgroup_id: workload.cgroup_id,
            cgroup: workload.cgroup.clone(),
            upstream: Mutex::new(new.upstream),
            used: Mutex::new(Instant::now()),
            running: Mutex::default(),
        });
        self.drop_idle();
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if tokens.by_session.len() >= SESSIONS {
            return Err(SessionError::TooMany);
        }
        if tokens.of_workload(workload.cgroup_id) >= SESSIONS_OF_A_WORKLOAD {
            return Err(SessionError::TooMany);
        }
        let issued = tokens.issue(&session)?;
        self.keep(&session.sealed(&tokens));
        Ok(issued)
    }

    /// The session that a token stands for, if it is used from the workload and for the account that it was given for.
    pub fn find(
        &self,
        token: Option<&str>,
        kind: TokenKind,
        workload: &Workload,
        account: &str,
    ) -> Result<Arc<Session>, SessionError> {
        let hash = TokenHash::of(token.ok_or(SessionError::NoToken)?);
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        match tokens.by_hash.get(&hash) {
            Some((_, session)) if session.cgroup_id != workload.cgroup_id => Err(SessionError::OtherWorkload),
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
        // It may have been closed while Snowflake renewed it.
        if !tokens.by_session.contains_key(&session.id) {
            return Err(SessionError::Unknown);
        }
        let issued = tokens.issue(session)?;
        self.keep(&session.sealed(&tokens));
        Ok(issued)
    }

    /// Forgets a session and its tokens.
    pub fn close(&self, session: &Session) {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.remove(session.id);
        self.vault.remove(session.id);
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

    /// Keeps a session for the next start of the agent. Without it the client would have to log in again, no more. Called
    /// with the tokens locked, so that the file of a session that is closed meanwhile does not come back.
    fn keep(&self, sealed: &Sealed) {
        if let Err(error) = self.vault.store(sealed) {
            tracing::warn!(%error, "a session cannot be kept for the next start: its client will have to log in again");
        }
    }

    /// Notes that a query belongs to a session's caller.
    pub fn own(&self, query: QueryId, session: &Session) {
        self.queries.insert(query, Owner::of(session));
    }

    /// Notes that a request belongs to a session's caller.
    pub fn own_request(&self, request: String, session: &Session) {
        self.requests.insert(request, Owner::of(session));
    }

    /// Whether a query is the session's caller's, admitted by the same rule.
    pub fn owns(&self, session: &Session, query: &QueryId) -> bool {
        self.queries.get(query) == Some(Owner::of(session))
    }

    /// Whether a request is the session's caller's, admitted by the same rule.
    pub fn owns_request(&self, session: &Session, request: &str) -> bool {
        self.requests.get(request) == Some(Owner::of(session))
    }

    /// Notes that a query's outcome is still to come.
    pub fn wait(&self, query: QueryId, session: &Session, pending: Pending) {
        self.pending.insert(query.clone(), pending);
        let mut running = session.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.len() == RUNNING {
            running.pop_front();
        }
        running.push_back(query);
        drop(running);
        let tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        if tokens.by_session.contains_key(&session.id) {
            self.keep(&session.sealed(&tokens));
        }
    }

    /// The statement whose outcome a query's result is, once.
    pub fn finish(&self, query: &QueryId) -> Option<Pending> {
        self.pending.remove(query)
    }
}

fn owned<K: Eq + Hash + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().max_capacity(QUERIES).time_to_live(QUERY_LIFETIME).build()
}

impl Owner {
    fn of(session: &Session) -> Self {
        Self {
            issuer: session.principal.caller().issuer.clone(),
            subject: session.principal.caller().subject.clone(),
            account: session.account.clone(),
            rule: session.principal.rule().name.clone(),
        }
    }
}

impl Session {
    /// What the next agent needs of the session.
    fn sealed(&self, tokens: &Tokens) -> Sealed {
        let caller = self.principal.caller();
        let upstream = self.upstream();
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
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
            running: running.iter().map(|query| query.as_str().to_owned()).collect(),
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
    /// How many sessions a workload has.
    fn of_workload(&self, cgroup_id: u64) -> usize {
        let first = |hashes: &Vec<TokenHash>| hashes.first().and_then(|hash| self.by_hash.get(hash));
        let sessions = self.by_session.values().filter_map(first);
        sessions.filter(|(_, session)| session.cgroup_id == cgroup_id).count()
    }

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
