//! Names of objects, as they stand in a text.

use super::lexer::{Kind, decode};
use super::source::Tokens;
use super::types::{Access, Object, ObjectKind};

/// The name of an object that the text does not tell.
pub(super) const UNKNOWN_NAME: &str = "?";

/// Reads the name at `at`: `a.b.c`, `"A".b`, `a..c`, `@stage/path`, `IDENTIFIER('…')`, `TABLE($x)`. Returns it normalised, with the
/// index behind it.
pub(super) fn name(tokens: Tokens<'_>, at: usize) -> Option<(String, usize)> {
    match tokens.kind(at)? {
        Kind::Stage => Some((stage(tokens.raw(at)), at + 1)),
        Kind::Variable => Some((UNKNOWN_NAME.to_owned(), at + 1)),
        Kind::Punct(b':' | b'?') => Some((UNKNOWN_NAME.to_owned(), at + 2)),
        Kind::Word if tokens.is_punct(at + 1, b'(') && matches!(tokens.word(at), "IDENTIFIER" | "TABLE") => {
            let behind = tokens.behind_bracket(at + 1);
            let literal = (behind == at + 4).then(|| literal_name(tokens, at + 2)).flatten();
            Some((literal.unwrap_or_else(|| UNKNOWN_NAME.to_owned()), behind))
        }
        Kind::Text | Kind::Dollar => {
            Some((literal_name(tokens, at).unwrap_or_else(|| UNKNOWN_NAME.to_owned()), at + 1))
        }
        Kind::Word | Kind::Quoted => Some(dotted(tokens, at)),
        _ => None,
    }
}

/// The stage that an `@…` token or a string `'@…'` names: without a path.
pub(super) fn stage(raw: &str) -> String {
    let mut end = raw.len();
    let mut quoted = false;
    for (offset, byte) in raw.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'/' if !quoted => {
                end = offset;
                break;
            }
            _ => {}
        }
    }
    let name = raw.get(..end).unwrap_or(raw);
    let mut normal = String::with_capacity(name.len());
    let mut quoted = false;
    for character in name.chars() {
        quoted ^= character == '"';
        normal.push(if quoted { character } else { character.to_ascii_uppercase() });
    }
    normal
}

/// An object, for the list.
pub(super) fn object(name: impl Into<String>, kind: ObjectKind, access: Access) -> Object {
    Object { name: name.into(), kind, access }
}

/// One part of a name in its normal form: a quoted one that means the same without quotes loses them.
pub(super) fn part(kind: Option<Kind>, raw: &str) -> String {
    if kind != Some(Kind::Quoted) {
        return raw.to_uppercase();
    }
    let inner = raw.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(raw);
    let plain = inner.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'$'))
        && inner.bytes().next().is_some_and(|byte| !byte.is_ascii_digit() && byte != b'$');
    if plain { inner.to_owned() } else { raw.to_owned() }
}

fn dotted(tokens: Tokens<'_>, at: usize) -> (String, usize) {
    let mut name = part(tokens.kind(at), tokens.raw(at));
    let mut next = at + 1;
    while tokens.is_punct(next, b'.') {
        name.push('.');
        next += 1;
        if matches!(tokens.kind(next), Some(Kind::Word | Kind::Quoted)) {
            name.push_str(&part(tokens.kind(next), tokens.raw(next)));
            next += 1;
        }
    }
    (name, next)
}

/// The name inside a string token.
fn literal_name(tokens: Tokens<'_>, at: usize) -> Option<String> {
    let text = decode(tokens.kind(at)?, tokens.raw(at))?;
    if text.starts_with('@') {
        return Some(stage(&text));
    }
    let source = super::source::Source::new(&text).ok()?;
    let inner = source.tokens();
    if !matches!(inner.kind(0), Some(Kind::Word | Kind::Quoted)) {
        return None;
    }
    let (name, behind) = dotted(inner, 0);
    (behind == inner.len()).then_some(name)
}
