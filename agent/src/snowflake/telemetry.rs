//! `POST /telemetry/send`: what drivers report of themselves.

use serde_json::json;

use super::json::{Malformed, Object};

/// The answer where the agent gives it.
pub fn telemetry_answer() -> Vec<u8> {
    json!({ "data": "Log Received", "code": null, "message": null, "success": true }).to_string().into_bytes()
}

/// What goes upstream.
pub fn telemetry_body(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut body = Object::parse(bytes)?;
    body.retain(|key| key == "logs");
    Ok(body.to_vec())
}
