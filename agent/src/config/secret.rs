//! Secrets: references in the configuration, values only in memory.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Where a secret is: `file:PATH` or `env:NAME`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretReference {
    File(PathBuf),
    Environment(String),
}

/// A secret's value. It is erased on drop, and printing it shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret file {} cannot be read: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the environment variable {0} that should hold a secret is not set")]
    Environment(String),
    #[error("the secret {0} is empty")]
    Empty(SecretReference),
}

impl SecretReference {
    /// Reads the value; a trailing line break is not part of it.
    pub fn read(&self) -> Result<Secret, SecretError> {
        let value = match self {
            Self::File(path) => std::fs::read_to_string(path)
                .map_err(|source| SecretError::File { path: path.clone(), source })?,
            Self::Environment(name) => {
                std::env::var(name).map_err(|_| SecretError::Environment(name.clone()))?
            }
        };
        let value = Zeroizing::new(value);
        let trimmed = value.trim_end_matches(['\r', '\n']);
        if trimmed.is_empty() {
            return Err(SecretError::Empty(self.clone()));
        }
        Ok(Secret::new(trimmed.to_owned()))
    }
}

impl FromStr for SecretReference {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("env", name)) if !name.is_empty() => Ok(Self::Environment(name.to_owned())),
            _ => Err("expected a reference, `file:PATH` or `env:NAME`, not the secret itself"),
        }
    }
}

impl fmt::Display for SecretReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

impl Secret {
    pub fn new(value: String) -> Self {
        Self(Zeroizing::new(value))
    }

    /// The value. Whoever asks for it keeps it out of logs, errors and replies to clients.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}
