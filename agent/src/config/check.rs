//! From what is written to what is meant: every value is parsed, every reference looked up.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use agent_common::{SUFFIX_LENGTHS, SUFFIX_SIZE};
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use hyper::Uri;

use super::document::Document;
use super::{
    Account, Agent, ApiServer, Approvals, Capture, ClickHouse, Config, Credential, Issuer, Journal,
    KeySource, Kubernetes, PodSelector, RetentionDays, Rule, Scope, Tls, bucket, is_under, payloads, raw,
    reconcile,
};

/// Turns the raw file into a configuration, noting every problem in the document. The result counts only where there
/// is none.
pub fn check(path: &Path, raw: raw::Raw, document: &mut Document) -> Config {
    let mut checker = Checker { document };
    let capture = checker.capture(raw.capture);
    let accounts = checker.accounts(raw.accounts, &capture.suffixes);
    let issuers = checker.issuers(raw.issuers);
    let credentials = checker.credentials(raw.credentials);
    let rules = checker.rules(raw.rules, &accounts, &issuers, &credentials);
    let approvals = raw.approvals.map(|raw| checker.approvals(raw, &issuers));
    let clickhouse = raw.audit.clickhouse.map(|raw| checker.clickhouse(raw));
    let journal = checker.journal(
        &raw.audit.journal,
        clickhouse.is_some() || !raw.siem.is_empty(),
        raw.audit.payloads.as_ref(),
    );
    let payloads = raw.audit.payloads.map(|raw| payloads::check(raw, checker.document));
    let checkpoints = raw.audit.checkpoints;
    let checkpoints =
        checkpoints.and_then(|raw| bucket::check(raw, &["audit", "checkpoints"], checker.document));
    let known = reconcile::Known {
        accounts: &accounts,
        credentials: &credentials,
        rules: &rules,
        has_clickhouse: clickhouse.is_some(),
    };
    let reconcile = raw.audit.reconcile.map(|raw| reconcile::check(raw, &known, checker.document));
    let siem = super::siem::check(raw.siem, checker.document);
    let needs_pods = capture.scopes.iter().any(|scope| scope.pods.is_some());
    let kubernetes = needs_pods.then(|| checker.kubernetes(raw.kubernetes)).flatten();
    let metrics = raw.metrics.listen.and_then(|address| checker.metrics(&address));
    Config {
        path: path.to_owned(),
        agent: checker.agent(raw.agent),
        capture,
        tls: Tls { upstream_ca_bundle: raw.tls.upstream_ca_bundle },
        telemetry: raw.clients.telemetry,
        query_tag: raw.clients.query_tag,
        revocation_list: raw.clients.revocation_list,
        accounts,
        issuers,
        rules,
        credentials,
        policy_file: raw.policy.file,
        approvals,
        clickhouse,
        journal,
        payloads,
        checkpoints,
        reconcile,
        siem,
        metrics,
        kubernetes,
    }
}

pub(super) const MEBIBYTE: u64 = 1 << 20;
/// Mebibytes of a store.
pub(super) const LEAST: u64 = 64;
pub(super) const DAY: Duration = Duration::from_hours(24);

struct Checker<'a> {
    document: &'a mut Document,
}

/// A path in the document: `at!["rules", 0, "name"]`.
macro_rules! at {
    ($($key:expr),+) => { &[$($key.to_string()),+] };
}

