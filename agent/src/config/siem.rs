//! `[[siem]]`: where else the trail goes.

use std::collections::HashSet;
use std::path::PathBuf;

use hyper::Uri;

use super::check::protected_url;
use super::document::Document;
use super::raw::{self, SiemFormat, SiemKind, SiemRecords, SiemVerdict};
use super::secret::SecretReference;

/// A place that gets the trail as OCSF events.
#[derive(Debug, Clone)]
pub struct Siem {
    /// Unique.
    pub name: String,
    /// `None`: all.
    pub only: Option<Vec<SiemRecords>>,
    /// Of statements and what became of them; `None`: all.
    pub verdicts: Option<Vec<SiemVerdict>>,
    pub target: SiemTarget,
}

#[derive(Debug, Clone)]
pub enum SiemTarget {
    File {
        path: PathBuf,
        /// The size at which a new file is begun.
        max_bytes: u64,
        keep_files: u32,
    },
    Syslog {
        host: String,
        port: u16,
        tls: bool,
        /// The system's roots where there is none.
        ca_bundle: Option<PathBuf>,
        max_message_bytes: usize,
    },
    Http {
        url: Uri,
        format: SiemFormat,
        token: Option<SecretReference>,
        /// The system's roots where there is none.
        ca_bundle: Option<PathBuf>,
        gzip: bool,
        batch_records: u32,
        batch_bytes: u64,
    },
}

/// What every receiver must take is less (RFC 5425: 2,048), but an event without its texts has about that much.
const LEAST_MESSAGE: usize = 4096;
const SYSLOG_TLS_PORT: u16 = 6514;
const SYSLOG_TCP_PORT: u16 = 601;

pub(super) fn check(raw: Vec<raw::Siem>, document: &mut Document) -> Vec<Siem> {
    let mut seen = HashSet::new();
    let mut sinks = Vec::new();
    for (index, raw) in raw.into_iter().enumerate() {
        let mut checker = Checker { document, index };
        let is_plain = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        if raw.name.is_empty() || raw.name.len() > 64 || !raw.name.bytes().all(is_plain) {
            checker.wrong("name", "expected 1 to 64 of lower-case letters, digits, `-` and `_`");
        } else if !seen.insert(raw.name.clone()) {
            checker.wrong("name", "expected a name that no other sink has");
        }
        if raw.only.as_ref().is_some_and(Vec::is_empty) {
            checker.wrong("only", "expected at least one of events, payloads, sessions, statements");
        }
        if raw.verdicts.as_ref().is_some_and(Vec::is_empty) {
            checker.wrong("verdicts", "expected at least one of allow, deny, hold");
        }
        checker.foreign_keys(&raw);
        let (name, only, verdicts) = (raw.name.clone(), raw.only.clone(), raw.verdicts.clone());
        let target = match raw.kind {
            SiemKind::File => checker.file(raw),
            SiemKind::Syslog => checker.syslog(raw),
            SiemKind::Http => checker.http(raw),
        };
        sinks.extend(target.map(|target| Siem { name, only, verdicts, target }));
    }
    sinks
}

struct Checker<'a> {
    document: &'a mut Document,
    index: usize,
}

