//! What of Snowflake's history is the trail's although no identifier says so; and what is nobody's. Pure.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::audit::trail::{Forwarded, Opened};
use crate::snowflake::history::{Executed, Login};

/// What no door without sessions takes, as the history calls it.
const PASSWORD: &str = "PASSWORD";

/// By so much the clocks of the agents and of Snowflake may differ, in microseconds.
pub const SKEW: i64 = 60_000_000;

/// Takes out of `unknown` what statements of the trail have run: those of a text with several, those of a procedure, and
/// those of which the agent never learnt the identifier. `sessions` are those of queries that the trail knows.
pub fn without_children(
    unknown: Vec<Executed>,
    parents: &[Forwarded],
    sessions: &HashMap<String, String>,
) -> Vec<Executed> {
    let mut used = HashSet::new();
    let mut is_child = |row: &Executed| {
        parents.iter().enumerate().any(|(number, parent)| match session(parent, sessions) {
            Some(session) => session == row.session && may_have_run(parent, row),
            // By a door without sessions, and no answer came. Once, and its whole text: whoever knows that needs no more.
            None => is_all_of(parent, row) && used.insert(number),
        })
    };
    unknown.into_iter().filter(|row| !is_child(row)).collect()
}

/// The session that a statement ran in; it belongs to the agent alone, or is that of the one statement.
fn session<'a>(parent: &'a Forwarded, sessions: &'a HashMap<String, String>) -> Option<&'a str> {
    match parent.session.as_str() {
        "" => sessions.get(&parent.query_id).map(String::as_str),
        session => Some(session),
    }
}

fn may_have_run(parent: &Forwarded, row: &Executed) -> bool {
    let text = trimmed(&row.text);
    is_during(parent, row) && (parent.runs_others || !text.is_empty() && parent.sql.contains(text))
}

fn is_all_of(parent: &Forwarded, row: &Executed) -> bool {
    let (text, all) = (trimmed(&row.text), trimmed(&parent.sql));
    // A long text is cut off in the history's answer.
    let is_cut = row.text.chars().count() < parent.sql.chars().count() && row.text.len() >= 2000;
    let is_same = all == text || is_cut && all.starts_with(text);
    parent.query_id.is_empty() && is_during(parent, row) && !text.is_empty() && is_same
}

fn is_during(parent: &Forwarded, row: &Executed) -> bool {
    (parent.time.saturating_sub(SKEW)..=parent.ended.saturating_add(SKEW)).contains(&row.started)
}

fn trimmed(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || c == ';')
}

/// The logins that no agent made. Where the history tells which session a login opened, that decides. Else each session is
/// good for one login at most, the nearest in time; and each use of a door without sessions for those at its time.
pub fn strange_logins(
    logins: Vec<Login>,
    opened: &[Opened],
    calls: &[(i64, i64)],
    addresses: &[IpNet],
) -> Vec<Login> {
    let known: HashSet<&str> = opened.iter().map(|opened| opened.session.as_str()).collect();
    let mut pairs: Vec<(i64, usize, usize)> = Vec::new();
    let mut is_ours = vec![false; logins.len()];
    let mut taken = vec![false; opened.len()];
    let mut by_time: Vec<usize> = (0..opened.len()).collect();
    by_time.sort_unstable_by_key(|number| opened.get(*number).map(|opened| opened.time));
    for (number, login) in logins.iter().enumerate() {
        if !is_from(login, addresses) {
            continue;
        }
        if known.contains(login.session.as_str()) {
            if let Some(ours) = is_ours.get_mut(number) {
                *ours = true;
            }
        } else if login.session.is_empty() {
            let near = login.time - SKEW..=login.time + SKEW;
            let first = by_time
                .partition_point(|of| opened.get(*of).is_some_and(|opened| opened.time < *near.start()));
            for of in by_time.iter().skip(first) {
                let Some(opened) = opened.get(*of).filter(|opened| near.contains(&opened.time)) else {
                    break;
                };
                pairs.push(((opened.time - login.time).abs(), number, *of));
            }
        }
    }
    pairs.sort_unstable();
    for (_, login, of) in pairs {
        if let (Some(ours @ false), Some(taken @ false)) = (is_ours.get_mut(login), taken.get_mut(of)) {
            (*ours, *taken) = (true, true);
        }
    }
    let calls_at = |login: &Login| {
        let is_at = |(begin, ended): &(i64, i64)| {
            (begin.saturating_sub(SKEW)..=ended.saturating_add(SKEW)).contains(&login.time)
        };
        login.factor != PASSWORD && calls.iter().any(is_at)
    };
    let is_explained = |login: &Login| is_from(login, addresses) && calls_at(login);
    let strange = |(login, is_ours): (Login, bool)| (!is_ours && !is_explained(&login)).then_some(login);
    logins.into_iter().zip(is_ours).filter_map(strange).collect()
}

