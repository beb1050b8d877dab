//! A connection to one of Snowflake's addresses that asks for another name: a shared address, or domain fronting.
//!
//! The agent makes a handshake of its own with that address and name, once. If the certificate that it meets is for a
//! name of Snowflake's, the connection is refused; any other is spliced, its TLS intact.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::connection::Rewound;
use super::upstream::{Dialed, Dialer};
use crate::config::is_under;
use crate::tls::certificate_names;

/// How long a verdict on an address and name holds.
const VERDICT: Duration = Duration::from_mins(10);
const VERDICTS: u64 = 10_000;
const DEADLINE: Duration = Duration::from_secs(10);

/// Tells shared addresses from fronting.
pub struct Foreign {
    dialer: Dialer,
    tls: Arc<ClientConfig>,
    suffixes: Vec<String>,
    verdicts: Cache<(SocketAddr, String), Verdict>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Foreign,
    Snowflake,
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ForeignError {
    #[error("the server there presents a certificate of Snowflake's")]
    Fronting,
    #[error("the server there cannot be asked who it is")]
    Unknown,
    #[error("the server there cannot be reached")]
    Unreachable,
}

/// A connection to the address that the client asked for.
pub struct Passage(Dialed);

impl Foreign {
    pub fn new(dialer: Dialer, suffixes: Vec<String>) -> Result<Self, crate::tls::TlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
            .with_no_client_auth();
        let verdicts = Cache::builder().max_capacity(VERDICTS).time_to_live(VERDICT).build();
        Ok(Self { dialer, tls: Arc::new(tls), suffixes, verdicts })
    }

    /// Finds out whether the connection may be spliced, and opens the other end of it.
    pub async fn check(&self, address: SocketAddr, name: &str) -> Result<Passage, ForeignError> {
        let verdict = self
            .verdicts
            .try_get_with((address, name.to_owned()), self.ask(address, name))
            .await
            .map_err(|_| ForeignError::Unknown)?;
        match verdict {
            Verdict::Snowflake => Err(ForeignError::Fronting),
            Verdict::Foreign => {
                self.dialer.dial(address).await.map(Passage).map_err(|_| ForeignError::Unreachable)
            }
        }
    }

    async fn ask(&self, address: SocketAddr, name: &str) -> Result<Verdict, ForeignError> {
        let handshake = async {
            let name = ServerName::try_from(name.to_owned()).map_err(|_| ForeignError::Unknown)?;
            let stream = self.dialer.dial(address).await.map_err(|_| ForeignError::Unreachable)?;
            let connector = TlsConnector::from(Arc::clone(&self.tls));
            let stream = connector.connect(name, stream).await.map_err(|_| ForeignError::Unknown)?;
            let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
            let names = certificates.first().map(certificate_names).unwrap_or_default();
            if names.is_empty() {
                return Err(ForeignError::Unknown);
            }
            let is_snowflake = |name: &String| {
                let name = name.trim_start_matches("*.");
                self.suffixes.iter().any(|suffix| is_under(name, suffix))
            };
            Ok(if names.iter().any(is_snowflake) { Verdict::Snowflake } else { Verdict::Foreign })
        };
        tokio::time::timeout(DEADLINE, handshake).await.map_err(|_| ForeignError::Unknown)?
    }
}

impl Passage {
    /// Copies bytes both ways until both ends are done, or the agent stops.
    pub async fn splice(mut self, mut client: Rewound, shutdown: &CancellationToken) {
        tokio::select! {
            ended = tokio::io::copy_bidirectional(&mut client, &mut self.0) => {
                tracing::debug!(?ended, "a spliced connection ended");
            }
            () = shutdown.cancelled() => {}
        }
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
