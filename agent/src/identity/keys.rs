//! The public keys of an issuer, from a file or a URL, fetched anew when a token names one that is not known.

use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Header};
use tokio::sync::Mutex;

use super::fetch::Fetcher;
use super::{IdentityError, KeyError};
use crate::config::{Issuer, KeySource};

/// Keys older than this are fetched again when they are next needed.
const FRESH: Duration = Duration::from_mins(10);
/// Keys older than this are not used any more: the issuer may have revoked them.
const STALE: Duration = Duration::from_hours(24);
/// Tokens with unknown keys cannot make the agent ask more often than this.
const PAUSE: Duration = Duration::from_secs(10);

pub struct Keys {
    pub issuer: Issuer,
    fetcher: Option<Fetcher>,
    known: RwLock<Option<Known>>,
    /// The last attempt to fetch; held while one is under way.
    attempt: Mutex<Option<Attempt>>,
}

#[derive(Clone, Copy)]
struct Attempt {
    ended: Instant,
    succeeded: bool,
}

#[derive(Clone)]
struct Known {
    keys: Arc<Vec<Key>>,
    since: Instant,
}

struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    /// The one algorithm that the document names for the key.
    only: Option<String>,
    verifies: DecodingKey,
}

impl Keys {
    pub fn new(issuer: &Issuer) -> Result<Self, KeyError> {
        let (fetcher, known) = match &issuer.keys {
            KeySource::File(path) => {
                let place = path.display().to_string();
                let document =
                    std::fs::read(path).map_err(|source| KeyError::Read { path: place.clone(), source })?;
                let keys = parse(&place, &document)?;
                (None, Some(Known { keys: Arc::new(keys), since: Instant::now() }))
            }
            KeySource::Url(url) => (Some(Fetcher::new(url.clone(), issuer.ca_bundle.as_deref())?), None),
        };
        Ok(Self { issuer: issuer.clone(), fetcher, known: RwLock::new(known), attempt: Mutex::new(None) })
    }

    /// The keys that a token with this header may have been signed with. A key that is known is used at once, and looked
    /// after in the background; only a token whose key is not known waits for the issuer.
    pub async fn candidates(self: &Arc<Self>, header: &Header) -> Result<Vec<DecodingKey>, IdentityError> {
        let known = self.current().filter(|known| self.fetcher.is_none() || known.since.elapsed() < STALE);
        let found = known.as_ref().map(|known| matching(&known.keys, header)).unwrap_or_default();
        if self.fetcher.is_none() {
            return Ok(found);
        }
        if !found.is_empty() {
            if known.is_some_and(|known| known.since.elapsed() >= FRESH) {
                tokio::spawn(Arc::clone(self).look_after());
            }
            return Ok(found);
        }
        if !self.fetch_once().await {
            return Err(IdentityError::NoKeys);
        }
        Ok(self.current().map(|known| matching(&known.keys, header)).unwrap_or_default())
    }

    /// Fetches the keys now.
    pub async fn refresh(&self) -> Result<(), KeyError> {
        let Some(fetcher) = &self.fetcher else { return Ok(()) };
        let document = fetcher.fetch().await?;
        let keys = Arc::new(parse(&fetcher.place(), &document)?);
        if let Ok(mut known) = self.known.write() {
            *known = Some(Known { keys, since: Instant::now() });
        }
        Ok(())
    }

    async fn look_after(self: Arc<Self>) {
        self.fetch_once().await;
    }

    /// Fetches the keys, or takes the result of whoever did so while this waited or a moment before. False where the
    /// issuer could not be asked.
    async fn fetch_once(&self) -> bool {
        let asked = Instant::now();
        let mut attempt = self.attempt.lock().await;
        if let Some(last) = *attempt
            && (last.ended > asked || last.ended.elapsed() < PAUSE)
        {
            return last.succeeded;
        }
        let result = self.refresh().await;
        if let Err(error) = &result {
            tracing::warn!(%error, "the identity provider's keys cannot be fetched");
        }
        *attempt = Some(Attempt { ended: Instant::now(), succeeded: result.is_ok() });
        result.is_ok()
    }

    fn current(&self) -> Option<Known> {
        self.known.read().ok().and_then(|known| known.clone())
    }
}

fn parse(place: &str, document: &[u8]) -> Result<Vec<Key>, KeyError> {
    let set: JwkSet =
        serde_json::from_slice(document).map_err(|_| KeyError::Malformed { place: place.to_owned() })?;
    let keys: Vec<_> = set.keys.iter().filter_map(key).collect();
    if keys.is_empty() { Err(KeyError::NoKey { place: place.to_owned() }) } else { Ok(keys) }
}

/// A key that may verify a signature. Symmetric keys may not: who publishes one publishes the means to sign.
fn key(jwk: &Jwk) -> Option<Key> {
    if !matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature)) {
        return None;
    }
    let algorithms: &'static [Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ],
        AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
            EllipticCurve::P256 => &[Algorithm::ES256],
            EllipticCurve::P384 => &[Algorithm::ES384],
            _ => return None,
        },
        AlgorithmParameters::OctetKeyPair(_) => &[Algorithm::EdDSA],
        _ => return None,
    };
    Some(Key {
        id: jwk.common.key_id.clone(),
        algorithms,
        only: jwk.common.key_algorithm.map(|algorithm| algorithm.to_string()),
        verifies: DecodingKey::from_jwk(jwk).ok()?,
    })
}

fn matching(keys: &[Key], header: &Header) -> Vec<DecodingKey> {
    let fits = |key: &&Key| {
        key.algorithms.contains(&header.alg)
            && key.only.as_ref().is_none_or(|only| *only == format!("{:?}", header.alg))
            && (header.kid.is_none() || key.id == header.kid)
    };
    keys.iter().filter(fits).map(|key| key.verifies.clone()).collect()
}
