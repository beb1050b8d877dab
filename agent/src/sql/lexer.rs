//! Cuts a text into tokens exactly as Snowflake does, or says that the text cannot be cut for certain.
//!
//! Whoever decides on a text must see the same statement borders as Snowflake. Where two readings of a character are
//! thinkable (a backquote, a control character, a comment inside a stage path …) the lexer does not choose one: it
//! returns an [`Oddity`], and the text is opaque.

/// What a token is. Blanks and comments are pieces too, but are not among the tokens of a [`super::source::Source`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Blank,
    Comment,
    /// A name or keyword without quotes.
    Word,
    /// A name in double quotes.
    Quoted,
    /// A string in single quotes.
    Text,
    /// A string between `$$` and `$$`.
    Dollar,
    Number,
    /// `$name` or `$1`.
    Variable,
    /// `@stage/path`.
    Stage,
    /// `file://path` without quotes, in PUT and GET.
    File,
    /// `->>`, which hands the result of one statement to the next.
    Flow,
    /// Any other ASCII character.
    Punct(u8),
}

/// One piece of the text: bytes `start..end`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Token {
    pub kind: Kind,
    pub start: u32,
    pub end: u32,
}

/// Why a text cannot be cut for certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Oddity {
    /// A character that has no place outside quotes and comments.
    Character,
    /// A string, name or comment that is never closed.
    Open,
    /// A comment whose end is a matter of opinion.
    Comment,
    /// A stage or file path that contains a quote or a comment mark.
    Path,
    /// A name or variable that contains `$$`.
    Dollars,
}

