//! How the agent proves to Snowflake who it is.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use serde_json::json;

use crate::config::{CredentialType, Secret};

/// Snowflake accepts up to an hour; the drivers use one minute.
const KEY_PAIR_LIFETIME_SECONDS: u64 = 60;

/// What carries the credential: in the fields of a login, or as the bearer token of the SQL API.
pub struct Proof {
    /// `AUTHENTICATOR`; a password goes without.
    pub authenticator: Option<&'static str>,
    /// The field that the value goes in.
    pub field: &'static str,
    /// What kind of bearer token the SQL API is told that it is; a password is none.
    pub token_type: Option<&'static str>,
    pub value: Secret,
}

#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the private key is not an RSA key in PEM (PKCS #8, unencrypted)")]
    Key,
    #[error("the private key cannot sign: {0}")]
    Sign(jsonwebtoken::errors::Error),
}

impl Proof {
    /// Makes the proof for a login of `user` at `host`; `now` in seconds since the epoch.
    pub fn new(
        kind: CredentialType,
        secret: &Secret,
        host: &str,
        user: &str,
        now: u64,
    ) -> Result<Self, CredentialError> {
        let (authenticator, field, token_type) = match kind {
            CredentialType::Password => (None, "PASSWORD", None),
            CredentialType::ProgrammaticAccessToken => {
                (Some("PROGRAMMATIC_ACCESS_TOKEN"), "TOKEN", Some("PROGRAMMATIC_ACCESS_TOKEN"))
            }
            CredentialType::OauthToken => (Some("OAUTH"), "TOKEN", Some("OAUTH")),
            CredentialType::KeyPair => (Some("SNOWFLAKE_JWT"), "TOKEN", Some("KEYPAIR_JWT")),
        };
        let value = match kind {
            CredentialType::KeyPair => key_pair_token(secret, host, user, now)?,
            _ => secret.clone(),
        };
        Ok(Self { authenticator, field, token_type, value })
    }
}

/// The JWT of a key-pair login: `iss` is ACCOUNT.USER.SHA256:fingerprint of the public key, the account in upper case
/// and without its region.
fn key_pair_token(pem: &Secret, host: &str, user: &str, now: u64) -> Result<Secret, CredentialError> {
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| CredentialError::Key)?;
    let pair = RsaKeyPair::from_pkcs8(der.secret_pkcs8_der()).map_err(|_| CredentialError::Key)?;
    let public: PublicKeyX509Der<'_> = pair.public_key().as_der().map_err(|_| CredentialError::Key)?;
    let fingerprint = STANDARD.encode(digest(&SHA256, public.as_ref()));
    let account = host.split('.').next().unwrap_or(host).to_ascii_uppercase();
    let subject = format!("{account}.{}", user.to_uppercase());
    let claims = json!({
        "iss": format!("{subject}.SHA256:{fingerprint}"),
        "sub": subject,
        "iat": now,
        "exp": now + KEY_PAIR_LIFETIME_SECONDS,
    });
    let key = EncodingKey::from_rsa_pem(pem.expose().as_bytes()).map_err(|_| CredentialError::Key)?;
    jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims, &key)
        .map(Secret::new)
        .map_err(CredentialError::Sign)
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;

    #[test]
    fn a_key_pair_login_is_signed_for_the_account_without_its_region() {
        let pair = rcgen_rsa();
        let public = RsaKeyPair::from_pkcs8(
            PrivatePkcs8KeyDer::from_pem_slice(pair.as_bytes()).unwrap().secret_pkcs8_der(),
        )
        .unwrap();
        let spki: PublicKeyX509Der<'_> = public.public_key().as_der().unwrap();
        let proof = Proof::new(
            CredentialType::KeyPair,
            &Secret::new(pair),
            "acme.eu-west-1.snowflakecomputing.com",
            "svc",
            jsonwebtoken::get_current_timestamp(),
        )
        .unwrap();
        // PKCS #1 inside the SubjectPublicKeyInfo, after its fixed 24 bytes for a key of 2048 bits.
        let key = DecodingKey::from_rsa_der(&spki.as_ref()[24..]);
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_required_spec_claims(&["exp", "iss", "sub"]);
        let token =
            jsonwebtoken::decode::<serde_json::Value>(proof.value.expose(), &key, &validation).unwrap();
        assert_eq!(token.claims["sub"], "ACME.SVC");
        assert!(token.claims["iss"].as_str().unwrap().starts_with("ACME.SVC.SHA256:"));
    }

    fn rcgen_rsa() -> String {
        use rcgen::{KeyPair, PKCS_RSA_SHA256};
        KeyPair::generate_for(&PKCS_RSA_SHA256).unwrap().serialize_pem()
    }
}
