//! The schema that a ClickHouse has: what it lacks, and how it gets that.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::sleep;
use uuid::Uuid;

use super::connection::Connection;
use super::ddl::{Step, Target, columns, literal};
use super::migrations::{self, Migration};
use super::retention;
use super::{AuditError, Settings, roles};
use crate::audit::Journal;
use crate::audit::schema::RECORDS;
use crate::config::RetentionDays;

/// How often a statement is tried: servers of a cluster refuse what meets another change of the same table.
const TRIES: u32 = 5;

/// What a ClickHouse has of the schema.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Of the schema that it has; 0 where it has none.
    pub version: u32,
    /// Of the schema that this program writes.
    pub known: u32,
    pub migrations: Vec<Applied>,
    /// What is missing, or differs.
    pub findings: Vec<Finding>,
}

/// A migration, and when it was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub version: u32,
    pub name: String,
    /// UTC; `None` where it was not.
    pub time: Option<String>,
    /// The version of the program that did it.
    pub by: Option<String>,
}

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// A table, `table.column`, or a view.
    pub object: String,
    pub expected: String,
    /// Empty where it is missing.
    pub found: String,
}

/// A record that is there.
pub(super) struct Last {
    pub seq: i64,
    /// In microseconds since the epoch.
    pub time: i64,
}

/// The schema in one ClickHouse, by the endpoint in use.
pub(super) struct Deployed<'c> {
    connection: &'c Connection,
    target: Target,
    retention: RetentionDays,
}

/// The DDL of everything, for whoever applies it by hand.
pub fn print(settings: &Settings, with_roles: bool) -> Result<Vec<String>, AuditError> {
    let target = settings.target()?;
    let mut statements = vec![target.database(), target.migrations()];
    for (version, migration) in migrations::all() {
        statements.extend(migration.steps.iter().flat_map(|step| step.statements(&target)));
        statements.push(target.note(version, migration.name));
    }
    let ttls = retention::ttls(settings.retention);
    let ttls = ttls.iter().filter(|(_, ttl)| !ttl.is_empty());
    statements.extend(ttls.map(|(table, ttl)| retention::statement(&target, table, ttl)));
    if with_roles {
        statements.extend(roles::statements(&target));
    }
    Ok(statements)
}

/// Brings the schema up to this program's, by the first endpoint that answers; `say` hears of each change.
pub async fn apply(settings: &Settings, with_roles: bool, say: impl Fn(&str)) -> Result<(), AuditError> {
    let connection = Connection::new(settings)?;
    let deployed = Deployed::new(&connection, settings)?;
    let found = deployed.first_that_answers().await?;
    deployed.apply(found, &say).await?;
    if with_roles {
        for sql in roles::statements(&deployed.target) {
            deployed.execute(&sql).await?;
        }
        say("roles snowfence_writer, snowfence_auditor, snowfence_investigator");
    }
    Ok(())
}

/// Compares the schema with this program's, by the first endpoint that answers.
pub async fn status(settings: &Settings) -> Result<Report, AuditError> {
    let connection = Connection::new(settings)?;
    let deployed = Deployed::new(&connection, settings)?;
    let version = deployed.first_that_answers().await?;
    deployed.report(version).await
}

impl<'c> Deployed<'c> {
    pub(super) fn new(connection: &'c Connection, settings: &Settings) -> Result<Self, AuditError> {
        Ok(Self { connection, target: settings.target()?, retention: settings.retention })
    }

    async fn first_that_answers(&self) -> Result<u32, AuditError> {
        loop {
            match self.version().await {
                Err(AuditError::ClickHouse { .. }) if !self.connection.next() => {}
                answer => return answer,
            }
        }
    }

    /// The version of the schema that is there. Fails for one that this program cannot write to.
    pub(super) async fn version(&self) -> Result<u32, AuditError> {
        let database = &self.target.database;
        let sql = format!(
            "SELECT name, engine FROM system.tables
             WHERE database = '{database}' AND name IN ('statements', 'schema_migrations')"
        );
        let found: BTreeMap<String, String> =
            self.connection.rows::<2>(&sql).await?.into_iter().map(|[name, engine]| (name, engine)).collect();
        let is_cluster = found.get("statements").map(|engine| engine == "Distributed");
        if is_cluster.is_some_and(|is_cluster| is_cluster != self.target.cluster.is_some()) {
            return Err(AuditError::ClickHouseCluster { database: database.clone() });
        }
        if !found.contains_key("schema_migrations") {
            return Ok(0);
        }
        let sql = format!("SELECT toString(max(version)) FROM {}", self.target.named("schema_migrations"));
        let rows = self.connection.rows::<1>(&sql).await?;
        let version = rows.first().and_then(|[version]| version.parse().ok()).unwrap_or(0);
        let known = migrations::version();
        if version > known { Err(AuditError::ClickHouseNewer { found: version, known }) } else { Ok(version) }
    }

