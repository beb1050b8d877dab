//! Statements that create, change or drop objects.

use super::lexer::{Kind, decode};
use super::objects::{name, object};
use super::session::is_setting;
use super::source::Tokens;
use super::tokens::{Reading, read};
use super::types::{Access, Action, Effect, Feature, ObjectKind};
use super::verbs::{ObjectType, Verb, is_modifier, object_type};
use super::{MAX_NESTING, classify_nested, relations, scan};

/// What drivers call the stage for bulk binds.
const BIND_STAGES: [&str; 3] = ["SYSTEM$BIND", "SYSTEMBIND", "SNOWPARK_TEMP_STAGE_BIND"];

/// `CREATE [OR REPLACE | OR ALTER] [modifier …] type [IF NOT EXISTS] name …`.
pub(super) fn create(tokens: Tokens<'_>, nesting: u8) -> Reading {
    let replaces = tokens.phrase(1, &["OR", "REPLACE"]);
    let alters = tokens.phrase(1, &["OR", "ALTER"]);
    let mut at = if replaces || alters { 3 } else { 1 };
    let mut temporary = false;
    while is_modifier(tokens.word(at)) {
        temporary |= matches!(tokens.word(at), "TEMP" | "TEMPORARY" | "VOLATILE");
        at += 1;
    }
    let Some((object_type, at)) = object_type(tokens, at) else {
        let mut reading = Reading::unknown();
        reading.act(Action::Create);
        if replaces {
            reading.raise(Effect::Destructive);
        }
        return reading;
    };
    let mut reading = Reading::of(
        format!("CREATE {}", object_type.words.join(" ")),
        object_type.effect(Verb::Create),
        Action::Create,
    );
    if temporary {
        reading.feature(Feature::Temporary);
    }
    let at = skip_if_exists(tokens, at);
    let named = name(tokens, at);
    if replaces {
        reading.act(Action::Replace);
        reading.feature(Feature::OrReplace);
        let last = named.as_ref().and_then(|(name, _)| name.rsplit('.').next());
        // The stage that drivers make for bulk binds, which is theirs alone and ends with the session.
        let binds = last.is_some_and(|name| BIND_STAGES.contains(&name));
        if !(binds && temporary && object_type.is(&["STAGE"])) {
            reading.raise(Effect::Destructive);
        }
    }
    if alters {
        reading.act(Action::Alter);
        reading.feature(Feature::OrAlter);
        if object_type.kind == ObjectKind::Table {
            reading.raise(Effect::Destructive);
        }
    }
    let mut behind = at;
    if let Some((name, next)) = named {
        reading.object(object(name, object_type.kind, Access::Create));
        behind = next;
    }
    created_clauses(tokens, behind, object_type, &mut reading);
    if object_type.class == super::verbs::Class::Data {
        body(tokens, behind, object_type, nesting, &mut reading);
    }
    reading
}

/// Clauses of CREATE that matter.
fn created_clauses(tokens: Tokens<'_>, from: usize, object_type: &ObjectType, reading: &mut Reading) {
    for at in tokens.top_level().filter(|at| *at >= from) {
        let assigned = tokens.is_punct(at + 1, b'=');
        match tokens.word(at) {
            "CLONE" | "LIKE" if !assigned => {
                if tokens.word(at) == "CLONE" {
                    reading.feature(Feature::Clone);
                }
                if let Some((name, _)) = name(tokens, at + 1) {
                    reading.object(object(name, object_type.kind, Access::Read));
                }
            }
            "FROM" if object_type.is(&["DATABASE"]) && matches!(tokens.word(at + 1), "SHARE" | "LISTING") => {
                if let Some((name, _)) = name(tokens, at + 2) {
                    reading.object(object(name, ObjectKind::Share, Access::Read));
                }
            }
            _ => {}
        }
    }
    for at in from..tokens.len() {
        outward_setting(tokens.word(at), tokens, at, object_type, reading);
    }
    if object_type.is(&["EXTERNAL", "FUNCTION"]) || object_type.is(&["EXTERNAL", "ACCESS", "INTEGRATION"]) {
        reading.feature(Feature::ExternalLocation);
    }
}

