//! The table of clients and scenarios: a Markdown file that a test run writes, and every other one compares itself with.
//!
//! A cell is ✓, or a letter that stands for the reason below the table.

use std::fmt::Write as _;

pub const FINE: &str = "✓";

/// What the table says.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Table {
    pub scenarios: Vec<String>,
    /// A client's title, then how each scenario went.
    pub columns: Vec<Vec<String>>,
}

impl Table {
    /// Reads what [`Table::markdown`] wrote, among other text.
    pub fn read(text: &str) -> Self {
        let reasons: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("- **")?.split_once("** ")).collect();
        let lines = text.lines().filter(|line| line.starts_with('|') && !line.starts_with("|-"));
        let rows: Vec<Vec<&str>> =
            lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        let full = |cell: &str| {
            let reason = reasons.iter().find(|(letter, _)| *letter == cell);
            reason.map_or(cell, |(_, reason)| reason).to_owned()
        };
        let cell = |row: &Vec<&str>, number: usize| row.get(number).copied().map(full).unwrap_or_default();
        let width = rows.first().map_or(0, Vec::len);
        Self {
            scenarios: rows.iter().skip(1).map(|row| cell(row, 0)).collect(),
            columns: (1..width).map(|number| rows.iter().map(|row| cell(row, number)).collect()).collect(),
        }
    }

    pub fn markdown(&self) -> String {
        let mut reasons: Vec<&str> = Vec::new();
        let mut rows = String::new();
        for (number, scenario) in self.scenarios.iter().enumerate() {
            let _ = write!(rows, "| {scenario} |");
            for column in &self.columns {
                let outcome = column.get(number + 1).map_or("", String::as_str);
                let _ = write!(rows, " {} |", short(outcome, &mut reasons));
            }
            rows.push('\n');
        }
        let titles = self.columns.iter().map(|column| column.first().map_or("", String::as_str));
        let mut text = String::from("| |");
        for title in titles {
            let _ = write!(text, " {title} |");
        }
        text.push_str("\n|---|");
        text.push_str(&":-:|".repeat(self.columns.len()));
        let _ = writeln!(text, "\n{rows}");
        for (number, reason) in reasons.iter().enumerate() {
            let _ = writeln!(text, "- **{}** {reason}", letter(number));
        }
        text
    }
}

/// An outcome as a cell has it.
fn short<'a>(outcome: &'a str, reasons: &mut Vec<&'a str>) -> String {
    if outcome == FINE || outcome.is_empty() {
        return outcome.to_owned();
    }
    let known = reasons.iter().position(|reason| *reason == outcome);
    let number = known.unwrap_or_else(|| {
        reasons.push(outcome);
        reasons.len() - 1
    });
    letter(number)
}

fn letter(number: usize) -> String {
    let letters = ('a'..='z').map(String::from);
    let mut names = letters.chain((1..).map(|number: u32| format!("z{number}")));
    names.nth(number).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let table = Table {
            scenarios: words(&["connect", "files", "cancel"]),
            columns: vec![
                words(&["curl", FINE, "not in the SQL API", ""]),
                words(&["Node 3.3.0", FINE, FINE, "not in the SQL API"]),
            ],
        };
        let text = table.markdown();
        assert!(
            text.contains("| files | a | ✓ |\n") && text.ends_with("- **a** not in the SQL API\n"),
            "{text}"
        );
        assert_eq!(Table::read(&format!("# Title\n\nText.\n\n{text}")), table);
        assert_eq!(Table::read(""), Table::default());
    }

    #[test]
    fn there_are_letters_enough() {
        assert_eq!([0, 25, 26, 27].map(letter), ["a", "z", "z1", "z2"]);
    }
}
