//! Who is at an address: for a connection to one of Snowflake's addresses that asks for another name (a shared address, or
//! domain fronting), and for an address that is only said to be Snowflake's.
//!
//! The agent makes a handshake of its own with that address and name, once. If the certificate that it meets is for a
//! name of Snowflake's, so is the server. Nothing is sent after the handshake.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
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
    tls: Arc<ClientConfig>,
    /// The same without a server name.
    nameless: Arc<ClientConfig>,
    suffixes: Vec<String>,
    verdicts: Cache<(SocketAddr, Option<String>), Owner>,
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
    pub fn new(suffixes: Vec<String>) -> Result<Self, crate::tls::TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let mut nameless = tls.clone();
        nameless.enable_sni = false;
        let verdicts = Cache::builder().max_capacity(VERDICTS).time_to_live(VERDICT).build();
        Ok(Self { tls: Arc::new(tls), nameless: Arc::new(nameless), suffixes, verdicts })
    }

    /// Finds out whose the server is that answers to this name, or to none. `dial` opens the connection, if one is needed.
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

    async fn ask(
        &self,
        address: SocketAddr,
        name: Option<&str>,
        dial: impl Future<Output = io::Result<TcpStream>>,
    ) -> Result<Owner, ForeignError> {
        let handshake = async {
            let (tls, name) = match name {
                Some(name) => {
                    (&self.tls, ServerName::try_from(name.to_owned()).map_err(|_| ForeignError::Unknown)?)
                }
                None => (&self.nameless, ServerName::from(address.ip())),
            };
            let stream = dial.await.map_err(|_| ForeignError::Unreachable)?;
            let connector = TlsConnector::from(Arc::clone(tls));
            let stream = connector.connect(name, stream).await.map_err(|_| ForeignError::Unknown)?;
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let names = certificates.first().map(certificate_names).unwrap_or_default();
            let is_snowflake = |name: &String| {
                let name = name.trim_start_matches("*.");
                self.suffixes.iter().any(|suffix| is_under(name, suffix))
            };
            match names.as_slice() {
                [] => Err(ForeignError::Unknown),
                names if names.iter().any(is_snowflake) => Ok(Owner::Snowflake),
                _ => Ok(Owner::Other),
            }
        };
        tokio::time::timeout(DEADLINE, handshake).await.map_err(|_| ForeignError::Unknown)?
    }
}

/// Accepts every certificate: only the names in it are looked at, nothing is sent, and nothing is trusted. The
/// signatures are checked, so the server holds the certificate's key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
