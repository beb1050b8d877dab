//! `[audit.reconcile]`: how the trail is compared with Snowflake's own history.

use std::collections::BTreeSet;
use std::time::Duration;

use ipnet::IpNet;
use schemars::JsonSchema;
use serde::Deserialize;

use super::document::Document;
use super::{Account, Credential, Rule};

/// How the trail is compared with Snowflake's own history.
#[derive(Debug, Clone)]
pub struct Reconcile {
    /// The name of a credential, and the user whose it is.
    pub credential: String,
    pub user: String,
    pub role: Option<String>,
    pub warehouse: Option<String>,
    pub accounts: Vec<Covered>,
    /// From where the agents reach Snowflake; empty: not known.
    pub addresses: Vec<IpNet>,
    pub history: History,
    pub against: Against,
    /// What ended less long ago is not judged yet.
    pub settle: Duration,
    /// `None`: only when somebody asks for it.
    pub every: Option<Duration>,
}

/// An account, and the users whose every statement has to come by an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Covered {
    pub host: String,
    /// In upper case, as Snowflake's history has them.
    pub users: Vec<String>,
}

/// Compares the trail with Snowflake's own history of statements and logins.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Reconcile")]
pub struct Raw {
    /// The name of the credential to log in with.
    pub credential: String,
    /// The Snowflake user to log in as. It must see the history of the covered users.
    pub user: String,
    /// The role to log in with. Default: the user's.
    pub role: Option<String>,
    /// The warehouse to ask with. Default: the user's.
    pub warehouse: Option<String>,
    /// The hosts of the accounts to ask. Default: all.
    pub accounts: Option<Vec<String>>,
    /// The Snowflake users whose every statement has to come by an agent. Default: those that the account's
    /// rules name.
    pub users: Option<Vec<String>>,
    /// The networks (CIDR) from which the agents reach Snowflake: a login from elsewhere is none of theirs.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Which of Snowflake's histories is asked.
    #[serde(default)]
    pub history: History,
    /// Which trail it is compared with. Default: `ClickHouse`, where it is configured; else this node's journal.
    pub against: Option<Against>,
    /// Minutes after which what has ended is judged. Default: 5, with `account_usage` 180.
    pub settle_minutes: Option<u32>,
    /// Minutes between two comparisons. Default: none but those that are asked for.
    pub every_minutes: Option<u32>,
}

/// Snowflake's histories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum History {
    /// The functions of `SNOWFLAKE.INFORMATION_SCHEMA`: seven days, up to date.
    #[default]
    InformationSchema,
    /// The views of `SNOWFLAKE.ACCOUNT_USAGE`: a year, up to three hours late; they tell which login a session began with.
    AccountUsage,
}

/// Where the trail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Against {
    Journal,
    ClickHouse,
}

impl History {
    /// How far back it goes.
    pub fn reach(self) -> Duration {
        const DAY: Duration = Duration::from_hours(24);
        match self {
            Self::InformationSchema => DAY * 7,
            Self::AccountUsage => DAY * 365,
        }
    }
}

/// What a configuration has that this one refers to.
pub(super) struct Known<'a> {
    pub accounts: &'a [Account],
    pub credentials: &'a [Credential],
    pub rules: &'a [Rule],
    pub has_clickhouse: bool,
}

pub(super) fn check(raw: Raw, known: &Known<'_>, document: &mut Document) -> Reconcile {
    let mut wrong = |keys: &[&str], message: &str| document.add_below(&["audit", "reconcile"], keys, message);
    if !known.credentials.iter().any(|credential| credential.name == raw.credential) {
        wrong(&["credential"], "expected the name of one of [credentials]");
    }
    if raw.user.is_empty() {
        wrong(&["user"], "expected the name of a Snowflake user");
    }
    let all = || known.accounts.iter().map(|account| account.host.clone()).collect();
    let accounts: Vec<String> = raw.accounts.unwrap_or_else(all);
    let accounts: Vec<String> = accounts.iter().map(|account| account.to_ascii_lowercase()).collect();
    for (index, account) in accounts.iter().enumerate() {
        if !known.accounts.iter().any(|known| known.host == *account) {
            wrong(&["accounts", &index.to_string()], "expected the host of one of the configured accounts");
        }
    }
    if raw.users.as_ref().is_some_and(|users| users.is_empty() || users.iter().any(String::is_empty)) {
        wrong(&["users"], "expected at least one Snowflake user");
    }
    let covered = |host: String| {
        let is_for = |rule: &&Rule| rule.account.as_ref().is_none_or(|account| *account == host);
        let of_rules = || known.rules.iter().filter(is_for).map(|rule| rule.user.clone()).collect();
        let users: Vec<String> = raw.users.clone().unwrap_or_else(of_rules);
        let users: BTreeSet<String> = users.iter().map(|user| user.to_uppercase()).collect();
        Covered { users: users.into_iter().collect(), host }
    };
    let accounts = accounts.into_iter().map(covered).collect();
    let mut addresses = Vec::new();
    for (index, text) in raw.addresses.iter().enumerate() {
        match text.parse() {
            Ok(network) => addresses.push(network),
            Err(_) => {
                wrong(&["addresses", &index.to_string()], "expected a network such as `198.51.100.0/24`");
            }
        }
    }
    let usual = if known.has_clickhouse { Against::ClickHouse } else { Against::Journal };
    let against = raw.against.unwrap_or(usual);
    if against == Against::ClickHouse && !known.has_clickhouse {
        wrong(&["against"], "expected `journal`: there is no [audit.clickhouse]");
    }
    if raw.every_minutes == Some(0) {
        wrong(&["every_minutes"], "expected at least a minute");
    }
    let minutes = |minutes: u32| Duration::from_mins(minutes.into());
    let settle = raw.settle_minutes.unwrap_or(match raw.history {
        History::InformationSchema => 5,
        History::AccountUsage => 180,
    });
    Reconcile {
        credential: raw.credential,
        user: raw.user,
        role: raw.role,
        warehouse: raw.warehouse,
        accounts,
        addresses,
        history: raw.history,
        against,
        settle: minutes(settle),
        every: raw.every_minutes.map(minutes),
    }
}