/// Settings that open a way out, in CREATE and ALTER.
fn outward_setting(
    word: &str,
    tokens: Tokens<'_>,
    at: usize,
    object_type: &ObjectType,
    reading: &mut Reading,
) {
    let outward = match word {
        "EXTERNAL_ACCESS_INTEGRATIONS" | "API_INTEGRATION" => {
            object_type.class == super::verbs::Class::Data || object_type.kind == ObjectKind::Service
        }
        "URL" | "STORAGE_INTEGRATION" | "CREDENTIALS" => object_type.is(&["STAGE"]),
        "EGRESS" | "VALUE_LIST" if object_type.is(&["NETWORK", "RULE"]) => {
            // A list of hosts is for egress; addresses are for ingress.
            word == "EGRESS" || tokens.word(0) == "ALTER"
        }
        "ALLOWED_ACCOUNTS" => object_type.kind == ObjectKind::ReplicationGroup,
        "ACCOUNTS" => object_type.is(&["SHARE"]) && matches!(tokens.word(at - 1), "ADD" | "SET"),
        "PUBLISH" => object_type.kind == ObjectKind::Listing,
        "DISTRIBUTION" => object_type.is(&["APPLICATION", "PACKAGE"]),
        _ => false,
    };
    if outward {
        reading.raise(Effect::Exfiltration);
        reading.feature(Feature::ExternalLocation);
    }
}

/// What the stored body of a new object does, or the query that fills it.
fn body(tokens: Tokens<'_>, from: usize, object_type: &ObjectType, nesting: u8, reading: &mut Reading) {
    let start = match object_type.kind {
        ObjectKind::Alert => tokens.top_level().find(|at| *at > from && tokens.word(*at) == "THEN"),
        _ => tokens.top_level().find(|at| {
            *at >= from
                && tokens.word(*at) == "AS"
                && tokens.word(at - 1) != "EXECUTE"
                && tokens.word(at + 1) != "REPLICA"
        }),
    };
    let Some(at) = start.map(|at| at + 1) else { return };
    let stored = matches!(
        object_type.kind,
        ObjectKind::Alert | ObjectKind::Procedure | ObjectKind::Task | ObjectKind::Function
    );
    if stored {
        reading.feature(Feature::StoredBody);
    }
    if matches!(tokens.kind(at), Some(Kind::Text | Kind::Dollar)) {
        quoted_body(tokens, from, at, nesting, reading);
    } else if !matches!(tokens.word(at), "BEGIN" | "DECLARE") && !tokens.from(at).is_empty() {
        // Blocks are read by the caller of this reading.
        let inner = tokens.from(at);
        if matches!(object_type.kind, ObjectKind::Table | ObjectKind::View) {
            relations::collect(inner, reading);
        }
        reading.absorb(read(inner, nesting + 1));
    }
}

/// A body in quotes: SQL is judged; another language only runs when the object is called, and that is judged then.
fn quoted_body(tokens: Tokens<'_>, from: usize, at: usize, nesting: u8, reading: &mut Reading) {
    if runs_elsewhere(tokens, from) {
        return;
    }
    let text = tokens.kind(at).and_then(|kind| decode(kind, tokens.raw(at)));
    let Some(text) = text.filter(|_| nesting < MAX_NESTING) else {
        reading.raise(Effect::Opaque);
        return;
    };
    let statement = super::source::Source::new(&text).ok().map(|source| {
        let tokens = source.tokens();
        if starts_statement(tokens) {
            return true;
        }
        // The expression that a function computes.
        relations::collect(tokens, reading);
        scan::scan(tokens, reading, nesting, scan::Verbs::Anywhere);
        false
    });
    if statement != Some(false) {
        let inner = classify_nested(&text, nesting + 1);
        reading.absorb_text(inner.statements);
    }
}

/// Whether the clauses from `from` on name a language other than SQL. Parameters in brackets may be called `language`.
fn runs_elsewhere(tokens: Tokens<'_>, from: usize) -> bool {
    let named = tokens.top_level().find(|at| *at >= from && tokens.word(*at) == "LANGUAGE");
    named.is_some_and(|at| matches!(tokens.word(at + 1), "JAVA" | "JAVASCRIPT" | "PYTHON" | "SCALA"))
}

/// Whether a body is a statement rather than an expression. What holds a delimiter is one.
fn starts_statement(tokens: Tokens<'_>) -> bool {
    let several =
        (0..tokens.len()).any(|at| tokens.is_punct(at, b';') || tokens.kind(at) == Some(Kind::Flow));
    several
        || matches!(
            tokens.word(0),
            "SELECT"
                | "WITH"
                | "BEGIN"
                | "DECLARE"
                | "DELETE"
                | "UPDATE"
                | "MERGE"
                | "DROP"
                | "CREATE"
                | "ALTER"
                | "CALL"
                | "EXECUTE"
                | "TRUNCATE"
                | "GRANT"
                | "REVOKE"
                | "COPY"
                | "USE"
                | "SHOW"
        )
        || tokens.phrase(0, &["INSERT", "INTO"])
}

