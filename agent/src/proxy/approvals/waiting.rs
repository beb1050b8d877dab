//! The side of whoever asked: by a driver, or by the SQL API, it is told that its statement is running, and asks for the
//! result until there is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use uuid::Uuid;

use super::{Approvals, Found, HeldRequest, HeldStatement, LARGEST, Open, Ruled, State, Taking};
use crate::audit::{self, Ruling};
use crate::policy::Verdict;
use crate::proxy::payload::unkept;
use crate::proxy::service::{Exchange, Reaction, json_answer, plain, with_status};
use crate::proxy::sessions::Session;
use crate::proxy::statement::{self, Asked, NotHeld};
use crate::proxy::upstream::{Outgoing, Token, forwarded};
use crate::snowflake::{
    Operation, QueryId, QueryRequest, Refusal, Reply, cancelled_answer, held_answer, held_answer_of_api,
};
use crate::sql::with_values;

/// A client that asks for the result is answered after this time at the latest. With the 45 s that Snowflake may take to
/// answer, it stays below the 60 s that one driver waits.
const POLL: Duration = Duration::from_secs(10);

/// A place for a statement that is about to be held; it is given up unless the statement is recorded.
pub struct Place<'a> {
    approvals: &'a Approvals,
    about: Arc<HeldStatement>,
    is_recorded: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.is_recorded {
            self.approvals.give_up(self.about.id);
        }
    }
}

/// Takes a place for a statement whose client can wait for a person; says why not, otherwise.
pub fn place<'a>(
    exchange: &'a Exchange<'_>,
    session: &Session,
    record: &audit::Statement,
    request: &QueryRequest,
) -> Result<Place<'a>, NotHeld> {
    let approvals = &exchange.proxy.approvals;
    if request.describe_only || request.is_async {
        return Err(NotHeld::NotAwaited);
    }
    if request.is_staged() {
        return Err(NotHeld::Staged);
    }
    if !approvals.is_configured() {
        return Err(NotHeld::NotConfigured);
    }
    if request.to_vec().len() > LARGEST {
        return Err(NotHeld::TooLarge);
    }
    let about = Arc::new(HeldStatement::of(record, request.with(), approvals.wait()));
    approvals.reserve(&about, session, &exchange.operation, &exchange.query.request_id)?;
    Ok(Place { approvals, about, is_recorded: false })
}

/// Records a statement as held, and lets its client wait.
pub async fn hold(
    exchange: &Exchange<'_>,
    session: &Session,
    mut place: Place<'_>,
    record: audit::Statement,
    request: QueryRequest,
    started: Instant,
) -> Reaction {
    let id = place.about.id;
    let request = HeldRequest {
        operation: exchange.operation.clone(),
        query: exchange.query.text.clone(),
        request_id: exchange.query.request_id.clone(),
        headers: forwarded(&exchange.parts.headers),
        request,
        started,
    };
    exchange.is_statement(id);
    if !request.request_id.is_empty() {
        exchange.proxy.sessions.own_request(&request.request_id, session);
    }
    match exchange.proxy.journal.append_statement(record).await {
        Ok(recorded) => {
            place.is_recorded = true;
            let about = Arc::clone(&place.about);
            let (subject, policy) = (&about.caller.subject, &about.policy);
            tracing::info!(%id, subject, policy, "a statement is held for a person");
            place.approvals.set(id, State::Waiting(Box::new(Open { about, request, recorded })));
            in_progress(exchange, id)
        }
        Err(error) => exchange.refuse(&statement::not_recorded(&error, id)),
    }
}

/// Answers a client that asks for the result of a held statement. If it is approved, this forwards it.
pub async fn poll(exchange: &Exchange<'_>, session: &Session, id: Uuid, token: Token<'_>) -> Reaction {
    let proxy = exchange.proxy;
    if let Some(Err(error)) = proxy.payloads.as_ref().map(|payloads| payloads.ready()) {
        // The client comes again.
        return plain(StatusCode::SERVICE_UNAVAILABLE, &unkept(&error));
    }
    let found = tokio::select! {
        found = proxy.approvals.look(id, Instant::now() + POLL) => found,
        () = proxy.shutdown.cancelled() => Found::InProgress,
        () = exchange.gone.cancelled() => Found::InProgress,
    };
    if found == Found::Approved {
        // A session token that has expired while nobody asked Snowflake must not cost the approval.
        if let Token::Session(_) = token
            && let Err(reaction) = is_alive(exchange, token).await
        {
            return reaction;
        }
        if !exchange.gone.is_cancelled()
            && let Some(taken) = proxy.approvals.take(id, Taking::Approved)
        {
            return forward(exchange, session, *taken.open, token).await;
        }
    }
    exchange.is_about(QueryId::of(id).as_str());
    match found {
        Found::Ended(refusal) => exchange.refuse(&refusal),
        Found::InProgress | Found::Approved => in_progress(exchange, id),
    }
}

