//! The internal certificate authority: made at the first start, kept in the state directory, reused ever after.
//!
//! It carries X.509 name constraints, so that it can never vouch for a name outside the captured suffixes, whoever
//! gets hold of it.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CrlDistributionPoint,
    DistinguishedName, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, NameConstraints, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::TlsError;

const AUTHORITY_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);
/// Short, as leaves carry no revocation pointers by default: a driver would wait for a responder that it cannot reach.
/// Drivers that insist on a list of revoked certificates make an exception for such as are valid for less than seven days.
pub(super) const LEAF_LIFETIME: Duration = Duration::from_hours(6 * 24);
/// The path of the list of revoked certificates, at port 80 of each host that has a leaf.
pub const LIST: &str = "/snowfence.crl";
/// Clocks of clients may be behind.
const BACKDATE: Duration = Duration::from_hours(1);

/// Where a leaf says that the list of revoked certificates is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    Nowhere,
    /// At port 80 of the host that it is for.
    AtItsHost,
}

pub struct Authority {
    certificate_pem: String,
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    /// What it may sign for, and is to.
    suffixes: Vec<String>,
}

impl Authority {
    /// Reads the CA from `directory`, or makes one there that may sign for names under `suffixes` only.
    pub fn open(directory: &Path, suffixes: &[String]) -> Result<Self, TlsError> {
        let key_path = directory.join("key.pem");
        if !key_path.exists() {
            create(directory, suffixes)?;
        }
        let mode =
            std::fs::metadata(&key_path).map_err(|source| read_error(&key_path, source))?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(TlsError::KeyExposed { path: key_path, mode });
        }
        let key_pem = read(&key_path)?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| damaged(&key_path, "key", &error))?;
        let authority = Self::from_files(directory, key, suffixes.to_vec())?;
        for suffix in suffixes {
            authority.check_name(directory, suffix)?;
        }
        Ok(authority)
    }

    /// One for some names, whose key is in memory alone.
    pub fn ephemeral(names: &[String]) -> Result<Self, TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params_of_authority(names);
        set_validity(&mut params, LEAF_LIFETIME);
        let certificate = params.self_signed(&key)?;
        let (certificate_pem, certificate) = (certificate.pem(), certificate.der().clone());
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate_pem, certificate, issuer, suffixes: names.to_vec() })
    }

    /// The CA's certificate, for the clients' trust stores. Needs no access to the key.
    pub fn read_certificate(directory: &Path) -> Result<String, TlsError> {
        read(&certificate_path(directory))
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The list of revoked certificates, in DER. None ever is: that of a lost key is a matter of days, and the CA's of its
    /// removal from the clients' trust stores.
    pub fn revocation_list(&self) -> Result<Vec<u8>, TlsError> {
        let now = SystemTime::now();
        // A list that is made later has a higher number.
        let number = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let list = CertificateRevocationListParams {
            this_update: (now - BACKDATE).into(),
            next_update: (now + LEAF_LIFETIME).into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.der().to_vec())
    }

    /// A leaf for one host name, with its key, followed by the CA's certificate: some drivers want the whole chain.
    pub(super) fn leaf(
        &self,
        name: &str,
        listed: Listed,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), TlsError> {
        let mut params = params_of_leaf(vec![name.to_owned()])?;
        params.crl_distribution_points = list_of(name, listed);
        let (leaf, key) = self.sign(&params)?;
        let own = match listed {
            Listed::Nowhere => self.certificate.clone(),
            // The Python connector 5 wants a list for what it trusts, too, if it is part of the chain.
            Listed::AtItsHost => {
                let mut params = params_of_authority(&self.suffixes);
                params.crl_distribution_points = list_of(name, listed);
                set_validity(&mut params, LEAF_LIFETIME);
                params.self_signed(self.issuer.key())?.der().clone()
            }
        };
        Ok((vec![leaf, own], key))
    }

    /// The same for several names and addresses.
    pub(super) fn leaf_of_all(
        &self,
        names: Vec<String>,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), TlsError> {
        let (leaf, key) = self.sign(&params_of_leaf(names)?)?;
        Ok((vec![leaf, self.certificate.clone()], key))
    }

    fn sign(&self, params: &CertificateParams) -> Result<(CertificateDer<'static>, KeyPair), TlsError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((leaf.der().clone(), key))
    }

    fn from_files(directory: &Path, key: KeyPair, suffixes: Vec<String>) -> Result<Self, TlsError> {
        let path = certificate_path(directory);
        let certificate_pem = read(&path)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(&path, "certificate", &error))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| damaged(&path, "certificate", &error))?;
        Ok(Self { certificate_pem, certificate, issuer, suffixes })
    }

    /// Proves with a leaf that verifies that the CA may sign for names under a suffix.
    fn check_name(&self, directory: &Path, suffix: &str) -> Result<(), TlsError> {
        let name = format!("account.{suffix}");
        let constrained = || TlsError::Constrained { path: directory.to_owned(), name: suffix.to_owned() };
        let (chain, _) = self.leaf(&name, Listed::Nowhere)?;
        let [leaf, root] = chain.as_slice() else { return Err(constrained()) };
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(|_| constrained())?;
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(|_| constrained())?;
        let now = rustls::pki_types::UnixTime::now();
        leaf.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &[],
            now,
            webpki::KeyUsage::server_auth(),
            None,
            None,
        )
        .map(|_| ())
        .map_err(|_| constrained())
    }
}

