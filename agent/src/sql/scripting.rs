//! Snowflake Scripting: blocks, which do whatever any statement in them does.

use super::lexer::Kind;
use super::relations;
use super::scan::{self, Verbs};
use super::source::Tokens;
use super::tokens::{Reading, read};
use super::types::{Effect, Feature};

/// Whether a statement is a piece of a block that stands alone, as when a script is sent line by line. Snowflake refuses
/// most of these; what they would do is judged all the same.
pub(super) fn starts_fragment(word: &str, tokens: Tokens<'_>) -> bool {
    matches!(
        word,
        "CASE"
            | "ELSE"
            | "ELSEIF"
            | "EXCEPTION"
            | "FOR"
            | "IF"
            | "LET"
            | "LOOP"
            | "RAISE"
            | "REPEAT"
            | "RETURN"
            | "UNTIL"
            | "WHEN"
            | "WHILE"
    ) || (word == "END" && is_loop_end(tokens, 0))
}

/// A piece of a block.
pub(super) fn fragment(tokens: Tokens<'_>, nesting: u8) -> Reading {
    let mut fragment = Reading::new("BLOCK", Effect::Read);
    pieces(tokens, nesting, &mut fragment);
    fragment
}

/// A block, `BEGIN … END` or `DECLARE … BEGIN … END`, with whatever stands behind it.
pub(super) fn block(tokens: Tokens<'_>, nesting: u8) -> Reading {
    let mut block = Reading::new("BLOCK", Effect::Read);
    block.feature(Feature::StoredBody);
    if !pieces(tokens, nesting, &mut block) {
        block.raise(Effect::Opaque);
    }
    block
}

/// Adds what the statements of a block do. Returns whether as many blocks end as begin, and at least one.
fn pieces(tokens: Tokens<'_>, nesting: u8, block: &mut Reading) -> bool {
    let mut declaring = false;
    let mut start = 0;
    let mut brackets = 0_usize;
    let mut cases = 0_usize;
    let mut begins = 0_usize;
    let mut ends = 0_usize;
    let mut at = 0;
    while at < tokens.len() {
        let word = tokens.word(at);
        let outside = brackets == 0 && cases == 0;
        let first = at == start;
        let mut border = false;
        match tokens.kind(at) {
            Some(Kind::Punct(b'(')) => brackets += 1,
            Some(Kind::Punct(b')')) => brackets = brackets.saturating_sub(1),
            Some(Kind::Punct(b';') | Kind::Flow) => {
                border = true;
                (brackets, cases) = (0, 0);
            }
            Some(Kind::Word) if outside => match word {
                "BEGIN"
                    if (first && super::split::opens_block(tokens.from(at), 0)) || is_body(tokens, at) =>
                {
                    border = true;
                    declaring = false;
                    begins += 1;
                }
                "DECLARE" if first || is_body(tokens, at) => {
                    border = true;
                    declaring = true;
                }
                "THEN" => {
                    border = matches!(
                        tokens.word(start),
                        "IF" | "ELSEIF" | "ELSIF" | "WHEN" | "CASE" | "EXCEPTION"
                    );
                }
                "DO" | "LOOP" => border = first || matches!(tokens.word(start), "FOR" | "WHILE"),
                "ELSE" | "REPEAT" => border = first,
                "EXCEPTION" => border = first && tokens.word(at + 1) == "WHEN",
                "CASE" if !first => cases += 1,
                "CASE" => begins += 1,
                "END" => {
                    inner(tokens.slice(start, at), declaring, nesting, block);
                    if is_loop_end(tokens, at) {
                        at += 1;
                    } else {
                        ends += 1;
                        at += usize::from(tokens.word(at + 1) == "CASE");
                    }
                    // A label may follow.
                    let labelled = matches!(tokens.kind(at + 1), Some(Kind::Word | Kind::Quoted))
                        && (tokens.is_punct(at + 2, b';') || tokens.len() == at + 2);
                    at += usize::from(labelled);
                    start = at + 1;
                }
                _ => {}
            },
            Some(Kind::Word) if word == "CASE" => cases += 1,
            Some(Kind::Word) if word == "END" => cases = cases.saturating_sub(1),
            _ => {}
        }
        if border {
            inner(tokens.slice(start, at), declaring, nesting, block);
            start = at + 1;
        }
        at += 1;
    }
    inner(tokens.from(start), declaring, nesting, block);
    begins > 0 && begins == ends
}

/// Whether the word END at `at` ends an IF or a loop rather than a block.
fn is_loop_end(tokens: Tokens<'_>, at: usize) -> bool {
    matches!(tokens.word(at + 1), "IF" | "FOR" | "WHILE" | "LOOP" | "REPEAT")
}

/// Where a block without quotes starts inside another statement: the body of a procedure, task or alert.
pub(super) fn inline_block(tokens: Tokens<'_>) -> Option<usize> {
    if !matches!(tokens.word(0), "CREATE" | "ALTER" | "WITH") {
        return None;
    }
    (1..tokens.len()).find(|at| {
        matches!(tokens.word(*at), "BEGIN" | "DECLARE")
            && matches!(tokens.word(at - 1), "AS" | "THEN" | "ACTION")
    })
}

fn is_body(tokens: Tokens<'_>, at: usize) -> bool {
    at > 0 && tokens.word(at - 1) == "AS"
}

/// Adds what one statement of a block does, its words of structure already cut off.
fn inner(tokens: Tokens<'_>, declaring: bool, nesting: u8, block: &mut Reading) {
    if tokens.is_empty() {
        return;
    }
    let assigns = (0..4).any(|at| tokens.is_punct(at, b':') && tokens.is_punct(at + 1, b'='));
    let expression = declaring
        || assigns
        || matches!(
            tokens.word(0),
            "AWAIT"
                | "BREAK"
                | "CANCEL"
                | "CASE"
                | "CLOSE"
                | "CONTINUE"
                | "ELSEIF"
                | "ELSIF"
                | "EXCEPTION"
                | "EXIT"
                | "FETCH"
                | "FOR"
                | "IF"
                | "ITERATE"
                | "LEAVE"
                | "LET"
                | "NULL"
                | "OPEN"
                | "RAISE"
                | "RETURN"
                | "UNTIL"
                | "WHEN"
                | "WHILE"
        );
    if expression {
        relations::collect(tokens, block);
        scan::scan(tokens, block, nesting, Verbs::Anywhere);
        return;
    }
    // One level only: a second one is no statement.
    if tokens.word(0) == "ASYNC"
        && tokens.word(2) != "ASYNC"
        && tokens.is_punct(1, b'(')
        && tokens.behind_bracket(1) == tokens.len()
    {
        inner(tokens.slice(2, tokens.len() - 1), false, nesting, block);
        return;
    }
    block.absorb(read(tokens, nesting + 1));
}
