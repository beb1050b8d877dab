//! The side of whoever asked: by a driver, or by the SQL API, it is told that its statement is running, and asks for the
//! result until there is one.

use std::time::{Duration, Instant};

use hyper::StatusCode;
use uuid::Uuid;

use super::{Found, HeldRequest, HeldStatement, Open, Ruled, Taking};
use crate::audit::{self, Ruling};
use crate::policy::Verdict;
use crate::proxy::payload::unkept;
use crate::proxy::service::{Exchange, Reaction, json_answer, plain, with_status};
use crate::proxy::sessions::Session;
use crate::proxy::statement::{self, Asked, NotHeld};
use crate::proxy::upstream::{Outgoing, Token};
use crate::snowflake::{Refusal, cancelled_answer, held_answer, held_answer_of_api};

/// A client that asks for the result is answered after this time at the latest. With the 45 s that Snowflake may take to
/// answer, it stays below the 60 s that one driver waits.
const POLL: Duration = Duration::from_secs(10);

/// Records a statement as held, and lets its client wait.
pub async fn hold(
    exchange: &Exchange<'_>,
    session: &Session,
    record: audit::Statement,
    request: HeldRequest,
) -> Reaction {
    let approvals = &exchange.proxy.approvals;
    let about = HeldStatement::of(&record, &request.values, approvals.wait());
    let id = about.id;
    exchange.is_statement(id);
    match exchange.proxy.journal.append_statement(record).await {
        Ok(recorded) => {
            let (subject, policy) = (&about.caller.subject, &about.policy);
            tracing::info!(%id, subject, policy, "a statement is held for a person");
            approvals.insert(session, about, request, recorded);
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
    };
    match found {
        Found::InProgress => in_progress(exchange, id),
        Found::Ended(refusal) => exchange.refuse(&refusal),
        Found::Approved(open) => forward(exchange, session, *open, token).await,
    }
}

/// The client does not want a held statement any more. `None` where it is not held, or no longer.
pub async fn cancel(exchange: &Exchange<'_>, id: Uuid) -> Option<Reaction> {
    let taken = exchange.proxy.approvals.take(id, Taking::Any)?;
    let ended =
        exchange.proxy.end(taken, Ruled::nobody(Ruling::Withdrawn, "its client has cancelled it")).await;
    Some(match ended {
        Ok(refusal) if exchange.operation.is_of_api() => {
            exchange.refuse(&Refusal { status: StatusCode::OK, ..refusal })
        }
        Ok(_) => json_answer(cancelled_answer()),
        Err(error) => exchange.refuse(&statement::not_recorded(&error, id)),
    })
}

/// That a statement waits, as the client understands it.
pub fn in_progress(exchange: &Exchange<'_>, id: Uuid) -> Reaction {
    if exchange.operation.is_of_api() {
        with_status(StatusCode::ACCEPTED, held_answer_of_api(id, audit::now() / 1000).into())
    } else {
        json_answer(held_answer(id))
    }
}

/// Forwards an approved statement, unless the policy has changed since and no approval is enough any more.
async fn forward(exchange: &Exchange<'_>, session: &Session, open: Open, token: Token<'_>) -> Reaction {
    let Open { about, request, recorded } = open;
    let (id, approvals) = (about.id, &exchange.proxy.approvals);
    let asked = Asked { text: &request.text, describe_only: false, binds: 0, not_held: NotHeld::NoWay };
    let decision = statement::judge(exchange, session, &asked, &request.sql, &request.classification);
    if decision.verdict == Verdict::Deny {
        let message =
            statement::why_not(&request.classification, &decision, asked.not_held, &request.request_id);
        let refusal = Refusal::statement(message, id);
        statement::append(exchange.proxy, statement::refused(&refusal, id, request.started));
        approvals.ended(id, refusal.clone());
        return exchange.refuse(&refusal);
    }
    let outgoing = Outgoing {
        operation: &request.operation,
        query: &request.query,
        headers: &request.headers,
        ..exchange.outgoing(Some(token), request.body.clone())
    };
    let statement = statement::Forward {
        outgoing,
        request_id: &request.request_id,
        local: request.local.as_deref(),
        id,
        started: request.started,
    };
    let (reaction, known) = statement::forward(exchange, session, statement, recorded).await;
    approvals.forwarded(id, known);
    reaction
}
