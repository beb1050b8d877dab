//! Rows of the journal as a block of ClickHouse's Native format: column by column, each with its name and type.
//!
//! A word that repeats goes over once, and ClickHouse stores it as it comes. Both sides do a fraction of the work that
//! rows take. The format is that of `SerializationLowCardinality`, `SerializationArray` and `SerializationNullable`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use rusqlite::types::ValueRef;
use uuid::Uuid;

/// How a column of the journal is written. ClickHouse converts it where the table has another type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Bool,
    OptionalText,
    OptionalU32,
    OptionalU64,
    Text,
    /// Microseconds since 1970.
    Time,
    U32,
    U64,
    Uuid,
    /// A text that repeats.
    Word,
    /// A JSON array of texts that repeat; none where it is NULL.
    Words,
}

/// Rows, as columns.
#[derive(Debug)]
pub(super) struct Block {
    columns: Vec<Column>,
    rows: usize,
}

impl Block {
    pub(super) fn new(columns: &[(&'static str, Kind)]) -> Self {
        Self { columns: columns.iter().map(|(name, kind)| Column::new(name, *kind)).collect(), rows: 0 }
    }

    /// Takes a row that has the block's columns, in their order, up to the last ones, which are `more`. A value that is none of its column's kind (the disk flips bits) becomes
    /// the nearest that is: verification finds the record changed, and delivery goes on.
    pub(super) fn push(&mut self, row: &rusqlite::Row<'_>, more: &[String]) -> rusqlite::Result<()> {
        let of_row = self.columns.len().saturating_sub(more.len());
        for (index, column) in self.columns.iter_mut().enumerate() {
            column.push(match index.checked_sub(of_row).and_then(|index| more.get(index)) {
                Some(text) => ValueRef::Text(text.as_bytes()),
                None => row.get_ref(index)?,
            });
        }
        self.rows += 1;
        Ok(())
    }

    /// The bytes on the wire; `None` where there is no row.
    pub(super) fn encode(self) -> Option<Vec<u8>> {
        if self.rows == 0 {
            return None;
        }
        let mut out = Vec::new();
        put_length(&mut out, self.columns.len());
        put_length(&mut out, self.rows);
        for column in self.columns {
            column.encode(self.rows, &mut out);
        }
        Some(out)
    }
}

#[derive(Debug)]
struct Column {
    name: &'static str,
    kind: Kind,
    /// One byte a row, where the column may be NULL.
    nulls: Vec<u8>,
    /// The ends of lists.
    ends: Vec<u8>,
    /// Values; of words, their indexes in the dictionary.
    values: Vec<u8>,
    dictionary: Dictionary,
    /// Lists as they are in the journal, and where their indexes are among the values.
    lists: HashMap<Box<[u8]>, Range<usize>>,
    /// The last one: the next row often has it too.
    last_list: (Vec<u8>, Range<usize>),
}

impl Column {
    fn new(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            nulls: Vec::new(),
            ends: Vec::new(),
            values: Vec::new(),
            dictionary: Dictionary::default(),
            lists: HashMap::new(),
            last_list: (b"[]".to_vec(), 0..0),
        }
    }

    fn push(&mut self, value: ValueRef<'_>) {
        let (text, number) = match value {
            ValueRef::Text(text) => (text, 0),
            ValueRef::Integer(number) => (&[][..], number),
            _ => (&[][..], 0),
        };
        let small = || u32::try_from(number.max(0)).unwrap_or(u32::MAX).to_le_bytes();
        let large = || u64::try_from(number).unwrap_or_default().to_le_bytes();
        if matches!(self.kind, Kind::OptionalText | Kind::OptionalU32 | Kind::OptionalU64) {
            self.nulls.push(matches!(value, ValueRef::Null).into());
        }
        match self.kind {
            Kind::Bool => self.values.push(u8::from(number != 0)),
            Kind::Text | Kind::OptionalText => put_text(&mut self.values, &readable(text)),
            Kind::Time => self.values.extend(number.to_le_bytes()),
            Kind::U32 | Kind::OptionalU32 => self.values.extend(small()),
            Kind::U64 | Kind::OptionalU64 => self.values.extend(large()),
            Kind::Uuid => {
                let (high, low) = Uuid::try_parse_ascii(text).unwrap_or_default().as_u64_pair();
                self.values.extend(high.to_le_bytes());
                self.values.extend(low.to_le_bytes());
            }
            Kind::Word => self.values.extend(self.dictionary.index(text).to_le_bytes()),
            Kind::Words => self.push_list(if text.is_empty() { b"[]" } else { text }),
        }
    }

    fn push_list(&mut self, json: &[u8]) {
        let begin = self.values.len();
        let (last, place) = &mut self.last_list;
        if last == json {
            self.values.extend_from_within(place.clone());
        } else {
            if let Some(place) = self.lists.get(json) {
                self.values.extend_from_within(place.clone());
            } else {
                let text = readable(json);
                let words: Vec<String> =
                    serde_json::from_str(&text).unwrap_or_else(|_| vec![text.into_owned()]);
                for word in words {
                    self.values.extend(self.dictionary.index(word.as_bytes()).to_le_bytes());
                }
                self.lists.insert(json.into(), begin..self.values.len());
            }
            last.clear();
            last.extend(json);
            *place = begin..self.values.len();
        }
        put_count(&mut self.ends, self.values.len() / size_of::<u32>());
    }

    fn encode(self, rows: usize, out: &mut Vec<u8>) {
        put_text(out, self.name);
        put_text(out, self.kind.name());
        match self.kind {
            Kind::Word => {
                out.extend(Dictionary::VERSION);
                self.dictionary.encode(out);
                put_count(out, rows);
            }
            Kind::Words => {
                out.extend(Dictionary::VERSION);
                out.extend(self.ends);
                // Of lists that are all empty there is no more.
                if !self.values.is_empty() {
                    self.dictionary.encode(out);
                    put_count(out, self.values.len() / size_of::<u32>());
                }
            }
            _ => out.extend(self.nulls),
        }
        out.extend(self.values);
    }
}

impl Kind {
    /// Of the type, in ClickHouse.
    fn name(self) -> &'static str {
        match self {
            Self::Bool => "Bool",
            Self::OptionalText => "Nullable(String)",
            Self::OptionalU32 => "Nullable(UInt32)",
            Self::OptionalU64 => "Nullable(UInt64)",
            Self::Text => "String",
            Self::Time => "DateTime64(6, 'UTC')",
            Self::U32 => "UInt32",
            Self::U64 => "UInt64",
            Self::Uuid => "UUID",
            Self::Word => "LowCardinality(String)",
            Self::Words => "Array(LowCardinality(String))",
        }
    }
}

