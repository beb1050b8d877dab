//! Verification of a JWT: issuer, signature, audience, times, and who it names.

use std::sync::Arc;

use jsonwebtoken::errors::{Error, ErrorKind};
use jsonwebtoken::{Validation, dangerous::insecure_decode, decode, decode_header};
use serde_json::{Map, Value};

use super::IdentityError;
use super::keys::Keys;
use crate::audit::Caller;

/// Tokens of more bytes are not looked at.
const TOKEN_LIMIT: usize = 16 * 1024;
/// Difference of clocks that is tolerated, in seconds.
const LEEWAY: u64 = 30;
/// Longer names are not names, and more groups are not for a policy to read.
const NAME_LIMIT: usize = 512;
const GROUP_LIMIT: usize = 500;

pub async fn verify(issuers: &[Arc<Keys>], token: &str) -> Result<Caller, IdentityError> {
    if token.len() > TOKEN_LIMIT {
        return Err(IdentityError::NotAToken);
    }
    let header = decode_header(token).map_err(|_| IdentityError::NotAToken)?;
    // The issuer is needed to know whose keys to verify with; nothing else is taken before the signature is.
    let claimed = claimed_issuer(token).ok_or(IdentityError::NotAToken)?;
    let keys =
        issuers.iter().find(|keys| keys.issuer.issuer == claimed).ok_or(IdentityError::UnknownIssuer)?;
    let mut validation = Validation::new(header.alg);
    validation.leeway = LEEWAY;
    validation.validate_nbf = true;
    validation.set_issuer(&[&keys.issuer.issuer]);
    validation.set_audience(&[&keys.issuer.audience]);
    validation.set_required_spec_claims(&["exp", "iss", "aud"]);
    let candidates = keys.candidates(&header).await?;
    let mut failure = IdentityError::UnknownKey;
    for key in candidates {
        match decode::<Map<String, Value>>(token, &key, &validation) {
            Ok(token) => return caller(keys, &token.claims),
            Err(error) => failure = refusal(&error),
        }
    }
    Err(failure)
}

fn claimed_issuer(token: &str) -> Option<String> {
    let token = insecure_decode::<Map<String, Value>>(token).ok()?;
    token.claims.get("iss")?.as_str().map(ToOwned::to_owned)
}

fn caller(keys: &Keys, claims: &Map<String, Value>) -> Result<Caller, IdentityError> {
    let missing = || IdentityError::MissingClaim(keys.issuer.subject_claim.clone());
    let subject = claims.get(&keys.issuer.subject_claim).and_then(Value::as_str).ok_or_else(missing)?;
    if subject.is_empty() || subject.len() > NAME_LIMIT {
        return Err(missing());
    }
    let groups: Vec<&str> = match claims.get(&keys.issuer.groups_claim) {
        Some(Value::String(group)) => vec![group],
        Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let groups = groups.into_iter().filter(|group| group.len() <= NAME_LIMIT).take(GROUP_LIMIT);
    Ok(Caller {
        issuer: keys.issuer.issuer.clone(),
        subject: subject.to_owned(),
        groups: groups.map(ToOwned::to_owned).collect(),
    })
}

fn refusal(error: &Error) -> IdentityError {
    match error.kind() {
        ErrorKind::ExpiredSignature => IdentityError::Expired,
        ErrorKind::ImmatureSignature => IdentityError::NotYetValid,
        ErrorKind::InvalidAudience => IdentityError::Audience,
        ErrorKind::InvalidIssuer => IdentityError::UnknownIssuer,
        ErrorKind::MissingRequiredClaim(claim) => IdentityError::MissingClaim(claim.clone()),
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => IdentityError::Algorithm,
        _ => IdentityError::Signature,
    }
}
