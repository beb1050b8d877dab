//! What a payload holds, in the order in which it passed: the request, the answer, and when each piece of it did.
//!
//! A frame is one byte for its kind, the microseconds since the request began (8 bytes), the length of its content (4
//! bytes), both little-endian, and the content. Contents of a kind that follow one another belong together.

/// Bytes before a frame's content.
const HEAD: usize = 13;

/// What a frame is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// JSON: method, target, headers.
    Request,
    RequestBody,
    /// JSON: status, headers.
    Answer,
    AnswerBody,
    /// JSON: how it ended, where not with the end of the answer.
    End,
}

const KINDS: [FrameKind; 5] =
    [FrameKind::Request, FrameKind::RequestBody, FrameKind::Answer, FrameKind::AnswerBody, FrameKind::End];

/// A piece of what passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: FrameKind,
    /// Since the request began; 0 where it stands beside the place of the piece.
    pub micros: u64,
    pub content: &'a [u8],
}

/// Appends a frame whose content is in parts: together at most four gigabytes.
pub fn write(kind: FrameKind, micros: u64, content: &[impl AsRef<[u8]>], to: &mut Vec<u8>) {
    let kind = KINDS.iter().position(|other| *other == kind).and_then(|it| u8::try_from(it).ok());
    let length: usize = content.iter().map(|part| part.as_ref().len()).sum();
    to.reserve(HEAD + length);
    to.push(kind.unwrap_or(u8::MAX));
    to.extend_from_slice(&micros.to_le_bytes());
    to.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
    for part in content {
        to.extend_from_slice(part.as_ref());
    }
}

/// Reads frames to the end of the bytes; `None` in the place of one that is none.
pub fn read(bytes: &[u8]) -> impl Iterator<Item = Option<Frame<'_>>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let frame = first(rest);
        rest = frame.map(|(_, more)| more).unwrap_or_default();
        Some(frame.map(|(frame, _)| frame))
    })
}

fn first(bytes: &[u8]) -> Option<(Frame<'_>, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<HEAD>()?;
    let (kind, numbers) = head.split_first()?;
    let (micros, length) = numbers.split_first_chunk::<8>()?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    let (content, more) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let kind = *KINDS.get(usize::from(*kind))?;
    Some((Frame { kind, micros: u64::from_le_bytes(*micros), content }, more))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn frames_are_read_as_they_were_written(
            frames in prop::collection::vec((0..KINDS.len(), any::<u64>(), any::<Vec<u8>>()), 0..8)
        ) {
            let mut bytes = Vec::new();
            let frames: Vec<_> = frames
                .iter()
                .map(|(kind, micros, content)| Frame { kind: KINDS[*kind], micros: *micros, content })
                .collect();
            for Frame { kind, micros, content } in &frames {
                let (first, second) = content.split_at(content.len() / 2);
                write(*kind, *micros, &[first, second], &mut bytes);
            }
            prop_assert_eq!(read(&bytes).collect::<Option<Vec<_>>>(), Some(frames));
        }

        #[test]
        fn whatever_comes_is_read_to_an_end(bytes: Vec<u8>) {
            prop_assert!(read(&bytes).count() <= bytes.len());
        }
    }
}