    /// Fails where the schema is not this program's.
    pub(super) fn require_current(found: u32) -> Result<(), AuditError> {
        let known = migrations::version();
        if found == known { Ok(()) } else { Err(AuditError::ClickHouseOlder { found, known }) }
    }

    /// Applies the migrations after `found`, and the retention. May be interrupted at any moment and done again, also by
    /// several at once.
    pub(super) async fn apply(&self, found: u32, say: &impl Fn(&str)) -> Result<(), AuditError> {
        if found == 0 {
            self.execute(&self.target.database()).await?;
            self.execute(&self.target.migrations()).await?;
        }
        let known = migrations::version();
        for (version, Migration { name, steps }) in migrations::all().filter(|(version, _)| *version > found)
        {
            say(&format!("migration {version} of {known}: {name}"));
            for sql in steps.iter().flat_map(|step| step.statements(&self.target)) {
                self.execute(&sql).await?;
            }
            self.execute(&self.target.note(version, name)).await?;
        }
        let engines = self.engines().await?;
        for (table, ttl) in retention::ttls(self.retention) {
            let Some(engine) = engines.get(&self.target.stored_name(table)) else { continue };
            if retention::found(engine) != ttl {
                let until = if ttl.is_empty() { "for ever" } else { &ttl };
                say(&format!("retention of {table}: {until}"));
                self.execute(&retention::statement(&self.target, table, &ttl)).await?;
            }
        }
        Ok(())
    }

    /// What tells this ClickHouse from another, by whichever endpoint.
    pub(super) async fn destination(&self) -> Result<Uuid, AuditError> {
        let sql = format!(
            "SELECT toString(argMin(destination, (time, destination))) FROM {} WHERE version = 1",
            self.target.named("schema_migrations")
        );
        let rows = self.connection.rows::<1>(&sql).await?;
        let destination = rows.first().and_then(|[id]| id.parse::<Uuid>().ok()).filter(|id| !id.is_nil());
        destination.ok_or(AuditError::ClickHouseOlder { found: 0, known: migrations::version() })
    }

    /// The last record of a journal that is there, if it is not before `seq`; `begin` is before its time, in microseconds.
    pub(super) async fn last_record(
        &self,
        journal: &Journal,
        seq: i64,
        begin: i64,
    ) -> Result<Option<Last>, AuditError> {
        // By the key, so that little is read; on a cluster, of the one shard that has it.
        let condition = format!(
            "node = {} AND journal = toUUID('{}') AND seq >= {seq} AND time >= fromUnixTimestamp64Micro({begin})",
            literal(journal.node()),
            journal.id()
        );
        let tables = RECORDS.map(|table| {
            let table = self.target.named(table);
            format!(
                "SELECT * FROM (SELECT seq, time FROM {table} WHERE {condition} ORDER BY seq DESC LIMIT 1)"
            )
        });
        let settings =
            if self.target.cluster.is_some() { " SETTINGS optimize_skip_unused_shards = 1" } else { "" };
        let sql = format!(
            "SELECT toString(seq), toString(toUnixTimestamp64Micro(time)) FROM ({}) ORDER BY seq DESC LIMIT 1{settings}",
            tables.join(" UNION ALL ")
        );
        let rows = self.connection.rows::<2>(&sql).await?;
        let Some([seq, time]) = rows.first() else { return Ok(None) };
        let last = seq.parse().ok().zip(time.parse().ok()).map(|(seq, time)| Last { seq, time });
        last.map(Some).ok_or_else(|| self.connection.unintelligible())
    }