/// The words of a column, each once. The first one is the empty one, as ClickHouse has it.
#[derive(Debug)]
struct Dictionary {
    /// As they go over the wire.
    encoded: Vec<u8>,
    indexes: HashMap<Box<str>, u32>,
    /// The last one that was asked for, and its index: the next one is often the same.
    last: (Vec<u8>, u32),
}

impl Default for Dictionary {
    fn default() -> Self {
        Self { encoded: vec![0], indexes: HashMap::from([("".into(), 0)]), last: (Vec::new(), 0) }
    }
}

impl Dictionary {
    /// Of the serialisation, before the column.
    const VERSION: [u8; 8] = 1_u64.to_le_bytes();
    /// The words come with the block, and their indexes are `UInt32`.
    const KIND: [u8; 8] = 0x602_u64.to_le_bytes();

    fn index(&mut self, word: &[u8]) -> u32 {
        let (last, index) = &mut self.last;
        if last != word {
            let text = readable(word);
            *index = self.indexes.get(&*text).copied().unwrap_or_else(|| {
                // A batch has fewer rows than there are numbers here.
                let next = u32::try_from(self.indexes.len()).unwrap_or(u32::MAX);
                put_text(&mut self.encoded, &text);
                self.indexes.insert(text.into(), next);
                next
            });
            last.clear();
            last.extend(word);
        }
        *index
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(Self::KIND);
        put_count(out, self.indexes.len());
        out.extend(&self.encoded);
    }
}