impl Checker<'_> {
    fn wrong(&mut self, key: &str, message: &str) {
        self.document.add(&["siem".to_owned(), self.index.to_string(), key.to_owned()], message);
    }

    /// A key without a meaning is a mistake.
    fn foreign_keys(&mut self, raw: &raw::Siem) {
        use SiemKind::{File, Http, Syslog};
        let keys: [(&str, bool, &[SiemKind]); 12] = [
            ("path", raw.path.is_some(), &[File]),
            ("max_mebibytes", raw.max_mebibytes.is_some(), &[File]),
            ("keep_files", raw.keep_files.is_some(), &[File]),
            ("url", raw.url.is_some(), &[Syslog, Http]),
            ("ca_bundle", raw.ca_bundle.is_some(), &[Syslog, Http]),
            ("max_message_bytes", raw.max_message_bytes.is_some(), &[Syslog]),
            ("format", raw.format.is_some(), &[Http]),
            ("token", raw.token.is_some(), &[Http]),
            ("allow_http", raw.allow_http.is_some(), &[Http]),
            ("gzip", raw.gzip.is_some(), &[Http]),
            ("batch_records", raw.batch_records.is_some(), &[Http]),
            ("batch_kibibytes", raw.batch_kibibytes.is_some(), &[Http]),
        ];
        for (key, is_set, kinds) in keys {
            if is_set && !kinds.contains(&raw.kind) {
                self.wrong(key, "has no meaning for a sink of this kind");
            }
        }
    }

    fn at_least_one(&mut self, key: &str, value: u64) {
        if value == 0 {
            self.wrong(key, "expected at least 1");
        }
    }

    fn file(&mut self, raw: raw::Siem) -> Option<SiemTarget> {
        let (mebibytes, keep_files) = (raw.max_mebibytes.unwrap_or(100), raw.keep_files.unwrap_or(5));
        self.at_least_one("max_mebibytes", mebibytes);
        if !(1..=1000).contains(&keep_files) {
            self.wrong("keep_files", "expected a number from 1 to 1000");
        }
        match raw.path {
            Some(path) if path.is_absolute() => {
                Some(SiemTarget::File { path, max_bytes: mebibytes.saturating_mul(1 << 20), keep_files })
            }
            _ => {
                self.wrong("path", "expected an absolute path: a sink of the kind `file` needs one");
                None
            }
        }
    }

    fn syslog(&mut self, raw: raw::Siem) -> Option<SiemTarget> {
        let max_message_bytes = raw.max_message_bytes.unwrap_or(8192);
        if !(LEAST_MESSAGE..=1 << 20).contains(&max_message_bytes) {
            self.wrong("max_message_bytes", "expected a number from 4096 to 1048576");
        }
        let url: Uri = raw.url.unwrap_or_default().parse().unwrap_or_default();
        let tls = url.scheme_str() == Some("tls");
        let known = tls || url.scheme_str() == Some("tcp");
        match url.host() {
            Some(host) if known && matches!(url.path(), "" | "/") => Some(SiemTarget::Syslog {
                host: host.trim_matches(['[', ']']).to_owned(),
                port: url.port_u16().unwrap_or(if tls { SYSLOG_TLS_PORT } else { SYSLOG_TCP_PORT }),
                tls,
                ca_bundle: raw.ca_bundle,
                max_message_bytes,
            }),
            _ => {
                self.wrong(
                    "url",
                    "expected `tls://HOST:PORT`, or `tcp://HOST:PORT` for a network that you trust",
                );
                None
            }
        }
    }

    fn http(&mut self, raw: raw::Siem) -> Option<SiemTarget> {
        let (batch_records, kibibytes) =
            (raw.batch_records.unwrap_or(500), raw.batch_kibibytes.unwrap_or(512));
        if !(1..=10_000).contains(&batch_records) {
            self.wrong("batch_records", "expected a number from 1 to 10000");
        }
        if !(1..=16 * 1024).contains(&kibibytes) {
            self.wrong("batch_kibibytes", "expected a number from 1 to 16384");
        }
        let format = raw.format.unwrap_or_default();
        if format == SiemFormat::SplunkHec && raw.token.is_none() {
            self.wrong("token", "expected a reference to the token of the HTTP Event Collector");
        }
        let token = raw.token.and_then(|reference| match reference.parse() {
            Ok(reference) => Some(reference),
            Err(expected) => {
                self.wrong("token", expected);
                None
            }
        });
        let url = raw.url.unwrap_or_default();
        match protected_url(&url, raw.allow_http.unwrap_or(false)) {
            Ok(url) if url.authority().is_some_and(|authority| !authority.as_str().contains('@')) => {
                Some(SiemTarget::Http {
                    url,
                    format,
                    token,
                    ca_bundle: raw.ca_bundle,
                    gzip: raw.gzip.unwrap_or(false),
                    batch_records,
                    batch_bytes: kibibytes.saturating_mul(1024),
                })
            }
            Ok(_) => {
                self.wrong("url", "expected a URL without a user or password: `token` refers to a secret");
                None
            }
            Err(expected) => {
                self.wrong("url", expected);
                None
            }
        }
    }
}
