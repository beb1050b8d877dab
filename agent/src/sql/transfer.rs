//! The local files that a transfer names.

use super::lexer::{Kind, decode};
use super::source::Source;
use super::split;

/// What a text says of local files that is one `PUT` or `GET` and nothing else: `file:///tmp/x.csv`.
pub fn local_files(sql: &str) -> Option<String> {
    let source = Source::new(sql).ok()?;
    let mut pieces = split::statements(source.tokens());
    let tokens = pieces.next()?;
    if pieces.next().is_some() || !matches!(tokens.word(0), "PUT" | "GET") {
        return None;
    }
    (1..tokens.len()).find_map(|at| {
        let text = match tokens.kind(at)? {
            Kind::File => tokens.raw(at).to_owned(),
            kind => decode(kind, tokens.raw(at))?,
        };
        let is_local = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("file://"));
        is_local.then_some(text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_transfer_are_found() {
        for (sql, files) in [
            ("PUT file:///tmp/x.csv @~/y", "file:///tmp/x.csv"),
            ("put 'file:///tmp/a b\\\\it''s.csv' @~ overwrite=true", "file:///tmp/a b\\it's.csv"),
            ("/* c */ PUT 'file://~/x/*.csv' @db.s.stage;", "file://~/x/*.csv"),
            ("GET '@stage/a b' 'file:///tmp/out'", "file:///tmp/out"),
            (r#"get @"d"."s"."t"/p file:///tmp/out/ pattern='.*'"#, "file:///tmp/out/"),
        ] {
            assert_eq!(local_files(sql).as_deref(), Some(files), "{sql}");
        }
        for sql in [
            "SELECT 'file:///tmp/x'",
            "PUT file:///a @~; PUT file:///b @~",
            "LIST @~",
            "GET @~ 'x'",
            "PUT",
            "",
        ] {
            assert_eq!(local_files(sql), None, "{sql}");
        }
    }
}
