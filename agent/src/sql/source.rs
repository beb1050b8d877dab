//! A text with its tokens, and runs of tokens as all readers see them.

use std::ops::Range;

use super::lexer::{Kind, Lexer, Oddity, Token};

/// A text with its tokens. `upper` is the text in ASCII upper case, byte for byte at the same offsets.
pub(super) struct Source<'a> {
    pub text: &'a str,
    upper: String,
    tokens: Vec<Token>,
}

impl<'a> Source<'a> {
    /// Cuts `text`, which must be shorter than 4 GiB.
    pub(super) fn new(text: &'a str) -> Result<Self, Oddity> {
        let mut tokens = Vec::with_capacity(text.len() / 4);
        let mut lexer = Lexer::new(text);
        while let Some(token) = lexer.next_piece()? {
            if !matches!(token.kind, Kind::Blank | Kind::Comment) {
                tokens.push(token);
            }
        }
        Ok(Self { text, upper: text.to_ascii_uppercase(), tokens })
    }

    /// All tokens.
    pub(super) fn tokens(&self) -> Tokens<'_> {
        Tokens { text: self.text, upper: &self.upper, run: &self.tokens }
    }
}

/// A run of tokens. Every accessor takes any index and answers with "nothing" outside the run.
#[derive(Clone, Copy)]
pub(super) struct Tokens<'s> {
    text: &'s str,
    upper: &'s str,
    run: &'s [Token],
}

impl<'s> Tokens<'s> {
    pub(super) fn len(&self) -> usize {
        self.run.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.run.is_empty()
    }

    pub(super) fn kind(&self, at: usize) -> Option<Kind> {
        self.run.get(at).map(|token| token.kind)
    }

    /// The unquoted word at `at` in upper case, or "".
    pub(super) fn word(&self, at: usize) -> &'s str {
        match self.run.get(at) {
            Some(token) if token.kind == Kind::Word => {
                self.upper.get(token.start as usize..token.end as usize).unwrap_or("")
            }
            _ => "",
        }
    }

    /// The token as it was written, or "".
    pub(super) fn raw(&self, at: usize) -> &'s str {
        self.run
            .get(at)
            .and_then(|token| self.text.get(token.start as usize..token.end as usize))
            .unwrap_or("")
    }

    pub(super) fn is_punct(&self, at: usize, byte: u8) -> bool {
        self.kind(at) == Some(Kind::Punct(byte))
    }

    /// Whether the words at `at` are exactly `phrase`.
    pub(super) fn phrase(&self, at: usize, phrase: &[&str]) -> bool {
        phrase.iter().enumerate().all(|(offset, word)| self.word(at + offset) == *word)
    }

    /// The tokens from `from` (inclusive) to `to` (exclusive); bounds outside the run are cut.
    pub(super) fn slice(&self, from: usize, to: usize) -> Self {
        let to = to.min(self.run.len());
        Self { run: self.run.get(from.min(to)..to).unwrap_or(&[]), ..*self }
    }

    /// Tokens from `from` to the end.
    pub(super) fn from(&self, from: usize) -> Self {
        self.slice(from, self.run.len())
    }

    /// The bytes that the run covers.
    pub(super) fn range(&self) -> Range<usize> {
        match (self.run.first(), self.run.last()) {
            (Some(first), Some(last)) => first.start as usize..last.end as usize,
            _ => 0..0,
        }
    }

    /// The index just behind the bracket that closes the one at `open`; the end of the run where none does.
    pub(super) fn behind_bracket(&self, open: usize) -> usize {
        let mut depth = 0_usize;
        for at in open..self.len() {
            match self.kind(at) {
                Some(Kind::Punct(b'(')) => depth += 1,
                Some(Kind::Punct(b')')) => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return at + 1;
                    }
                }
                _ => {}
            }
        }
        self.len()
    }

    /// The indexes of the tokens that stand in no bracket, the brackets themselves left out.
    pub(super) fn top_level(self) -> impl Iterator<Item = usize> {
        let mut depth = 0_usize;
        (0..self.len()).filter(move |at| {
            match self.kind(*at) {
                Some(Kind::Punct(b'(' | b'[' | b'{')) => depth += 1,
                Some(Kind::Punct(b')' | b']' | b'}')) => {
                    depth = depth.saturating_sub(1);
                    return false;
                }
                _ => {}
            }
            depth == 0
        })
    }

    /// The run as a text without comments, its tokens apart by a blank where anything stood between them.
    pub(super) fn plain_text(&self) -> String {
        let mut plain = String::with_capacity(self.range().len());
        let mut end = None;
        for (at, token) in self.run.iter().enumerate() {
            if end.is_some_and(|end| end != token.start) {
                plain.push(' ');
            }
            plain.push_str(self.raw(at));
            end = Some(token.end);
        }
        plain
    }
}
