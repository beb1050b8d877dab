//! How the agent says no. Every driver raises its usual exception for HTTP 200 with `success: false` and a six-digit
//! code; other codes lose the message in some driver, and HTTP errors are retried, by some for ever. The SQL API has no
//! driver, and says it by the status of HTTP.

use hyper::StatusCode;
use serde_json::json;
use uuid::Uuid;

use super::api::PATH as API;

/// A refusal as the client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Snowflake's error code, six digits.
    pub code: &'static str,
    pub sql_state: &'static str,
    pub message: String,
    /// Ours, so that the driver's exception leads to the record.
    pub query_id: Option<Uuid>,
    /// By the SQL API.
    pub status: StatusCode,
}

impl Refusal {
    /// Insufficient privileges: a statement that the policy refuses. Not retried by any driver.
    pub fn statement(message: String, id: Uuid) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        Self { code: "003001", sql_state: "42501", message, query_id: Some(id), status }
    }

    /// A statement that was cancelled.
    pub fn cancelled(message: String, id: Uuid) -> Self {
        Self { code: "000604", sql_state: "57014", ..Self::statement(message, id) }
    }

    /// A statement that cannot be cancelled yet: drivers try again.
    pub fn on_its_way(id: Uuid) -> Self {
        let message = "Snowfence is just forwarding this statement: cancel it again".into();
        Self { code: "000605", sql_state: "57014", ..Self::statement(message, id) }
    }

    /// A query that is unknown, or another caller's.
    pub fn query(message: String) -> Self {
        Self { code: "003001", sql_state: "42501", message, query_id: None, status: StatusCode::NOT_FOUND }
    }

    /// A login that is refused: raised at once by every driver.
    pub fn login(message: String) -> Self {
        Self { code: "390100", sql_state: "28000", message, query_id: None, status: StatusCode::UNAUTHORIZED }
    }

    /// The session is unknown or not the caller's: drivers connect anew.
    pub fn session() -> Self {
        let message = "Snowfence does not know this session for this workload: connect again".into();
        Self { code: "390111", sql_state: "08001", message, query_id: None, status: StatusCode::UNAUTHORIZED }
    }

    /// The master token is unknown: the driver has to log in again.
    pub fn master_token() -> Self {
        let message = "Snowfence does not know this session for this workload: log in again".into();
        Self { code: "390114", sql_state: "08001", message, query_id: None, status: StatusCode::UNAUTHORIZED }
    }

    /// A request that cannot be understood.
    pub fn request(message: String) -> Self {
        Self { code: "001003", sql_state: "42000", message, query_id: None, status: StatusCode::BAD_REQUEST }
    }

    /// A request whose answer must not, or cannot, be given.
    pub fn answer(message: String) -> Self {
        Self { status: StatusCode::UNPROCESSABLE_ENTITY, ..Self::request(message) }
    }

    /// As drivers read it.
    pub fn body(&self) -> Vec<u8> {
        let mut data = json!({
            "internalError": false,
            "errorCode": self.code,
            "sqlState": self.sql_state,
            "line": -1,
            "pos": -1,
            "type": "COMPILATION",
        });
        if let (Some(id), Some(data)) = (self.query_id, data.as_object_mut()) {
            data.insert("queryId".into(), json!(id));
        }
        let body = json!({ "data": data, "code": self.code, "message": self.message, "success": false });
        body.to_string().into_bytes()
    }

    /// As the SQL API says it; `now` in milliseconds since the epoch.
    pub fn body_of_api(&self, now: i64) -> Vec<u8> {
        let mut body = json!({ "code": self.code, "sqlState": self.sql_state, "message": self.message });
        if let (Some(id), Some(body)) = (self.query_id, body.as_object_mut()) {
            body.insert("statementHandle".into(), json!(id));
            body.insert("createdOn".into(), json!(now));
            body.insert("statementStatusUrl".into(), json!(format!("{API}/{id}")));
        }
        body.to_string().into_bytes()
    }

    /// As the REST interfaces say it.
    pub fn body_of_rest(&self) -> Vec<u8> {
        let id = self.query_id.map(|id| id.to_string()).unwrap_or_default();
        let body =
            json!({ "code": self.code, "error_code": self.code, "message": self.message, "request_id": id });
        body.to_string().into_bytes()
    }
}

/// The client's identifier of a request, from the query string; empty where it sends none. At most 64 characters of
/// those that identifiers are made of.
pub fn request_id(query: Option<&str>) -> String {
    let value = query.unwrap_or_default().split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.eq_ignore_ascii_case("requestId") || key == "request_id").then_some(value)
    });
    let valid = |character: &char| character.is_ascii_alphanumeric() || *character == '-';
    value.unwrap_or_default().chars().take(64).filter(valid).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_fields_that_drivers_read() {
        let id = Uuid::nil();
        let body: serde_json::Value =
            serde_json::from_slice(&Refusal::statement("no \"x\"\n".into(), id).body()).unwrap();
        assert_eq!(body["code"], "003001");
        assert_eq!(body["success"], false);
        assert_eq!(body["data"]["sqlState"], "42501");
        assert_eq!(body["data"]["queryId"], id.to_string());
        assert_eq!(body["message"], "no \"x\"\n");
    }

    #[test]
    fn by_the_sql_api_it_is_an_error_of_http() {
        let (id, refusal) = (Uuid::nil(), Refusal::statement("no".into(), Uuid::nil()));
        let body: serde_json::Value = serde_json::from_slice(&refusal.body_of_api(7)).unwrap();
        assert_eq!((refusal.status.as_u16(), &body["code"]), (422, &json!("003001")));
        assert_eq!((&body["sqlState"], &body["createdOn"]), (&json!("42501"), &json!(7)));
        assert_eq!(body["statementHandle"], id.to_string());
        assert_eq!(body["statementStatusUrl"], format!("/api/v2/statements/{id}"));
        let body = Refusal::login("no".into()).body_of_api(7);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body, json!({ "code": "390100", "sqlState": "28000", "message": "no" }));
    }

    #[test]
    fn the_request_id_is_found_in_either_spelling_and_made_harmless() {
        assert_eq!(request_id(Some("a=b&request_id=12-ab&c=d")), "12-ab");
        assert_eq!(request_id(Some("requestId=12%0aX<>")), "120aX");
        assert_eq!(request_id(None), "");
    }
}