/// The client does not want a held statement any more. `None` where Snowflake has it.
pub async fn cancel(exchange: &Exchange<'_>, id: Uuid) -> Option<Reaction> {
    let approvals = &exchange.proxy.approvals;
    let answered = |refusal: Refusal| {
        if exchange.operation.is_of_api() {
            exchange.refuse(&refusal)
        } else {
            json_answer(cancelled_answer())
        }
    };
    if let Some(taken) = approvals.take(id, Taking::Any) {
        let ruled = Ruled::nobody(Ruling::Withdrawn, "its client has cancelled it");
        return Some(match exchange.proxy.end(taken, ruled).await {
            Ok(refusal) => answered(Refusal { status: StatusCode::OK, ..refusal }),
            Err(error) => exchange.refuse(&statement::not_recorded(&error, id)),
        });
    }
    match &approvals.lock().held.get(&id)?.state {
        State::Forwarded => None,
        State::Ended(refusal) => Some(answered(refusal.clone())),
        _ => Some(exchange.refuse(&Refusal::on_its_way(id))),
    }
}

/// That a statement waits, as the client understands it.
pub fn in_progress(exchange: &Exchange<'_>, id: Uuid) -> Reaction {
    if exchange.operation.is_of_api() {
        with_status(StatusCode::ACCEPTED, held_answer_of_api(id, audit::now() / 1000).into())
    } else {
        json_answer(held_answer(id))
    }
}

/// Asks Snowflake whether it still takes the session's token; what the client is told, where it does not.
async fn is_alive(exchange: &Exchange<'_>, token: Token<'_>) -> Result<(), Reaction> {
    let query = format!("requestId={}", Uuid::new_v4());
    let outgoing = Outgoing {
        operation: &Operation::Heartbeat,
        query: &query,
        ..exchange.outgoing(Some(token), b"{}".as_slice().into())
    };
    let answer = match exchange.proxy.upstream.control(outgoing).await {
        Ok(answer) => answer,
        Err(error) => return Err(exchange.failed(&error).await),
    };
    match Reply::parse(&answer.body) {
        Ok(Reply { success: true, .. }) => Ok(()),
        reply => Err(exchange.pass(&answer, reply).await),
    }
}

/// Forwards an approved statement, unless the policy has changed since and no approval is enough any more.
async fn forward(exchange: &Exchange<'_>, session: &Session, open: Open, token: Token<'_>) -> Reaction {
    let Open { about, request: held, recorded } = open;
    let (id, proxy) = (about.id, exchange.proxy);
    exchange.is_statement(id);
    let sql = with_values(&held.request.sql, |number| held.request.text(number));
    let asked = Asked::of(&held.request);
    let (mut policy, mut why, mut local) = (about.policy.clone(), None, None);
    if let Some(classification) = statement::classified(&sql).await {
        let (decision, files) = statement::judged(exchange, session, &asked, &sql, &classification);
        local = files;
        if decision.verdict == Verdict::Deny {
            why = Some(statement::why_not(&classification, &decision, NotHeld::NoWay));
            policy = decision.policy;
        }
    } else {
        why = Some("it cannot be classified any more".to_owned());
    }
    // Who shares the Snowflake user would be given the other's result by it.
    if proxy.sessions.is_of_another(session, &held.request_id) {
        why = Some("its requestId has become another caller's".to_owned());
    }
    if let Some(why) = why {
        let message = statement::refused_because(&about.kind, &why, &policy, &held.request_id);
        let refusal = Refusal::statement(message, id);
        statement::append(proxy, statement::refused(&refusal, id, held.started));
        proxy.approvals.set(id, State::Ended(refusal.clone()));
        return exchange.refuse(&refusal);
    }
    let statement = statement::Forward {
        outgoing: Outgoing {
            operation: &held.operation,
            query: &held.query,
            headers: &held.headers,
            ..exchange.outgoing(Some(token), held.request.to_vec().into())
        },
        request_id: &held.request_id,
        local: local.as_deref(),
        id,
        started: held.started,
    };
    let (reaction, known) = statement::forward(exchange, session, statement, recorded).await;
    let state = match known {
        Ok(query) => {
            proxy.sessions.alias(&QueryId::of(id), &query);
            State::Forwarded
        }
        Err(why) => State::Ended(Refusal::answer(format!(
            "Snowfence has no result of this statement, which was approved: {why}"
        ))),
    };
    proxy.approvals.set(id, state);
    reaction
}