    async fn report(&self, version: u32) -> Result<Report, AuditError> {
        let mut applied = BTreeMap::new();
        if version > 0 {
            let sql = format!(
                "SELECT toString(version), toString(min(time)), argMin(by, time) FROM {} GROUP BY version",
                self.target.named("schema_migrations")
            );
            for [version, time, by] in self.connection.rows::<3>(&sql).await? {
                applied.insert(version, (time, by));
            }
        }
        let migrations = migrations::all().map(|(version, migration)| {
            let (time, by) = applied.remove(&version.to_string()).unzip();
            Applied { version, name: migration.name.to_owned(), time, by }
        });
        let migrations = migrations.collect();
        Ok(Report { version, known: migrations::version(), migrations, findings: self.findings().await? })
    }

    /// What is missing, and what differs, of all that the migrations make.
    async fn findings(&self) -> Result<Vec<Finding>, AuditError> {
        let database = &self.target.database;
        let engines = self.engines().await?;
        let sql = format!(
            "SELECT table || '.' || name,
                    arrayStringConcat(arrayFilter(x -> x != '', [type, default_kind, default_expression, compression_codec]), ' ')
             FROM system.columns
             WHERE database = '{database}'
             UNION ALL
             SELECT table || ' index ' || name, expr || ' ' || type_full || ' ' || toString(granularity)
             FROM system.data_skipping_indices WHERE database = '{database}'"
        );
        let found: BTreeMap<String, String> =
            self.connection.rows::<2>(&sql).await?.into_iter().map(|[name, kind]| (name, kind)).collect();
        // What a later migration says of the same thing is what counts.
        let mut expected: BTreeMap<String, String> = BTreeMap::new();
        let mut views: BTreeMap<&str, Step> = BTreeMap::new();
        for step in migrations::all().flat_map(|(_, migration)| migration.steps) {
            match step {
                Step::Table(table) => {
                    for (column, definition) in table.columns.iter().flat_map(|block| columns(block)) {
                        let object = format!("{}.{column}", self.target.stored_name(table.name));
                        expected.insert(object, definition.to_owned());
                    }
                }
                Step::Index(table, name, expression, kind) => {
                    let object = format!("{} index {name}", self.target.stored_name(table));
                    let kind = kind.replace(" GRANULARITY ", " ");
                    expected.insert(object, format!("{expression} {kind}"));
                }
                Step::View(name, _) => {
                    views.insert(*name, *step);
                }
            }
        }
        for (table, ttl) in retention::ttls(self.retention) {
            expected.insert(format!("{} retention", self.target.stored_name(table)), ttl);
        }
        let mut findings = Vec::new();
        for (object, expected) in expected {
            let found = match object.strip_suffix(" retention") {
                Some(table) => engines.get(table).map(|engine| retention::found(engine).to_owned()),
                None => found.get(&object).cloned(),
            };
            if found.as_ref() != Some(&expected) {
                findings.push(Finding { object, expected, found: found.unwrap_or_default() });
            }
        }
        for (name, step) in views {
            findings.extend(self.view_differs(name, step).await?);
        }
        Ok(findings)
    }

    async fn view_differs(&self, name: &str, step: Step) -> Result<Option<Finding>, AuditError> {
        let select = step.select(&self.target).unwrap_or_default();
        // ClickHouse keeps a view in its own layout.
        let sql = format!(
            "SELECT formatQuerySingleLine({}),
                    (SELECT any(as_select) FROM system.tables WHERE database = '{}' AND name = '{name}')",
            literal(&select),
            self.target.database
        );
        let rows = self.connection.rows::<2>(&sql).await?;
        let Some([expected, found]) = rows.into_iter().next() else { return Ok(None) };
        if expected == found {
            return Ok(None);
        }
        let found = if found.is_empty() { String::new() } else { "another SELECT".to_owned() };
        Ok(Some(Finding { object: name.to_owned(), expected: "the view of this version".to_owned(), found }))
    }

    /// The tables that are there, with their engines in full.
    async fn engines(&self) -> Result<BTreeMap<String, String>, AuditError> {
        let sql = format!(
            "SELECT name, engine_full FROM system.tables WHERE database = '{}'",
            self.target.database
        );
        Ok(self.connection.rows::<2>(&sql).await?.into_iter().map(|[name, engine]| (name, engine)).collect())
    }

    async fn execute(&self, sql: &str) -> Result<(), AuditError> {
        let mut tries = 1;
        loop {
            match self.connection.execute(sql).await {
                Err(AuditError::ClickHouse { .. }) if tries < TRIES => {
                    sleep(Duration::from_millis(200) * 2_u32.pow(tries)).await;
                    tries += 1;
                }
                answer => return answer,
            }
        }
    }
}