/// `WITH p AS PROCEDURE (…) … AS '…' CALL p(…)`: the body is known. `at` is that of `AS PROCEDURE`.
pub(super) fn anonymous_procedure(tokens: Tokens<'_>, at: usize, nesting: u8) -> Reading {
    let mut reading = Reading::of("CALL", Effect::Write, Action::Call);
    reading.feature(Feature::StoredBody);
    let body = tokens.top_level().find(|body| {
        *body > at + 1 && tokens.word(*body) == "AS" && !matches!(tokens.word(body - 1), "EXECUTE")
    });
    // A block without quotes is read by the caller of this reading.
    let block = body.is_some_and(|body| matches!(tokens.word(body + 1), "BEGIN" | "DECLARE"));
    match body {
        Some(_) if block => {}
        Some(body)
            if !runs_elsewhere(tokens, at)
                && matches!(tokens.kind(body + 1), Some(Kind::Text | Kind::Dollar)) =>
        {
            quoted_body(tokens, at, body + 1, nesting, &mut reading);
            // Only the procedure that stands here may be called, and nothing else done.
            let called = name(tokens, body + 3);
            let same =
                called.as_ref().map(|(name, _)| name) == name(tokens, 1).as_ref().map(|(name, _)| name);
            let ends = called.is_some_and(|(_, behind)| tokens.behind_bracket(behind) == tokens.len());
            if tokens.word(body + 2) != "CALL" || !same || !ends {
                reading.raise(Effect::Opaque);
            }
        }
        _ => reading.raise(Effect::Opaque),
    }
    reading
}

/// `ALTER type [IF EXISTS] name clause …`.
pub(super) fn alter(tokens: Tokens<'_>, nesting: u8) -> Reading {
    if tokens.word(1) == "SESSION" && matches!(tokens.word(2), "SET" | "UNSET") {
        let mut reading = Reading::of("ALTER SESSION", Effect::Session, Action::Alter);
        if (3..tokens.len()).any(|at| !is_setting(tokens.kind(at))) || scan::has_stray_verb(tokens) {
            reading.raise(Effect::Opaque);
        }
        return reading;
    }
    let mut at = 1;
    while is_modifier(tokens.word(at)) {
        at += 1;
    }
    let Some((object_type, at)) = object_type(tokens, at) else {
        let mut reading = Reading::unknown();
        reading.act(Action::Alter);
        return reading;
    };
    let mut reading = Reading::of(
        format!("ALTER {}", object_type.words.join(" ")),
        object_type.effect(Verb::Alter),
        Action::Alter,
    );
    let mut behind = skip_if_exists(tokens, at);
    while let Some((name, next)) = name(tokens, behind) {
        reading.object(object(name, object_type.kind, Access::Alter));
        behind = next;
        if !tokens.is_punct(behind, b',') {
            break;
        }
        behind += 1;
    }
    // `ALTER TABLE t MODIFY (COLUMN a …, COLUMN b …)` has its clauses in brackets.
    for at in behind..tokens.len() {
        altered_clause(tokens, at, behind, object_type, &mut reading);
    }
    // What runs unattended, when, and whether.
    if matches!(object_type.kind, ObjectKind::Task | ObjectKind::Alert) {
        reading.raise(Effect::Admin);
    }
    altered_body(tokens, behind, object_type, nesting, &mut reading);
    reading
}

/// What the clause whose first word is at `at` adds.
fn altered_clause(
    tokens: Tokens<'_>,
    at: usize,
    first: usize,
    object_type: &ObjectType,
    reading: &mut Reading,
) {
    let next = tokens.word(at + 1);
    match tokens.word(at) {
        "SWAP" if next == "WITH" => {
            reading.raise(Effect::Destructive);
            reading.act(Action::Swap);
            if let Some((name, _)) = name(tokens, at + 2) {
                reading.object(object(name, object_type.kind, Access::Alter));
            }
        }
        "RENAME" if next == "TO" => {
            reading.act(Action::Rename);
            if let Some((name, _)) = name(tokens, at + 2) {
                reading.object(object(name, object_type.kind, Access::Create));
            }
        }
        "RENAME" => reading.act(Action::Rename),
        "DROP" if loses_data(tokens, at, first, object_type) => {
            reading.raise(Effect::Destructive);
            reading.act(Action::Drop);
        }
        "POLICY" | "POLICIES" => reading.raise(Effect::Admin),
        "ENABLE" if matches!(next, "REPLICATION" | "FAILOVER") => reading.raise(Effect::Exfiltration),
        "ENABLE" | "DISABLE" if matches!(next, "REPLICATION" | "FAILOVER" | "MANAGED") => {
            reading.raise(Effect::Admin);
        }
        "PRIMARY" | "REFRESH" if object_type.is(&["DATABASE"]) => reading.raise(Effect::Admin),
        "ADD" | "SET" | "MOVE" if object_type.kind == ObjectKind::ReplicationGroup => {
            reading.raise(Effect::Exfiltration);
        }
        word => outward_setting(word, tokens, at, object_type, reading),
    }
}

