//! The tokens that clients hold: random, opaque, worthless anywhere but here.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// A token made by the agent for one client.
pub struct ClientToken(Zeroizing<String>);

/// What is kept of a client's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u8; 32]);

impl ClientToken {
    /// A new token of 256 random bits; `None` when the system gives no randomness.
    pub fn random() -> Option<Self> {
        let mut bytes = [0_u8; 32];
        rand::fill(&mut bytes).ok()?;
        Some(Self(Zeroizing::new(format!("snowfence:{}", URL_SAFE_NO_PAD.encode(bytes)))))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn hash(&self) -> TokenHash {
        TokenHash::of(&self.0)
    }
}

impl TokenHash {
    pub fn of(token: &str) -> Self {
        let mut hash = [0_u8; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        Self(hash)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The token in a header `Authorization: Snowflake Token="…"`; the quotes are part of the form.
pub fn snowflake_token(header: &str) -> Option<&str> {
    let (scheme, rest) = header.split_once(' ')?;
    let token = rest.trim().strip_prefix("Token=\"")?.strip_suffix('"')?;
    (scheme.eq_ignore_ascii_case("snowflake") && !token.is_empty() && !token.contains('"')).then_some(token)
}

/// The token in a header `Authorization: Bearer …`, of RFC 6750.
pub fn bearer_token(header: &str) -> Option<&str> {
    let (scheme, rest) = header.split_once(' ')?;
    let token = rest.trim();
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=".contains(&byte);
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() && token.bytes().all(valid)).then_some(token)
}

/// The header that carries a session token upstream.
pub fn authorization(token: &str) -> String {
    format!("Snowflake Token=\"{token}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_read_in_its_one_form() {
        assert_eq!(snowflake_token("Snowflake Token=\"abc\""), Some("abc"));
        for header in [
            "",
            "Bearer abc",
            "Snowflake abc",
            "Snowflake Token=abc",
            "Snowflake Token=\"\"",
            "Snowflake Token=\"a\"b\"",
        ] {
            assert_eq!(snowflake_token(header), None, "{header}");
        }
    }

    #[test]
    fn a_bearer_token_is_one_word() {
        assert_eq!(bearer_token("Bearer a.b-c_d"), Some("a.b-c_d"));
        assert_eq!(bearer_token("BEARER  a.b.c "), Some("a.b.c"));
        for header in ["", "Bearer", "Bearer ", "Bearer a b", "Snowflake Token=\"abc\"", "Basic abc"] {
            assert_eq!(bearer_token(header), None, "{header}");
        }
    }

    #[test]
    fn tokens_differ() {
        let (one, other) = (ClientToken::random().unwrap(), ClientToken::random().unwrap());
        assert_ne!(one.as_str(), other.as_str());
        assert!(one.hash() == TokenHash::of(one.as_str()));
    }
}
