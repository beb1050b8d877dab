//! The SQL API, for clients without a driver: no login, each request carries who asks. Statements go the way of all
//! others, with the rule's credential itself in the place of a session's token.

use bytes::Bytes;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_ENCODING, LINK, RETRY_AFTER};

use super::body;
use super::login::unrecorded;
use super::service::{Exchange, Reaction, plain, with_status};
use super::sessions::{Session, TokenKind};
use super::upstream::{ANSWER_LIMIT, Answer, Token};
use super::{approvals, statement};
use crate::audit::{Caller, EventKind};
use crate::config::Secret;
use crate::identity::IdentityError;
use crate::snowflake::{
    Malformed, Operation, Proof, QueryId, QueryRequest, Refusal, Reply, are_ours, bearer_token,
    snowflake_token,
};

/// Handles one request.
pub async fn handle(exchange: &Exchange<'_>, body: &mut Incoming) -> Reaction {
    let session = match session(exchange).await {
        Ok(session) => session,
        Err(refusal) => return refusal,
    };
    match &exchange.operation {
        Operation::ApiResult(handle) | Operation::ApiCancel(handle) => ask(exchange, &session, handle).await,
        _ => submit(exchange, &session, body).await,
    }
}

/// On whose behalf a request is: of the bearer token's holder, or of the session whose token comes, as the Snowflake CLI
/// sends it.
pub async fn session(exchange: &Exchange<'_>) -> Result<Session, Reaction> {
    let header = exchange.parts.headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let header = header.unwrap_or_default();
    if snowflake_token(header).is_some() {
        return exchange.session(TokenKind::Session).await.map(|open| open.session.clone());
    }
    if let Err(reason) = exchange.configured() {
        return Err(refuse(exchange, None, StatusCode::UNAUTHORIZED, &reason).await);
    }
    let Some(token) = bearer_token(header) else {
        let reason = "it carries no token: send one of your identity provider, as `Authorization: Bearer …`";
        return Err(refuse(exchange, None, StatusCode::UNAUTHORIZED, reason).await);
    };
    let (identity, workload) = (&exchange.proxy.identity, &exchange.peer.flow.workload);
    let principal = match identity.authenticate(Some(token), workload, exchange.account()).await {
        Ok(principal) => principal,
        Err(error) => {
            let caller = if let IdentityError::NotAdmitted(caller) = &error { Some(caller) } else { None };
            let status = match error {
                IdentityError::NoKeys => StatusCode::SERVICE_UNAVAILABLE,
                _ => StatusCode::UNAUTHORIZED,
            };
            return Err(refuse(exchange, caller, status, &error.to_string()).await);
        }
    };
    let client = || format!("SQL API ({})", exchange.user_agent());
    let session = exchange.proxy.session_of(principal, exchange.account(), workload, client).await;
    session.inspect(|session| exchange.is_on(session.id)).map_err(|error| {
        tracing::error!(%error, "a caller of the SQL API could not be recorded");
        plain(StatusCode::SERVICE_UNAVAILABLE, &unrecorded("request"))
    })
}

/// The rule's credential as a bearer token, and of which kind it is. It may be good for a minute only.
pub async fn credential(
    exchange: &Exchange<'_>,
    session: &Session,
) -> Result<(Secret, &'static str), Reaction> {
    let (caller, rule) = (session.principal.caller(), session.principal.rule());
    if !rule.sql_api {
        let reason = format!(
            "the rule `{}` fixes a role, and the SQL API and the REST interfaces have no way to switch secondary roles off: if {} has none by default, or the credential is restricted to the role, the rule may say `sql_api = true`",
            rule.name, rule.user
        );
        return Err(refuse(exchange, Some(caller), StatusCode::FORBIDDEN, &reason).await);
    }
    let reason = match exchange.proxy.proof(rule, exchange.account()) {
        Ok(Proof { token_type: Some(kind), value, .. }) => return Ok((value, kind)),
        Ok(_) => format!(
            "Snowflake's SQL API and REST interfaces take no password, and the credential `{}` of the rule `{}` is one: give the rule a key pair, an access token or an OAuth token",
            rule.credential, rule.name
        ),
        Err(reason) => reason,
    };
    Err(refuse(exchange, Some(caller), StatusCode::FORBIDDEN, &reason).await)
}

async fn submit(exchange: &Exchange<'_>, session: &Session, body: &mut Incoming) -> Reaction {
    // Who shares the Snowflake user would be given the other's result by it.
    if exchange.proxy.sessions.is_of_another(session, &exchange.query.request_id) {
        return exchange.malformed("its requestId is another caller's").await;
    }
    let body = match exchange.read(body, body::QUERY).await {
        Ok(body) => body,
        Err(error) => return exchange.unreadable(&error).await,
    };
    let rule = session.principal.rule();
    let tag = exchange.proxy.query_tag(session.principal.caller());
    match QueryRequest::of_api(&body.bytes, rule.role.as_deref(), rule.warehouse.as_deref(), tag.as_deref()) {
        Ok(request) => match credential(exchange, session).await {
            Ok((secret, kind)) => {
                statement::run(exchange, session, request, Token::Bearer(&secret, kind)).await
            }
            Err(refusal) => refusal,
        },
        Err(error) => exchange.malformed(&error.to_string()).await,
    }
}

