//! Clients without a driver: curl, with a token.

use anyhow::{Context, Result};
use sandbox::{Credential, Pod, Sandbox};
use serde_json::Value;

/// As Snowflake's documentation shows it: the method, the path, then curl's own options.
const CURL: &str = r#"method=$1 path=$2; shift 2
exec curl -sS -i --max-time 100 -X "$method" -A reports/1.0 -H 'Accept: application/json' \
    -H 'Content-Type: application/json' -H "Authorization: ${AUTHORIZATION:-Bearer $SNOWFLAKE_TOKEN}" \
    -H 'X-Snowflake-Authorization-Token-Type: OAUTH' "$@" "https://$SNOWFLAKE_HOST$path""#;

/// What came back.
#[derive(Debug)]
pub struct Said {
    pub status: u16,
    pub head: String,
    pub body: Value,
}

impl Said {
    pub fn handle(&self) -> Result<String> {
        Ok(self.body["statementHandle"].as_str().with_context(|| format!("{self:?}"))?.to_owned())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (header, value) = line.split_once(": ")?;
            header.eq_ignore_ascii_case(name).then_some(value)
        })
    }
}

pub fn ask(pod: &Pod, method: &str, path: &str, more: &[&str]) -> Result<Said> {
    let words = ["sh", "-c", CURL, "sh", method, path];
    let output = pod.run(words.iter().chain(more))?.into_stdout()?;
    let (head, body) = output.split_once("\r\n\r\n").with_context(|| output.clone())?;
    let status = head.split(' ').nth(1).context("a status")?.parse()?;
    Ok(Said {
        status,
        head: head.to_owned(),
        body: serde_json::from_str(body).with_context(|| body.to_owned())?,
    })
}

/// The account, with a credential that is good for what has no login.
pub fn sandbox_of(credential: Credential) -> Result<Sandbox> {
    Sandbox::builder().credential(credential).start()
}
