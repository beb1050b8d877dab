//! Statements that change only the session, look at the account, or run something that the text does not show.

use super::lexer::{Kind, decode};
use super::objects::{name, object};
use super::source::Tokens;
use super::tokens::{Reading, read};
use super::types::{Access, Action, Effect, Feature, ObjectKind};
use super::verbs::object_type;
use super::{MAX_NESTING, classify_nested, functions, relations};

/// `USE [ROLE | WAREHOUSE | DATABASE | SCHEMA] name`, `USE SECONDARY ROLES ALL | NONE | name, …`.
pub(super) fn use_(tokens: Tokens<'_>) -> Reading {
    let (kind, object_kind, at) = match (tokens.word(1), tokens.len()) {
        ("SECONDARY", 4..) => ("USE SECONDARY ROLES", ObjectKind::Role, 3),
        ("ROLE", 3..) => ("USE ROLE", ObjectKind::Role, 2),
        ("WAREHOUSE", 3..) => ("USE WAREHOUSE", ObjectKind::Warehouse, 2),
        ("DATABASE", 3..) => ("USE DATABASE", ObjectKind::Database, 2),
        ("SCHEMA", 3..) => ("USE SCHEMA", ObjectKind::Schema, 2),
        _ => ("USE", ObjectKind::Unknown, 1),
    };
    let mut reading = Reading::of(kind, Effect::Session, Action::Use);
    let mut next = at;
    while let Some((name, behind)) = name(tokens, next) {
        let secondary = kind == "USE SECONDARY ROLES";
        match name.as_str() {
            "NONE" if secondary => {}
            // Which roles these are, the text does not tell.
            "ALL" if secondary => reading.object(object("?".to_owned(), object_kind, Access::Use)),
            _ => reading.object(object(name, object_kind, Access::Use)),
        }
        next = behind;
        if !(secondary && tokens.is_punct(next, b',')) {
            break;
        }
        next += 1;
    }
    // Anything behind the name is not Snowflake's grammar.
    if next == at || next < tokens.len() {
        reading.raise(Effect::Opaque);
    }
    reading
}

/// `SET name = expression`, `SET (a, b) = (…)`.
pub(super) fn set(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("SET", Effect::Session, Action::Set);
    relations::collect(tokens, &mut reading);
    let assigns = tokens.top_level().any(|at| tokens.is_punct(at, b'='));
    if !assigns || super::scan::has_stray_verb(tokens) {
        reading.raise(Effect::Opaque);
    }
    reading
}

/// `UNSET name`, `UNSET (a, b)`.
pub(super) fn unset(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("UNSET", Effect::Session, Action::Unset);
    let names = tokens.is_punct(1, b'(') || tokens.len() == 2;
    if !names || tokens.behind_bracket(1) < tokens.len() && tokens.len() != 2 {
        reading.raise(Effect::Opaque);
    }
    reading
}

/// `BEGIN`, `START TRANSACTION`, `COMMIT`, `ROLLBACK`, with nothing but their own words behind.
pub(super) fn transaction(tokens: Tokens<'_>) -> Reading {
    let (kind, action, words) = match tokens.word(0) {
        "COMMIT" => ("COMMIT", Action::Commit, usize::from(tokens.word(1) == "WORK")),
        "ROLLBACK" => ("ROLLBACK", Action::Rollback, usize::from(tokens.word(1) == "WORK")),
        "START" if tokens.word(1) == "TRANSACTION" => ("BEGIN", Action::Begin, 1),
        "BEGIN" => ("BEGIN", Action::Begin, usize::from(matches!(tokens.word(1), "TRANSACTION" | "WORK"))),
        _ => return Reading::unknown(),
    };
    let mut next = 1 + words;
    if action == Action::Begin && tokens.word(next) == "NAME" {
        next += 2;
    }
    let mut reading = Reading::of(kind, Effect::Session, action);
    if next != tokens.len() {
        reading.raise(Effect::Opaque);
    }
    reading
}

/// `SHOW …` only looks.
pub(super) fn show(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("SHOW", Effect::Read, Action::Show);
    if tokens.len() < 2 {
        reading.raise(Effect::Opaque);
    }
    if let Some(at) = tokens.top_level().find(|at| *at > 1 && tokens.word(*at) == "IN") {
        let (kind, at) = object_type(tokens, at + 1)
            .map_or((ObjectKind::Unknown, at + 1), |(object, behind)| (object.kind, behind));
        if let Some((name, _)) = name(tokens, at).filter(|(name, _)| name != "ACCOUNT") {
            reading.object(object(name, kind, Access::Read));
        }
    }
    reading
}

