//! Who is at an address: for a connection to one of Snowflake's addresses that asks for another name (a shared address, or
//! domain fronting), and for an address that is only said to be Snowflake's.
//!
//! The agent makes a handshake of its own with that address and name, from its own network, once. If the certificate that
//! it meets is for a name of Snowflake's, so is the server. Nothing is sent after the handshake.
//!
//! That is enough to refuse a connection. To hold an address for Snowflake's from now on, for everybody, it takes a
//! certificate that is valid: [`Foreign::proves`].

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use moka::future::Cache;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::is_under;
use crate::tls::certificate_names;

/// How long a verdict on an address and name holds.
const VERDICT: Duration = Duration::from_mins(10);
const VERDICTS: u64 = 10_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// Tells who is at an address.
pub struct Foreign {
    provider: Arc<CryptoProvider>,
    /// By which the servers of accounts are verified.
    verified: Arc<ClientConfig>,
    suffixes: Vec<String>,
    verdicts: Cache<(SocketAddr, Option<String>), Owner>,
    proofs: Cache<(SocketAddr, String), bool>,
}

/// Whose a server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    Snowflake,
    Other,
}

/// Why it cannot be told.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ForeignError {
    #[error("the server there cannot be asked who it is")]
    Unknown,
    #[error("the server there cannot be reached")]
    Unreachable,
}

impl Foreign {
    pub fn new(suffixes: Vec<String>, verified: Arc<ClientConfig>) -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verdicts = Cache::builder().max_capacity(VERDICTS).time_to_live(VERDICT).build();
        let proofs = Cache::builder().max_capacity(VERDICTS).time_to_live(VERDICT).build();
        Self { provider, verified, suffixes, verdicts, proofs }
    }

    /// Finds out whose the server is that answers to this name, or to none. `dial` opens the connection, if one is needed:
    /// from the agent's own network, for what is found out holds for everybody.
    pub async fn owner(
        &self,
        address: SocketAddr,
        name: Option<&str>,
        dial: impl Future<Output = io::Result<TcpStream>>,
    ) -> Result<Owner, ForeignError> {
        let key = (address, name.map(ToOwned::to_owned));
        let asked = self.verdicts.try_get_with(key, self.ask(address, name, dial)).await;
        asked.map_err(|error| ForeignError::clone(&error))
    }

    /// The same by a connection from anywhere, of which nothing is remembered.
    pub async fn ask(
        &self,
        address: SocketAddr,
        name: Option<&str>,
        dial: impl Future<Output = io::Result<TcpStream>>,
    ) -> Result<Owner, ForeignError> {
        let seen = Arc::new(AnyCertificate { provider: Arc::clone(&self.provider), names: Mutex::default() });
        let handshake = async {
            let mut tls = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
                .with_safe_default_protocol_versions()
                .map_err(|_| ForeignError::Unknown)?
                .dangerous()
                .with_custom_certificate_verifier(Arc::clone(&seen) as Arc<dyn ServerCertVerifier>)
                .with_no_client_auth();
            // What is no name of a host is asked for by none here, and answered by servers as if there were none.
            let name = name.and_then(|name| ServerName::try_from(name.to_owned()).ok());
            tls.enable_sni = name.is_some();
            let name = name.unwrap_or_else(|| ServerName::from(address.ip()));
            let stream = dial.await.map_err(|_| ForeignError::Unreachable)?;
            TlsConnector::from(Arc::new(tls)).connect(name, stream).await.map_err(|_| ForeignError::Unknown)
        };
        // A handshake that fails later has shown a certificate all the same.
        let ended = tokio::time::timeout(DEADLINE, handshake).await;
        let names = std::mem::take(&mut *seen.names.lock().unwrap_or_else(PoisonError::into_inner));
        match (names.as_slice(), ended) {
            ([], Ok(Err(error))) => Err(error),
            ([], Ok(Ok(_))) => Err(ForeignError::Unknown),
            ([], Err(_)) => Err(ForeignError::Unreachable),
            (names, _) if names.iter().any(|name| self.is_snowflake(name.trim_start_matches("*."))) => {
                Ok(Owner::Snowflake)
            }
            _ => Ok(Owner::Other),
        }
    }

    /// Whether the server has a valid certificate for a name of Snowflake's. `dial` opens the connection from the agent's
    /// own network.
    pub async fn proves(
        &self,
        address: SocketAddr,
        name: &str,
        dial: impl Future<Output = io::Result<TcpStream>>,
    ) -> bool {
        if !self.is_snowflake(name) {
            return false;
        }
        let handshake = async {
            let name = ServerName::try_from(name.to_owned()).map_err(|_| ForeignError::Unknown)?;
            let stream = dial.await.map_err(|_| ForeignError::Unreachable)?;
            let connected = TlsConnector::from(Arc::clone(&self.verified)).connect(name, stream);
            let connected = tokio::time::timeout(DEADLINE, connected).await;
            Ok::<_, ForeignError>(connected.is_ok_and(|connected| connected.is_ok()))
        };
        let key = (address, name.to_owned());
        // That it cannot be reached now says nothing of later.
        self.proofs.try_get_with(key, handshake).await.unwrap_or(false)
    }

    fn is_snowflake(&self, name: &str) -> bool {
        self.suffixes.iter().any(|suffix| is_under(name, suffix))
    }
}

/// Accepts every certificate, and keeps its names: nothing is sent, and nothing is trusted. The signatures are checked, so
/// the server holds the certificate's key.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
    names: Mutex<Vec<String>>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let names = certificate_names(end_entity);
        *self.names.lock().unwrap_or_else(PoisonError::into_inner) = names;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
