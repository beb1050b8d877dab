//! One pass over all tokens of a statement, for what can hide anywhere in it: verbs in the place of a verb, calls of
//! functions with effects, unbalanced brackets, names that come from variables.

use super::lexer::{Kind, decode};
use super::objects::{self, object};
use super::source::Tokens;
use super::tokens::Reading;
use super::types::{Access, Action, Effect, Feature, Object, ObjectKind};
use super::{functions, session};

/// Where a verb counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Verbs {
    /// Where a statement could start: behind a bracket, THEN, ELSE, DO …
    InPlace,
    /// Anywhere. For texts that no grammar confirms.
    Anywhere,
}

/// Raises `reading` by what `tokens` contain beyond their first word.
pub(super) fn scan(tokens: Tokens<'_>, reading: &mut Reading, nesting: u8, verbs: Verbs) {
    let mut open = Vec::new();
    let mut balanced = true;
    let mut cases = 0_usize;
    for at in 0..tokens.len() {
        match tokens.kind(at) {
            Some(Kind::Punct(byte @ (b'(' | b'[' | b'{'))) => open.push(byte),
            Some(Kind::Punct(byte @ (b')' | b']' | b'}'))) => {
                balanced &= matches!(
                    (open.pop(), byte),
                    (Some(b'('), b')') | (Some(b'['), b']') | (Some(b'{'), b'}')
                );
            }
            Some(Kind::Flow) => balanced = false,
            Some(Kind::Stage) => stage(tokens, at, reading),
            Some(Kind::Word) => {
                match tokens.word(at) {
                    "CASE" => cases += 1,
                    "END" if cases > 0 => cases -= 1,
                    // A word END that ends nothing, at the end of a statement, ends some parsers' reading.
                    "END" if at > 0 && at + 1 == tokens.len() && !is_name_place(tokens, at) => {
                        reading.raise(Effect::Opaque);
                    }
                    "AT" | "BEFORE" | "CHANGES" if tokens.is_punct(at + 1, b'(') => {
                        time_travel(tokens, at, reading);
                    }
                    _ => {}
                }
                if verbs == Verbs::Anywhere || (at > 0 && is_verb_place(tokens, at)) {
                    verb(tokens, at, reading, nesting);
                }
                call(tokens, at, reading);
            }
            Some(Kind::Quoted) => call(tokens, at, reading),
            _ => {}
        }
    }
    if !balanced || !open.is_empty() {
        reading.feature(Feature::Unparsed);
        reading.raise(Effect::Opaque);
    }
}

/// Whether a verb that needs a partner stands with it anywhere in the statement, as in `SELECT 1 DROP TABLE t`.
pub(super) fn has_stray_verb(tokens: Tokens<'_>) -> bool {
    (1..tokens.len()).any(|at| {
        let next = tokens.word(at + 1);
        match tokens.word(at) {
            // A path into a value, or a column.
            _ if tokens.is_punct(at - 1, b'.') || tokens.is_punct(at - 1, b':') => false,
            "DELETE" => next == "FROM",
            "INSERT" | "MERGE" => matches!(next, "INTO" | "OVERWRITE"),
            "DROP" | "ALTER" | "UNDROP" => super::verbs::object_type(tokens, at + 1).is_some(),
            "CREATE" => {
                matches!(next, "OR" | "TEMPORARY" | "TEMP" | "TRANSIENT")
                    || super::verbs::object_type(tokens, at + 1).is_some()
            }
            "CALL" => !next.is_empty() && (tokens.is_punct(at + 2, b'(') || tokens.is_punct(at + 2, b'.')),
            "GET" | "PUT" | "REMOVE" | "RM" => {
                matches!(tokens.kind(at + 1), Some(Kind::Stage | Kind::File | Kind::Text))
            }
            "TRUNCATE" => next == "TABLE",
            "COPY" => next == "INTO",
            "EXECUTE" => matches!(next, "IMMEDIATE" | "TASK"),
            "UPDATE" => tokens.word(at + 2) == "SET",
            "GRANT" | "REVOKE" => {
                matches!(next, "ROLE" | "ALL" | "OWNERSHIP" | "SELECT" | "USAGE" | "DATABASE")
            }
            "USE" => matches!(next, "ROLE" | "WAREHOUSE" | "DATABASE" | "SCHEMA" | "SECONDARY"),
            _ => false,
        }
    })
}

/// Whether a name rather than a keyword is due at `at`.
fn is_name_place(tokens: Tokens<'_>, at: usize) -> bool {
    let Some(previous) = at.checked_sub(1) else { return false };
    matches!(tokens.word(previous), "AS" | "BY" | "SELECT" | "FROM" | "JOIN" | "TABLE" | "VIEW")
        || matches!(tokens.kind(previous), Some(Kind::Punct(byte)) if byte != b')')
}

