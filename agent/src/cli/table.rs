//! Tables for people.

use std::io::{self, Write};

/// Cells are cut to this many characters.
const WIDTH: usize = 60;

/// Prints rows under their headings, in columns.
pub(super) fn print(out: &mut impl Write, headings: &[String], rows: &[Vec<String>]) -> io::Result<()> {
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| cut(cell)).collect()).collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.chain(headings.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    for row in std::iter::once(headings).chain(rows.iter().map(Vec::as_slice)) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// One line, without characters that would steer the terminal.
pub(super) fn cut(text: &str) -> String {
    let mut line: String = harmless(text).take(WIDTH + 1).collect();
    if line.chars().count() > WIDTH {
        line = line.chars().take(WIDTH - 1).chain(['…']).collect();
    }
    line
}

/// A text without what steers a terminal: control characters, and those that turn or hide what stands beside them.
pub(super) fn harmless(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|c| if steers(c) { ' ' } else { c })
}

/// The same, where it must be seen that there is something.
pub(super) fn visible(text: &str) -> String {
    let mut visible = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\t' => visible.push(' '),
            character if steers(character) => visible.extend(character.escape_default()),
            character => visible.push(character),
        }
    }
    visible
}

fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_cut_and_cannot_steer_the_terminal() {
        assert_eq!(cut("a\u{1b}[31mb\nc\u{202e}d"), "a [31mb c d");
        assert_eq!(visible("a\r--\u{61c}b\tc"), "a\\r--\\u{61c}b c");
        assert_eq!(cut(&"x".repeat(100)).chars().count(), WIDTH);
        let mut out = Vec::new();
        print(
            &mut out,
            &["a".into(), "b".into()],
            &[vec!["1".into(), "long".into()], vec!["22".into(), "x".into()]],
        )
        .unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a   b\n1   long\n22  x\n");
    }
}
