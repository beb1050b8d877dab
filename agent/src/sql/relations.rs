//! Finds the relations that a query reads: what stands behind FROM and JOIN, but for the names of its own CTEs.
//!
//! A CTE hides a table of the same name only where Snowflake lets it: behind its definition, inside the brackets
//! that its WITH stands in. Otherwise `WITH secrets AS (SELECT * FROM secrets) …` would read a table that nobody sees.

use std::collections::HashMap;

use super::lexer::Kind;
use super::objects::{name, object};
use super::source::Tokens;
use super::tokens::Reading;
use super::types::{Access, ObjectKind};

/// One level of brackets.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own about the level")]
struct Frame {
    /// The brackets of a call, where FROM may be part of the function's own syntax.
    call: bool,
    select: bool,
    /// In a list of relations.
    from: bool,
    /// A relation must come next.
    expect: bool,
    /// Inside the body of the CTE of this name, before a UNION ALL makes it recursive.
    defines: Option<String>,
    /// CTEs that were made visible in this frame.
    visible: Vec<String>,
}

/// Adds the relations of all queries in `tokens`.
pub(super) fn collect(tokens: Tokens<'_>, reading: &mut Reading) {
    let verb = tokens.word(0);
    let mut frames = vec![Frame::default()];
    let mut ctes: HashMap<String, usize> = HashMap::new();
    // What stood before the bracket that was closed last, if it was `name (columns)`.
    let mut columns_of: Option<String> = None;
    let mut at = 0;
    while at < tokens.len() {
        let depth = frames.len();
        let Some(frame) = frames.last_mut() else { return };
        match tokens.kind(at) {
            Some(Kind::Punct(b'(')) => {
                let previous = at.checked_sub(1);
                let mut inner = Frame {
                    call: previous
                        .is_some_and(|at| matches!(tokens.kind(at), Some(Kind::Word | Kind::Quoted))),
                    ..Frame::default()
                };
                if frame.expect {
                    frame.expect = false;
                    inner.from = true;
                    inner.expect = true;
                }
                if previous.is_some_and(|at| tokens.word(at) == "AS") {
                    inner.defines = cte_name(tokens, at - 1, columns_of.take());
                }
                frames.push(inner);
            }
            Some(Kind::Punct(b')')) if depth > 1 => {
                if let Some(closed) = frames.pop() {
                    for cte in closed.visible {
                        hide(&mut ctes, &cte);
                    }
                    if let (Some(cte), Some(frame)) = (closed.defines, frames.last_mut()) {
                        *ctes.entry(cte.clone()).or_default() += 1;
                        frame.visible.push(cte);
                    }
                }
                columns_of =
                    tokens.phrase(at + 1, &["AS"]).then(|| name_before_bracket(tokens, at)).flatten();
            }
            Some(Kind::Punct(b',')) if frame.from => frame.expect = true,
            Some(Kind::Word) if !frame.expect || is_clause(tokens.word(at)) => {
                clause(tokens, at, depth, verb, frame);
                if tokens.phrase(at, &["UNION", "ALL"])
                    && let Some(cte) = frame.defines.take()
                {
                    *ctes.entry(cte.clone()).or_default() += 1;
                    // Visible in the rest of the body, and, once its bracket closes, behind it.
                    frame.visible.push(cte.clone());
                    frame.defines = Some(cte);
                }
            }
            _ if frame.expect => {
                frame.expect = false;
                if let Some((name, behind)) = relation(tokens, at) {
                    if !ctes.contains_key(&name) {
                        let kind = if name.starts_with('@') { ObjectKind::Stage } else { ObjectKind::Table };
                        reading.object(object(name, kind, Access::Read));
                    }
                    at = behind.max(at + 1);
                    continue;
                }
            }
            _ => {}
        }
        at += 1;
    }
}