/// Whether a statement could start at `at`.
fn is_verb_place(tokens: Tokens<'_>, at: usize) -> bool {
    tokens.is_punct(at - 1, b'(')
        || tokens.is_punct(at - 1, b')')
        || tokens.is_punct(at - 1, b';')
        || matches!(tokens.word(at - 1), "THEN" | "ELSE" | "DO" | "LOOP" | "BEGIN" | "ASYNC" | "ACTION")
        || (tokens.word(at - 1) == "AS" && matches!(tokens.word(0), "CREATE" | "ALTER" | "DEFINE" | "WITH"))
}

/// Raises `reading` by the verb at `at`, if it is one. Looks ahead a bounded number of tokens.
fn verb(tokens: Tokens<'_>, at: usize, reading: &mut Reading, nesting: u8) {
    let next = at + 1;
    let next_word = tokens.word(next);
    let name_follows = matches!(tokens.kind(next), Some(Kind::Word | Kind::Quoted))
        && !matches!(next_word, "END" | "AS" | "OR" | "AND");
    let place_follows = matches!(tokens.kind(next), Some(Kind::Stage | Kind::Text | Kind::File));
    let merge_branch = at > 0 && tokens.word(at - 1) == "THEN";
    let (effect, action) = match tokens.word(at) {
        "DELETE" if next_word == "FROM" || (name_follows && !merge_branch) => {
            (Effect::Destructive, Action::Delete)
        }
        "INSERT" if matches!(next_word, "INTO" | "OVERWRITE" | "ALL" | "FIRST") => {
            let overwrites = next_word == "OVERWRITE" || tokens.word(next + 1) == "OVERWRITE";
            (if overwrites { Effect::Destructive } else { Effect::Write }, Action::Insert)
        }
        "UPDATE" if name_follows && next_word != "SET" => (Effect::Write, Action::Update),
        "MERGE" if next_word == "INTO" => (Effect::Write, Action::Merge),
        "TRUNCATE" if name_follows => (Effect::Destructive, Action::Truncate),
        "DROP" if name_follows && super::verbs::object_type(tokens, next).is_some() => {
            (Effect::Destructive, Action::Drop)
        }
        "CREATE" if next_word == "OR" => (Effect::Destructive, Action::Create),
        // The body of a task or alert, which was read as a statement.
        "CREATE" | "ALTER"
            if matches!(tokens.word(0), "CREATE" | "ALTER" | "DEFINE")
                && !tokens.is_punct(at.saturating_sub(1), b'(') =>
        {
            return;
        }
        "CREATE" if name_follows => (Effect::Opaque, Action::Create),
        "ALTER" if super::verbs::object_type(tokens, next).is_some() => (Effect::Opaque, Action::Alter),
        "UNDROP" if name_follows => (Effect::Write, Action::Undrop),
        "GRANT" if name_follows => (Effect::Admin, Action::Grant),
        "REVOKE" if name_follows => (Effect::Admin, Action::Revoke),
        "COPY" if matches!(next_word, "INTO" | "FILES") => {
            let table = next_word == "INTO"
                && matches!(tokens.kind(next + 1), Some(Kind::Word | Kind::Quoted))
                && !tokens.is_punct(next + 2, b'(');
            if table {
                (Effect::Write, Action::CopyIntoTable)
            } else {
                (Effect::Exfiltration, Action::CopyIntoLocation)
            }
        }
        "GET" if place_follows => (Effect::Exfiltration, Action::Get),
        "PUT" if place_follows => (Effect::Write, Action::Put),
        "REMOVE" | "RM" if place_follows => (Effect::Destructive, Action::Remove),
        "CALL" if name_follows => {
            reading.absorb(session::call(tokens.slice(at, at + 16)));
            return;
        }
        "EXECUTE" if next_word == "IMMEDIATE" => {
            let end = if tokens.is_punct(next + 2, b'|') { next + 3 } else { next + 2 };
            reading.absorb(session::execute(tokens.slice(at, end), nesting));
            return;
        }
        "EXECUTE" if name_follows && !matches!(next_word, "CALLER" | "OWNER") => {
            (Effect::Opaque, Action::Execute)
        }
        "USE" if name_follows && tokens.word(0) != "ALTER" => (Effect::Session, Action::Use),
        _ => return,
    };
    reading.raise(effect);
    reading.act(action);
}

