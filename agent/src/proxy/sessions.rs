//! The sessions that clients hold: opaque tokens on their side, Snowflake's tokens on ours.

use std::collections::HashMap;
use std::hash::Hash;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use moka::sync::Cache;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use uuid::Uuid;
use zeroize::Zeroizing;

use super::vault::{Sealed, Vault};
use crate::audit::{self, AuditError, Caller, OwnedQuery, latest_queries};
use crate::capture::Workload;
use crate::config::Secret;
use crate::identity::{Identity, Principal};
use crate::snowflake::{ClientToken, Operation, QueryId, TokenHash};

/// Sessions at a time; each costs about two kilobytes.
const SESSIONS: usize = 20_000;
const SESSIONS_OF_A_WORKLOAD: usize = 2_000;
/// After a renewal the token before it is still good, for requests that are under way.
const TOKENS_PER_SESSION: usize = 4;
/// Snowflake keeps results for a day.
const QUERY_LIFETIME: Duration = Duration::from_hours(24);
const QUERIES: u64 = 100_000;
/// Of the journal's outcomes, so many are looked through for queries when an agent begins.
const REMEMBERED: u32 = 20_000;
/// Snowflake ends a session that was idle for four hours.
const IDLE: Duration = Duration::from_mins(4 * 60 + 10);
/// The sessions of a predecessor are not looked for more often than this.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// On whose behalf statements run.
#[derive(Clone)]
pub struct Session {
    pub id: Uuid,
    pub principal: Principal,
    /// The account's host name.
    pub account: String,
    pub role: String,
}

/// A session with Snowflake that a client opened.
pub struct OpenSession {
    pub session: Session,
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

/// What a session with Snowflake is made from.
pub struct NewSession {
    pub session: Session,
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

/// Whose a query, or a session of the trail, is. Groups do not count: they may change from token to token.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Owner {
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
    /// Those that were held, by the identifier that their clients know.
    aliases: Cache<QueryId, QueryId>,
    /// Where a successor is told of whatever changes here.
    successor: ArcSwapOption<mpsc::UnboundedSender<Legacy>>,
    /// Set while what is not found may be a session that a predecessor has opened meanwhile.
    predecessor: Mutex<Option<Predecessor>>,
}

/// What an agent tells its successor of its clients' queries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Legacy {
    #[serde(default)]
    pub queries: Vec<(String, Owner)>,
    #[serde(default)]
    pub requests: Vec<(String, Owner)>,
    /// Statements whose outcome is still to come, and for how many microseconds they have run.
    #[serde(default)]
    pub pending: Vec<(String, Uuid, u64)>,
    /// Queries whose outcome has come.
    #[serde(default)]
    pub finished: Vec<String>,
    /// Queries that were held: as their clients know them, and as Snowflake does.
    #[serde(default)]
    pub aliases: Vec<(String, String)>,
}

struct Predecessor {
    until: Instant,
    /// When its sessions were last looked for.
    looked: Instant,
}

#[derive(Default)]
struct Tokens {
    by_hash: HashMap<TokenHash, (TokenKind, Arc<OpenSession>)>,
    /// The hashes of each session, oldest first.
    by_session: HashMap<Uuid, Vec<TokenHash>>,
}

impl Sessions {
    /// The sessions of the vault whose callers the rules still admit.
    pub fn new(vault: Vault, identity: &Identity) -> Self {
        let sessions = Self {
            vault,
            tokens: RwLock::default(),
            queries: owned(),
            requests: owned(),
            pending: owned(),
            aliases: owned(),
            successor: ArcSwapOption::empty(),
            predecessor: Mutex::default(),
        };
        let count = sessions.load(identity);
        tracing::info!(sessions = count, "sessions taken over");
        sessions
    }

