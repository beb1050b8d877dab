//! Keeps the addresses of the configured names in the endpoint sets.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::runtime::TokioRuntimeProvider,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{CaptureError, EndpointClass, Endpoints};

/// How long the first answers are waited for.
const FIRST_DEADLINE: Duration = Duration::from_secs(10);
/// An answer is good for as long as it says, within these limits.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_mins(5);
/// Pauses after failures, doubled from the first to the last.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_mins(1);
/// Addresses stay this long after they were last in an answer, for clients remember answers too.
const MEMORY: Duration = Duration::from_hours(1);

/// Resolves names, and keeps those that it was given in the endpoint sets as long as it lives.
pub struct Names {
    resolver: TokioResolver,
    endpoints: Endpoints,
    known: Arc<Mutex<Known>>,
    refreshing: Mutex<JoinSet<()>>,
}

/// What the answers said.
#[derive(Default)]
struct Known {
    /// The last answer for each name; empty while there was none.
    answers: HashMap<String, Vec<IpAddr>>,
    /// When an address was last in an answer, or was last vouched for by a name that cannot be resolved any more.
    seen: BTreeMap<IpAddr, Instant>,
}

struct Answer {
    addresses: Vec<IpAddr>,
    good_for: Duration,
}

impl Names {
    /// Begins to resolve the names, and waits a while for the first answers. Those that stay without are logged and
    /// retried. Without name servers, those of /etc/resolv.conf are asked.
    pub async fn start(
        names: Vec<String>,
        nameservers: &[SocketAddr],
        endpoints: Endpoints,
    ) -> Result<Self, CaptureError> {
        let resolver = resolver(nameservers)?;
        let known = Arc::new(Mutex::new(Known::new(&names, &endpoints, Instant::now())));
        let names_of_agent = Self { resolver, endpoints, known, refreshing: Mutex::default() };
        names_of_agent.refresh(names).await;
        Ok(names_of_agent)
    }

    /// Begins to resolve further names, and waits a while for the first answers.
    pub async fn add(&self, names: Vec<String>) {
        let mut new = names;
        {
            let mut known = lock(&self.known);
            new.retain(|name| !known.answers.contains_key(name));
            known.answers.extend(new.iter().map(|name| (name.clone(), Vec::new())));
        }
        self.refresh(new).await;
    }

    async fn refresh(&self, names: Vec<String>) {
        let mut first = JoinSet::new();
        for name in names {
            let refresher = Refresher {
                name,
                resolver: self.resolver.clone(),
                endpoints: self.endpoints.clone(),
                known: Arc::clone(&self.known),
                failures: 0,
            };
            first.spawn(refresher.first());
        }
        while let Some(Ok((refresher, pause))) = first.join_next().await {
            self.refreshing.lock().unwrap_or_else(PoisonError::into_inner).spawn(refresher.run(pause));
        }
    }

    /// The addresses of any name, at least one; the last known ones if there is no answer now.
    pub async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, CaptureError> {
        match ask(&self.resolver, name).await {
            Ok(answer) => Ok(answer.addresses),
            Err(error) => match lock(&self.known).answers.get(name) {
                Some(addresses) if !addresses.is_empty() => Ok(addresses.clone()),
                _ => Err(error),
            },
        }
    }
}

/// Keeps one name fresh.
struct Refresher {
    name: String,
    resolver: TokioResolver,
    endpoints: Endpoints,
    known: Arc<Mutex<Known>>,
    /// Failures in a row.
    failures: u32,
}

impl Refresher {
    /// Asks once, and says when to ask again.
    async fn first(mut self) -> (Self, Duration) {
        let pause = timeout(FIRST_DEADLINE, self.refresh()).await.unwrap_or_else(|_| {
            tracing::warn!(name = self.name, "no answer from the name servers in time, asking on");
            FIRST_RETRY
        });
        (self, pause)
    }

    async fn run(mut self, mut pause: Duration) {
        loop {
            sleep(pause).await;
            pause = self.refresh().await;
        }
    }

    async fn refresh(&mut self) -> Duration {
        match ask(&self.resolver, &self.name).await {
            Ok(answer) => {
                if self.failures > 0 {
                    tracing::info!(name = self.name, "resolved again");
                }
                self.failures = 0;
                let is_new = lock(&self.known).answer(&self.name, &answer.addresses, Instant::now());
                self.file(&answer.addresses, is_new);
                answer.good_for.clamp(SHORTEST, LONGEST)
            }
            Err(error) => {
                if self.failures == 0 {
                    tracing::warn!(%error, "keeping the endpoint addresses as they are");
                }
                self.failures = self.failures.saturating_add(1);
                lock(&self.known).vouch(&self.name, Instant::now());
                retry_pause(self.failures)
            }
        }
    }

    /// Adds the addresses to the endpoint sets, and takes out those that are long forgotten.
    fn file(&self, addresses: &[IpAddr], is_new: bool) {
        for address in addresses {
            let inserted = self.endpoints.resolve(*address, &self.name);
            // Said once and not at each refresh.
            if let Err(error) = inserted
                && is_new
            {
                tracing::warn!(name = self.name, %error, "an address is not covered");
            }
        }
        for address in lock(&self.known).forget(Instant::now()) {
            if let Err(error) = self.endpoints.remove(address, EndpointClass::Resolved) {
                tracing::warn!(%address, %error, "an old address is still covered");
            }
        }
    }
}

