//! Tests of the whole classification; those of one table or reader say so.

mod features;
mod hostile;
mod objects;
mod ordinary;
mod properties;

use super::*;

/// Checks rows of effect and text; tells all that are wrong.
#[track_caller]
fn check(rows: &[(Effect, &str)]) {
    let wrong: Vec<String> = rows
        .iter()
        .filter_map(|(wanted, sql)| {
            let found = classify(sql);
            (found.effect != *wanted).then(|| format!("{sql}\n    wanted {wanted:?}, found {found:?}"))
        })
        .collect();
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
}

/// The features of a text of one statement.
fn features_of(sql: &str) -> Vec<Feature> {
    classify(sql).statements.into_iter().flat_map(|statement| statement.features).collect()
}