/// Asks for a statement that was submitted before, or for its end.
async fn ask(exchange: &Exchange<'_>, session: &Session, handle: &QueryId) -> Reaction {
    if let Some(held) = exchange.proxy.approvals.of_query(session, &exchange.operation) {
        if matches!(exchange.operation, Operation::ApiCancel(_))
            && let Some(cancelled) = approvals::cancel(exchange, held).await
        {
            return cancelled;
        }
        return match credential(exchange, session).await {
            Ok((secret, kind)) => {
                approvals::poll(exchange, session, held, Token::Bearer(&secret, kind)).await
            }
            Err(refusal) => refusal,
        };
    }
    exchange.is_about(handle.as_str());
    if !exchange.proxy.sessions.owns(session, handle) {
        return exchange.not_the_owner(session, handle.as_str()).await;
    }
    let (secret, kind) = match credential(exchange, session).await {
        Ok(credential) => credential,
        Err(refusal) => return refusal,
    };
    let outgoing = exchange.outgoing(Some(Token::Bearer(&secret, kind)), Bytes::new());
    let answer = match exchange.proxy.upstream.control(outgoing).await {
        Ok(answer) => answer,
        Err(error) => return exchange.failed(&error).await,
    };
    let reply = read(&answer);
    if let Ok(reply) = &reply
        && has_ended(exchange, answer.status)
    {
        let is_result = matches!(exchange.operation, Operation::ApiResult(_));
        let reply =
            Reply { success: reply.success && is_result, query_id: Some(handle.clone()), ..reply.clone() };
        statement::finish(exchange.proxy, session, handle, &answer, &reply);
    }
    pass(exchange, session, &answer, reply).await
}

/// Whether an answer says that the statement that was asked for is at its end.
fn has_ended(exchange: &Exchange<'_>, status: StatusCode) -> bool {
    match exchange.operation {
        Operation::ApiCancel(_) => status == StatusCode::OK,
        _ => {
            matches!(status, StatusCode::OK | StatusCode::REQUEST_TIMEOUT | StatusCode::UNPROCESSABLE_ENTITY)
        }
    }
}

/// Reads an answer, compressed or not.
pub fn read(answer: &Answer) -> Result<Reply, Malformed> {
    let body = body::inflated(&answer.body, ANSWER_LIMIT).map_err(|_| Malformed::NotAnObject)?;
    Reply::of_api(answer.status, &body)
}

/// Passes an answer as it came, unless it carries a secret or is about the agent's own credential.
pub async fn pass(
    exchange: &Exchange<'_>,
    session: &Session,
    answer: &Answer,
    reply: Result<Reply, Malformed>,
) -> Reaction {
    match reply {
        Ok(Reply { secret: None, code, message, .. })
            if matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) =>
        {
            credential_refused(exchange, session, &code, &message).await
        }
        Ok(Reply { secret: None, .. }) => relayed(answer),
        withheld => exchange.pass(answer, withheld).await,
    }
}

/// Snowflake does not take the agent's own credential, which is not the client's fault.
pub async fn credential_refused(
    exchange: &Exchange<'_>,
    session: &Session,
    code: &str,
    message: &str,
) -> Reaction {
    let rule = session.principal.rule();
    let detail =
        format!("Snowflake refused the credential `{}` of {}: {code} {message}", rule.credential, rule.user);
    exchange.event(EventKind::UpstreamFailed, Some(session), detail.clone()).await;
    plain(StatusCode::BAD_GATEWAY, &detail)
}

fn relayed(answer: &Answer) -> Reaction {
    let mut reaction = with_status(answer.status, answer.body.clone());
    let links = answer.headers.get_all(LINK);
    // A client follows them with its token.
    if links.iter().all(|links| links.to_str().is_ok_and(are_ours)) {
        for links in links {
            reaction.headers_mut().append(LINK, links.clone());
        }
    }
    for name in [CONTENT_ENCODING, RETRY_AFTER] {
        if let Some(value) = answer.headers.get(&name) {
            reaction.headers_mut().insert(name, value.clone());
        }
    }
    reaction
}

async fn refuse(
    exchange: &Exchange<'_>,
    caller: Option<&Caller>,
    status: StatusCode,
    reason: &str,
) -> Reaction {
    let (proxy, workload) = (exchange.proxy, &exchange.peer.flow.workload);
    proxy.event(EventKind::LoginRefused, Some(workload), caller, exchange.account(), reason.to_owned()).await;
    let message = format!("Snowfence refused this request: {reason}");
    exchange.refuse(&Refusal { status, ..Refusal::login(message) })
}
