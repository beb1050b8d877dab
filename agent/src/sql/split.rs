//! Finds the borders of statements: `;` and `->>` outside blocks of Snowflake Scripting.
//!
//! A border too many is harmless, as each piece is judged by its own first words. A border too few is met by
//! [`super::scripting`], which looks at every statement inside a block.

use super::lexer::Kind;
use super::source::Tokens;

/// The statements of a text, without delimiters and without empty ones.
pub(super) fn statements(tokens: Tokens<'_>) -> impl Iterator<Item = Tokens<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            if at >= tokens.len() {
                return None;
            }
            let start = at;
            let end = end_of_statement(tokens, start);
            at = end + 1;
            if end > start {
                return Some(tokens.slice(start, end));
            }
        }
    })
}

/// Whether the word at `at`, the first of a statement, opens a block rather than a transaction.
pub(super) fn opens_block(tokens: Tokens<'_>, at: usize) -> bool {
    match tokens.word(at) {
        "DECLARE" => true,
        "BEGIN" => {
            let transaction = matches!(tokens.word(at + 1), "TRANSACTION" | "WORK" | "NAME");
            let alone = tokens.len() <= at + 1
                || tokens.is_punct(at + 1, b';')
                || tokens.kind(at + 1) == Some(Kind::Flow);
            !transaction && !alone
        }
        _ => false,
    }
}

/// The index of the delimiter that ends the statement at `start`.
fn end_of_statement(tokens: Tokens<'_>, start: usize) -> usize {
    let stores_body = matches!(tokens.word(start), "CREATE" | "ALTER" | "WITH");
    // Open BEGINs and CASEs; a DECLARE counts until its BEGIN comes.
    let mut depth = 0_usize;
    let mut declared = false;
    let mut block = false;
    let mut at = start;
    while at < tokens.len() {
        let delimiter = tokens.is_punct(at, b';') || tokens.kind(at) == Some(Kind::Flow);
        if delimiter && depth == 0 && !declared {
            return at;
        }
        let word = tokens.word(at);
        let opens = if block {
            starts_inner_statement(tokens, start, at) && opens_block(tokens, at)
        } else if at == start {
            opens_block(tokens, at)
        } else {
            stores_body
                && matches!(word, "BEGIN" | "DECLARE")
                && matches!(tokens.word(at - 1), "AS" | "THEN" | "ACTION")
        };
        match word {
            "DECLARE" if opens => (block, declared) = (true, true),
            "BEGIN" if opens => {
                block = true;
                declared = false;
                depth += 1;
            }
            "CASE" if block && tokens.word(at - 1) != "END" => depth += 1,
            "END" if block && closes(tokens, at) => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    at
}

/// Whether the word END at `at` closes a BEGIN or a CASE rather than an IF or a loop.
fn closes(tokens: Tokens<'_>, at: usize) -> bool {
    !matches!(tokens.word(at + 1), "IF" | "FOR" | "WHILE" | "LOOP" | "REPEAT")
}

/// Whether a statement of a block can start at `at`.
fn starts_inner_statement(tokens: Tokens<'_>, start: usize, at: usize) -> bool {
    at == start
        || tokens.is_punct(at - 1, b';')
        || matches!(
            tokens.word(at - 1),
            "BEGIN" | "DECLARE" | "THEN" | "ELSE" | "DO" | "LOOP" | "REPEAT" | "AS"
        )
}