/// Clauses behind DROP that take away a constraint, a policy or a setting, but no data. Single words are reserved, so that no
/// column can have them as its name.
const HARMLESS_DROPS: &[&[&str]] = &[
    &["AGGREGATION", "POLICY"],
    &["ALL", "ROW", "ACCESS", "POLICIES"],
    &["AUTHENTICATION", "POLICY"],
    &["CLUSTERING", "KEY"],
    &["CONSTRAINT"],
    &["DATA", "METRIC", "FUNCTION"],
    &["FOREIGN", "KEY"],
    &["JOIN", "POLICY"],
    &["MASKING", "POLICY"],
    &["NOT", "NULL"],
    &["PRIMARY", "KEY"],
    &["PRIVACY", "POLICY"],
    &["PROJECTION", "POLICY"],
    &["ROW", "ACCESS", "POLICY"],
    &["SCORING", "PROFILE"],
    &["SEARCH", "OPTIMIZATION"],
    &["STORAGE", "LIFECYCLE", "POLICY"],
    &["UNIQUE"],
];

/// Whether the DROP clause at `at` loses data. `first` is the index of the statement's first clause.
fn loses_data(tokens: Tokens<'_>, at: usize, first: usize, object_type: &ObjectType) -> bool {
    let harmless = HARMLESS_DROPS.iter().any(|clause| tokens.phrase(at + 1, clause))
        || (object_type.is(&["TAG"]) && tokens.word(at + 1) == "ALLOWED_VALUES")
        || (at > first && tokens.word(at + 1) == "DEFAULT");
    !harmless
}

/// The new body of a task, alert or view.
fn altered_body(
    tokens: Tokens<'_>,
    from: usize,
    object_type: &ObjectType,
    nesting: u8,
    reading: &mut Reading,
) {
    if !matches!(
        object_type.kind,
        ObjectKind::Task | ObjectKind::Alert | ObjectKind::View | ObjectKind::Table
    ) {
        return;
    }
    let start = tokens.top_level().find(|at| {
        *at >= from && matches!(tokens.word(at - 1), "MODIFY") && matches!(tokens.word(*at), "AS" | "ACTION")
            || *at == from && tokens.word(*at) == "AS"
    });
    if let Some(at) = start
        && !matches!(tokens.word(at + 1), "BEGIN" | "DECLARE")
    {
        reading.feature(Feature::StoredBody);
        reading.absorb(read(tokens.from(at + 1), nesting + 1));
    }
}

/// `DROP type [IF EXISTS] name`: destructive whatever the type.
pub(super) fn drop(tokens: Tokens<'_>) -> Reading {
    on_object(tokens, "DROP", Reading::of("DROP", Effect::Destructive, Action::Drop), Access::Drop)
}

/// `UNDROP type name`.
pub(super) fn undrop(tokens: Tokens<'_>) -> Reading {
    let effect = object_type(tokens, 1).map_or(Effect::Opaque, |(object, _)| object.effect(Verb::Undrop));
    on_object(tokens, "UNDROP", Reading::of("UNDROP", effect, Action::Undrop), Access::Create)
}

/// `COMMENT [IF EXISTS] ON type name IS '…'`.
pub(super) fn comment(tokens: Tokens<'_>) -> Reading {
    let mut reading = Reading::of("COMMENT", Effect::Write, Action::Comment);
    let on = if tokens.word(1) == "IF" { 3 } else { 1 };
    if tokens.word(on) != "ON" {
        reading.raise(Effect::Opaque);
    } else if let Some((object_type, at)) = object_type(tokens, on + 1)
        && let Some((name, _)) = name(tokens, at)
    {
        reading.object(object(name, object_type.kind, Access::Alter));
    }
    reading
}

/// Completes `reading` by the type and name behind the verb.
fn on_object(tokens: Tokens<'_>, verb: &str, mut reading: Reading, access: Access) -> Reading {
    if let Some((object_type, at)) = object_type(tokens, 1) {
        reading.kind = format!("{verb} {}", object_type.words.join(" "));
        if let Some((name, _)) = name(tokens, skip_if_exists(tokens, at)) {
            reading.object(object(name, object_type.kind, access));
        }
    }
    reading
}

/// The index behind `IF [NOT] EXISTS`, if that stands at `at`.
fn skip_if_exists(tokens: Tokens<'_>, at: usize) -> usize {
    if tokens.phrase(at, &["IF", "NOT", "EXISTS"]) {
        at + 3
    } else if tokens.phrase(at, &["IF", "EXISTS"]) {
        at + 2
    } else {
        at
    }
}
