//! Statements that change rows or move files.

use super::lexer::{Kind, decode};
use super::objects::{name, object};
use super::relations;
use super::source::Tokens;
use super::tokens::Reading;
use super::types::{Access, Action, Effect, Feature, ObjectKind};

/// `INSERT [OVERWRITE] INTO t …`, `INSERT ALL|FIRST … INTO t …`.
pub(super) fn insert(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("INSERT", Effect::Write, Action::Insert);
    if (1..4).any(|at| tokens.word(at) == "OVERWRITE") {
        reading.raise(Effect::Destructive);
        reading.feature(Feature::Overwrite);
    }
    if !matches!(tokens.word(1), "INTO" | "OVERWRITE" | "ALL" | "FIRST") {
        reading.raise(Effect::Opaque);
    }
    for at in tokens.top_level() {
        if tokens.word(at) == "INTO" {
            let target = if tokens.word(at + 1) == "TABLE" && !tokens.is_punct(at + 2, b'(') {
                at + 2
            } else {
                at + 1
            };
            write_to(tokens, target, &mut reading);
        }
    }
    relations::collect(tokens, &mut reading);
    reading
}

/// `UPDATE t SET … [FROM …] [WHERE …]`.
pub(super) fn update(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("UPDATE", Effect::Write, Action::Update);
    write_to(tokens, 1, &mut reading);
    if !has_condition(tokens) {
        reading.feature(Feature::NoWhere);
    }
    relations::collect(tokens, &mut reading);
    reading
}

/// `DELETE FROM t [USING …] [WHERE …]`. Destructive with a condition too: `WHERE id IS NOT NULL` empties the table as well.
pub(super) fn delete(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("DELETE", Effect::Destructive, Action::Delete);
    write_to(tokens, if tokens.word(1) == "FROM" { 2 } else { 1 }, &mut reading);
    if !has_condition(tokens) {
        reading.feature(Feature::NoWhere);
    }
    // Behind the target, which is not read.
    relations::collect(tokens, &mut reading);
    reading
}

/// `MERGE INTO t USING … ON … WHEN … THEN …`.
pub(super) fn merge(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("MERGE", Effect::Write, Action::Merge);
    write_to(tokens, if tokens.word(1) == "INTO" { 2 } else { 1 }, &mut reading);
    for at in tokens.top_level().filter(|at| tokens.word(*at) == "THEN") {
        match tokens.word(at + 1) {
            "DELETE" => {
                reading.raise(Effect::Destructive);
                reading.act(Action::Delete);
            }
            "UPDATE" => reading.act(Action::Update),
            "INSERT" => reading.act(Action::Insert),
            _ => {}
        }
    }
    relations::collect(tokens, &mut reading);
    reading
}

/// `TRUNCATE [TABLE | MATERIALIZED VIEW] [IF EXISTS] t`.
pub(super) fn truncate(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("TRUNCATE", Effect::Destructive, Action::Truncate);
    let mut at = 1;
    while matches!(tokens.word(at), "TABLE" | "MATERIALIZED" | "VIEW" | "IF" | "EXISTS") {
        at += 1;
    }
    write_to(tokens, at, &mut reading);
    reading
}

/// `COPY INTO t FROM …` loads, `COPY INTO @stage | 'url' FROM …` unloads. What follows INTO decides.
pub(super) fn copy(tokens: Tokens<'_>) -> Reading {
    if tokens.phrase(1, &["FILES", "INTO"]) {
        let mut reading = Reading::of("COPY FILES", Effect::Exfiltration, Action::CopyFiles);
        write_to(tokens, 3, &mut reading);
        return reading;
    }
    if tokens.word(1) != "INTO" {
        return Reading::unknown();
    }
    let target = name(tokens, 2);
    let unknown = target.as_ref().is_none_or(|(name, _)| name == super::objects::UNKNOWN_NAME);
    let location = match tokens.kind(2) {
        Some(Kind::Stage | Kind::Text | Kind::Dollar) => true,
        _ => target.as_ref().is_some_and(|(name, _)| name.starts_with('@')),
    };
    let mut reading = if location {
        Reading::of("COPY INTO LOCATION", Effect::Exfiltration, Action::CopyIntoLocation)
    } else {
        Reading::of("COPY INTO TABLE", Effect::Write, Action::CopyIntoTable)
    };
    let literal = tokens.kind(2).and_then(|kind| decode(kind, tokens.raw(2)));
    if literal.is_some_and(|literal| !literal.starts_with('@')) {
        reading.feature(Feature::ExternalLocation);
        reading.object(object(super::objects::UNKNOWN_NAME, ObjectKind::Stage, Access::Write));
    } else {
        write_to(tokens, 2, &mut reading);
    }
    if unknown && !location {
        reading.raise(Effect::Opaque);
    }
    if let Some(from) = tokens.top_level().find(|at| tokens.word(*at) == "FROM")
        && matches!(tokens.kind(from + 1), Some(Kind::Text))
        && tokens.raw(from + 1).contains("://")
    {
        reading.feature(Feature::ExternalLocation);
    } else {
        relations::collect(tokens, &mut reading);
    }
    reading
}

/// `PUT file://… @stage`.
pub(super) fn put(tokens: Tokens<'_>) -> Reading {
    transfer(tokens, Reading::of("PUT", Effect::Write, Action::Put), 2, Access::Write)
}

/// `GET @stage file://…`.
pub(super) fn get(tokens: Tokens<'_>) -> Reading {
    transfer(tokens, Reading::of("GET", Effect::Exfiltration, Action::Get), 1, Access::Read)
}

/// `LIST @stage`.
pub(super) fn list(tokens: Tokens<'_>) -> Reading {
    transfer(tokens, Reading::of("LIST", Effect::Read, Action::List), 1, Access::Read)
}

/// `REMOVE @stage`.
pub(super) fn remove(tokens: Tokens<'_>) -> Reading {
    transfer(tokens, Reading::of("REMOVE", Effect::Destructive, Action::Remove), 1, Access::Drop)
}

/// A statement on files; the stage's name stands at `at`.
fn transfer(tokens: Tokens<'_>, mut reading: Reading, at: usize, access: Access) -> Reading {
    reading.feature(Feature::Stage);
    match name(tokens, at) {
        Some((name, _)) => reading.object(object(name, ObjectKind::Stage, access)),
        None => reading.raise(Effect::Opaque),
    }
    reading
}

/// Adds the relation or stage at `at` as one that is written to.
fn write_to(tokens: Tokens<'_>, at: usize, reading: &mut Reading) {
    if let Some((name, _)) = name(tokens, at) {
        let kind = match name.as_str() {
            super::objects::UNKNOWN_NAME => ObjectKind::Unknown,
            _ if name.starts_with('@') => ObjectKind::Stage,
            _ => ObjectKind::Table,
        };
        reading.object(object(name, kind, Access::Write));
    }
}

/// Whether the statement has a WHERE that looks at a column: `WHERE TRUE` and `WHERE 1 = 1` do not.
fn has_condition(tokens: Tokens<'_>) -> bool {
    let Some(at) = tokens.top_level().find(|at| tokens.word(*at) == "WHERE") else {
        return false;
    };
    (at + 1..tokens.len()).any(|at| match tokens.kind(at) {
        Some(Kind::Quoted | Kind::Variable | Kind::Punct(b'?' | b':')) => true,
        Some(Kind::Word) => !matches!(
            tokens.word(at),
            "TRUE" | "FALSE" | "NULL" | "NOT" | "AND" | "OR" | "IS" | "IN" | "BETWEEN" | "LIKE"
        ),
        _ => false,
    })
}
