//! How the agent proves to the emulated Snowflake who it is.

use anyhow::{Context, Result};
use rcgen::{KeyPair, PKCS_RSA_SHA256};

use crate::sandbox::SERVICE_PASSWORD;

/// What the credential of the service is.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Credential {
    #[default]
    Password,
    AccessToken,
    OauthToken,
    KeyPair,
}

/// A credential that was made.
#[derive(Debug)]
pub struct Made {
    /// What the agent holds.
    pub secret: String,
    /// What Snowflake knows of it, and by which name.
    pub known: (&'static str, String),
}

impl Credential {
    /// Its type, as the agent's configuration calls it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::Password => "password",
            Self::AccessToken => "programmatic_access_token",
            Self::OauthToken => "oauth_token",
            Self::KeyPair => "key_pair",
        }
    }

    pub fn make(self) -> Result<Made> {
        if self == Self::KeyPair {
            let pair = KeyPair::generate_for(&PKCS_RSA_SHA256).context("make a key pair")?;
            return Ok(Made { secret: pair.serialize_pem(), known: ("public_key", pair.public_key_pem()) });
        }
        // Of the letters that a token may have.
        Ok(Made { secret: SERVICE_PASSWORD.to_owned(), known: (self.kind(), SERVICE_PASSWORD.to_owned()) })
    }
}