/// What is no UTF-8 has other characters in its place. Most often there is none, which is seen faster than it is replaced.
fn readable(text: &[u8]) -> Cow<'_, str> {
    str::from_utf8(text).map_or_else(|_| String::from_utf8_lossy(text), Cow::Borrowed)
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_length(out, text.len());
    out.extend(text.as_bytes());
}

/// Seven bits a byte, the low ones first.
fn put_length(out: &mut Vec<u8>, length: usize) {
    let mut left = length;
    while left >= 0x80 {
        out.push(u8::try_from(left & 0x7f).unwrap_or_default() | 0x80);
        left >>= 7;
    }
    out.push(u8::try_from(left).unwrap_or_default());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    out.extend(u64::try_from(count).unwrap_or(u64::MAX).to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(kind: Kind, values: &str) -> Vec<u8> {
        let connection = rusqlite::Connection::open_in_memory().unwrap();
        let mut query = connection.prepare(&format!("SELECT * FROM (VALUES {values})")).unwrap();
        let mut rows = query.query([]).unwrap();
        let mut block = Block::new(&[("c", kind)]);
        while let Some(row) = rows.next().unwrap() {
            block.push(row, &[]).unwrap();
        }
        let encoded = block.encode().unwrap();
        let name = [&[1, b'c', u8::try_from(kind.name().len()).unwrap()], kind.name().as_bytes()].concat();
        assert_eq!(encoded.get(2..2 + name.len()), Some(&name[..]));
        encoded[2 + name.len()..].to_vec()
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    fn indexes(indexes: &[u32]) -> Vec<u8> {
        indexes.iter().flat_map(|index| index.to_le_bytes()).collect()
    }

    #[test]
    fn what_the_disk_has_changed_goes_over_all_the_same() {
        assert_eq!(encoded(Kind::Uuid, "('no identifier')"), [0; 16]);
        assert_eq!(encoded(Kind::U32, "(-1)"), [0; 4]);
        assert_eq!(encoded(Kind::OptionalU64, "(NULL), (-1)"), [&[1, 0][..], &[0; 16]].concat());
        assert_eq!(encoded(Kind::Text, "(1.5)"), [0]);
        assert_eq!(encoded(Kind::Text, "(CAST(x'61ff' AS TEXT))"), "\x04a\u{fffd}".as_bytes());
        let words = encoded(Kind::Words, "('[1,\"a')");
        assert!(words.windows(5).any(|window| window == b"[1,\"a"), "{words:?}");
    }

    #[test]
    fn a_word_goes_over_once() {
        let found = encoded(Kind::Word, "('b'), ('b'), (''), ('a'), ('b')");
        let words = [&numbers(&[1, 0x602, 3])[..], b"\0\x01b\x01a", &numbers(&[5])].concat();
        assert_eq!(found, [words, indexes(&[1, 1, 0, 2, 1])].concat());
    }

    #[test]
    fn lists_are_their_ends_and_their_words_and_empty_ones_have_no_words() {
        let found = encoded(Kind::Words, r#"('["a","b"]'), (NULL), ('["b"]'), ('["b"]'), ('["a","b"]')"#);
        let words = [&numbers(&[1, 2, 2, 3, 4, 6, 0x602, 3])[..], b"\0\x01a\x01b", &numbers(&[6])].concat();
        assert_eq!(found, [words, indexes(&[1, 2, 2, 2, 1, 2])].concat());
        assert_eq!(encoded(Kind::Words, "('[]'), (NULL)"), numbers(&[1, 0, 0]));
    }

    #[test]
    fn what_may_be_missing_says_so_first() {
        assert_eq!(encoded(Kind::OptionalU64, "(7), (NULL)"), [vec![0, 1], numbers(&[7, 0])].concat());
        assert_eq!(encoded(Kind::OptionalText, "(NULL), ('x')"), b"\x01\0\0\x01x");
    }

    #[test]
    fn a_long_text_has_a_length_of_several_bytes() {
        let found = encoded(Kind::Text, &format!("('{}')", "x".repeat(300)));
        assert_eq!((&found[..2], found.len()), (&[0xac, 0x02][..], 302));
    }
}
