//! Login and renewal: what the client sends, what goes upstream instead, and what the client gets back.

use serde_json::json;

use super::credential::Proof;
use super::json::{Malformed, Object};
use super::operation::is_known_parameter;
use super::token::ClientToken;
use crate::config::Secret;

/// What of the client's login goes on to Snowflake. Everything else in it is the client's claim of who it is.
const FORWARDED: [&str; 8] = [
    "ACCOUNT_NAME",
    "CLIENT_APP_ID",
    "CLIENT_APP_VERSION",
    "CLIENT_APP_VERSION_FULL",
    "CLIENT_CAPABILITIES",
    "CLIENT_ENVIRONMENT",
    "SESSION_PARAMETERS",
    "SVN_REVISION",
];

/// What of Snowflake's answer to a login goes on to the client; the tokens are replaced.
const ANSWERED: [&str; 11] = [
    "displayUserName",
    "firstLogin",
    "healthCheckInterval",
    "masterValidityInSeconds",
    "newClientForUpgrade",
    "parameters",
    "responseData",
    "serverVersion",
    "sessionId",
    "sessionInfo",
    "validityInSeconds",
];

/// What of Snowflake's answer to a renewal goes on to the client; the tokens are replaced.
const RENEWED: [&str; 3] = ["sessionId", "validityInSecondsMT", "validityInSecondsST"];

/// Query parameters of a login that go on to Snowflake, besides those of every request.
const LOGIN_PARAMETERS: [&str; 2] = ["databaseName", "schemaName"];

/// In characters.
const LONGEST_TAG: usize = 2000;

/// A client's login.
pub struct LoginRequest {
    data: Object,
}

/// As whom the agent logs in.
pub struct LoginTarget<'a> {
    pub user: &'a str,
    pub role: Option<&'a str>,
    pub warehouse: Option<&'a str>,
}

/// Snowflake's answer to a login that succeeded.
pub struct LoginAnswer {
    /// Snowflake's number of the session.
    pub session_id: String,
    /// The role that the session has.
    pub role: String,
    issued: Issued,
}

/// Snowflake's answer to a renewal that succeeded: a new session token.
pub struct Renewal(Issued);

/// An answer that issues tokens, whichever it is.
struct Issued {
    session_token: Secret,
    master_token: Secret,
    body: Object,
    data: Object,
}

impl LoginRequest {
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let body = Object::parse(bytes)?;
        if body.raw("inFlightCtx").is_some_and(|context| context.get() != "null") {
            return Err(Malformed::Unsupported("inFlightCtx"));
        }
        if body.raw("data").is_none() {
            return Err(Malformed::Field("data"));
        }
        Ok(Self { data: body.object("data")? })
    }

    /// A login of the agent's own, to ask something for itself. It shows itself as the Python connector, which every
    /// account takes, and which may ask for results in JSON.
    pub fn agents_own(account: &str) -> Self {
        let account = account.split('.').next().unwrap_or(account);
        let mut data = Object::default();
        data.set("ACCOUNT_NAME", &account);
        data.set("CLIENT_APP_ID", &"PythonConnector");
        data.set("CLIENT_APP_VERSION", &"4.8.1");
        data.set("CLIENT_ENVIRONMENT", &json!({ "APPLICATION": "Snowfence" }));
        data.set("SESSION_PARAMETERS", &json!({ "PYTHON_CONNECTOR_QUERY_RESULT_FORMAT": "JSON" }));
        Self { data }
    }

    /// Sets a tag for the session's queries, unless the client sets one.
    pub fn tag(&mut self, tag: &str) -> Result<(), Malformed> {
        let mut parameters = self.data.object("SESSION_PARAMETERS")?;
        set_tag(&mut parameters, "QUERY_TAG", tag);
        self.data.set("SESSION_PARAMETERS", &parameters);
        Ok(())
    }

    /// The JWT, in whichever field the driver has put it: an OAuth token, an access token, or the password.
    pub fn token(&self) -> Option<String> {
        let is_jwt = |value: &String| value.split('.').count() == 3;
        ["TOKEN", "PASSWORD"].into_iter().filter_map(|field| self.data.field(field)).find(is_jwt)
    }

    /// What the client says it is.
    pub fn client(&self) -> String {
        let text = |field| self.data.field::<String>(field).unwrap_or_default();
        let client = format!("{} {}", text("CLIENT_APP_ID"), text("CLIENT_APP_VERSION"));
        client.trim().chars().take(200).collect()
    }

    /// The login as it goes upstream: with the agent's user and credential, and nothing that the client claimed.
    pub fn for_upstream(mut self, target: &LoginTarget<'_>, proof: &Proof) -> Vec<u8> {
        self.data.retain(|key| FORWARDED.contains(&key));
        self.data.set("LOGIN_NAME", &target.user);
        if target.role.is_some() {
            // Else the session has the user's default secondary roles besides the one that the rule fixes.
            self.data.set("SECONDARY_ROLES", &"NONE");
        }
        if let Some(authenticator) = proof.authenticator {
            self.data.set("AUTHENTICATOR", &authenticator);
        }
        self.data.set(proof.field, &proof.value.expose());
        let mut body = Object::default();
        body.set("data", &self.data);
        body.to_vec()
    }
}

