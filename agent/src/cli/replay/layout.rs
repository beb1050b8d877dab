//! The steps of a session as lines of text, in which nothing steers a terminal.

use super::super::table;
use crate::replay::{Step, Teller, timestamp};

/// What stands before a line that belongs to the one above.
pub const INDENT: &str = "           ";
/// Lines of a statement or a text that are shown.
const LINES: usize = 60;

/// Whose session it is.
pub fn beginning(teller: &Teller) -> [String; 2] {
    let session = &teller.session().session;
    let began = session.time;
    let whose = format!(
        "session {} of {} as {} ({}), role {}, at {}",
        session.id,
        session.caller.subject,
        session.user,
        session.rule,
        if session.role.is_empty() { "-" } else { &session.role },
        session.account
    );
    let by = format!(
        "began {} by {}, pid {}, cgroup {}: {}",
        iso(began),
        session.workload.comm,
        session.workload.pid,
        session.workload.cgroup,
        session.client
    );
    [whose, by].map(|line| harmless(&line))
}

/// A step as it is shown.
pub fn lines(step: &Step) -> Vec<String> {
    let mut lines = vec![heading(step)];
    let mut add = |text: &str| {
        let shown = text.lines().take(LINES).map(|line| format!("{INDENT}{}", harmless(line)));
        lines.extend(shown);
        if text.lines().nth(LINES).is_some() {
            lines.push(format!("{INDENT}…"));
        }
    };
    match step.statement {
        Some(_) => add(&step.asked),
        None => add(&table::cut(&step.asked)),
    }
    if !step.bindings.is_null() {
        add(&format!("bound: {}", step.bindings));
    }
    if let Some(result) = &step.table {
        let headings: Vec<String> = result.columns.iter().map(|column| column.name.clone()).collect();
        let cells = |row: &Vec<Option<String>>| {
            row.iter().map(|cell| cell.clone().unwrap_or_else(|| "NULL".to_owned())).collect()
        };
        let rows: Vec<Vec<String>> = result.rows.iter().map(cells).collect();
        let headings = if headings.is_empty() {
            vec![String::new(); rows.first().map_or(0, Vec::len)]
        } else {
            headings.iter().map(|name| table::cut(name)).collect()
        };
        let mut laid_out = Vec::new();
        // There is no failure in memory.
        let _ = table::print(&mut laid_out, &headings, &rows);
        let laid_out = String::from_utf8_lossy(&laid_out);
        lines.extend(laid_out.lines().map(|line| format!("{INDENT}{line}")));
        if result.cut {
            lines.push(format!("{INDENT}… [more rows: --rows shows them]"));
        }
        return with_problem(lines, step);
    }
    add(&step.text);
    with_problem(lines, step)
}

fn with_problem(mut lines: Vec<String>, step: &Step) -> Vec<String> {
    if !step.message.is_empty() {
        let code = if step.code.is_empty() { String::new() } else { format!("{}: ", step.code) };
        lines.push(format!("{INDENT}{}", harmless(&format!("{code}{}", step.message))));
    }
    if !step.problem.is_empty() {
        lines.push(format!("{INDENT}⚠ {}", harmless(&step.problem)));
    }
    lines
}

fn heading(step: &Step) -> String {
    let mut facts = Vec::new();
    if !step.verdict.is_empty() {
        facts.push(format!("{} ({})", step.verdict, step.policy));
    }
    if !step.status.is_empty() {
        let by = if step.approver.is_empty() { String::new() } else { format!(" by {}", step.approver) };
        facts.push(format!("{}{by}", step.status));
    } else if let Some(http) = step.http {
        facts.push(format!("HTTP {http}"));
    }
    facts.extend(step.rows.map(|rows| if rows == 1 { "1 row".to_owned() } else { format!("{rows} rows") }));
    if step.parts > 0 {
        facts.push(format!("{} more parts", step.parts));
    }
    facts.extend(step.bytes.map(|bytes| format!("{bytes} bytes")));
    facts.extend(step.duration_us.map(|micros| format!("{} ms", micros / 1000)));
    if !step.query_id.is_empty() {
        facts.push(step.query_id.clone());
    }
    let at = format!("{}.{:03}", step.at_us / 1_000_000, step.at_us / 1000 % 1000);
    let arrow = match step.what {
        "answer" => '←',
        "ruling" => '◆',
        _ => '→',
    };
    let operation = if step.operation.is_empty() { "?" } else { &step.operation };
    let heading = format!("[{at:>8}] {arrow} {operation}  {}", facts.join(", "));
    harmless(&heading).trim_end().to_owned()
}

pub fn harmless(text: &str) -> String {
    table::harmless(text).collect()
}

pub fn seconds(micros: i64) -> String {
    format!("{}.{} s", micros / 1_000_000, micros / 100_000 % 10)
}

fn iso(micros: i64) -> String {
    let nanos = i128::from(micros) * 1000;
    timestamp(nanos).map_or_else(|| micros.to_string(), |time| format!("{time} UTC"))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::replay::{Column, Table};

    #[test]
    fn a_step_is_laid_out_and_steers_no_terminal() {
        let request = Step {
            at_us: 1_234_567,
            what: "request",
            operation: "query".into(),
            statement: Some(Uuid::nil()),
            asked: "select\n\u{1b}[31m1".into(),
            verdict: "allow".into(),
            policy: "reads-allowed".into(),
            ..Step::default()
        };
        assert_eq!(
            lines(&request),
            ["[   1.234] → query  allow (reads-allowed)", "           select", "            [31m1"]
        );
        let column = |name: &str| Column { name: name.into(), kind: "text".into() };
        let answer = Step {
            at_us: 2_000_000,
            what: "answer",
            operation: "query".into(),
            status: "succeeded".into(),
            rows: Some(70),
            parts: 2,
            bytes: Some(10),
            duration_us: Some(765_433),
            query_id: "q\u{7}".into(),
            table: Some(Table {
                columns: vec![column("N"), column("\u{1b}[2J")],
                rows: vec![
                    vec![Some("1".into()), None],
                    vec![Some("22".into()), Some("\u{202e}x\ny".into())],
                ],
                cut: true,
            }),
            ..Step::default()
        };
        assert_eq!(
            lines(&answer),
            [
                "[   2.000] ← query  succeeded, 70 rows, 2 more parts, 10 bytes, 765 ms, q",
                "           N    [2J",
                "           1   NULL",
                "           22   x y",
                "           … [more rows: --rows shows them]",
            ]
        );
        let ruling = Step {
            what: "ruling",
            operation: "query".into(),
            statement: Some(Uuid::nil()),
            asked: "drop table t".into(),
            status: "denied".into(),
            approver: "kim\u{7}".into(),
            message: "not today".into(),
            ..Step::default()
        };
        assert_eq!(
            lines(&ruling),
            ["[   0.000] ◆ query  denied by kim", "           drop table t", "           not today"]
        );
        let refused = Step {
            what: "answer",
            status: "refused".into(),
            code: "003001".into(),
            message: "no".into(),
            ..Step::default()
        };
        assert_eq!(lines(&refused), ["[   0.000] ← ?  refused", "           003001: no"]);
    }
}
