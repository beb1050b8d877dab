//! Roles in ClickHouse: who delivers, and who reads how much.

use super::ddl::{Step, Target};
use super::migrations;

const PAYLOADS: &str = "payloads";

/// What creates the roles and grants them what they need, and no more.
pub(super) fn statements(target: &Target) -> Vec<String> {
    let on_cluster = target.on_cluster();
    let grant = |right: &str, table: &str, role: &str| {
        format!("GRANT{on_cluster} {right} ON {} TO {role}", target.named(table))
    };
    let mut statements: Vec<String> = ["snowfence_writer", "snowfence_auditor", "snowfence_investigator"]
        .map(|role| format!("CREATE ROLE IF NOT EXISTS {role}{on_cluster}"))
        .into();
    statements.push(grant("SELECT", "schema_migrations", "snowfence_writer"));
    statements.push(grant("SELECT", "schema_migrations", "snowfence_auditor"));
    for step in migrations::all().flat_map(|(_, migration)| migration.steps) {
        match step {
            Step::Table(table) => {
                statements.push(grant("INSERT", table.name, "snowfence_writer"));
                // Of its own journal's place, to go on from there: not what anybody asked.
                statements.push(grant("SELECT(node, journal, seq, time)", table.name, "snowfence_writer"));
                let reader =
                    if table.name == PAYLOADS { "snowfence_investigator" } else { "snowfence_auditor" };
                statements.push(grant("SELECT", table.name, reader));
                if target.cluster.is_some() {
                    let stored = target.stored_name(table.name);
                    statements.push(grant("INSERT", &stored, "snowfence_writer"));
                    statements.push(grant("SELECT(node, journal, seq, time)", &stored, "snowfence_writer"));
                    statements.push(grant("SELECT", &stored, reader));
                }
            }
            Step::View(name, _) => {
                let grant = grant("SELECT", name, "snowfence_auditor");
                if !statements.contains(&grant) {
                    statements.push(grant);
                }
            }
            Step::Index(..) => {}
        }
    }
    statements.push(format!("GRANT{on_cluster} snowfence_auditor TO snowfence_investigator"));
    statements
}
