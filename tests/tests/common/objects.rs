//! An object store outside, and how the agent is told of it.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use sandbox::{Environment, Sandbox, certificates, network};

use super::{Ended, ready};

const ADDRESS: &str = "10.77.1.4";

/// An S3 with one bucket.
pub struct Objects {
    folder: tempfile::TempDir,
}

impl Objects {
    pub fn new() -> Result<Self> {
        sandbox::python::prepare(&[Environment::Objects], &|_| {})?;
        let folder = tempfile::tempdir()?;
        let files = certificates::Files {
            authority: folder.path().join("ca.pem"),
            certificate: folder.path().join("server.pem"),
            key: folder.path().join("server.key"),
        };
        certificates::write(&[ADDRESS], &files)?;
        fs::write(folder.path().join("secret"), "secret-of-the-bucket\n")?;
        Ok(Self { folder })
    }

    /// A place in the bucket, as a configuration has it.
    pub fn place(&self, prefix: &str) -> String {
        let folder = self.folder.path().display();
        format!(
            r#"url = "s3://trail/{prefix}"
ca_bundle = "{folder}/ca.pem"
options = {{ endpoint = "https://{ADDRESS}:9000", region = "eu-west-1", access_key_id = "AKIDSNOWFENCE" }}
secrets = {{ secret_access_key = "file:{folder}/secret" }}
"#
        )
    }

    pub fn serve(&self, sandbox: &Sandbox) -> Result<Ended> {
        let mut command = python(sandbox)?;
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/objects.py"));
        ready(command.args([ADDRESS, "9000"]).arg(self.folder.path()).stderr(Stdio::null()))
    }

    /// What each request is answered with from now on, such as `503 SlowDown`.
    pub fn fail(&self, answer: &str) -> Result<()> {
        Ok(fs::write(self.folder.path().join("down"), answer)?)
    }

    pub fn recover(&self) -> Result<()> {
        Ok(fs::remove_file(self.folder.path().join("down"))?)
    }

    /// What was asked: method, path, status.
    pub fn requests(&self) -> String {
        fs::read_to_string(self.folder.path().join("requests")).unwrap_or_default()
    }

    /// Does something with the bucket as its owner, by Amazon's SDK, in Python; returns what it prints.
    pub fn by_owner(&self, sandbox: &Sandbox, source: &str) -> Result<String> {
        let source = format!(
            r#"
import boto3, json, os
bucket = boto3.resource("s3", "eu-west-1", endpoint_url="https://{ADDRESS}:9000", verify="{folder}/ca.pem",
    aws_access_key_id="AKIDSNOWFENCE", aws_secret_access_key="secret-of-the-bucket").Bucket("trail")
{source}"#,
            folder = self.folder.path().display()
        );
        let output = python(sandbox)?.args(["-c", &source]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Brings all objects below a prefix into a folder.
    pub fn download(&self, sandbox: &Sandbox, prefix: &str, to: &Path) -> Result<()> {
        let source = format!(
            r#"
for found in bucket.objects.filter(Prefix="{prefix}/"):
    path = "{to}" + found.key.removeprefix("{prefix}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    bucket.download_file(found.key, path)"#,
            to = to.display()
        );
        self.by_owner(sandbox, &source).map(drop)
    }
}

/// Python outside.
fn python(sandbox: &Sandbox) -> Result<Command> {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", network::outside(sandbox.id()).display()));
    command.arg(Environment::Objects.python().context("the object store's Python")?);
    Ok(command)
}
