//! What holds for any text.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::lexer::{Kind, Lexer};
use super::super::{Effect, Feature, MAX_TEXT_BYTES, classify};

/// Words that leave a text's borders certain, whatever stands beside them.
const WORDS: &[&str] = &[
    "select",
    "from",
    "t",
    "drop",
    "table",
    "delete",
    "insert",
    "into",
    "update",
    "set",
    "where",
    "end",
    "if",
    "then",
    "else",
    "case",
    "when",
    "for",
    "do",
    "loop",
    "create",
    "or",
    "replace",
    "procedure",
    "as",
    "execute",
    "immediate",
    "copy",
    "@s/p ",
    "$x ",
    "(",
    ")",
    "[",
    "]",
    ",",
    ".",
    ";",
    " ->> ",
    "=",
    ":",
    ":=",
    "-- c\n",
    "/* c */",
    "identifier",
    "1",
    "1.5e3",
    "with",
    "union",
    "all",
    "call",
    "use",
    "role",
    "grant",
    "to",
    "alter",
    "session",
    "system$abort_session",
    "explain",
    "show",
    "put",
    "get",
    "é",
    "\u{a0}",
];

/// Words that open something, or that no lexer should let pass.
const WILD_WORDS: &[&str] = &[
    "begin",
    "declare",
    "'x'",
    "'drop table t'",
    "$$ drop table t $$",
    "\"Q\"",
    "file:///x",
    "#",
    "'",
    "\"",
    "/*",
    "--",
    "\\",
    "@",
    "$",
    "$$",
];

/// Texts of `words`, in any order, mostly apart.
fn text_of(words: Vec<&'static str>) -> impl Strategy<Value = String> {
    let word = prop::sample::select(words);
    prop::collection::vec((word, prop::bool::weighted(0.85)), 0..24).prop_map(|words| {
        words.iter().flat_map(|(word, blank)| [*word, if *blank { " " } else { "" }]).collect()
    })
}

fn tame_sql() -> impl Strategy<Value = String> {
    text_of(WORDS.to_vec())
}

fn sql() -> impl Strategy<Value = String> {
    text_of([WORDS, WILD_WORDS].concat())
}

fn effect(sql: &str) -> Effect {
    classify(sql).effect
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        classify(&text);
    }

    #[test]
    fn no_statement_like_text_panics(text in sql()) {
        let found = classify(&text);
        let worst = found.statements.iter().fold(Effect::None, |worst, statement| worst.worse(statement.effect));
        prop_assert_eq!(found.effect, worst);
        for statement in &found.statements {
            prop_assert!(text.get(statement.text.clone()).is_some());
        }
    }

    #[test]
    fn pieces_cover_the_text(text in sql()) {
        let mut lexer = Lexer::new(&text);
        let mut end = 0;
        while let Ok(Some(piece)) = lexer.next_piece() {
            prop_assert_eq!(piece.start, end);
            prop_assert!(piece.end > piece.start);
            let raw = &text[piece.start as usize..piece.end as usize];
            prop_assert!(piece.kind != Kind::Blank || raw.trim().is_empty());
            end = piece.end;
        }
    }

    /// Where the border is certain, neither text makes the other look better.
    #[test]
    fn two_texts_are_as_bad_as_the_worse(first in tame_sql(), second in tame_sql()) {
        let both = effect(&format!("{first}\n;{second}"));
        prop_assert_eq!(both.worse(effect(&first)), both);
        prop_assert_eq!(both.worse(effect(&second)), both);
    }

    #[test]
    fn comments_make_nothing_better(text in sql()) {
        let bare = effect(&text);
        for dressed in [format!("/* c */ {text}"), format!("-- c\n{text}"), format!("{text}\n-- c"), format!("{text}\n/* c */")] {
            let dressed_effect = effect(&dressed);
            prop_assert_eq!(dressed_effect.worse(bare), dressed_effect, "{}", dressed);
        }
    }
}

#[test]
fn a_megabyte_is_quick_on_a_small_stack() {
    let fill = |unit: &str, before: &str, after: &str| {
        format!("{before}{}{after}", unit.repeat((MAX_TEXT_BYTES - before.len() - after.len()) / unit.len()))
    };
    let texts = [
        fill("1,", "select * from t where a in (", "1)"),
        fill("(1,'x'),", "insert into t values ", "(1,'x')"),
        fill("1+", "select ", "1"),
        fill("a or ", "select ", "a"),
        fill("select 1 union all ", "", "select 1"),
        fill("select 1;", "", ""),
        fill(";", "", ""),
        fill("(", "select ", ""),
        fill("(delete from t ", "", ""),
        fill("case when ", "select ", ""),
        fill("begin ", "", ""),
        fill("begin drop table t; ", "", ""),
        fill("if (a) then ", "begin ", ""),
        fill("end;", "begin ", ""),
        fill("with a as (", "", ""),
        fill("a,b) as (", "with x (", ""),
        fill("a,", "with x (", "a) as (select 1) select 1"),
        fill("from t,", "select 1 ", "t"),
        fill("identifier(", "select ", ""),
        fill("a.", "select ", "a()"),
        fill("execute immediate (", "", ""),
        fill("call p(", "(", ""),
        fill("declare ", "", ""),
        fill("create task t as ", "", ""),
        fill("create table t as ", "", ""),
        fill("with x as procedure () as ", "", ""),
        fill("explain ", "", "select 1"),
        fill("alter task t modify as ", "", ""),
        fill("async (", "begin ", ""),
        fill("x", "select '", "'"),
        fill("x", "select /*", "*/ 1"),
        fill("x", "select $$", "$$"),
        fill("/*", "select ", ""),
        fill("$", "", ""),
        fill("'\\''", "select ", ""),
        fill("@s ", "list ", ""),
        fill("file:///* ", "put ", ""),
        fill("drop ", "alter table t ", ""),
        fill("system$x(", "select ", ""),
        fill("{", "select ", ""),
        fill("grant on ", "", ""),
    ];
    let worker = std::thread::Builder::new()
        .stack_size(512 * 1024)
        .spawn(move || {
            for text in &texts {
                let start = Instant::now();
                classify(text);
                let took = start.elapsed();
                // Without optimisation, on a busy machine; quadratic behaviour takes minutes.
                assert!(took < Duration::from_secs(8), "{took:?}: {}…", &text[..40]);
            }
        })
        .unwrap();
    worker.join().unwrap();
}

#[test]
fn chains_that_the_parser_gets_do_not_exhaust_a_small_stack() {
    let worker = std::thread::Builder::new()
        .stack_size(512 * 1024)
        .spawn(|| {
            for unit in ["1+", "a or ", "a||", "not ", "- ", "select 1 union all "] {
                let text = format!("select {}1", unit.repeat(1_300));
                assert_ne!(classify(&text).effect, Effect::None);
            }
            assert_ne!(classify(&format!("select 1{}", "::int".repeat(1_300))).effect, Effect::None);
        })
        .unwrap();
    worker.join().unwrap();
}

#[test]
fn objects_and_statements_are_capped_and_say_so() {
    let tables: Vec<String> = (0..1_500).map(|number| format!("t{number}")).collect();
    let found = classify(&format!("select * from {}", tables.join(",")));
    assert_eq!(found.statements[0].objects.len(), 1_000);
    assert!(found.statements[0].features.contains(&Feature::Truncated));

    let found = classify(&format!("{}drop table t", "select 1;".repeat(1_500)));
    assert_eq!(found.statements.len(), 1_001);
    assert_eq!(found.effect, Effect::Destructive);
    assert!(found.statements[1_000].features.contains(&Feature::Truncated));
}
