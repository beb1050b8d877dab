//! What a Snowflake SQL text would do, judged from the text alone.
//!
//! [`classify`] is pure: no I/O, no clock, bounded stack, time linear in the text. It never trusts one reader. A lexer of
//! its own ([`lexer`]) finds the borders of tokens, a splitter ([`split`]) those of statements, a token reader
//! ([`tokens`]) judges each statement by tables of verbs and object types ([`verbs`]), and where `sqlparser` can parse the
//! statement too ([`ast`]), what its tree contains may make the verdict worse, never better. What no reader can place
//! is [`Effect::Opaque`].
//!
//! Rulings that are not evident from the names:
//! - `CREATE OR REPLACE` of anything, `CREATE OR ALTER TABLE`, `SWAP WITH`, `INSERT OVERWRITE`, `DELETE`
//!   with or without a condition, `MERGE` with a `DELETE` and `REMOVE` are destructive. `DROP` of whatever is.
//! - `COPY INTO` a stage (internal ones too), `GET`, presigned URLs, shares, external stages and functions, egress rules and
//!   replication to other accounts are exfiltration.
//! - Stored bodies (procedure, task, alert) are a write when created, or what the body does if that is worse. `CALL` and
//!   `EXECUTE TASK` are opaque, as nobody knows the body here.
//! - Whatever is altered in a task or alert is administration, as it runs unattended.
//! - `EXPLAIN` is a read whatever it explains, because it executes nothing; only functions with effects count, as
//!   compiling may compute them.
//! - Text without a statement has no effect: [`Effect::None`].

mod ast;
mod bound;
mod ddl;
mod dml;
mod functions;
mod lexer;
mod objects;
mod relations;
mod rights;
mod scan;
mod scripting;
mod session;
mod source;
mod split;
#[cfg(test)]
mod tests;
mod tokens;
mod transfer;
mod types;
mod verbs;

pub use bound::with_values;
use source::Source;
use tokens::Reading;
pub use transfer::local_files;
pub use types::{Access, Action, Classification, Effect, Feature, Object, ObjectKind, Statement};

/// Bytes of the largest text that is looked into; a longer one is opaque.
pub const MAX_TEXT_BYTES: usize = 1024 * 1024;

/// Statements of one text that are reported one by one; what follows is reported as one opaque statement.
const MAX_STATEMENTS: usize = 1_000;

/// Texts and statements inside others (`EXECUTE IMMEDIATE`, stored bodies, `EXPLAIN`) that are followed.
const MAX_NESTING: u8 = 8;

/// Judges a text.
pub fn classify(sql: &str) -> Classification {
    if sql.len() > MAX_TEXT_BYTES {
        return Classification::opaque(0..sql.len(), Feature::TooLarge);
    }
    classify_nested(sql, 0)
}

/// Judges a text that stands `nesting` texts deep.
fn classify_nested(sql: &str, nesting: u8) -> Classification {
    let Ok(source) = Source::new(sql) else {
        return Classification::opaque(0..sql.len(), Feature::Unparsed);
    };
    let mut pieces = split::statements(source.tokens());
    let mut statements = Vec::new();
    for tokens in pieces.by_ref().take(MAX_STATEMENTS) {
        let mut reading = tokens::read(tokens, nesting);
        ast::raise(tokens, &mut reading);
        statements.push(reading.into_statement(tokens.range()));
    }
    if let Some(rest) = rest(&mut pieces, nesting, sql.len()) {
        statements.push(rest);
    }
    if statements.len() > 1 {
        for statement in &mut statements {
            statement.features.push(Feature::MultiStatement);
        }
    }
    let effect = statements.iter().fold(Effect::None, |worst, statement| worst.worse(statement.effect));
    Classification { statements, effect }
}

/// The statements beyond the reported ones, as one.
fn rest<'s>(
    pieces: &mut impl Iterator<Item = source::Tokens<'s>>,
    nesting: u8,
    end: usize,
) -> Option<Statement> {
    let first = pieces.next()?;
    let start = first.range().start;
    let mut reading = Reading::new("UNKNOWN", Effect::Opaque);
    reading.feature(Feature::Truncated);
    reading.absorb(tokens::read(first, nesting));
    for tokens in pieces {
        reading.absorb(tokens::read(tokens, nesting));
    }
    Some(reading.into_statement(start..end))
}