/// Sets a tag among parameters that have none, as the interface spells it.
pub(super) fn set_tag(parameters: &mut Object, key: &str, tag: &str) {
    let has_one =
        parameters.keys().any(|(name, value)| name.eq_ignore_ascii_case(key) && value.get() != "null");
    if !has_one {
        parameters.retain(|name| !name.eq_ignore_ascii_case(key));
        parameters.set(key, &tag);
    }
}

/// The tag that names a caller and the agent that it asked by; `None` where Snowflake would not take it for its length.
pub fn query_tag(issuer: &str, subject: &str, node: &str) -> Option<String> {
    let tag = json!({ "snowfence": { "issuer": issuer, "subject": subject, "node": node } }).to_string();
    (tag.chars().count() <= LONGEST_TAG).then_some(tag)
}

/// The query string of a login as it goes upstream: role and warehouse are the rule's where it names them.
pub fn login_query(query: Option<&str>, target: &LoginTarget<'_>) -> String {
    let mut upstream = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        let forced = match key.as_ref() {
            "roleName" => target.role.is_some(),
            "warehouse" => target.warehouse.is_some(),
            other => !LOGIN_PARAMETERS.contains(&other) && !is_known_parameter(other),
        };
        if !forced {
            upstream.append_pair(&key, &value);
        }
    }
    for (key, value) in [("roleName", target.role), ("warehouse", target.warehouse)] {
        if let Some(value) = value {
            upstream.append_pair(key, value);
        }
    }
    upstream.finish()
}

impl LoginAnswer {
    /// Reads Snowflake's answer to a login; `Ok(None)` where it refused.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        let Some(issued) = Issued::parse(bytes, "token")? else { return Ok(None) };
        let info = issued.data.object("sessionInfo")?;
        let session_id = issued.data.raw("sessionId").map(|id| id.get().trim_matches('"').to_owned());
        Ok(Some(Self {
            session_id: session_id.unwrap_or_default(),
            role: info.field("roleName").unwrap_or_default(),
            issued,
        }))
    }

    pub fn session_token(&self) -> &Secret {
        &self.issued.session_token
    }

    pub fn master_token(&self) -> &Secret {
        &self.issued.master_token
    }

    /// The answer for the client, with the agent's tokens in the place of Snowflake's.
    pub fn for_client(self, session: &ClientToken, master: &ClientToken) -> Vec<u8> {
        self.issued.for_client(&ANSWERED, ("token", session), master)
    }
}

/// An answer to a login or a renewal as a client got it, with other tokens in the place of those that it was given.
pub fn reissued(answer: &[u8], session: &ClientToken, master: &ClientToken) -> Result<Vec<u8>, Malformed> {
    let mut body = Object::parse(answer)?;
    let mut data = body.object("data")?;
    for (field, token) in [("token", session), ("sessionToken", session), ("masterToken", master)] {
        if data.raw(field).is_some() {
            data.set(field, &token.as_str());
        }
    }
    body.set("data", &data);
    Ok(body.to_vec())
}