fn create(directory: &Path, suffixes: &[String]) -> Result<(), TlsError> {
    let write_error = |path: &Path, source| TlsError::Write { path: path.to_owned(), source };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| write_error(directory, source))?;
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = params_of_authority(suffixes);
    set_validity(&mut params, AUTHORITY_LIFETIME);
    let certificate = params.self_signed(&key)?;
    // The key comes last: its presence says that the CA is complete.
    let files = [
        (certificate_path(directory), certificate.pem(), 0o644),
        (directory.join("key.pem"), key.serialize_pem(), 0o600),
    ];
    for (path, text, mode) in files {
        let partial = path.with_extension("partial");
        let written = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&partial)
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&partial, &path));
        written.map_err(|source| write_error(&path, source))?;
    }
    Ok(())
}

fn params_of_leaf(names: Vec<String>) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = distinguished_name("Snowfence leaf");
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    set_validity(&mut params, LEAF_LIFETIME);
    Ok(params)
}

fn params_of_authority(suffixes: &[String]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("Snowfence internal CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: suffixes.iter().cloned().map(GeneralSubtree::DnsName).collect(),
        excluded_subtrees: Vec::new(),
    });
    params
}

/// Where the list of revoked certificates is, for those of a host.
fn list_of(name: &str, listed: Listed) -> Vec<CrlDistributionPoint> {
    match listed {
        Listed::Nowhere => Vec::new(),
        Listed::AtItsHost => vec![CrlDistributionPoint { uris: vec![format!("http://{name}{LIST}")] }],
    }
}

fn distinguished_name(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, "Snowfence");
    name
}

fn set_validity(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
}

fn certificate_path(directory: &Path) -> PathBuf {
    directory.join("certificate.pem")
}

fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|source| read_error(path, source))
}

fn read_error(path: &Path, source: std::io::Error) -> TlsError {
    TlsError::Read { path: path.to_owned(), source }
}

fn damaged(path: &Path, what: &'static str, reason: &dyn std::fmt::Display) -> TlsError {
    TlsError::Damaged { path: path.to_owned(), what, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn suffixes(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn it_is_made_once_kept_private_and_reused() {
        let directory = tempfile::tempdir().unwrap();
        let ca = directory.path().join("ca");
        let first = Authority::open(&ca, &suffixes(&["snowflakecomputing.com"])).unwrap();
        let again = Authority::open(&ca, &suffixes(&["snowflakecomputing.com"])).unwrap();
        assert_eq!(first.certificate_pem(), again.certificate_pem());
        let mode = std::fs::metadata(ca.join("key.pem")).unwrap().mode() & 0o777;
        assert_eq!(mode, 0o600);
        std::fs::set_permissions(ca.join("key.pem"), std::fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = Authority::open(&ca, &suffixes(&["snowflakecomputing.com"]));
        assert!(matches!(exposed, Err(TlsError::KeyExposed { mode: 0o640, .. })));
    }

    #[test]
    fn it_cannot_vouch_for_names_that_it_was_not_made_for() {
        let directory = tempfile::tempdir().unwrap();
        Authority::open(directory.path(), &suffixes(&["snowflakecomputing.com"])).unwrap();
        let other = Authority::open(directory.path(), &suffixes(&["snowflakecomputing.com", "example.com"]));
        assert!(matches!(other, Err(TlsError::Constrained { name, .. }) if name == "example.com"));
    }
}
