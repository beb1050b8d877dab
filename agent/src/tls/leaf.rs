//! What clients meet: a leaf for the name that they asked for, made when first needed and kept until half of its
//! life is over.

use std::sync::Arc;

use moka::sync::Cache;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::{self, sign::any_ecdsa_type};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::authority::{LEAF_LIFETIME, Listed};
use super::{Authority, TlsError};

/// Names come from clients, so the number of leaves kept is bounded.
const LEAVES: u64 = 1024;

/// The TLS configuration towards clients. HTTP/2 and HTTP/1.1 are offered; tickets resume sessions.
pub fn server_config(authority: Arc<Authority>, listed: Listed) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let made = Cache::builder().max_capacity(LEAVES).time_to_live(LEAF_LIFETIME / 2).build();
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(Leaves { authority, listed, made }));
    config.alpn_protocols = protocols();
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// The same with one leaf, for all of these names and addresses, whatever a client asks for.
pub fn server_config_of(authority: &Authority, names: Vec<String>) -> Result<Arc<ServerConfig>, TlsError> {
    let (chain, key) = authority.leaf_of_all(names)?;
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    config.alpn_protocols = protocols();
    Ok(Arc::new(config))
}

fn protocols() -> Vec<Vec<u8>> {
    vec![b"h2".to_vec(), b"http/1.1".to_vec()]
}

struct Leaves {
    authority: Arc<Authority>,
    listed: Listed,
    made: Cache<String, Arc<CertifiedKey>>,
}

impl std::fmt::Debug for Leaves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Leaves")
    }
}

impl ResolvesServerCert for Leaves {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name()?.to_ascii_lowercase();
        let leaf = self.made.try_get_with(name.clone(), || make(&self.authority, &name, self.listed));
        leaf.inspect_err(|error| tracing::error!(%name, %error, "no certificate for this name")).ok()
    }
}

fn make(authority: &Authority, name: &str, listed: Listed) -> Result<Arc<CertifiedKey>, TlsError> {
    let (chain, key) = authority.leaf(name, listed)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    Ok(Arc::new(CertifiedKey::new(chain, any_ecdsa_type(&key.into())?)))
}