/// Notes what a keyword means for the frame.
fn clause(tokens: Tokens<'_>, at: usize, depth: usize, verb: &str, frame: &mut Frame) {
    match tokens.word(at) {
        "SELECT" => (frame.select, frame.from, frame.expect) = (true, false, false),
        "FROM" => {
            let comparison = at > 0 && tokens.word(at - 1) == "DISTINCT" && !follows_select(tokens, at);
            if (frame.select || !frame.call) && !comparison {
                (frame.from, frame.expect) = (true, true);
            }
        }
        "JOIN" if frame.from || frame.select || !frame.call => (frame.from, frame.expect) = (true, true),
        "USING" if depth == 1 && matches!(verb, "MERGE" | "DELETE") && !tokens.is_punct(at + 1, b'=') => {
            (frame.from, frame.expect) = (true, true);
        }
        "WHERE" | "GROUP" | "ORDER" | "HAVING" | "QUALIFY" | "LIMIT" | "UNION" | "EXCEPT" | "INTERSECT"
        | "MINUS" | "CONNECT" | "START" | "WINDOW" | "SET" | "WHEN" | "FETCH" | "OFFSET" | "VALUES"
        | "WITH" => {
            (frame.from, frame.expect) = (false, false);
        }
        _ => {}
    }
}

/// Whether `SELECT DISTINCT FROM` (which is an error anyway) rather than `IS DISTINCT FROM` ends at `at`.
fn follows_select(tokens: Tokens<'_>, at: usize) -> bool {
    at > 1 && tokens.word(at - 2) == "SELECT"
}

/// Words that cannot be the name of a relation.
fn is_clause(word: &str) -> bool {
    matches!(word, "SELECT" | "VALUES" | "WITH" | "FROM" | "JOIN" | "WHERE" | "UNION")
}

/// The relation that starts at `at`, with the index behind its name; `None` for a call.
fn relation(tokens: Tokens<'_>, at: usize) -> Option<(String, usize)> {
    if tokens.word(at) == "LATERAL" {
        // The next token decides, as for any relation.
        return if tokens.is_punct(at + 1, b'(') { None } else { relation_name(tokens, at + 1) };
    }
    relation_name(tokens, at)
}

fn relation_name(tokens: Tokens<'_>, at: usize) -> Option<(String, usize)> {
    if tokens.phrase(at, &["TABLE"]) && tokens.is_punct(at + 1, b'(') {
        let variable = matches!(
            tokens.kind(at + 2),
            Some(Kind::Variable | Kind::Text | Kind::Dollar | Kind::Punct(b':' | b'?'))
        );
        return if variable { name(tokens, at) } else { None };
    }
    let (name, behind) = name(tokens, at)?;
    let call = tokens.is_punct(behind, b'(') && tokens.kind(at) != Some(Kind::Stage);
    (!call).then_some((name, behind))
}

/// The name of the CTE whose body's `AS` stands at `at`.
fn cte_name(tokens: Tokens<'_>, at: usize, columns_of: Option<String>) -> Option<String> {
    if tokens.is_punct(at.checked_sub(1)?, b')') {
        return columns_of;
    }
    let name_at = at.checked_sub(1)?;
    introduces_cte(tokens, name_at.checked_sub(1)?).then(|| plain_name(tokens, name_at)).flatten()
}

/// The name in front of the brackets that close at `close`, if a CTE's columns may be in them.
fn name_before_bracket(tokens: Tokens<'_>, close: usize) -> Option<String> {
    // Columns of a CTE are names and commas only, so that this stays linear.
    let open = (0..close).rev().find(|at| {
        !matches!(tokens.kind(*at), Some(Kind::Word | Kind::Quoted)) && !tokens.is_punct(*at, b',')
    })?;
    if !tokens.is_punct(open, b'(') || close - open > 2_000 {
        return None;
    }
    let name_at = open.checked_sub(1)?;
    introduces_cte(tokens, name_at.checked_sub(1)?).then(|| plain_name(tokens, name_at)).flatten()
}

fn introduces_cte(tokens: Tokens<'_>, at: usize) -> bool {
    matches!(tokens.word(at), "WITH" | "RECURSIVE") || tokens.is_punct(at, b',')
}

fn plain_name(tokens: Tokens<'_>, at: usize) -> Option<String> {
    matches!(tokens.kind(at), Some(Kind::Word | Kind::Quoted))
        .then(|| super::objects::part(tokens.kind(at), tokens.raw(at)))
}

fn hide(ctes: &mut HashMap<String, usize>, cte: &str) {
    if let Some(count) = ctes.get_mut(cte) {
        *count -= 1;
        if *count == 0 {
            ctes.remove(cte);
        }
    }
}
