//! Which part of the trail somebody wants to see.

use rusqlite::ToSql;
use rusqlite::types::ToSqlOutput;

use super::Verdict;

/// Which entries are wanted; what is empty wants all. Events have neither effect, verdict nor objects.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Not before, in microseconds since the epoch.
    pub since: Option<i64>,
    /// Before, in microseconds since the epoch.
    pub until: Option<i64>,
    /// The token's subject.
    pub subject: Option<String>,
    /// The workload's cgroup, with `*` and `?`.
    pub cgroup: Option<String>,
    /// A table or another object, whole or its last parts, with `*` and `?`; upper and lower case are the same.
    pub object: Option<String>,
    pub effect: Option<String>,
    pub verdict: Option<Verdict>,
}

/// Of statements `s`.
pub(super) const STATEMENTS: &str =
    "(:since IS NULL OR s.time >= :since) AND (:until IS NULL OR s.time < :until)
    AND (:subject IS NULL OR s.subject = :subject) AND (:cgroup IS NULL OR s.cgroup GLOB :cgroup)
    AND (:effect IS NULL OR s.effect = :effect) AND (:verdict IS NULL OR s.verdict = :verdict)
    AND (:object IS NULL OR EXISTS (SELECT 1 FROM json_each(s.objects)
         WHERE upper(value) GLOB upper(:object) OR upper(value) GLOB '*.' || upper(:object)))";

/// Of events `e`.
pub(super) const EVENTS: &str = "(:since IS NULL OR e.time >= :since) AND (:until IS NULL OR e.time < :until)
    AND (:subject IS NULL OR e.subject = :subject) AND (:cgroup IS NULL OR e.cgroup GLOB :cgroup)
    AND :effect IS NULL AND :verdict IS NULL AND :object IS NULL";

/// A parameter's name and value.
pub(super) type Parameter<'p> = (&'p str, &'p dyn ToSql);

impl Filter {
    /// The parameters of a query with [`STATEMENTS`] or [`EVENTS`] in it, and more.
    pub(super) fn parameters<'p>(&'p self, more: &[Parameter<'p>]) -> Vec<Parameter<'p>> {
        let own: [Parameter<'p>; 7] = [
            (":since", &self.since),
            (":until", &self.until),
            (":subject", &self.subject),
            (":cgroup", &self.cgroup),
            (":object", &self.object),
            (":effect", &self.effect),
            (":verdict", &self.verdict),
        ];
        own.into_iter().chain(more.iter().copied()).collect()
    }
}

impl ToSql for Verdict {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        self.as_str().to_sql()
    }
}
