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
    let mut line: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WIDTH + 1).collect();
    if line.chars().count() > WIDTH {
        line = line.chars().take(WIDTH - 1).chain(['…']).collect();
    }
    line
}
