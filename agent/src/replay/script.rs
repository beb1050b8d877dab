//! The requests of a recording, and which of them is meant by one that comes.

use std::collections::{HashMap, VecDeque};

use super::asked::{Asked, Key};

/// A recorded request.
#[derive(Debug)]
pub struct Line {
    /// Which payload of the session it is.
    pub payload: usize,
    pub shown: String,
    was_asked: bool,
    is_housekeeping: bool,
}

/// The requests of a recording, in their order.
#[derive(Debug, Default)]
pub struct Script {
    lines: Vec<Line>,
    /// Those that are still to be asked, by what they ask for.
    waiting: HashMap<Key, VecDeque<usize>>,
    /// The last one that was asked, by what it asks for.
    last: HashMap<Key, usize>,
}

impl Script {
    pub fn add(&mut self, payload: usize, asked: Asked) {
        let is_housekeeping = asked.is_housekeeping();
        self.waiting.entry(asked.key).or_default().push_back(self.lines.len());
        self.lines.push(Line { payload, shown: asked.shown, was_asked: false, is_housekeeping });
    }

    /// The payload that answers a request: the first one that asks for the same and was not asked yet. What only reads
    /// (`repeats`) is answered again as it was last.
    pub fn answer(&mut self, asked: &Asked, repeats: bool) -> Option<usize> {
        let next = self.waiting.get_mut(&asked.key).and_then(VecDeque::pop_front);
        let line = match next {
            Some(line) => line,
            None if repeats => *self.last.get(&asked.key)?,
            None => return None,
        };
        self.last.insert(asked.key, line);
        let line = self.lines.get_mut(line)?;
        line.was_asked = true;
        Some(line.payload)
    }

    /// What was not asked yet, in its order; what is of the session itself does not count.
    pub fn to_come(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| !line.was_asked && !line.is_housekeeping)
    }
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;

    fn query(sql: &str) -> Asked {
        let body = serde_json::json!({ "sqlText": sql }).to_string();
        Asked::of(&Method::POST, "/queries/v1/query-request", Some("requestId=1"), body.as_bytes())
    }

    #[test]
    fn the_same_question_has_its_answers_in_their_order() {
        let mut script = Script::default();
        let login = Asked::of(&Method::POST, "/session/v1/login-request", None, b"");
        let asked = [login, query("select 1"), query("insert"), query("select 1")];
        for (payload, asked) in asked.into_iter().enumerate() {
            script.add(payload, asked);
        }
        let to_come = |script: &Script| script.to_come().map(|line| line.payload).collect::<Vec<_>>();
        assert_eq!(to_come(&script), [1, 2, 3]);
        assert_eq!(script.answer(&query("select 1"), false), Some(1));
        assert_eq!(script.to_come().next().unwrap().shown, "insert");
        assert_eq!(script.answer(&query("select 2"), false), None);
        assert_eq!(script.answer(&query("select 1"), false), Some(3));
        assert_eq!(script.answer(&query("select 1"), false), None, "there were two");
        assert_eq!(to_come(&script), [2]);
    }

    #[test]
    fn what_only_reads_is_answered_again() {
        let mut script = Script::default();
        let part = |name: &str| Asked::of(&Method::GET, &format!("/snowfence/parts/{name}"), None, b"");
        script.add(4, part("a"));
        script.add(5, part("a"));
        let answers: Vec<_> = (0..3).map(|_| script.answer(&part("a"), true)).collect();
        assert_eq!(answers, [Some(4), Some(5), Some(5)]);
        assert_eq!(script.answer(&part("b"), true), None);
    }
}
