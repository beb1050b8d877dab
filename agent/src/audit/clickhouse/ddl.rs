//! Steps of migrations, and the DDL that they are, on one server or on a cluster.

use std::fmt::Write;

/// A table of records. `columns` are blocks of lines, one a column, as in `CREATE TABLE`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub name: &'static str,
    pub comment: &'static str,
    pub columns: &'static [&'static str],
    /// What comes after the day in the key, so that few of its values are read without the rest of a day.
    pub apart: Option<&'static str>,
}

/// One change of the schema. Doing it again changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Table(Table),
    /// A skip index of a table: its name, its expression, and its type with granularity.
    Index(&'static str, &'static str, &'static str, &'static str),
    /// A view, whose SELECT calls the database `DB`. It replaces an older one of the same name.
    View(&'static str, &'static str),
}

/// Where the schema is.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// An identifier.
    pub database: String,
    /// An identifier.
    pub cluster: Option<String>,
}

/// The settings of every view: two rows of one key are equal, so filters may come before FINAL, and a row is in the same
/// partition each time.
const VIEW_SETTINGS: &str = "SETTINGS join_use_nulls = 0, do_not_merge_across_partitions_select_final = 1, \
optimize_move_to_prewhere_if_final = 1, use_skip_indexes_if_final = 1, use_skip_indexes_if_final_exact_mode = 0";

impl Step {
    pub(super) fn statements(self, target: &Target) -> Vec<String> {
        let on_cluster = target.on_cluster();
        match self {
            Self::Table(table) => {
                let (name, columns) = (target.stored(table.name), table.columns.concat());
                let engine = target.engine("ReplacingMergeTree", "{shard}", "{replica}");
                let apart = table.apart.map(|column| format!("{column}, ")).unwrap_or_default();
                let mut statements = vec![format!(
                    "CREATE TABLE IF NOT EXISTS {name}{on_cluster} ({columns}\n)\nENGINE = {engine}\n\
                     PARTITION BY toYYYYMM(time)\nORDER BY (toDate(time), {apart}node, journal, seq)\n\
                     SETTINGS {} = 1000\nCOMMENT '{}'",
                    if target.cluster.is_some() {
                        "replicated_deduplication_window"
                    } else {
                        "non_replicated_deduplication_window"
                    },
                    table.comment,
                )];
                if let Some(cluster) = &target.cluster {
                    // All records of a journal are on one shard, so that FINAL, and joins there, see all of them.
                    statements.push(format!(
                        "CREATE TABLE IF NOT EXISTS {}{on_cluster} AS {name}\n\
                         ENGINE = Distributed(`{cluster}`, `{}`, {}_local, cityHash64(node, journal))\nCOMMENT '{}'",
                        target.named(table.name),
                        target.database,
                        table.name,
                        table.comment,
                    ));
                }
                statements
            }
            Self::Index(table, name, expression, kind) => {
                let table = target.stored(table);
                vec![
                    format!(
                        "ALTER TABLE {table}{on_cluster} ADD INDEX IF NOT EXISTS {name} {expression} TYPE {kind}"
                    ),
                    format!("ALTER TABLE {table}{on_cluster} MATERIALIZE INDEX {name}"),
                ]
            }
            Self::View(name, _) => {
                let select = self.select(target).unwrap_or_default();
                vec![format!("CREATE OR REPLACE VIEW {}{on_cluster} AS {select}", target.named(name))]
            }
        }
    }

    /// What a view selects.
    pub(super) fn select(self, target: &Target) -> Option<String> {
        let Self::View(_, select) = self else { return None };
        let select = select.trim().replace("DB.", &format!("`{}`.", target.database));
        let mut select = format!("{select}\n{VIEW_SETTINGS}");
        if target.cluster.is_some() {
            select.push_str(", distributed_product_mode = 'local'");
        }
        Some(select)
    }
}

impl Target {
    pub(super) fn database(&self) -> String {
        format!("CREATE DATABASE IF NOT EXISTS `{}`{}", self.database, self.on_cluster())
    }

    /// The table of the migrations that were applied. On a cluster each server has all of it. It is no
    /// `ReplacingMergeTree`: the first row of a migration stays, whoever applied it again.
    pub(super) fn migrations(&self) -> String {
        format!(
            "CREATE TABLE IF NOT EXISTS {}{} (
    version     UInt32 COMMENT 'number of the migration',
    name        String COMMENT 'what it did',
    time        DateTime64(6, 'UTC') DEFAULT now64(6) COMMENT 'when it was done',
    by          String COMMENT 'version of Snowfence that did it',
    destination UUID DEFAULT generateUUIDv4() COMMENT 'that of the oldest row tells agents where they are'
)\nENGINE = {}\nORDER BY version\nCOMMENT 'Migrations that were applied; some more than once'",
            self.named("schema_migrations"),
            self.on_cluster(),
            self.engine("MergeTree", "all", "{shard}_{replica}"),
        )
    }

    /// What notes a migration.
    pub(super) fn note(&self, version: u32, name: &str) -> String {
        format!(
            "INSERT INTO {} (version, name, by) VALUES ({version}, '{name}', '{}')",
            self.named("schema_migrations"),
            env!("CARGO_PKG_VERSION"),
        )
    }

    pub(super) fn named(&self, table: &str) -> String {
        format!("`{}`.{table}", self.database)
    }

    /// The table that has the rows.
    pub(super) fn stored(&self, table: &str) -> String {
        format!("`{}`.{}", self.database, self.stored_name(table))
    }

    pub(super) fn stored_name(&self, table: &str) -> String {
        if self.cluster.is_some() { format!("{table}_local") } else { table.to_owned() }
    }

    pub(super) fn on_cluster(&self) -> String {
        let mut text = String::new();
        if let Some(cluster) = &self.cluster {
            let _ = write!(text, " ON CLUSTER `{cluster}`");
        }
        text
    }

    fn engine(&self, engine: &str, shard: &str, replica: &str) -> String {
        if self.cluster.is_some() {
            format!("Replicated{engine}('/clickhouse/tables/{shard}/{{database}}/{{table}}', '{replica}')")
        } else {
            engine.to_owned()
        }
    }
}

/// A text in a statement.
pub(super) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The columns of a block: name, and type with default and codec.
pub(super) fn columns(block: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let lines = block.lines().map(|line| line.trim().trim_end_matches(',')).filter(|line| !line.is_empty());
    lines.filter_map(|line| {
        let (definition, _) = line.split_once(" COMMENT '").unwrap_or((line, ""));
        let (name, definition) = definition.split_once(' ')?;
        Some((name, definition.trim()))
    })
}
