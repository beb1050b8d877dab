//! The certificates of the emulated Snowflake. Its CA is not the agent's internal one: whoever sees a certificate knows
//! whom it met.

use std::{
    fs,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// The name of the CA of the emulated Snowflake.
pub const UPSTREAM_CA_NAME: &str = "Sandbox Upstream CA";

/// PEM files: what to verify the server by, and what the server presents and proves.
#[derive(Clone, Debug)]
pub struct Files {
    pub authority: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Makes a CA and a certificate for `hosts`. The CA's own key is thrown away.
pub fn write(hosts: &[&str], files: &Files) -> Result<()> {
    let authority = authority().context("make the upstream's CA")?;
    let key = KeyPair::generate().context("make the upstream's key")?;
    let certificate = server(hosts).and_then(|params| params.signed_by(&key, &authority));
    let certificate = certificate.with_context(|| format!("make a certificate for {hosts:?}"))?;
    write_file(&files.authority, &authority.pem(), 0o644)?;
    write_file(&files.certificate, &certificate.pem(), 0o644)?;
    write_file(&files.key, &key.serialize_pem(), 0o600)
}

fn authority() -> Result<CertifiedIssuer<'static, KeyPair>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, UPSTREAM_CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn server(hosts: &[&str]) -> Result<CertificateParams, rcgen::Error> {
    let names: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, hosts.first().copied().unwrap_or_default());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(params)
}

fn write_file(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write as _;
    fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_files_are_there_and_the_key_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            authority: folder.path().join("ca.pem"),
            certificate: folder.path().join("server.pem"),
            key: folder.path().join("server.key"),
        };
        write(&["acme.example", "other.example"], &files).unwrap();
        for (path, begin) in [(&files.authority, "CERTIFICATE"), (&files.certificate, "CERTIFICATE")] {
            assert!(fs::read_to_string(path).unwrap().starts_with(&format!("-----BEGIN {begin}-----")));
        }
        assert!(fs::read_to_string(&files.key).unwrap().starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_eq!(fs::metadata(&files.key).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