fn is_from(login: &Login, addresses: &[IpNet]) -> bool {
    let of = |address: IpAddr| addresses.iter().any(|network| network.contains(&address));
    addresses.is_empty() || login.address.parse().is_ok_and(of)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: i64 = 1_767_323_045_000_000;
    const SECOND: i64 = 1_000_000;

    fn row(text: &str, session: &str, started: i64) -> Executed {
        Executed { text: text.into(), session: session.into(), started, ..Executed::default() }
    }

    fn parent(sql: &str, session: &str) -> Forwarded {
        let (time, ended) = (TIME, TIME + 2 * SECOND);
        Forwarded { session: session.into(), sql: sql.into(), time, ended, ..Forwarded::default() }
    }

    fn left(rows: &[Executed], parents: &[Forwarded], sessions: &[(&str, &str)]) -> Vec<String> {
        let own = |(query, session): &(&str, &str)| ((*query).to_owned(), (*session).to_owned());
        let left = without_children(rows.to_vec(), parents, &sessions.iter().map(own).collect());
        left.into_iter().map(|row| format!("{} in {}", row.text, row.session)).collect()
    }

    #[test]
    fn statements_of_a_text_with_several_are_its_children() {
        let parents = [parent("select 1; select 2 ;", "7")];
        let rows = [
            row("select 2;", "7", TIME + SECOND),
            row("select 1; select 2 ;", "7", TIME),
            // Another text, another session, another time, no text.
            row("select 3", "7", TIME + SECOND),
            row("select 2", "8", TIME + SECOND),
            row("select 1", "7", TIME + 2 * SECOND + 2 * SKEW),
            row(" ; ", "7", TIME),
        ];
        assert_eq!(
            left(&rows, &parents, &[]),
            ["select 3 in 7", "select 2 in 8", "select 1 in 7", " ;  in 7"]
        );
    }

    #[test]
    fn what_a_procedure_runs_is_in_its_session_and_its_time() {
        let parents = [Forwarded { runs_others: true, ..parent("call p()", "7") }];
        let rows = [
            row("insert into t select 1", "7", TIME + SECOND),
            row("insert into t select 1", "8", TIME + SECOND),
            row("insert into t select 2", "7", TIME - 2 * SKEW),
        ];
        assert_eq!(
            left(&rows, &parents, &[]),
            ["insert into t select 1 in 8", "insert into t select 2 in 7"]
        );
    }

    #[test]
    fn without_a_session_the_parents_own_query_tells_it() {
        let parents = [Forwarded { query_id: "q".into(), ..parent("select 1; select 2", "") }];
        let rows = [row("select 1", "9", TIME), row("select 2", "10", TIME)];
        assert_eq!(left(&rows, &parents, &[("q", "9")]), ["select 2 in 10"]);
        assert_eq!(left(&rows, &parents, &[]).len(), 2, "nothing is known of its session");
        // It is not known whether it ran: one of that text.
        let parents = [parent("select 1", "")];
        let rows = [row("select 1", "9", TIME), row("select 1", "10", TIME), row("select", "11", TIME)];
        assert_eq!(left(&rows, &parents, &[]), ["select 1 in 10", "select in 11"]);
    }

    fn login(event: &str, time: i64, address: &str, session: &str) -> Login {
        Login {
            event_id: event.into(),
            time,
            address: address.into(),
            session: session.into(),
            ..Login::default()
        }
    }

    fn strange(logins: &[Login], opened: &[(&str, i64)], addresses: &[&str]) -> Vec<String> {
        let opened: Vec<Opened> = opened
            .iter()
            .map(|(session, time)| Opened { session: (*session).to_owned(), time: *time })
            .collect();
        let addresses: Vec<IpNet> = addresses.iter().map(|network| network.parse().unwrap()).collect();
        let strange = strange_logins(logins.to_vec(), &opened, &[], &addresses);
        strange.into_iter().map(|login| login.event_id).collect()
    }

    #[test]
    fn a_session_is_good_for_one_login_the_nearest() {
        let logins = [
            login("around", TIME - SECOND, "192.0.2.9", ""),
            login("own", TIME, "192.0.2.1", ""),
            login("late", TIME + 2 * SKEW, "192.0.2.1", ""),
        ];
        assert_eq!(strange(&logins, &[("1", TIME + 1000)], &[]), ["around", "late"]);
        assert_eq!(strange(&logins, &[("1", TIME + 1000), ("2", TIME + 5000)], &[]), ["late"]);
        let addresses = ["192.0.2.0/29"];
        assert_eq!(
            strange(&logins, &[("1", TIME + 1000), ("2", TIME + 5000)], &addresses),
            ["around", "late"],
            "it is not from an agent's address"
        );
    }

    #[test]
    fn a_login_whose_session_is_known_is_judged_by_it() {
        let logins = [login("own", TIME, "", "1"), login("around", TIME, "", "5")];
        assert_eq!(strange(&logins, &[("1", TIME), ("2", TIME)], &[]), ["around"]);
    }

    #[test]
    fn a_door_without_sessions_explains_logins_of_its_time() {
        let calls = [(TIME, TIME + 2 * SECOND)];
        let by_password = Login { factor: PASSWORD.into(), ..login("password", TIME + SECOND, "", "5") };
        let logins = vec![
            login("call", TIME + SECOND, "", "3"),
            login("later", TIME + 3 * SKEW, "", "4"),
            by_password,
        ];
        let left = strange_logins(logins, &[], &calls, &[]);
        assert_eq!(
            left.iter().map(|login| login.event_id.as_str()).collect::<Vec<_>>(),
            ["later", "password"]
        );
    }
}
