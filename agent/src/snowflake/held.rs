//! What a client is told whose statement waits for a person: that it is running, as of any long one, and under which
//! identifier to ask for the result. The identifier is the agent's own. Every driver asks on without a limit, and takes
//! nothing but a path for the place to ask at.

use serde_json::json;
use uuid::Uuid;

use super::api::PATH as API;
use super::operation::{Operation, QueryId};

/// In progress, and the client waits.
const CODE: &str = "333333";
/// The same of the SQL API, where none does.
const CODE_OF_API: &str = "333334";
const MESSAGE: &str = "Snowfence holds this statement until a person has approved it";

/// For drivers.
pub fn held_answer(id: Uuid) -> Vec<u8> {
    let path = Operation::Result(QueryId::of(id)).path();
    let data =
        json!({ "queryId": id, "getResultUrl": path, "queryAbortsAfterSecs": 0, "progressDesc": null });
    json!({ "data": data, "code": CODE, "message": MESSAGE, "success": true }).to_string().into_bytes()
}

/// For clients of the SQL API; `now` in milliseconds since the epoch.
pub fn held_answer_of_api(id: Uuid, now: i64) -> Vec<u8> {
    let body = json!({
        "code": CODE_OF_API, "message": MESSAGE, "statementHandle": id, "createdOn": now,
        "statementStatusUrl": format!("{API}/{id}"),
    });
    body.to_string().into_bytes()
}

/// That a statement was cancelled before it was forwarded.
pub fn cancelled_answer() -> Vec<u8> {
    json!({ "data": null, "code": null, "message": null, "success": true }).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;
    use crate::snowflake::Reply;

    #[test]
    fn a_client_is_told_that_it_is_running_and_where_to_ask() {
        let id = Uuid::from_u128(7);
        let told = held_answer(id);
        let reply = Reply::parse(&told).unwrap();
        assert!(reply.success && reply.in_progress && reply.secret.is_none() && reply.leads.is_none());
        assert_eq!(reply.query_id, Some(QueryId::of(id)));
        let told: serde_json::Value = serde_json::from_slice(&told).unwrap();
        assert_eq!(told["data"]["getResultUrl"], "/queries/00000000-0000-0000-0000-000000000007/result");
        let told = held_answer_of_api(id, 5);
        let reply = Reply::of_api(StatusCode::ACCEPTED, &told).unwrap();
        assert!(reply.in_progress && reply.secret.is_none());
        assert_eq!(reply.query_id, Some(QueryId::of(id)));
    }
}