/// Cuts a text into pieces that cover it without a gap.
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
    /// Whether the statement that is being read is a PUT or GET, where `file://` starts a path, not a comment.
    transfer: bool,
    /// Whether a token of the current statement was seen.
    started: bool,
    /// Where the last `*/` of the text stands.
    last_comment_end: Option<usize>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0, transfer: false, started: false, last_comment_end: text.rfind("*/") }
    }

    /// The next piece, `None` at the end.
    pub(super) fn next_piece(&mut self) -> Result<Option<Token>, Oddity> {
        let start = self.at;
        let Some(first) = self.peek(0) else {
            return Ok(None);
        };
        let kind = self.piece(first)?;
        match kind {
            Kind::Blank | Kind::Comment => {}
            Kind::Punct(b';') | Kind::Flow => (self.transfer, self.started) = (false, false),
            _ if !self.started => {
                self.started = true;
                let word = self.text.get(start..self.at).unwrap_or("");
                self.transfer = word.eq_ignore_ascii_case("put") || word.eq_ignore_ascii_case("get");
            }
            _ => {}
        }
        let offset = |at: usize| u32::try_from(at).unwrap_or(u32::MAX);
        Ok(Some(Token { kind, start: offset(start), end: offset(self.at) }))
    }

    fn piece(&mut self, first: u8) -> Result<Kind, Oddity> {
        match (first, self.peek(1), self.peek(2)) {
            (b' ' | b'\t' | b'\n' | b'\r', ..) => {
                self.skip_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'));
                Ok(Kind::Blank)
            }
            (b'-', Some(b'-'), _) | (b'/', Some(b'/'), _) => self.line_comment(),
            (b'/', Some(b'*'), _) => self.block_comment(),
            (b'\'', ..) => self.string(),
            (b'"', ..) => {
                self.quoted_name()?;
                Ok(Kind::Quoted)
            }
            (b'$', Some(b'$'), _) => self.dollar_string(),
            // A lone `$` ends the pattern of a MATCH_RECOGNIZE.
            (b'$', Some(b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | 0x80..), _) => {
                self.at += 1;
                self.name()?;
                Ok(Kind::Variable)
            }
            (b'@', ..) => self.stage(),
            (b'-', Some(b'>'), Some(b'>')) => {
                self.at += 3;
                Ok(Kind::Flow)
            }
            (b'0'..=b'9', ..) => {
                self.number();
                Ok(Kind::Number)
            }
            (b'.', Some(b'0'..=b'9'), _) if !self.follows_name() => {
                self.number();
                Ok(Kind::Number)
            }
            (b'A'..=b'Z' | b'a'..=b'z' | b'_' | 0x80.., ..) => self.word_or_blank(),
            (b'#' | b'`' | b'\\' | 0x00..=0x1f | 0x7f, ..) => Err(Oddity::Character),
            _ => {
                self.at += 1;
                Ok(Kind::Punct(first))
            }
        }
    }

    fn line_comment(&mut self) -> Result<Kind, Oddity> {
        let rest = self.text.get(self.at..).unwrap_or("");
        let line = rest.split('\n').next().unwrap_or("");
        let content = line.strip_suffix('\r').unwrap_or(line);
        // Characters that some lexers take for the end of a line.
        if content.contains(['\r', '\u{b}', '\u{c}', '\0', '\u{85}', '\u{2028}', '\u{2029}']) {
            return Err(Oddity::Comment);
        }
        self.at += line.len();
        Ok(Kind::Comment)
    }

    fn block_comment(&mut self) -> Result<Kind, Oddity> {
        let rest = self.text.get(self.at + 2..).unwrap_or("");
        let length = rest.find("*/").ok_or(Oddity::Open)?;
        // Up to the star of the closing mark: in `/* … /*/` the last slash may open an inner comment.
        let body = self.text.get(self.at + 2..self.at + 3 + length).unwrap_or("");
        if body.contains("/*") || body.starts_with('/') {
            return Err(Oddity::Comment);
        }
        self.at += length + 4;
        Ok(Kind::Comment)
    }

    fn string(&mut self) -> Result<Kind, Oddity> {
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) | (Some(b'\\'), None) => return Err(Oddity::Open),
                (Some(b'\\'), Some(_)) | (Some(b'\''), Some(b'\'')) => self.at += 2,
                (Some(b'\''), _) => {
                    self.at += 1;
                    return Ok(Kind::Text);
                }
                _ => self.at += 1,
            }
        }
    }

    fn quoted_name(&mut self) -> Result<(), Oddity> {
        self.at += 1;
        loop {
            match (self.peek(0), self.peek(1)) {
                (None, _) => return Err(Oddity::Open),
                (Some(b'"'), Some(b'"')) => self.at += 2,
                (Some(b'"'), _) => {
                    self.at += 1;
                    return Ok(());
                }
                _ => self.at += 1,
            }
        }
    }

    fn dollar_string(&mut self) -> Result<Kind, Oddity> {
        let rest = self.text.get(self.at + 2..).unwrap_or("");
        let length = rest.find("$$").ok_or(Oddity::Open)?;
        self.at += length + 4;
        // `$$a$$$`: which two of the three end the string?
        if self.peek(0) == Some(b'$') { Err(Oddity::Dollars) } else { Ok(Kind::Dollar) }
    }

    /// The characters of a name or variable.
    fn name(&mut self) -> Result<(), Oddity> {
        let start = self.at;
        while let Some(byte) = self.peek(0) {
            match byte {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'$' => self.at += 1,
                0x80.. => {
                    let Some(character) = self.character() else {
                        return Err(Oddity::Character);
                    };
                    if !is_name_character(character) {
                        break;
                    }
                    self.at += character.len_utf8();
                }
                _ => break,
            }
        }
        let name = self.text.get(start..self.at).unwrap_or("");
        if name.is_empty() || name.contains("$$") { Err(Oddity::Dollars) } else { Ok(()) }
    }

    fn word_or_blank(&mut self) -> Result<Kind, Oddity> {
        if let Some(character) = self.character().filter(|character| !character.is_ascii()) {
            if character.is_whitespace() && !matches!(character, '\u{85}' | '\u{2028}' | '\u{2029}') {
                self.at += character.len_utf8();
                return Ok(Kind::Blank);
            }
            if !is_name_character(character) {
                return Err(Oddity::Character);
            }
        }
        let start = self.at;
        self.name()?;
        let word = self.text.get(start..self.at).unwrap_or("");
        if word.eq_ignore_ascii_case("file")
            && self.text.get(self.at..).is_some_and(|rest| rest.starts_with("://"))
        {
            return self.file_path();
        }
        Ok(Kind::Word)
    }

    /// `file://…` without quotes, behind the word `file`.
    fn file_path(&mut self) -> Result<Kind, Oddity> {
        if !self.transfer {
            return Err(Oddity::Path);
        }
        let start = self.at + 3;
        self.at = start;
        // Windows paths contain backslashes; non-ASCII letters are part of the name.
        self.skip_while(|byte| !matches!(byte, 0x00..=0x20 | b';'));
        let path = self.text.get(start..self.at).unwrap_or("");
        if path.contains(['\'', '"', '`', '$']) || path.contains("--") || path.contains("->>") {
            return Err(Oddity::Path);
        }
        // `*` is a wildcard, yet `/*` could be taken for a comment if anything closed it.
        if path.contains("/*") && self.last_comment_end.is_some_and(|end| end >= start) {
            return Err(Oddity::Path);
        }
        Ok(Kind::File)
    }

    /// `@~/path`, `@%table`, `@"Quoted"."Stage"/path`, `@db.schema.stage/path`.
    fn stage(&mut self) -> Result<Kind, Oddity> {
        let start = self.at;
        self.at += 1;
        while let Some(byte) = self.peek(0) {
            match byte {
                b'"' => self.quoted_name()?,
                b'\'' | b'`' | b'#' | b'\\' | b'@' => return Err(Oddity::Path),
                b'-' if self.peek(1) == Some(b'>') => break,
                0x00..=0x20 | 0x7f | b';' | b',' | b'(' | b')' | b'<' | b'>' | b'[' | b']' | b'|' => break,
                0x80.. => match self.character() {
                    Some(character) if is_name_character(character) => self.at += character.len_utf8(),
                    _ => return Err(Oddity::Character),
                },
                _ => self.at += 1,
            }
        }
        let path = self.text.get(start..self.at).unwrap_or("");
        if path.len() == 1 || path.contains("//") || path.contains("--") || path.contains("/*") {
            return Err(Oddity::Path);
        }
        Ok(Kind::Stage)
    }

    fn number(&mut self) {
        self.skip_while(|byte| byte.is_ascii_digit());
        if self.peek(0) == Some(b'.') {
            self.at += 1;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
        let sign = usize::from(matches!(self.peek(1), Some(b'+' | b'-')));
        if matches!(self.peek(0), Some(b'e' | b'E'))
            && self.peek(1 + sign).is_some_and(|byte| byte.is_ascii_digit())
        {
            self.at += 1 + sign;
            self.skip_while(|byte| byte.is_ascii_digit());
        }
    }

    /// Whether a name ends just here, so that a dot joins two names.
    fn follows_name(&self) -> bool {
        self.at
            .checked_sub(1)
            .and_then(|at| self.text.as_bytes().get(at))
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | b'"' | 0x80..))
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.text.as_bytes().get(self.at + ahead).copied()
    }

    fn character(&self) -> Option<char> {
        self.text.get(self.at..).and_then(|rest| rest.chars().next())
    }

    fn skip_while(&mut self, wanted: impl Fn(u8) -> bool) {
        while self.peek(0).is_some_and(&wanted) {
            self.at += 1;
        }
    }
}