/// The body of a renewal. Only `RENEW` exists for clients: `ISSUE` would mint a further token.
pub fn renewal_body(client_body: &[u8], old_session_token: &Secret) -> Result<Vec<u8>, Malformed> {
    let body = Object::parse(client_body)?;
    match body.field::<String>("requestType").as_deref() {
        Some("RENEW") => {}
        _ => return Err(Malformed::Unsupported("requestType other than RENEW")),
    }
    Ok(json!({ "oldSessionToken": old_session_token.expose(), "requestType": "RENEW" })
        .to_string()
        .into_bytes())
}

impl Renewal {
    /// Reads Snowflake's answer to a renewal; `Ok(None)` where it refused.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        Ok(Issued::parse(bytes, "sessionToken")?.map(Self))
    }

    pub fn session_token(&self) -> &Secret {
        &self.0.session_token
    }

    pub fn master_token(&self) -> &Secret {
        &self.0.master_token
    }

    /// The answer for the client, with the agent's tokens in the place of Snowflake's.
    pub fn for_client(self, session: &ClientToken, master: &ClientToken) -> Vec<u8> {
        self.0.for_client(&RENEWED, ("sessionToken", session), master)
    }
}

impl Issued {
    fn parse(bytes: &[u8], session_field: &'static str) -> Result<Option<Self>, Malformed> {
        let body = Object::parse(bytes)?;
        if body.field::<bool>("success") != Some(true) {
            return Ok(None);
        }
        let data = body.object("data")?;
        let token = |field| data.field::<String>(field).map(Secret::new).ok_or(Malformed::Field(field));
        Ok(Some(Self {
            session_token: token(session_field)?,
            master_token: token("masterToken")?,
            body,
            data,
        }))
    }

