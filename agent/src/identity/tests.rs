use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use serde_json::{Value, json};

use super::*;
use crate::config;

const NOW: u64 = 60;

/// An identity provider in a folder: its key, and the JWKS file that it publishes.
struct Provider {
    directory: tempfile::TempDir,
    key: KeyPair,
}

impl Provider {
    fn new() -> Self {
        let provider = Self {
            directory: tempfile::tempdir().unwrap(),
            key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap(),
        };
        // An uncompressed point: 4, x, y.
        let point = provider.key.der_bytes();
        let coordinate = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let jwks = json!({ "keys": [
            { "kty": "oct", "k": URL_SAFE_NO_PAD.encode("shared"), "kid": "symmetric" },
            { "kty": "EC", "crv": "P-256", "kid": "1", "use": "sig",
              "x": coordinate(&point[1..33]), "y": coordinate(&point[33..65]) },
        ]});
        std::fs::write(provider.jwks(), jwks.to_string()).unwrap();
        provider
    }

    fn jwks(&self) -> std::path::PathBuf {
        self.directory.path().join("jwks.json")
    }

    fn identity(&self) -> Identity {
        let text = format!(
            r#"
            accounts = [{{ host = "acme.snowflakecomputing.com" }}]
            [[issuers]]
            issuer = "https://idp"
            audience = "snowfence"
            jwks_file = "{}"
            [[rules]]
            name = "batch"
            groups = ["batch"]
            cgroups = ["/pods/batch/**"]
            user = "BATCH"
            credential = "svc"
            [[rules]]
            name = "analysts"
            groups = ["analysts", "batch"]
            user = "SVC"
            credential = "svc"
            [credentials.svc]
            type = "password"
            secret = "env:X"
            "#,
            self.jwks().display()
        );
        Identity::new(&config::parse(Path::new("t.toml"), &text).unwrap()).unwrap()
    }

    fn sign(&self, header: &Header, claims: &Value) -> String {
        let key = EncodingKey::from_ec_pem(self.key.serialize_pem().as_bytes()).unwrap();
        jsonwebtoken::encode(header, claims, &key).unwrap()
    }

    fn token(&self, change: impl Fn(&mut Value)) -> String {
        let now = jsonwebtoken::get_current_timestamp();
        let mut claims = json!({
            "iss": "https://idp", "aud": ["other", "snowfence"], "sub": "ada", "groups": ["analysts"],
            "iat": now, "exp": now + NOW,
        });
        change(&mut claims);
        let header = Header { kid: Some("1".into()), ..Header::new(Algorithm::ES256) };
        self.sign(&header, &claims)
    }
}

fn workload(cgroup: &str) -> Workload {
    Workload { cgroup_id: 1, cgroup: cgroup.into(), ..Workload::default() }
}

async fn ask(identity: &Identity, token: &str, cgroup: &str) -> Result<String, IdentityError> {
    let principal =
        identity.authenticate(Some(token), &workload(cgroup), "acme.snowflakecomputing.com").await?;
    Ok(format!("{} as {} by {}", principal.caller().subject, principal.rule().user, principal.rule().name))
}

#[tokio::test]
async fn the_first_rule_that_admits_caller_and_workload_wins() {
    let provider = Provider::new();
    let identity = provider.identity();
    let analyst = provider.token(|_| {});
    let batch = provider.token(|claims| claims["groups"] = json!("batch"));
    assert_eq!(ask(&identity, &analyst, "/pods/x").await.unwrap(), "ada as SVC by analysts");
    assert_eq!(ask(&identity, &batch, "/pods/batch/1").await.unwrap(), "ada as BATCH by batch");
    assert_eq!(ask(&identity, &batch, "/pods/x").await.unwrap(), "ada as SVC by analysts");
    let nobody = provider.token(|claims| claims["groups"] = json!([]));
    let refused = ask(&identity, &nobody, "/pods/x").await.unwrap_err();
    assert!(matches!(refused, IdentityError::NotAdmitted(caller) if caller.subject == "ada"));
}