    /// Takes the sessions of the vault in the place of what is known of them. Returns how many there are.
    fn load(&self, identity: &Identity) -> usize {
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        for sealed in self.vault.load() {
            let caller = Caller { issuer: sealed.issuer, subject: sealed.subject, groups: sealed.groups };
            let Some(principal) = identity.readmit(caller, &sealed.cgroup, &sealed.account, &sealed.rule)
            else {
                self.vault.remove(sealed.id);
                continue;
            };
            let known = |(hash, _): &([u8; 32], TokenKind)| {
                tokens.by_hash.contains_key(&TokenHash::from_bytes(*hash))
            };
            if !sealed.tokens.is_empty() && sealed.tokens.iter().all(known) {
                continue;
            }
            let open = Arc::new(OpenSession {
                session: Session { id: sealed.id, principal, account: sealed.account, role: sealed.role },
                cgroup_id: sealed.cgroup_id,
                cgroup: sealed.cgroup,
                upstream: Mutex::new(UpstreamTokens {
                    session: Secret::new(sealed.session_token.to_string()),
                    master: Secret::new(sealed.master_token.to_string()),
                }),
                used: Mutex::new(Instant::now()),
            });
            tokens.remove(open.session.id);
            for (hash, kind) in sealed.tokens {
                tokens.add(&open, TokenHash::from_bytes(hash), kind);
            }
        }
        tokens.by_session.len()
    }

    /// That there is room for one more session of a workload, before Snowflake opens one.
    pub fn room(&self, workload: &Workload) -> Result<(), SessionError> {
        self.drop_idle();
        self.tokens.read().unwrap_or_else(PoisonError::into_inner).room(workload)
    }

    /// Opens a session for a workload and gives the tokens for its client.
    pub fn open(&self, new: NewSession, workload: &Workload) -> Result<ClientTokens, SessionError> {
        let open = Arc::new(OpenSession {
            session: new.session,
            cgroup_id: workload.cgroup_id,
            cgroup: workload.cgroup.clone(),
            upstream: Mutex::new(new.upstream),
            used: Mutex::new(Instant::now()),
        });
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        tokens.room(workload)?;
        let issued = tokens.issue(&open)?;
        self.keep(&open.sealed(&tokens));
        Ok(issued)
    }

    /// The session that a token stands for, if it is used from the workload and for the account that it was given for.
    pub fn find(
        &self,
        token: Option<&str>,
        kind: TokenKind,
        workload: &Workload,
        account: &str,
    ) -> Result<Arc<OpenSession>, SessionError> {
        let hash = TokenHash::of(token.ok_or(SessionError::NoToken)?);
        let tokens = self.tokens.read().unwrap_or_else(PoisonError::into_inner);
        match tokens.by_hash.get(&hash) {
            Some((_, open)) if open.cgroup_id != workload.cgroup_id => Err(SessionError::OtherWorkload),
            Some((_, open)) if open.session.account != account => Err(SessionError::OtherAccount),
            Some((found, open)) if *found == kind => {
                *open.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                Ok(Arc::clone(open))
            }
            _ => Err(SessionError::Unknown),
        }
    }

    /// Replaces Snowflake's tokens and gives new ones for the client.
    pub fn renew(
        &self,
        open: &Arc<OpenSession>,
        upstream: UpstreamTokens,
    ) -> Result<ClientTokens, SessionError> {
        *open.upstream.lock().unwrap_or_else(PoisonError::into_inner) = upstream;
        let mut tokens = self.tokens.write().unwrap_or_else(PoisonError::into_inner);
        // It may have been closed while Snowflake renewed it.
        if !tokens.by_session.contains_key(&open.session.id) {
            return Err(SessionError::Unknown);
        }
        let issued = tokens.issue(open)?;
        self.keep(&open.sealed(&tokens));
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
            |open: &OpenSession| open.used.lock().unwrap_or_else(PoisonError::into_inner).elapsed() > IDLE;
        let idle: Vec<_> = tokens
            .by_hash
            .values()
            .filter(|(_, open)| is_idle(open))
            .map(|(_, open)| open.session.id)
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
        let owner = Owner::of(session);
        self.tell(|| Legacy {
            queries: vec![(query.as_str().to_owned(), owner.clone())],
            ..Legacy::default()
        });
        self.queries.insert(query, owner);
    }

    /// Takes from the journal whose the latest queries are: their ends did not come by this agent.
    pub fn remember(&self, journal: &Path) -> Result<(), AuditError> {
        let lifetime = i64::try_from(QUERY_LIFETIME.as_micros()).unwrap_or(i64::MAX);
        let latest = latest_queries(journal, audit::now().saturating_sub(lifetime), REMEMBERED)?;
        // The newest last, so that it stays longest.
        for OwnedQuery { query_id, held, issuer, subject, account, rule } in latest.into_iter().rev() {
            if let Some(query) = QueryId::parse(&query_id) {
                if let Some(held) = QueryId::parse(&held) {
                    self.aliases.insert(held, query.clone());
                }
                self.queries.insert(query, Owner { issuer, subject, account, rule });
            }
        }
        Ok(())
    }

