//! The agent's configuration in a sandbox: the sandbox's own, or somebody's file with the sandbox's own places put in.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use toml::{Table, Value};

use crate::{credential::Credential, network, services};

/// What the configuration has to name and only the sandbox knows.
#[derive(Clone, Debug)]
pub struct Facts {
    pub state: PathBuf,
    pub cgroup: String,
    pub pins: PathBuf,
    pub upstream_ca: PathBuf,
    /// The file that holds the service's credential for Snowflake, and of which type it is.
    pub secret: PathBuf,
    pub credential: Credential,
    pub policy: Option<PathBuf>,
}

/// The configuration of a sandbox for which nobody asked for another one.
pub fn default() -> Result<Table> {
    let text = format!(
        r#"
[agent]
node = "sandbox"

[[accounts]]
host = "{host}"

[[issuers]]
issuer = "{issuer}"
audience = "{audience}"
jwks_url = "{issuer}/jwks"
allow_http = true

[[rules]]
name = "analysts"
issuer = "{issuer}"
groups = ["analysts"]
cgroups = ["/snowfence-*/pods/**"]
account = "{host}"
user = "{user}"
warehouse = "{warehouse}"
credential = "svc"

[audit.clickhouse]
url = "http://{clickhouse}:8123"
database = "snowfence"
"#,
        host = services::ACCOUNT_HOST,
        issuer = services::issuer(),
        audience = services::AUDIENCE,
        user = services::SERVICE_USER,
        warehouse = services::WAREHOUSE,
        clickhouse = network::CLICKHOUSE,
    );
    toml::from_str(&text).context("read the sandbox's own configuration")
}

/// Puts the sandbox's own places into `configuration`, over whatever stands there. The credential `svc` is added only
/// where the file defines no credential of that name.
pub fn complete(mut configuration: Table, facts: &Facts) -> Result<Table> {
    put(&mut configuration, "agent", "state_dir", path(&facts.state)?)?;
    put(&mut configuration, "capture", "cgroup", Value::from(facts.cgroup.as_str()))?;
    put(&mut configuration, "capture", "bpffs", path(&facts.pins)?)?;
    put(&mut configuration, "capture", "nameservers", Value::from(vec![format!("{}:53", network::DNS)]))?;
    put(&mut configuration, "tls", "upstream_ca_bundle", path(&facts.upstream_ca)?)?;
    if let Some(policy) = &facts.policy {
        put(&mut configuration, "policy", "file", path(policy)?)?;
    }
    let credentials = section(&mut configuration, "credentials")?;
    if !credentials.contains_key("svc") {
        let mut credential = Table::new();
        credential.insert("type".into(), facts.credential.kind().into());
        credential.insert("secret".into(), format!("file:{}", facts.secret.display()).into());
        credentials.insert("svc".into(), credential.into());
    }
    Ok(configuration)
}

/// Sets a key of a section, which is made where it is missing.
pub fn put(configuration: &mut Table, section_name: &str, key: &str, value: Value) -> Result<()> {
    section(configuration, section_name)?.insert(key.to_owned(), value);
    Ok(())
}

fn section<'a>(configuration: &'a mut Table, name: &str) -> Result<&'a mut Table> {
    configuration
        .entry(name)
        .or_insert_with(|| Table::new().into())
        .as_table_mut()
        .with_context(|| format!("`{name}` in the configuration is no table"))
}

fn path(path: &Path) -> Result<Value> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            state: "/run/s/secret/state".into(),
            cgroup: "/snowfence-abc123".into(),
            pins: "/sys/fs/bpf/snowfence-abc123".into(),
            upstream_ca: "/run/s/public/upstream-ca.pem".into(),
            secret: "/run/s/secret/password".into(),
            credential: Credential::Password,
            policy: None,
        }
    }

    #[test]
    fn the_default_is_complete() {
        let table = complete(default().unwrap(), &facts()).unwrap();
        assert_eq!(table["capture"]["cgroup"].as_str(), Some("/snowfence-abc123"));
        assert_eq!(table["capture"]["nameservers"][0].as_str(), Some("10.77.1.6:53"));
        assert_eq!(table["credentials"]["svc"]["secret"].as_str(), Some("file:/run/s/secret/password"));
        assert_eq!(table["agent"]["node"].as_str(), Some("sandbox"));
        assert!(!table.contains_key("policy"));
        let printed = toml::to_string(&table).unwrap();
        assert_eq!(toml::from_str::<Table>(&printed).unwrap(), table);
    }

    #[test]
    fn a_file_keeps_all_but_the_sandboxs_own_places() {
        let text = "\
[agent]
state_dir = \"/elsewhere\"
[capture]
ports = [443, 8443]
cgroup = \"/\"
[credentials.svc]
type = \"key_pair\"
secret = \"env:KEY\"
";
        let mut facts = facts();
        facts.policy = Some("/p.cedar".into());
        let table = complete(toml::from_str(text).unwrap(), &facts).unwrap();
        assert_eq!(table["agent"]["state_dir"].as_str(), Some("/run/s/secret/state"));
        assert_eq!(table["capture"]["ports"][1].as_integer(), Some(8443));
        assert_eq!(table["capture"]["cgroup"].as_str(), Some("/snowfence-abc123"));
        assert_eq!(table["credentials"]["svc"]["secret"].as_str(), Some("env:KEY"));
        assert_eq!(table["policy"]["file"].as_str(), Some("/p.cedar"));
        assert!(!table.contains_key("rules"));
    }

    #[test]
    fn a_section_that_is_no_table_is_named() {
        let error = complete(toml::from_str("capture = 1").unwrap(), &facts()).unwrap_err();
        assert!(error.to_string().contains("`capture`"), "{error}");
    }
}