/// Whether a character beyond ASCII may be part of a name. Letters that a change of case or a compatibility mapping
/// turns into ASCII (`ſ`, `ı`, the Kelvin sign, full-width forms …) could spell a keyword, so they may not; `ß` is too common in
/// names, and no verb has two S.
fn is_name_character(character: char) -> bool {
    character.is_alphanumeric()
        && (character == 'ß' || !character.to_uppercase().any(|upper| upper.is_ascii()))
        && !character.to_lowercase().any(|lower| lower.is_ascii())
        && !matches!(character,
            '\u{ff00}'..='\u{ffef}' | '\u{1d400}'..='\u{1d7ff}' | '\u{2100}'..='\u{218f}' | '\u{2460}'..='\u{24ff}'
            | '\u{1f100}'..='\u{1f2ff}' | '\u{2070}'..='\u{209f}' | '\u{1d2c}'..='\u{1dbf}' | '\u{e0000}'..)
}

/// What a string token stands for: quotes off, escapes resolved. `None` for another kind of token.
pub(super) fn decode(kind: Kind, raw: &str) -> Option<String> {
    match kind {
        Kind::Dollar => raw.strip_prefix("$$")?.strip_suffix("$$").map(str::to_owned),
        Kind::Text => Some(unescape(raw.strip_prefix('\'')?.strip_suffix('\'')?)),
        _ => None,
    }
}

fn unescape(body: &str) -> String {
    let mut decoded = String::with_capacity(body.len());
    let mut characters = body.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' => {
                characters.next_if_eq(&'\'');
                decoded.push('\'');
            }
            '\\' => {
                let Some(escape) = characters.next() else { break };
                let mut digits = |radix: u32, most: usize, first: Option<char>| {
                    let mut value = first.and_then(|digit| digit.to_digit(radix)).unwrap_or(0);
                    for _ in 0..most {
                        let Some(digit) = characters.peek().and_then(|digit| digit.to_digit(radix)) else {
                            break;
                        };
                        value = value * radix + digit;
                        characters.next();
                    }
                    char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER)
                };
                decoded.push(match escape {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\u{8}',
                    'f' => '\u{c}',
                    'x' => digits(16, 2, None),
                    'u' => digits(16, 4, None),
                    '0'..='7' => digits(8, 2, Some(escape)),
                    other => other,
                });
            }
            other => decoded.push(other),
        }
    }
    decoded
}