    /// Notes that a request belongs to a session's caller.
    pub fn own_request(&self, request: &str, session: &Session) {
        let (request, owner) = (request.to_ascii_lowercase(), Owner::of(session));
        self.tell(|| Legacy { requests: vec![(request.clone(), owner.clone())], ..Legacy::default() });
        self.requests.insert(request, owner);
    }

    /// Whether a query is the session's caller's, admitted by the same rule.
    pub fn owns(&self, session: &Session, query: &QueryId) -> bool {
        self.queries.get(query) == Some(Owner::of(session))
    }

    /// Whether a request is the session's caller's, admitted by the same rule.
    pub fn owns_request(&self, session: &Session, request: &str) -> bool {
        self.requests.get(&request.to_ascii_lowercase()) == Some(Owner::of(session))
    }

    /// Whether a request is known to be another caller's.
    pub fn is_of_another(&self, session: &Session, request: &str) -> bool {
        let owner = self.requests.get(&request.to_ascii_lowercase());
        !request.is_empty() && owner.is_some_and(|owner| owner != Owner::of(session))
    }

    /// Notes that a query's outcome is still to come.
    pub fn wait(&self, query: QueryId, pending: Pending) {
        self.tell(|| Legacy { pending: vec![pending.told(&query)], ..Legacy::default() });
        self.pending.insert(query, pending);
    }

    /// The statement whose outcome a query's result is, once.
    pub fn finish(&self, query: &QueryId) -> Option<Pending> {
        self.tell(|| Legacy { finished: vec![query.as_str().to_owned()], ..Legacy::default() });
        self.pending.remove(query)
    }

    /// Notes how Snowflake calls a query whose client knows it by an identifier of the agent's.
    pub fn alias(&self, held: &QueryId, query: &QueryId) {
        self.tell(|| Legacy { aliases: vec![told(held, query)], ..Legacy::default() });
        self.aliases.insert(held.clone(), query.clone());
    }

    /// The operation about the query as Snowflake knows it.
    pub fn resolve(&self, operation: Operation) -> Operation {
        match operation.query().and_then(|query| self.aliases.get(query)) {
            Some(query) => operation.about(query),
            None => operation,
        }
    }

    /// What seals things for clients to keep.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Says what is known of queries, and from now on what changes, to a successor.
    pub fn hand_over(&self, successor: mpsc::UnboundedSender<Legacy>) {
        // What changes meanwhile is told twice, and the same each time.
        self.successor.store(Some(Arc::new(successor)));
        self.tell(|| Legacy {
            queries: self.queries.iter().map(|(query, owner)| (query.as_str().to_owned(), owner)).collect(),
            requests: self.requests.iter().map(|(id, owner)| (id.to_string(), owner)).collect(),
            pending: self.pending.iter().map(|(query, pending)| pending.told(&query)).collect(),
            finished: Vec::new(),
            aliases: self.aliases.iter().map(|(held, query)| told(&held, &query)).collect(),
        });
    }

    /// Takes what a predecessor tells.
    pub fn inherit(&self, legacy: Legacy) {
        for (query, owner) in legacy.queries {
            if let Some(query) = QueryId::parse(&query) {
                self.queries.insert(query, owner);
            }
        }
        for (request, owner) in legacy.requests {
            self.requests.insert(request, owner);
        }
        for (query, statement, microseconds) in legacy.pending {
            let ago = Duration::from_micros(microseconds);
            let now = Instant::now();
            if let Some(query) = QueryId::parse(&query) {
                self.pending.insert(query, Pending { statement, since: now.checked_sub(ago).unwrap_or(now) });
            }
        }
        for (held, query) in legacy.aliases {
            if let (Some(held), Some(query)) = (QueryId::parse(&held), QueryId::parse(&query)) {
                self.aliases.insert(held, query);
            }
        }
        for query in legacy.finished {
            if let Some(query) = QueryId::parse(&query) {
                self.pending.remove(&query);
            }
        }
    }