/// Raises `reading` by the call of the function whose name's last part is at `at`.
fn call(tokens: Tokens<'_>, at: usize, reading: &mut Reading) {
    if !tokens.is_punct(at + 1, b'(') {
        return;
    }
    if tokens.word(at) == "IDENTIFIER" {
        let literal = decode_name(tokens, at + 2).filter(|_| tokens.is_punct(at + 3, b')'));
        let close = (at + 2..at + 8).find(|close| tokens.is_punct(*close, b')'));
        // `IDENTIFIER(…)(…)` calls whatever the name is.
        if close.is_none_or(|close| tokens.is_punct(close + 1, b'(')) && !follows_target(tokens, at) {
            match &literal {
                Some(name) => apply(name, reading),
                None => reading.raise(Effect::Opaque),
            }
        }
        if literal.is_none() && !reading.names(objects::UNKNOWN_NAME) {
            reading.object(object(objects::UNKNOWN_NAME, ObjectKind::Unknown, Access::Use));
        }
        return;
    }
    // Names have at most four parts; more dots are a path into a value.
    let mut first = at;
    while first >= 2
        && at - first < 8
        && (tokens.is_punct(first - 1, b'.') || tokens.is_punct(first - 1, b'!'))
        && matches!(tokens.kind(first - 2), Some(Kind::Word | Kind::Quoted))
    {
        first -= 2;
    }
    let mut name = String::new();
    for part in first..=at {
        match tokens.kind(part) {
            Some(Kind::Word) => name.push_str(tokens.word(part)),
            Some(Kind::Quoted) => name.push_str(&tokens.raw(part).trim_matches('"').to_ascii_uppercase()),
            _ => name.push_str(tokens.raw(part)),
        }
    }
    apply(&name, reading);
    if name.rsplit(['.', '!']).next() == Some("RESULT_SCAN") {
        // A call with one literal is over within these.
        if let Some(result) = scanned(tokens.slice(at + 1, at + 16)) {
            reading.object(result);
        }
    }
    let qualified = first < at && !matches!(tokens.word(at), "VALUES");
    let reported = qualified || name.starts_with("SYSTEM$");
    if reported && !follows_target(tokens, first) && !reading.names(&name) {
        reading.object(object(name, ObjectKind::Function, Access::Execute));
    }
}

/// The result that `RESULT_SCAN` reads, the tokens being those behind the name; none where it is one of the session's own.
fn scanned(tokens: Tokens<'_>) -> Option<Object> {
    let behind = tokens.behind_bracket(0);
    if tokens.word(1) == "LAST_QUERY_ID" && tokens.behind_bracket(2) + 1 == behind {
        return None;
    }
    let is_literal = behind == 3 && tokens.is_punct(2, b')');
    let literal = is_literal.then(|| decode(tokens.kind(1)?, tokens.raw(1))).flatten();
    let id = literal.unwrap_or_else(|| objects::UNKNOWN_NAME.to_owned());
    Some(object(id, ObjectKind::QueryResult, Access::Read))
}

/// Whether brackets behind the name at `at` hold columns or parameters rather than the arguments of a call.
fn follows_target(tokens: Tokens<'_>, at: usize) -> bool {
    at > 0
        && matches!(
            tokens.word(at - 1),
            "CALL"
                | "EXISTS"
                | "FUNCTION"
                | "INTO"
                | "ON"
                | "OVERWRITE"
                | "PROCEDURE"
                | "REFERENCES"
                | "TABLE"
                | "VIEW"
        )
}

fn apply(name: &str, reading: &mut Reading) {
    let (effect, feature) = functions::effect(name);
    if effect != Effect::Read {
        reading.raise(effect);
    }
    if let Some(feature) = feature {
        reading.feature(feature);
    }
}

/// The name inside a string at `at`, in upper case and without quotes.
fn decode_name(tokens: Tokens<'_>, at: usize) -> Option<String> {
    let text = decode(tokens.kind(at)?, tokens.raw(at))?;
    Some(text.replace('"', "").trim().to_ascii_uppercase())
}

fn stage(tokens: Tokens<'_>, at: usize, reading: &mut Reading) {
    reading.feature(Feature::Stage);
    let name = objects::stage(tokens.raw(at));
    if !reading.names(&name) {
        reading.object(object(name, ObjectKind::Stage, Access::Read));
    }
}

fn time_travel(tokens: Tokens<'_>, at: usize, reading: &mut Reading) {
    if matches!(tokens.word(at + 2), "TIMESTAMP" | "OFFSET" | "STATEMENT" | "STREAM" | "INFORMATION") {
        reading.feature(Feature::TimeTravel);
    }
}
