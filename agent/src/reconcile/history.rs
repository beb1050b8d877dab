//! Reads Snowflake's history, in spans so short that an answer has all of each.

use super::ReconcileError;
use crate::config::History;
use crate::proxy::{OwnSession, Row};
use crate::snowflake::history::{Executed, LIMIT, Login, Span, ask_executed, ask_logins};

/// The history of one user, from its beginning to its end.
pub struct Reader<'a> {
    session: &'a OwnSession<'a>,
    history: History,
    user: &'a str,
    /// What has not been read yet, the next at the end.
    spans: Vec<Span>,
}

impl<'a> Reader<'a> {
    pub fn new(session: &'a OwnSession<'a>, history: History, user: &'a str, span: Span) -> Self {
        Self { session, history, user, spans: vec![span] }
    }

    /// The statements of the next span.
    pub async fn executed(&mut self) -> Result<Option<Vec<Executed>>, ReconcileError> {
        let Some((span, rows)) = self.next(ask_executed).await? else { return Ok(None) };
        let read = rows.iter().filter_map(|row| Executed::read(row).transpose());
        let executed: Vec<Executed> = read.collect::<Result<_, _>>()?;
        // Both ends of a span are in the answer.
        Ok(Some(executed.into_iter().filter(|executed| span.has(executed.ended)).collect()))
    }

    /// The logins of the next span that succeeded.
    pub async fn logins(&mut self) -> Result<Option<Vec<Login>>, ReconcileError> {
        let Some((span, rows)) = self.next(ask_logins).await? else { return Ok(None) };
        let read = rows.iter().filter_map(|row| Login::read(row).transpose());
        let logins: Vec<Login> = read.collect::<Result<_, _>>()?;
        Ok(Some(logins.into_iter().filter(|login| span.has(login.time)).collect()))
    }

    async fn next(
        &mut self,
        ask: impl Fn(History, &str, Span) -> String,
    ) -> Result<Option<(Span, Vec<Row>)>, ReconcileError> {
        let (session, history, user) = (self.session, self.history, self.user);
        next_whole(&mut self.spans, user, |span| {
            let sql = ask(history, user, span);
            async move { Ok(session.rows(&sql).await?) }
        })
        .await
    }
}

/// The answer for the next span that has all of it: one that is full may lack some, so its halves are asked for.
async fn next_whole<F: Future<Output = Result<Vec<Row>, ReconcileError>>>(
    spans: &mut Vec<Span>,
    user: &str,
    ask: impl Fn(Span) -> F,
) -> Result<Option<(Span, Vec<Row>)>, ReconcileError> {
    while let Some(span) = spans.pop() {
        let rows = ask(span).await?;
        if rows.len() < LIMIT {
            return Ok(Some((span, rows)));
        }
        let (early, late) = span.halves().ok_or_else(|| ReconcileError::TooMany(user.to_owned()))?;
        spans.extend([late, early]);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An account that has these times in its history, and answers with no more rows than Snowflake does.
    async fn read(times: &[i64], span: Span) -> Result<Vec<i64>, ReconcileError> {
        let (mut spans, mut read) = (vec![span], Vec::new());
        let ask = |span: Span| {
            let within = times.iter().filter(move |time| span.has(**time)).take(LIMIT);
            let rows = within.map(|time| vec![Some(time.to_string())]).collect();
            async move { Ok(rows) }
        };
        while let Some((span, rows)) = next_whole(&mut spans, "SVC", ask).await? {
            let times = rows.iter().flatten().flatten().filter_map(|time| time.parse().ok());
            read.extend(times.filter(|time| span.has(*time)));
        }
        Ok(read)
    }

    #[tokio::test]
    async fn more_rows_than_an_answer_has_are_all_read_once_and_in_order() {
        let mut times: Vec<i64> = (0..25_000).map(|number| number * 3000).collect();
        times.extend(times.clone().iter().map(|time| time + 90_000_000_000));
        assert_eq!(read(&times, Span::new(0, 100_000_000_000)).await.unwrap(), times);
        assert_eq!(read(&times, Span::new(3000, 9000)).await.unwrap(), [3000, 6000]);
        assert!(read(&[], Span::new(0, 1000)).await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_cannot_be_listed_is_an_error_and_no_proof() {
        let at_once = vec![5000; LIMIT];
        let error = read(&at_once, Span::new(0, 100_000_000_000)).await.unwrap_err();
        assert!(matches!(error, ReconcileError::TooMany(_)), "{error}");
    }
}
