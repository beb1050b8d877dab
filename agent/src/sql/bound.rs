//! Values that are bound to a text's placeholders: a name can be among them, as in `COPY INTO IDENTIFIER(?)`.

use std::borrow::Cow;

use super::lexer::Kind;
use super::source::{Source, Tokens};

/// Longer values are no names.
const LONGEST: usize = 1_000;
/// Bytes of values that are put into a text; what is beyond stays a placeholder, whose value nobody knows.
const MOST: usize = 64 * 1024;

/// The text with the texts that are bound to its placeholders in their place. `value` knows them by their number, from 1.
pub fn with_values<'s>(sql: &'s str, value: impl Fn(usize) -> Option<&'s str>) -> Cow<'s, str> {
    let Ok(source) = Source::new(sql) else { return sql.into() };
    let tokens = source.tokens();
    let (mut text, mut done, mut number, mut room) = (String::new(), 0, 0, MOST);
    for at in 0..tokens.len() {
        let (which, end) = match tokens.kind(at) {
            Some(Kind::Punct(b'?')) => {
                number += 1;
                (number, at + 1)
            }
            Some(Kind::Punct(b':')) if is_in_name(tokens, at) => match tokens.raw(at + 1).parse() {
                Ok(which) => (which, at + 2),
                Err(_) => continue,
            },
            _ => continue,
        };
        let Some(value) = value(which).filter(|value| value.len() <= LONGEST.min(room)) else { continue };
        room -= value.len();
        let place = tokens.slice(at, end).range();
        text.push_str(sql.get(done..place.start).unwrap_or_default());
        text.push('\'');
        text.push_str(&value.replace('\\', r"\\").replace('\'', "''"));
        text.push('\'');
        done = place.end;
    }
    if done == 0 {
        return sql.into();
    }
    text.push_str(sql.get(done..).unwrap_or_default());
    text.into()
}

/// Whether `:1` here is a placeholder for certain, and not a path into a value.
fn is_in_name(tokens: Tokens<'_>, at: usize) -> bool {
    at >= 2
        && tokens.is_punct(at - 1, b'(')
        && matches!(tokens.word(at - 2), "IDENTIFIER" | "TABLE")
        && tokens.is_punct(at + 2, b')')
}

#[cfg(test)]
mod tests {
    use super::super::{Effect, classify, local_files};
    use super::*;

    fn with<'s>(sql: &'s str, values: &'s [&'s str]) -> Cow<'s, str> {
        with_values(sql, |number| values.get(number - 1).copied())
    }

    #[test]
    fn values_take_the_place_of_their_placeholders() {
        for (sql, values, expected) in [
            ("select ?, '?' /* ? */, ?", &["a", "b'c"][..], "select 'a', '?' /* ? */, 'b''c'"),
            ("select ?, ?", &["a"], "select 'a', ?"),
            ("select identifier(:2), x:1", &["a", "b"], "select identifier('b'), x:1"),
            (r"select ?", &[r"a\' or 1=1 --"], r"select 'a\\'' or 1=1 --'"),
            ("select 1", &["a"], "select 1"),
            ("select '", &["a"], "select '"),
        ] {
            assert_eq!(with(sql, values), expected);
        }
        let long = "x".repeat(LONGEST + 1);
        assert_eq!(with("select ?", &[&long]), "select ?");
    }

    #[test]
    fn a_bound_name_is_as_good_as_a_written_one() {
        let copy = "COPY INTO identifier(?) /* c */ (a) FROM (SELECT $1:\"A\" FROM '@s') FILE_FORMAT=(TYPE=PARQUET) ON_ERROR=?";
        assert_eq!(classify(copy).effect, Effect::Opaque);
        let bound = with(copy, &[r#""db"."s"."Frame""#, "abort_statement"]);
        let found = classify(&bound);
        assert_eq!(found.effect, Effect::Write, "{found:?}");
        assert!(found.statements[0].objects.iter().any(|object| object.name.contains("Frame")), "{found:?}");
        // What is bound may be a place to carry data to.
        assert_eq!(classify(&with("COPY INTO ? FROM t", &["@s/x"])).effect, Effect::Exfiltration);
        let put = with("PUT file://70000.csv ?", &["@SYSTEM$BIND/1"]);
        assert_eq!(classify(&put).effect, Effect::Write);
        assert_eq!(local_files(&put).as_deref(), Some("file://70000.csv"));
    }
}