    /// For so long, a session that is not known may be one that a predecessor has opened meanwhile.
    pub fn expect_predecessor(&self, time: Duration) {
        let now = Instant::now();
        let predecessor = Predecessor { until: now + time, looked: now };
        *self.predecessor.lock().unwrap_or_else(PoisonError::into_inner) = Some(predecessor);
    }

    /// Looks for the sessions that a predecessor has opened meanwhile; says whether there can be any.
    pub fn look_again(&self, identity: &Identity) -> bool {
        let now = Instant::now();
        let mut predecessor = self.predecessor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(known) = predecessor.as_mut().filter(|known| now < known.until) else { return false };
        if now.duration_since(known.looked) >= LOOK_PAUSE {
            known.looked = now;
            self.load(identity);
        }
        true
    }

    /// Whether a statement's outcome is still to come, here.
    pub fn is_pending(&self, statement: Uuid) -> bool {
        self.pending.iter().any(|(_, pending)| pending.statement == statement)
    }

    fn tell(&self, legacy: impl FnOnce() -> Legacy) {
        if let Some(successor) = self.successor.load().as_deref() {
            // A successor that is gone does not need it.
            let _ = successor.send(legacy());
        }
    }
}

fn told(held: &QueryId, query: &QueryId) -> (String, String) {
    (held.as_str().to_owned(), query.as_str().to_owned())
}

impl Pending {
    fn told(&self, query: &QueryId) -> (String, Uuid, u64) {
        let microseconds = u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX);
        (query.as_str().to_owned(), self.statement, microseconds)
    }
}

fn owned<K: Eq + Hash + Send + Sync + 'static, V: Clone + Send + Sync + 'static>() -> Cache<K, V> {
    Cache::builder().max_capacity(QUERIES).time_to_live(QUERY_LIFETIME).build()
}

impl Owner {
    pub fn new(principal: &Principal, account: &str) -> Self {
        Self {
            issuer: principal.caller().issuer.clone(),
            subject: principal.caller().subject.clone(),
            account: account.to_owned(),
            rule: principal.rule().name.clone(),
        }
    }

    pub fn of(session: &Session) -> Self {
        Self::new(&session.principal, &session.account)
    }
}

impl OpenSession {
    /// What the next agent needs of the session.
    fn sealed(&self, tokens: &Tokens) -> Sealed {
        let session = &self.session;
        let caller = session.principal.caller();
        let upstream = self.upstream();
        let hashes = tokens.by_session.get(&session.id).into_iter().flatten();
        Sealed {
            id: session.id,
            issuer: caller.issuer.clone(),
            subject: caller.subject.clone(),
            groups: caller.groups.clone(),
            rule: session.principal.rule().name.clone(),
            account: session.account.clone(),
            role: session.role.clone(),
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
    fn room(&self, workload: &Workload) -> Result<(), SessionError> {
        if self.by_session.len() >= SESSIONS || self.of_workload(workload.cgroup_id) >= SESSIONS_OF_A_WORKLOAD
        {
            return Err(SessionError::TooMany);
        }
        Ok(())
    }

    /// How many sessions a workload has.
    fn of_workload(&self, cgroup_id: u64) -> usize {
        self.by_session.keys().filter_map(|id| self.open(*id)).filter(|it| it.cgroup_id == cgroup_id).count()
    }

    fn open(&self, session: Uuid) -> Option<&Arc<OpenSession>> {
        let hash = self.by_session.get(&session)?.first()?;
        self.by_hash.get(hash).map(|(_, open)| open)
    }

    fn issue(&mut self, open: &Arc<OpenSession>) -> Result<ClientTokens, SessionError> {
        let random = || ClientToken::random().ok_or(SessionError::NoRandomness);
        let issued = ClientTokens { session: random()?, master: random()? };
        self.add(open, issued.session.hash(), TokenKind::Session);
        self.add(open, issued.master.hash(), TokenKind::Master);
        Ok(issued)
    }

    fn add(&mut self, open: &Arc<OpenSession>, hash: TokenHash, kind: TokenKind) {
        let hashes = self.by_session.entry(open.session.id).or_default();
        hashes.push(hash);
        self.by_hash.insert(hash, (kind, Arc::clone(open)));
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