impl Checker<'_> {
    fn wrong(&mut self, path: &[String], message: impl AsRef<str>) {
        self.document.add(path, message.as_ref());
    }

    fn agent(&mut self, raw: raw::Agent) -> Agent {
        if !raw.state_dir.is_absolute() {
            self.wrong(at!["agent", "state_dir"], "expected an absolute path");
        }
        let node =
            raw.node.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
        if node.is_empty() || node.len() > 253 {
            self.wrong(at!["agent", "node"], "expected a name of 1 to 253 bytes");
        }
        Agent { state_dir: raw.state_dir, node }
    }

    fn capture(&mut self, raw: raw::Capture) -> Capture {
        for (key, path) in [("cgroup", &raw.cgroup), ("bpffs", &raw.bpffs)] {
            if !path.is_absolute() {
                self.wrong(at!["capture", key], "expected an absolute path");
            }
        }
        if raw.listen_port == 0 {
            self.wrong(at!["capture", "listen_port"], "expected a port from 1 to 65535");
        }
        if raw.ports.is_empty() || raw.ports.contains(&0) {
            self.wrong(at!["capture", "ports"], "expected at least one port from 1 to 65535");
        }
        // Port 80 is captured whatever is configured.
        if raw.listen_port == 80 || raw.ports.contains(&raw.listen_port) {
            self.wrong(at!["capture", "listen_port"], "expected a port that is not itself redirected");
        }
        if raw.suffixes.is_empty() {
            self.wrong(at!["capture", "suffixes"], "expected at least one domain");
        }
        let mut names = |key: &str, values: Vec<String>| -> Vec<String> {
            let parse = |(index, value): (usize, String)| {
                let name = host_name(&value);
                if name.is_none() {
                    self.wrong(
                        at!["capture", key, index],
                        "expected a domain name such as `snowflakecomputing.com`",
                    );
                }
                name
            };
            values.into_iter().enumerate().filter_map(parse).collect()
        };
        let suffixes = names("suffixes", raw.suffixes);
        let names = names("names", raw.names);
        self.suffixes(&suffixes);
        let scopes = raw.scopes.into_iter().enumerate();
        let scopes: Vec<Scope> =
            scopes.map(|(index, scope)| self.scope(index, scope, (raw.mode, raw.raw_sockets))).collect();
        let networks =
            self.parse_each("networks", raw.networks, "expected a network such as `198.51.100.0/24`");
        let nameservers = self.parse_each(
            "nameservers",
            raw.nameservers,
            "expected an address and port such as `10.0.0.2:53`",
        );
        Capture {
            cgroup: raw.cgroup,
            bpffs: raw.bpffs,
            listen_port: raw.listen_port,
            ports: raw.ports,
            suffixes,
            names,
            networks,
            nameservers,
            mode: raw.mode,
            raw_sockets: raw.raw_sockets,
            perimeter: raw.perimeter,
            scopes,
        }
    }

    /// The kernel programs compare the ends of names in a fixed number of lengths.
    fn suffixes(&mut self, suffixes: &[String]) {
        // A dot goes before each, and a zero is left.
        const LONGEST: usize = SUFFIX_SIZE - 2;
        for (index, suffix) in suffixes.iter().enumerate() {
            if suffix.len() > LONGEST {
                self.wrong(
                    at!["capture", "suffixes", index],
                    format!("expected at most {LONGEST} characters: a shorter end of the names does"),
                );
            }
        }
        let lengths: HashSet<usize> = suffixes.iter().map(String::len).collect();
        if lengths.len() > SUFFIX_LENGTHS {
            self.wrong(
                at!["capture", "suffixes"],
                format!("expected suffixes of at most {SUFFIX_LENGTHS} different lengths"),
            );
        }
    }

    fn scope(&mut self, index: usize, raw: raw::Scope, default: (raw::Mode, raw::RawSockets)) -> Scope {
        let place = |key: &str| vec!["capture".into(), "scopes".into(), index.to_string(), key.to_owned()];
        if raw.name.is_empty() {
            self.wrong(&place("name"), "expected a name");
        }
        if raw.cgroups.is_empty() && raw.units.is_empty() && raw.pods.is_none() {
            self.wrong(&place("name"), "expected cgroups, units or pods: this scope matches nothing");
        }
        let cgroups = self.globs(&place("cgroups"), &raw.cgroups, true);
        let units = self.globs(&place("units"), &raw.units, false);
        let pods = raw.pods.map(|pods| {
            let namespaces = self.globs(&place("pods"), &pods.namespaces, false);
            PodSelector {
                namespaces: (!pods.namespaces.is_empty()).then_some(namespaces),
                labels: pods.labels,
            }
        });
        Scope {
            name: raw.name,
            cgroups,
            units,
            pods,
            mode: raw.mode.unwrap_or(default.0),
            raw_sockets: raw.raw_sockets.unwrap_or(default.1),
        }
    }

    fn parse_each<T: std::str::FromStr>(&mut self, key: &str, values: Vec<String>, expected: &str) -> Vec<T> {
        let mut parsed = Vec::new();
        for (index, value) in values.into_iter().enumerate() {
            match value.parse() {
                Ok(value) => parsed.push(value),
                Err(_) => self.wrong(at!["capture", key, index], expected),
            }
        }
        parsed
    }

    fn accounts(&mut self, raw: Vec<raw::Account>, suffixes: &[String]) -> Vec<Account> {
        if raw.is_empty() {
            self.wrong(at!["accounts"], "expected at least one account");
        }
        let mut accounts = Vec::new();
        for (index, account) in raw.into_iter().enumerate() {
            let path = at!["accounts", index, "host"];
            match host_name(&account.host) {
                Some(host) if suffixes.iter().any(|suffix| is_under(&host, suffix)) => {
                    accounts.push(Account { host });
                }
                Some(_) => self.wrong(path, "expected a name under one of capture.suffixes"),
                None => {
                    self.wrong(path, "expected a host name such as `acme.eu-west-1.snowflakecomputing.com`");
                }
            }
        }
        accounts
    }

    fn issuers(&mut self, raw: Vec<raw::Issuer>) -> Vec<Issuer> {
        if raw.is_empty() {
            self.wrong(at!["issuers"], "expected at least one issuer");
        }
        let mut seen = HashSet::new();
        let mut issuers = Vec::new();
        for (index, issuer) in raw.into_iter().enumerate() {
            if !seen.insert(issuer.issuer.clone()) {
                self.wrong(at!["issuers", index, "issuer"], "expected each issuer once");
            }
            for (key, value) in [("issuer", &issuer.issuer), ("audience", &issuer.audience)] {
                if value.is_empty() {
                    self.wrong(at!["issuers", index, key], "expected a value that is not empty");
                }
            }
            let keys = match (issuer.jwks_url, issuer.jwks_file) {
                (None, Some(file)) => Some(KeySource::File(file)),
                (Some(url), None) => match protected_url(&url, issuer.allow_http) {
                    Ok(url) => Some(KeySource::Url(url)),
                    Err(expected) => {
                        self.wrong(at!["issuers", index, "jwks_url"], expected);
                        None
                    }
                },
                _ => {
                    self.wrong(at!["issuers", index], "expected either jwks_url or jwks_file");
                    None
                }
            };
            if let Some(keys) = keys {
                issuers.push(Issuer {
                    issuer: issuer.issuer,
                    audience: issuer.audience,
                    keys,
                    ca_bundle: issuer.ca_bundle,
                    groups_claim: issuer.groups_claim,
                    subject_claim: issuer.subject_claim,
                });
            }
        }
        issuers
    }

    fn credentials(&mut self, raw: std::collections::BTreeMap<String, raw::Credential>) -> Vec<Credential> {
        let mut credentials = Vec::new();
        for (name, credential) in raw {
            match credential.secret.parse() {
                Ok(secret) => credentials.push(Credential { name, kind: credential.kind, secret }),
                Err(expected) => self.wrong(at!["credentials", name, "secret"], expected),
            }
        }
        credentials
    }

    fn rules(
        &mut self,
        raw: Vec<raw::Rule>,
        accounts: &[Account],
        issuers: &[Issuer],
        credentials: &[Credential],
    ) -> Vec<Rule> {
        if raw.is_empty() {
            self.wrong(at!["rules"], "expected at least one rule");
        }
        let mut rules = Vec::new();
        let mut seen = HashSet::new();
        for (index, rule) in raw.into_iter().enumerate() {
            if rule.name.is_empty() || !seen.insert(rule.name.clone()) {
                self.wrong(at!["rules", index, "name"], "expected a name that no other rule has");
            }
            if rule.user.is_empty() {
                self.wrong(at!["rules", index, "user"], "expected the name of a Snowflake user");
            }
            if let Some(issuer) = &rule.issuer
                && !issuers.iter().any(|known| known.issuer == *issuer)
            {
                self.wrong(at!["rules", index, "issuer"], "expected one of the configured issuers");
            }
            let account = rule.account.map(|account| account.to_ascii_lowercase());
            if let Some(account) = &account
                && !accounts.iter().any(|known| known.host == *account)
            {
                self.wrong(
                    at!["rules", index, "account"],
                    "expected the host of one of the configured accounts",
                );
            }
            if !credentials.iter().any(|known| known.name == rule.credential) {
                self.wrong(
                    at!["rules", index, "credential"],
                    format!(
                        "expected the name of a credential: there is no [credentials.{}]",
                        rule.credential
                    ),
                );
            }
            let cgroups = rule.cgroups.map(|globs| self.globs(at!["rules", index, "cgroups"], &globs, true));
            rules.push(Rule {
                name: rule.name,
                issuer: rule.issuer,
                groups: rule.groups,
                cgroups,
                account,
                user: rule.user,
                sql_api: rule.sql_api.unwrap_or(rule.role.is_none()),
                role: rule.role,
                warehouse: rule.warehouse,
                credential: rule.credential,
            });
        }
        rules
    }

    /// Globs on a path, or on one of its components.
    fn globs(&mut self, place: &[String], globs: &[String], of_paths: bool) -> GlobSet {
        let mut set = GlobSetBuilder::new();
        for (index, glob) in globs.iter().enumerate() {
            match GlobBuilder::new(glob).literal_separator(true).build() {
                Ok(glob) if glob.glob().starts_with('/') == of_paths => {
                    set.add(glob);
                }
                _ => {
                    let place: Vec<String> = place.iter().cloned().chain([index.to_string()]).collect();
                    let expected = if of_paths {
                        "expected a glob that starts with `/`, such as `/kubepods.slice/**`"
                    } else {
                        "expected a glob on a name, such as `airflow-*`"
                    };
                    self.wrong(&place, expected);
                }
            }
        }
        set.build().unwrap_or_default()
    }

    fn kubernetes(&mut self, raw: raw::Kubernetes) -> Option<Kubernetes> {
        let node = raw.node.or_else(|| std::env::var("NODE_NAME").ok()).filter(|node| !node.is_empty());
        if node.is_none() {
            self.wrong(
                at!["kubernetes", "node"],
                "expected the name of this node, here or in NODE_NAME: a scope with pods needs it",
            );
        }
        let api_server = raw.api_server.map(|url| {
            let url: Uri = url.parse().unwrap_or_default();
            if !matches!(url.scheme_str(), Some("http" | "https")) || url.authority().is_none() {
                self.wrong(at!["kubernetes", "api_server"], "expected a URL such as `https://10.0.0.1:6443`");
            }
            ApiServer { url, token_file: raw.token_file, ca_bundle: raw.ca_bundle }
        });
        Some(Kubernetes { node: node?, api_server })
    }

    fn approvals(&mut self, raw: raw::Approvals, issuers: &[Issuer]) -> Approvals {
        if raw.groups.is_empty() || raw.groups.iter().any(String::is_empty) {
            self.wrong(at!["approvals", "groups"], "expected at least one group");
        }
        let is_known = |issuer: &String| issuers.iter().any(|known| known.issuer == *issuer);
        if !raw.issuer.as_ref().is_none_or(is_known) {
            self.wrong(at!["approvals", "issuer"], "expected one of the configured issuers");
        }
        if !(1..=24 * 60).contains(&raw.wait_minutes) {
            self.wrong(at!["approvals", "wait_minutes"], "expected 1 to 1440");
        }
        Approvals {
            groups: raw.groups,
            issuer: raw.issuer,
            wait: Duration::from_mins(raw.wait_minutes.into()),
        }
    }

    fn metrics(&mut self, address: &str) -> Option<std::net::SocketAddr> {
        let parsed = address.parse().ok();
        if parsed.is_none() {
            self.wrong(at!["metrics", "listen"], "expected an address and port such as `127.0.0.1:9464`");
        }
        parsed
    }

    fn clickhouse(&mut self, raw: raw::ClickHouse) -> ClickHouse {
        let is_http =
            |url: &Uri| matches!(url.scheme_str(), Some("http" | "https")) && url.authority().is_some();
        let urls = match raw.url {
            raw::Urls::One(url) => vec![url],
            raw::Urls::Several(urls) => urls,
        };
        if urls.is_empty() || !urls.iter().all(|url| url.parse().is_ok_and(|url| is_http(&url))) {
            self.wrong(at!["audit", "clickhouse", "url"], "expected a URL such as `https://clickhouse:8443`");
        }
        let password = raw.password.and_then(|reference| match reference.parse() {
            Ok(reference) => Some(reference),
            Err(expected) => {
                self.wrong(at!["audit", "clickhouse", "password"], expected);
                None
            }
        });
        let identifier = |name: &str| {
            let mut characters = name.chars();
            characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
                && characters.all(|other| other.is_ascii_alphanumeric() || other == '_')
        };
        if !identifier(&raw.database) {
            self.wrong(at!["audit", "clickhouse", "database"], "expected letters, digits and underscores");
        }
        if !raw.cluster.as_deref().is_none_or(identifier) {
            self.wrong(at!["audit", "clickhouse", "cluster"], "expected letters, digits and underscores");
        }
        let RetentionDays { sessions, statements, sensitive_statements, events, payloads } =
            raw.retention_days;
        for (name, days) in [
            ("sessions", sessions),
            ("statements", statements),
            ("sensitive_statements", sensitive_statements),
            ("events", events),
            ("payloads", payloads),
        ] {
            if days.is_some_and(|days| !(1..=36_500).contains(&days)) {
                self.wrong(at!["audit", "clickhouse", "retention_days", name], "expected 1 to 36500 days");
            }
        }
        ClickHouse {
            urls,
            ca_bundle: raw.ca_bundle,
            database: raw.database,
            cluster: raw.cluster,
            user: raw.user,
            password,
            apply_schema: raw.apply_schema,
            retention_days: raw.retention_days,
        }
    }

    fn journal(
        &mut self,
        raw: &raw::Journal,
        is_delivered: bool,
        payloads: Option<&payloads::Raw>,
    ) -> Journal {
        const USUAL: u32 = 30;
        if raw.max_mebibytes < LEAST {
            self.wrong(at!["audit", "journal", "max_mebibytes"], format!("expected at least {LEAST}"));
        }
        // Who looks for a payload asks the journal where it is.
        let least = payloads.map_or(1, |payloads| payloads.keep_days);
        match raw.keep_days {
            Some(days) if days < least => self.wrong(
                at!["audit", "journal", "keep_days"],
                format!("expected at least {least}, as payloads are kept for so long"),
            ),
            _ => {}
        }
        let days = raw.keep_days.or(is_delivered.then_some(USUAL.max(least)));
        Journal { keep: days.map(|days| DAY * days), limit: raw.max_mebibytes.saturating_mul(MEBIBYTE) }
    }
}

/// A host name in lower case, without dots around it.
fn host_name(text: &str) -> Option<String> {
    let name = text.trim_matches('.').to_ascii_lowercase();
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    };
    (name.len() <= 253 && name.contains('.') && name.split('.').all(label)).then_some(name)
}

/// What decides who is let in, or has to stay as it is, goes over TLS, inside this machine, or with the operator's word.
pub(super) fn protected_url(text: &str, allow_http: bool) -> Result<Uri, &'static str> {
    let url: Uri = text.parse().map_err(|_| "expected a URL such as `https://host.example/path`")?;
    let host = url.host().ok_or("expected a URL with a host, such as `https://host.example/path`")?;
    let loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if loopback || allow_http => Ok(url),
        Some("http") => Err("expected https://; over plain HTTP only with allow_http = true"),
        _ => Err("expected an http:// or https:// URL"),
    }
}