    /// Of Snowflake's data only the `answered` fields go on, with the agent's tokens.
    fn for_client(
        mut self,
        answered: &[&str],
        (session_field, session): (&str, &ClientToken),
        master: &ClientToken,
    ) -> Vec<u8> {
        self.data.retain(|key| answered.contains(&key));
        self.data.set(session_field, &session.as_str());
        self.data.set("masterToken", &master.as_str());
        self.body.retain(|key| matches!(key, "code" | "message" | "success"));
        self.body.set("data", &self.data);
        self.body.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::CredentialType;

    const LOGIN: &str = r#"{"data":{"ACCOUNT_NAME":"acme","LOGIN_NAME":"somebody","PASSWORD":"hunter2","AUTHENTICATOR":"OAUTH","TOKEN":"aaa.bbb.ccc","SPCS_TOKEN":"s","RAW_SAML_RESPONSE":"r","CLIENT_APP_ID":"PythonConnector","CLIENT_APP_VERSION":"4.8.1","SECONDARY_ROLES":"ALL","SESSION_PARAMETERS":{"QUERY_TAG":"x"}}}"#;

    #[test]
    fn nothing_that_the_client_claims_goes_upstream() {
        let request = LoginRequest::parse(LOGIN.as_bytes()).unwrap();
        assert_eq!(request.token().as_deref(), Some("aaa.bbb.ccc"));
        assert_eq!(request.client(), "PythonConnector 4.8.1");
        let proof = Proof::new(CredentialType::Password, &Secret::new("real".into()), "h", "u", 0).unwrap();
        let target = LoginTarget { user: "SVC", role: None, warehouse: None };
        let body: serde_json::Value = serde_json::from_slice(&request.for_upstream(&target, &proof)).unwrap();
        assert_eq!(
            body,
            json!({"data": {
                "ACCOUNT_NAME": "acme", "CLIENT_APP_ID": "PythonConnector", "CLIENT_APP_VERSION": "4.8.1",
                "SESSION_PARAMETERS": {"QUERY_TAG": "x"}, "LOGIN_NAME": "SVC", "PASSWORD": "real",
            }})
        );
    }

    #[test]
    fn a_session_is_tagged_unless_the_client_does_it() {
        let tag = query_tag("https://idp.example", "ada", "node-1").unwrap();
        let tagged = |login: &str| {
            let mut request = LoginRequest::parse(login.as_bytes()).unwrap();
            request.tag(&tag).unwrap();
            request.data.object("SESSION_PARAMETERS").unwrap().field::<String>("QUERY_TAG")
        };
        assert_eq!(tagged(LOGIN).as_deref(), Some("x"));
        assert_eq!(tagged(r#"{"data":{"SESSION_PARAMETERS":{"query_tag":"y"}}}"#), None, "there is one");
        for login in [r#"{"data":{}}"#, r#"{"data":{"SESSION_PARAMETERS":{"QUERY_TAG":null}}}"#] {
            assert_eq!(tagged(login).as_deref(), Some(tag.as_str()));
        }
        assert_eq!(query_tag("i", &"x".repeat(2000), "n"), None);
    }

    #[test]
    fn with_a_fixed_role_there_are_no_secondary_ones() {
        let request = LoginRequest::parse(LOGIN.as_bytes()).unwrap();
        let proof = Proof::new(CredentialType::Password, &Secret::new("real".into()), "h", "u", 0).unwrap();
        let target = LoginTarget { user: "SVC", role: Some("ANALYST"), warehouse: None };
        let body: serde_json::Value = serde_json::from_slice(&request.for_upstream(&target, &proof)).unwrap();
        assert_eq!(body["data"]["SECONDARY_ROLES"], "NONE");
    }

    #[test]
    fn role_and_warehouse_are_the_rules_where_it_names_them() {
        let query = Some("request_id=1&roleName=ACCOUNTADMIN&warehouse=BIG&databaseName=D%20B&x=y");
        let target = LoginTarget { user: "SVC", role: Some("ANALYST"), warehouse: None };
        assert_eq!(
            login_query(query, &target),
            "request_id=1&warehouse=BIG&databaseName=D+B&roleName=ANALYST"
        );
    }

    #[test]
    fn the_client_never_sees_snowflakes_tokens() {
        let answer = br#"{"data":{"token":"real-s","masterToken":"real-m","idToken":"real-i","futureToken":"real-f","sessionId":12345678901234567890,"parameters":[]},"code":null,"message":null,"success":true}"#;
        let answer = LoginAnswer::parse(answer).unwrap().unwrap();
        assert_eq!(
            (answer.session_token().expose(), answer.session_id.as_str()),
            ("real-s", "12345678901234567890")
        );
        let (session, master) = (ClientToken::random().unwrap(), ClientToken::random().unwrap());
        let text = String::from_utf8(answer.for_client(&session, &master)).unwrap();
        assert!(!text.contains("real-"), "{text}");
        assert!(
            text.contains(session.as_str())
                && text.contains(master.as_str())
                && text.contains("12345678901234567890")
        );
    }

    #[test]
    fn a_recorded_answer_gets_other_tokens_and_is_else_the_same() {
        let answer = r#"{"data":{"token":"old-s","sessionId":12345678901234567890,"masterToken":"old-m","parameters":[{"name":"a","value":1.0}]},"code":null,"success":true}"#;
        let (session, master) = (ClientToken::random().unwrap(), ClientToken::random().unwrap());
        let told = String::from_utf8(reissued(answer.as_bytes(), &session, &master).unwrap()).unwrap();
        assert_eq!(told.replace(session.as_str(), "old-s").replace(master.as_str(), "old-m"), answer);
        assert!(!told.contains("old-"), "{told}");
    }

    #[test]
    fn a_further_token_is_not_issued() {
        let old = Secret::new("old".into());
        assert!(renewal_body(br#"{"oldSessionToken":"x","requestType":"ISSUE"}"#, &old).is_err());
        let body = renewal_body(br#"{"oldSessionToken":"x","requestType":"RENEW"}"#, &old).unwrap();
        assert_eq!(body, br#"{"oldSessionToken":"old","requestType":"RENEW"}"#);
    }
}
