//! Asks Snowflake by which hosts an account is reached, with the agent's own credentials: `SYSTEM$ALLOWLIST()`.

use serde::{Deserialize, Serialize};

use super::Proxy;
use super::own::{Asker, OwnError, Row};
use crate::config::Rule;

const STATEMENT: &str = "SELECT SYSTEM$ALLOWLIST()";

/// A host that an account's clients need to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedHost {
    #[serde(rename = "type")]
    pub kind: String,
    pub host: String,
    #[serde(default)]
    pub port: u16,
}

#[derive(Debug, thiserror::Error)]
pub enum AllowlistError {
    #[error("no rule is for this account: the agent has no credential for it")]
    NoRule,
    #[error(transparent)]
    Own(#[from] OwnError),
}

impl Proxy {
    /// The hosts of an account. The question is in the trail, like any other statement.
    pub async fn allowlist(&self, account: &str) -> Result<Vec<AllowedHost>, AllowlistError> {
        let is_for = |rule: &&Rule| rule.account.as_ref().is_none_or(|of| of == account);
        let rule = self.config.rules.iter().find(is_for).ok_or(AllowlistError::NoRule)?;
        let asker = Asker {
            account,
            user: &rule.user,
            role: rule.role.as_deref(),
            warehouse: rule.warehouse.as_deref(),
            credential: &rule.credential,
            rule: &rule.name,
            caller: "snowfence endpoints sync",
        };
        let session = self.own_session(&asker).await?;
        let rows = session.rows(STATEMENT).await;
        session.close().await;
        Ok(hosts(rows?)?)
    }
}

/// The list is the only value of the only row, as JSON in a text.
fn hosts(rows: Vec<Row>) -> Result<Vec<AllowedHost>, OwnError> {
    let value = rows.into_iter().flatten().flatten().next();
    let list = value.ok_or_else(|| OwnError::Answer("it is empty".to_owned()))?;
    serde_json::from_str(&list).map_err(|error| OwnError::Answer(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_out_of_the_result() {
        let list = r#"[{"type":"SNOWFLAKE_DEPLOYMENT","host":"acme.snowflakecomputing.com","port":443},{"type":"STAGE","host":"b.s3.amazonaws.com","port":443},{"type":"OCSP_CACHE","host":"o"}]"#;
        let hosts = hosts(vec![vec![Some(list.to_owned())]]).unwrap();
        assert_eq!(
            (hosts.len(), hosts[0].host.as_str(), hosts[2].port),
            (3, "acme.snowflakecomputing.com", 0)
        );
        for rows in [vec![], vec![vec![None]], vec![vec![Some("nonsense".to_owned())]]] {
            assert!(super::hosts(rows).is_err());
        }
    }
}