#[tokio::test]
async fn a_token_that_is_not_good_is_refused_for_its_reason() {
    let provider = Provider::new();
    let identity = provider.identity();
    let now = jsonwebtoken::get_current_timestamp();
    let cases = [
        (provider.token(|claims| claims["exp"] = json!(now - 60)), "expired"),
        (provider.token(|claims| claims["nbf"] = json!(now + 600)), "not valid yet"),
        (provider.token(|claims| claims["aud"] = json!("else")), "audience"),
        (provider.token(|claims| claims["iss"] = json!("https://evil")), "issuer"),
        (provider.token(|claims| drop(claims.as_object_mut().unwrap().remove("exp"))), "`exp`"),
        (provider.token(|claims| drop(claims.as_object_mut().unwrap().remove("aud"))), "`aud`"),
        (provider.token(|claims| drop(claims.as_object_mut().unwrap().remove("sub"))), "`sub`"),
        (Provider::new().token(|_| {}), "signature"),
        ("a.b.c".into(), "not a JWT"),
        ("x".repeat(20_000), "not a JWT"),
    ];
    for (token, reason) in cases {
        let refused = ask(&identity, &token, "/x").await.unwrap_err().to_string();
        assert!(refused.contains(reason), "{reason}: {refused}");
        assert!(!refused.contains("evil"), "nothing of the token is repeated");
    }
    assert!(matches!(
        identity.authenticate(None, &workload("/x"), "acme.snowflakecomputing.com").await,
        Err(IdentityError::NoToken)
    ));
}

#[tokio::test]
async fn neither_no_signature_nor_a_published_secret_lets_anybody_in() {
    let provider = Provider::new();
    let identity = provider.identity();
    let token = provider.token(|_| {});
    let payload = token.split('.').nth(1).unwrap();
    let none = format!("{}.{payload}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#));
    assert!(ask(&identity, &none, "/x").await.is_err());
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
    for key in [b"shared".to_vec(), provider.key.public_key_pem().into_bytes()] {
        let header = Header { kid: Some("symmetric".into()), ..Header::new(Algorithm::HS256) };
        let forged = jsonwebtoken::encode(&header, &claims, &EncodingKey::from_secret(&key)).unwrap();
        assert!(ask(&identity, &forged, "/x").await.is_err());
    }
    let header = Header { kid: Some("2".into()), ..Header::new(Algorithm::ES256) };
    let refused = ask(&identity, &provider.sign(&header, &claims), "/x").await.unwrap_err();
    assert!(matches!(refused, IdentityError::UnknownKey));
}

#[tokio::test]
async fn a_crowd_with_unknown_keys_asks_an_issuer_that_fails_once() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/jwks", listener.local_addr().unwrap());
    let asked = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let issuer = tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
            drop(connection);
        }
    });
    let provider = Provider::new();
    let text = format!(
        r#"
        accounts = [{{ host = "acme.snowflakecomputing.com" }}]
        issuers = [{{ issuer = "https://idp", audience = "snowfence", jwks_url = "{url}" }}]
        rules = [{{ name = "all", user = "SVC", credential = "svc" }}]
        credentials.svc = {{ type = "password", secret = "env:X" }}
        "#
    );
    let identity = Arc::new(Identity::new(&config::parse(Path::new("t.toml"), &text).unwrap()).unwrap());
    let token = provider.token(|_| {});
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let (identity, token) = (Arc::clone(&identity), token.clone());
            tokio::spawn(async move { ask(&identity, &token, "/x").await })
        })
        .collect();
    for one in crowd {
        assert!(matches!(one.await.unwrap(), Err(IdentityError::NoKeys)));
    }
    assert_eq!(asked.load(std::sync::atomic::Ordering::Relaxed), 1);
    issuer.abort();
}
