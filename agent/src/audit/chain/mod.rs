//! The proof that no record was changed, dropped, moved or forged (see ARCHITECTURE.md, "Tamper evidence").
//!
//! The agent signs the journal in steps. A [`Checkpoint`] covers the records since the one before it: it has the root of
//! their Merkle tree and the digest of the checkpoint before, so that they form a chain. A checkpoint is a record itself:
//! it goes wherever the records go.

mod canonical;
mod checkpoint;
mod copies;
mod export;
mod exported;
mod key;
mod notary;
mod tree;
mod trust;
mod verify;

pub(super) use canonical::{Leaf, Members, each, id, integer, leaf, members, text};
pub use checkpoint::Checkpoint;
pub use copies::{Copier, Copies};
pub(super) use export::Line;
pub use export::{ExportError, Exported, export, is_signed};
pub(super) use exported::verify_lines;
pub use exported::{ExportReport, ExportedError, verify_export};
pub use key::{KeyError, SigningKey};
pub use notary::Notary;
pub use verify::{JournalSource, Problem, Report, SALVAGES, Salvaged, Source, verify};

/// The most records that a checkpoint covers.
pub const LONGEST: usize = 4096;

/// Text as bytes; `None` where it is not hexadecimal, in lower case.
fn bytes(text: &str) -> Option<Vec<u8>> {
    if text.contains(|digit: char| digit.is_ascii_uppercase()) {
        return None;
    }
    let digits: Vec<u8> =
        text.chars().map(|digit| digit.to_digit(16)?.try_into().ok()).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Text as a digest.
fn digest(text: &str) -> Option<tree::Digest> {
    bytes(text)?.try_into().ok()
}

#[cfg(test)]
mod tests;
