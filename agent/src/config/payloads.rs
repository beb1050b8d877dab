//! `[audit.payloads]`: what clients asked and were answered.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;

use super::bucket::{self, Bucket};
use super::check::{DAY, LEAST, MEBIBYTE};
use super::document::Document;

/// How payloads are kept.
#[derive(Debug, Clone)]
pub struct Payloads {
    pub recipients: Vec<age::x25519::Recipient>,
    /// Bytes.
    pub spool_limit: u64,
    pub when_full: WhenFull,
    /// How long they stay on this host.
    pub keep: Duration,
    /// Bytes of one answer; `None` for all.
    pub answer_limit: Option<u64>,
    pub files: Files,
    pub archive: Option<Archive>,
}

/// Where payloads go to from here.
#[derive(Debug, Clone)]
pub struct Archive {
    pub bucket: Bucket,
    /// How long they wait for others to go with.
    pub patience: Duration,
}

/// Requests and answers as clients saw them. They are encrypted to public keys before they touch the disk, so that this
/// host cannot read them back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Payloads")]
pub struct Raw {
    /// Public keys of age (`age1…`). Each of their holders can read the payloads alone.
    pub recipients: Vec<String>,
    /// Room on the disk.
    #[serde(default = "spool_mebibytes")]
    pub spool_mebibytes: u64,
    /// What happens when the room is used up.
    #[serde(default)]
    pub when_full: WhenFull,
    /// Days after which payloads are removed from this host. With an archive they are not removed before they are there, and
    /// before their time where there is need of room.
    #[serde(default = "keep_days")]
    pub keep_days: u32,
    /// How much of one answer, or of one file, is kept; what is longer is marked as truncated. Default: all.
    pub answer_mebibytes: Option<u64>,
    /// What is kept of files that go to stages and come from them.
    #[serde(default)]
    pub files: Files,
    /// An object store that payloads are brought to, encrypted as they are. Without it they stay on this host.
    pub archive: Option<bucket::Raw>,
    /// Seconds after which payloads are brought to the archive; 64 MiB go at once.
    #[serde(default = "archive_seconds")]
    pub archive_seconds: u32,
}

/// What is kept of files of stages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Files {
    /// Size and SHA-256, in the event of each.
    #[default]
    Hash,
    /// Their content too, as a payload of the session. What the client has encrypted is kept as it is.
    Keep,
}

/// What happens when there is no room for payloads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// Statements are refused until older payloads are old enough to go, or in the archive.
    #[default]
    Refuse,
    /// The oldest payloads go before their time, and be it before they are in the archive.
    RemoveOldest,
}

fn spool_mebibytes() -> u64 {
    10 * 1024
}

fn keep_days() -> u32 {
    30
}

fn archive_seconds() -> u32 {
    60
}

const AT: [&str; 2] = ["audit", "payloads"];

pub(super) fn check(raw: Raw, document: &mut Document) -> Payloads {
    let mut wrong = |keys: &[&str], message: &str| document.add_below(&AT, keys, message);
    if raw.recipients.is_empty() {
        wrong(&["recipients"], "expected at least one public key: `age-keygen` makes a pair");
    }
    if raw.spool_mebibytes < LEAST {
        wrong(&["spool_mebibytes"], &format!("expected at least {LEAST}"));
    }
    if raw.keep_days == 0 {
        wrong(&["keep_days"], "expected at least a day");
    }
    if !(1..=3600).contains(&raw.archive_seconds) {
        wrong(&["archive_seconds"], "expected a number from 1 to 3600");
    }
    let mut recipients = Vec::new();
    for (index, text) in raw.recipients.iter().enumerate() {
        let index = index.to_string();
        match text.parse() {
            Ok(recipient) => recipients.push(recipient),
            // Whoever puts the other half here has just told everybody.
            Err(_) if text.to_uppercase().starts_with("AGE-SECRET-KEY-") => wrong(
                &["recipients", &index],
                "this is a secret key: keep it away from this host, make a new pair, and put the public key (`age1…`) here",
            ),
            Err(_) => {
                wrong(&["recipients", &index], "expected a public key of age (X25519), such as `age1…`");
            }
        }
    }
    let at = [AT[0], AT[1], "archive"];
    let bucket = raw.archive.and_then(|raw| bucket::check(raw, &at, document));
    let patience = Duration::from_secs(raw.archive_seconds.into());
    Payloads {
        recipients,
        spool_limit: raw.spool_mebibytes.saturating_mul(MEBIBYTE),
        when_full: raw.when_full,
        keep: DAY * raw.keep_days,
        answer_limit: raw.answer_mebibytes.map(|limit| limit.saturating_mul(MEBIBYTE)),
        files: raw.files,
        archive: bucket.map(|bucket| Archive { bucket, patience }),
    }
}

#[cfg(test)]
impl Payloads {
    /// For one reader, in a small spool.
    pub fn sample(recipient: age::x25519::Recipient) -> Self {
        Self {
            recipients: vec![recipient],
            spool_limit: 64 << 20,
            when_full: WhenFull::Refuse,
            keep: Duration::from_hours(1),
            answer_limit: None,
            files: Files::Hash,
            archive: None,
        }
    }
}