/// `DESCRIBE type name`.
pub(super) fn describe(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("DESCRIBE", Effect::Read, Action::Describe);
    if let Some((object_type, at)) = object_type(tokens, 1) {
        reading.kind = format!("DESCRIBE {}", object_type.words.join(" "));
        if let Some((name, _)) = name(tokens, at) {
            reading.object(object(name, object_type.kind, Access::Read));
        }
    } else if tokens.len() < 2 || is_statement_verb(tokens.word(1)) {
        reading.raise(Effect::Opaque);
    } else if let Some((name, _)) = name(tokens, 1).filter(|(_, behind)| *behind == tokens.len()) {
        reading.object(object(name, ObjectKind::Table, Access::Read));
    }
    if super::scan::has_stray_verb(tokens) {
        reading.raise(Effect::Opaque);
    }
    reading
}

/// `EXPLAIN [USING TABULAR | JSON | TEXT] statement`: compiles the statement, does not run it.
pub(super) fn explain(tokens: Tokens<'_>, nesting: u8) -> Reading {
    let mut reading = Reading::of("EXPLAIN", Effect::Read, Action::Explain);
    let at = if tokens.word(1) == "USING" { 3 } else { 1 };
    let known = matches!(
        tokens.word(at),
        "SELECT"
            | "WITH"
            | "VALUES"
            | "INSERT"
            | "UPDATE"
            | "DELETE"
            | "MERGE"
            | "CREATE"
            | "COPY"
            | "SHOW"
            | "DESCRIBE"
            | "DESC"
    ) || tokens.is_punct(at, b'(');
    if !known {
        reading.raise(Effect::Opaque);
        return reading;
    }
    // Names and features of what is explained; its effect does not happen.
    let mut explained = read(tokens.from(at), nesting + 1);
    if explained.effect != Effect::Opaque {
        explained.effect = Effect::Read;
    }
    explained.forget_actions();
    reading.absorb(explained);
    reading
}

/// `CALL procedure(…)`: opaque, but for the functions that are known.
pub(super) fn call(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("CALL", Effect::Opaque, Action::Call);
    if let Some((name, _)) = name(tokens, 1) {
        if let (effect, Some(feature)) = functions::effect(&name.replace('"', "").to_uppercase()) {
            reading.feature(feature);
            // Behind a schema it is somebody's own.
            if feature == Feature::SystemFunction && !name.contains('.') {
                reading.effect = effect;
            }
        }
        reading.object(object(name, ObjectKind::Procedure, Access::Execute));
    }
    reading
}

/// `EXECUTE IMMEDIATE '…'` does what its text does; whatever else is executed is opaque.
pub(super) fn execute(tokens: Tokens<'_>, nesting: u8) -> Reading {
    if tokens.word(1) != "IMMEDIATE" {
        let (kind, at) =
            object_type(tokens, 1).map_or((ObjectKind::Unknown, 2), |(object, behind)| (object.kind, behind));
        let mut reading =
            Reading::of(format!("EXECUTE {}", tokens.word(1)).trim_end(), Effect::Opaque, Action::Execute);
        if let Some((name, _)) = name(tokens, at) {
            reading.object(object(name, kind, Access::Execute));
        }
        return reading;
    }
    let mut reading = Reading::of("EXECUTE IMMEDIATE", Effect::None, Action::Execute);
    reading.feature(Feature::DynamicSql);
    let literal = tokens.kind(2).and_then(|kind| decode(kind, tokens.raw(2)));
    let alone = tokens.len() == 3
        || (tokens.word(3) == "USING"
            && tokens.behind_bracket(4) == tokens.len()
            && tokens.is_punct(4, b'('));
    match literal {
        Some(text) if alone && nesting < MAX_NESTING => {
            let inner = classify_nested(&text, nesting + 1);
            reading.raise(inner.effect);
            reading.absorb_text(inner.statements);
        }
        _ => reading.raise(Effect::Opaque),
    }
    reading
}

/// Words that start a statement which changes something.
fn is_statement_verb(word: &str) -> bool {
    matches!(
        word,
        "ALTER"
            | "CALL"
            | "COPY"
            | "CREATE"
            | "DELETE"
            | "DROP"
            | "EXECUTE"
            | "GRANT"
            | "INSERT"
            | "MERGE"
            | "REVOKE"
            | "TRUNCATE"
            | "UPDATE"
    )
}

/// Whether a token can stand in the settings of `ALTER SESSION`: names, values, commas.
pub(super) fn is_setting(kind: Option<Kind>) -> bool {
    matches!(
        kind,
        Some(
            Kind::Word
                | Kind::Quoted
                | Kind::Text
                | Kind::Dollar
                | Kind::Number
                | Kind::Variable
                | Kind::Punct(b'=' | b',' | b'-' | b'.' | b'+' | b'?' | b':')
        )
    )
}
