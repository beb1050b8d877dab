//! A login: the client's token is verified, the agent logs in with its own credential, and the client gets tokens of
//! the agent's.

use hyper::body::Incoming;
use uuid::Uuid;

use super::body;
use super::service::{Exchange, Reaction, json_answer};
use super::sessions::{NewSession, Session, UpstreamTokens};
use super::upstream::{Outgoing, Token};
use super::workload;
use crate::audit::{self, Caller, EventKind};
use crate::config::Secret;
use crate::identity::{IdentityError, Principal};
use crate::snowflake::{LoginAnswer, LoginRequest, LoginTarget, Operation, Refusal, Reply, login_query};

pub async fn login(exchange: Exchange<'_>, body: &mut Incoming) -> Reaction {
    let body = match exchange.read(body, body::LOGIN).await {
        Ok(body) => body,
        Err(error) => return exchange.unreadable(&error).await,
    };
    let request = match LoginRequest::parse(&body.bytes) {
        Ok(request) => request,
        Err(error) => return refuse(&exchange, None, &error.to_string()).await,
    };
    if let Err(reason) = exchange.configured() {
        return refuse(&exchange, None, &reason).await;
    }
    let token = request.token();
    let identity = &exchange.proxy.identity;
    match identity.authenticate(token.as_deref(), &exchange.peer.flow.workload, exchange.account()).await {
        Ok(principal) => open(exchange, request, principal).await,
        Err(error) => {
            let caller = if let IdentityError::NotAdmitted(caller) = &error { Some(caller) } else { None };
            refuse(&exchange, caller, &error.to_string()).await
        }
    }
}

/// Logs in as the user that the rule names.
async fn open(exchange: Exchange<'_>, mut request: LoginRequest, principal: Principal) -> Reaction {
    let client = client(&exchange, &request);
    if let Err(error) = exchange.proxy.sessions.room(&exchange.peer.flow.workload) {
        return refuse(&exchange, Some(principal.caller()), &error.to_string()).await;
    }
    let rule = principal.rule().clone();
    let target =
        LoginTarget { user: &rule.user, role: rule.role.as_deref(), warehouse: rule.warehouse.as_deref() };
    let proof = match exchange.proxy.proof(&rule, exchange.account()) {
        Ok(proof) => proof,
        Err(reason) => return refuse(&exchange, Some(principal.caller()), &reason).await,
    };
    if let Some(tag) = exchange.proxy.query_tag(principal.caller())
        && let Err(error) = request.tag(&tag)
    {
        return refuse(&exchange, Some(principal.caller()), &error.to_string()).await;
    }
    let query = login_query(exchange.parts.uri.query(), &target);
    let body = request.for_upstream(&target, &proof);
    let outgoing = Outgoing { query: &query, ..exchange.outgoing(None, body.into()) };
    let answer = match exchange.proxy.upstream.control(outgoing).await {
        Ok(answer) => answer,
        Err(error) => return exchange.failed(&error).await,
    };
    let answer = match LoginAnswer::parse(&answer.body) {
        Ok(Some(answer)) => answer,
        Ok(None) => {
            let reply = Reply::parse(&answer.body).unwrap_or_default();
            let reason = format!(
                "Snowflake refused the login of {} with the credential `{}`: {} {}",
                rule.user, rule.credential, reply.code, reply.message
            );
            return refuse(&exchange, Some(principal.caller()), &reason).await;
        }
        Err(_) => return exchange.pass(&answer, Reply::parse(&answer.body)).await,
    };
    let id = Uuid::now_v7();
    let session_role =
        if answer.role.is_empty() { rule.role.clone().unwrap_or_default() } else { answer.role.clone() };
    let record = audit::Session {
        id,
        time: audit::now(),
        workload: workload(&exchange.peer.flow.workload),
        caller: principal.caller().clone(),
        account: exchange.account().to_owned(),
        rule: rule.name.clone(),
        user: rule.user.clone(),
        role: session_role.clone(),
        snowflake_session: answer.session_id.clone(),
        client,
    };
    if let Err(error) = exchange.proxy.journal.append(vec![record.into()]).await {
        tracing::error!(%error, "a session could not be recorded");
        discard(&exchange, answer.session_token()).await;
        return exchange.refuse(&Refusal::login(unrecorded("login")));
    }
    exchange.is_on(id);
    let new = NewSession {
        session: Session { id, principal, account: exchange.account().to_owned(), role: session_role },
        upstream: UpstreamTokens {
            session: answer.session_token().clone(),
            master: answer.master_token().clone(),
        },
    };
    match exchange.proxy.sessions.open(new, &exchange.peer.flow.workload) {
        Ok(tokens) => json_answer(answer.for_client(&tokens.session, &tokens.master)),
        Err(error) => {
            discard(&exchange, answer.session_token()).await;
            refuse(&exchange, None, &error.to_string()).await
        }
    }
}

/// Closes a session that Snowflake has opened and no client will have.
async fn discard(exchange: &Exchange<'_>, token: &Secret) {
    let outgoing = Outgoing {
        operation: &Operation::CloseSession,
        query: "delete=true",
        ..exchange.outgoing(Some(Token::Session(token)), "{}".into())
    };
    if let Err(error) = exchange.proxy.upstream.control(outgoing).await {
        tracing::warn!(%error, "a session that no client has stays open with Snowflake until it is idle for long enough");
    }
}

fn client(exchange: &Exchange<'_>, request: &LoginRequest) -> String {
    format!("{} ({})", request.client(), exchange.user_agent())
}

async fn refuse(exchange: &Exchange<'_>, caller: Option<&Caller>, reason: &str) -> Reaction {
    let (proxy, peer) = (exchange.proxy, exchange.peer);
    proxy
        .event(
            EventKind::LoginRefused,
            Some(&peer.flow.workload),
            caller,
            exchange.account(),
            reason.to_owned(),
        )
        .await;
    let request = match exchange.query.request_id.as_str() {
        "" => String::new(),
        id => format!(" (request {id})"),
    };
    exchange.refuse(&Refusal::login(format!("Snowfence refused this login: {reason}{request}")))
}

/// What a client is told when the journal does not work.
pub fn unrecorded(what: &str) -> String {
    format!(
        "Snowfence cannot record this {what} at the moment, and what is not recorded is not let through: try again later"
    )
}