impl Known {
    /// What earlier agents resolved counts as just seen: when they saw it last is not known.
    fn new(names: &[String], endpoints: &Endpoints, now: Instant) -> Self {
        let resolved = endpoints.list().into_iter();
        let resolved = resolved.filter(|endpoint| endpoint.class == EndpointClass::Resolved);
        Self {
            answers: names.iter().map(|name| (name.clone(), Vec::new())).collect(),
            seen: resolved.map(|endpoint| (endpoint.network.addr(), now)).collect(),
        }
    }

    /// Says whether this answer is another than the last.
    fn answer(&mut self, name: &str, addresses: &[IpAddr], now: Instant) -> bool {
        let last = self.answers.insert(name.to_owned(), addresses.to_vec());
        self.vouch(name, now);
        last.as_deref() != Some(addresses)
    }

    /// What the name last resolved to counts as seen.
    fn vouch(&mut self, name: &str, now: Instant) {
        for address in self.answers.get(name).into_iter().flatten() {
            self.seen.insert(address.to_canonical(), now);
        }
    }

    /// Removes and returns the addresses that were not seen for long; none while a name has not been resolved at all,
    /// since they may be its.
    fn forget(&mut self, now: Instant) -> Vec<IpAddr> {
        if self.answers.values().any(Vec::is_empty) {
            return Vec::new();
        }
        let is_old = |seen: Instant| now.saturating_duration_since(seen) > MEMORY;
        let old = self.seen.iter().filter(|(_, seen)| is_old(**seen)).map(|(address, _)| *address).collect();
        self.seen.retain(|_, seen| !is_old(*seen));
        old
    }
}

fn lock(known: &Mutex<Known>) -> MutexGuard<'_, Known> {
    // Every change is whole by itself.
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn ask(resolver: &TokioResolver, name: &str) -> Result<Answer, CaptureError> {
    let unresolved = |reason: String| CaptureError::Unresolved { name: name.to_owned(), reason };
    if let Ok(address) = name.parse() {
        return Ok(Answer { addresses: vec![address], good_for: LONGEST });
    }
    // With the final dot it is never tried below the host's own domains.
    let absolute = if name.ends_with('.') { name.to_owned() } else { format!("{name}.") };
    let found = resolver.lookup_ip(absolute).await.map_err(|error| unresolved(error.to_string()))?;
    let mut addresses: Vec<IpAddr> = found.iter().collect();
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        return Err(unresolved("the answer has no address".to_owned()));
    }
    Ok(Answer { addresses, good_for: found.valid_until().saturating_duration_since(Instant::now()) })
}

fn resolver(nameservers: &[SocketAddr]) -> Result<TokioResolver, CaptureError> {
    let unusable =
        |error: hickory_resolver::net::NetError| CaptureError::NameServers { reason: error.to_string() };
    let mut builder = if nameservers.is_empty() {
        TokioResolver::builder_tokio().map_err(unusable)?
    } else {
        let servers = nameservers.iter().map(|server| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = server.port();
                connection
            });
            NameServerConfig::new(server.ip(), true, connections.into())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    builder.options_mut().positive_max_ttl = Some(LONGEST);
    builder.build().map_err(unusable)
}

fn retry_pause(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1))).min(LAST_RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn known(names: &[&str]) -> Known {
        Known {
            answers: names.iter().map(|name| ((*name).to_owned(), Vec::new())).collect(),
            seen: BTreeMap::new(),
        }
    }

    #[test]
    fn addresses_are_forgotten_an_hour_after_the_last_answer_with_them() {
        let start = Instant::now();
        let mut known = known(&["a", "b"]);
        assert!(known.answer("a", &[address(1), address(2)], start));
        assert!(known.answer("b", &[address(2)], start));
        assert!(known.answer("a", &[address(3)], start + Duration::from_mins(1)));
        assert!(!known.answer("a", &[address(3)], start + Duration::from_mins(1)));
        assert!(known.forget(start + MEMORY).is_empty());
        known.vouch("b", start + MEMORY);
        assert_eq!(known.forget(start + MEMORY + Duration::from_secs(1)), [address(1)]);
        assert!(known.forget(start + MEMORY + Duration::from_secs(1)).is_empty(), "forgotten once");
        assert_eq!(known.forget(start + MEMORY + Duration::from_secs(61)), [address(3)]);
    }

    #[test]
    fn a_name_that_fails_keeps_its_last_addresses() {
        let start = Instant::now();
        let mut known = known(&["a"]);
        known.answer("a", &[address(1)], start);
        known.vouch("a", start + MEMORY * 3);
        assert!(known.forget(start + MEMORY * 3).is_empty());
    }

    #[test]
    fn nothing_is_forgotten_while_a_name_has_had_no_answer() {
        let start = Instant::now();
        let mut known = known(&["a", "b"]);
        known.seen.insert(address(9), start);
        known.answer("a", &[address(1)], start + MEMORY * 2);
        assert!(known.forget(start + MEMORY * 2).is_empty());
        known.answer("b", &[address(2)], start + MEMORY * 2);
        assert_eq!(known.forget(start + MEMORY * 2), [address(9)]);
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let pauses: Vec<u64> =
            [1, 2, 3, 6, 7, u32::MAX].map(|failures| retry_pause(failures).as_secs()).into();
        assert_eq!(pauses, [1, 2, 4, 32, 60, 60]);
    }
}
