//! A TOML document that remembers where its values stand, and reads a type from it while collecting every problem
//! instead of stopping at the first.

use std::collections::BTreeSet;

use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

/// One thing that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The dotted path of the key; empty for a syntax error.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

/// A parsed document, its text, and the problems found so far.
pub struct Document {
    text: String,
    root: toml_edit::Document<String>,
    problems: BTreeSet<Problem>,
}

/// Reads a `T`. Where a value is wrong it is noted and taken out, and the rest is read again, so that all problems
/// come to light in one go.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<(T, Document), Vec<Problem>> {
    let root = text.parse::<toml_edit::Document<String>>().map_err(|error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        vec![Problem {
            line,
            column,
            key: String::new(),
            message: error.message().trim().replace('\n', "; "),
        }]
    })?;
    let mut document = Document { text: text.to_owned(), root, problems: BTreeSet::new() };
    let mut value: toml::Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(error) => {
            document.add(&[], error.message());
            return Err(document.into_problems());
        }
    };
    let mut removed = BTreeSet::new();
    loop {
        let error = match serde_path_to_error::deserialize::<_, T>(value.clone()) {
            Ok(read) if document.problems.is_empty() => return Ok((read, document)),
            Ok(_) => return Err(document.into_problems()),
            Err(error) => error,
        };
        let mut path = keys(error.path());
        let message = error.inner().message().trim().replace('\n', "; ");
        // A missing key is reported at the table that lacks it. Where the key is missing only because its wrong
        // value was taken out, the problem is already known.
        let missing = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let known = missing.is_some_and(|field| {
            let mut full = path.clone();
            full.push(field.to_owned());
            removed.contains(&full)
        });
        if !known {
            document.add(&path, &message);
        }
        // Take the wrong value out; a table that lacks a key goes as a whole.
        while !path.is_empty() && !remove(&mut value, &path) {
            path.pop();
        }
        if path.is_empty() || !removed.insert(path) {
            return Err(document.into_problems());
        }
    }
}

impl Document {
    /// Notes a problem with the value at a path.
    pub fn add(&mut self, path: &[String], message: &str) {
        let (line, column) = position(&self.text, self.offset(path));
        self.problems.insert(Problem { line, column, key: dotted(path), message: message.to_owned() });
    }

    /// Notes a problem with a value below a path.
    pub fn add_below(&mut self, path: &[&str], keys: &[&str], message: &str) {
        let path: Vec<String> = path.iter().chain(keys).map(|key| (*key).to_owned()).collect();
        self.add(&path, message);
    }

    pub fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// In the order of the text.
    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_iter().collect()
    }

    /// Where the value at a path stands, or the nearest that exists above it.
    fn offset(&self, path: &[String]) -> usize {
        let mut item = self.root.as_item();
        let mut offset = 0;
        for key in path {
            let next = match key.parse::<usize>() {
                Ok(index) if !item.is_table_like() => item.get(index),
                _ => {
                    if let Some((key, _)) = item.as_table_like().and_then(|table| table.get_key_value(key))
                        && let Some(span) = key.span()
                    {
                        offset = span.start;
                    }
                    item.get(key)
                }
            };
            let Some(next) = next else { break };
            if let Some(span) = next.span() {
                offset = span.start;
            }
            item = next;
        }
        offset
    }
}

/// Line and column of a byte of a text, both from 1, columns in characters.
pub fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

fn keys(path: &serde_path_to_error::Path) -> Vec<String> {
    path.iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect()
}

fn dotted(path: &[String]) -> String {
    path.iter().fold(String::new(), |mut text, key| {
        if key.parse::<usize>().is_ok() {
            text.extend(["[", key, "]"]);
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(key);
        }
        text
    })
}

/// Removes the value at a path; an element of an array goes by making it the array's end. False where it is not there.
fn remove(table: &mut toml::Table, path: &[String]) -> bool {
    fn within<'a>(value: &'a mut toml::Value, key: &str) -> Option<&'a mut toml::Value> {
        match value {
            toml::Value::Table(table) => table.get_mut(key),
            toml::Value::Array(array) => key.parse::<usize>().ok().and_then(|index| array.get_mut(index)),
            _ => None,
        }
    }
    let Some((last, parents)) = path.split_last() else { return false };
    let Some((first, rest)) = parents.split_first() else { return table.remove(last).is_some() };
    let parent =
        table.get_mut(first).and_then(|value| rest.iter().try_fold(value, |value, key| within(value, key)));
    match parent {
        Some(toml::Value::Table(table)) => table.remove(last).is_some(),
        // Removing an element would shift the ones after it away from their places in the text.
        _ => false,
    }
}
