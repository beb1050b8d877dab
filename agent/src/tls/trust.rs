//! How each client is told of the internal CA, and which of them a failed handshake is likely to be of.

use std::io;

use rustls::{AlertDescription, Error};
use serde::Serialize;

/// A kind of client, and by what it takes the internal CA.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Trust {
    pub client: &'static str,
    /// An environment variable, or a setting and where it is.
    pub setting: &'static str,
    /// What its TLS says of a CA that it does not know. None hangs up without a word.
    #[serde(skip)]
    alert: Option<AlertDescription>,
    /// What the name of its program begins with, where that tells anything.
    #[serde(skip)]
    program: &'static str,
}

/// The clients that people have, and what each of them reads.
pub const TRUST: [Trust; 7] = [
    Trust {
        client: "Python connector 5, and SQLAlchemy on it",
        setting: "SSL_CERT_FILE",
        alert: Some(AlertDescription::UnknownCA),
        program: "python",
    },
    Trust {
        client: "Python connector 4, and SQLAlchemy, Snowpark or the Snowflake CLI on it",
        setting: "REQUESTS_CA_BUNDLE",
        alert: Some(AlertDescription::UnknownCA),
        program: "python",
    },
    Trust { client: "Node SDK", setting: "NODE_EXTRA_CA_CERTS", alert: None, program: "node" },
    Trust {
        client: "Go driver, and ADBC with it",
        setting: "SSL_CERT_FILE",
        alert: Some(AlertDescription::BadCertificate),
        program: "",
    },
    Trust {
        client: "JDBC",
        setting: "the JVM's truststore (keytool -importcert, -Djavax.net.ssl.trustStore)",
        alert: Some(AlertDescription::CertificateUnknown),
        program: "java",
    },
    Trust {
        client: "ODBC",
        setting: "CABundleFile in the driver's ini file",
        alert: Some(AlertDescription::UnknownCA),
        program: "",
    },
    Trust {
        client: "curl",
        setting: "CURL_CA_BUNDLE or SSL_CERT_FILE",
        alert: Some(AlertDescription::UnknownCA),
        program: "curl",
    },
];

/// Why a handshake failed; where it may be the CA, of which clients that is, and by what they take it.
pub fn explain(error: &io::Error, program: &str) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let hung_up = matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset);
    let likely = match tls {
        Some(Error::AlertReceived(alert)) => likely(Some(*alert), program),
        None if hung_up => likely(None, program),
        _ => Vec::new(),
    };
    if likely.is_empty() {
        return error.to_string();
    }
    let settings: Vec<String> =
        likely.iter().map(|trust| format!("{} ({})", trust.setting, trust.client)).collect();
    let knows = if hung_up { "may not know" } else { "does not know" };
    format!(
        "{error}: the client {knows} the internal CA (`snowfence ca print`), which it takes by {}",
        settings.join(", or ")
    )
}

/// The clients that end a handshake like this: those of the program, if any are.
fn likely(alert: Option<AlertDescription>, program: &str) -> Vec<&'static Trust> {
    let saying = || TRUST.iter().filter(|trust| trust.alert == alert);
    let of_program: Vec<_> =
        saying().filter(|trust| !trust.program.is_empty() && program.starts_with(trust.program)).collect();
    // Anybody may hang up, so that alone tells nothing.
    if of_program.is_empty() && alert.is_some() { saying().collect() } else { of_program }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(alert: impl Into<Option<AlertDescription>>, program: &str) -> Vec<&'static str> {
        likely(alert.into(), program).iter().map(|trust| trust.setting).collect()
    }

    #[test]
    fn the_alert_and_the_program_tell_the_client() {
        let python = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"];
        assert_eq!(settings(AlertDescription::UnknownCA, "python3.11"), python);
        assert_eq!(settings(None, "node"), ["NODE_EXTRA_CA_CERTS"]);
        assert_eq!(settings(AlertDescription::BadCertificate, "python3.11"), ["SSL_CERT_FILE"]);
        assert_eq!(settings(AlertDescription::CertificateUnknown, "loader").len(), 1);
        assert_eq!(settings(AlertDescription::UnknownCA, "").len(), 4);
    }

    #[test]
    fn other_failures_are_not_called_a_matter_of_trust() {
        let alert = |alert| io::Error::new(io::ErrorKind::InvalidData, Error::AlertReceived(alert));
        let unknown = explain(&alert(AlertDescription::UnknownCA), "curl");
        assert!(unknown.contains("UnknownCA") && unknown.ends_with("SSL_CERT_FILE (curl)"), "{unknown}");
        let version = explain(&alert(AlertDescription::ProtocolVersion), "curl");
        assert!(!version.contains("internal CA"), "{version}");
        let gone =
            |program| explain(&io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof"), program);
        assert_eq!(gone("curl"), "tls handshake eof");
        assert!(gone("node").ends_with("may not know the internal CA (`snowfence ca print`), which it takes by NODE_EXTRA_CA_CERTS (Node SDK)"));
    }
}
