//! JSON objects whose values are kept as they were written, so that nothing that is not meant to change does: large
//! integers, unknown fields, the order of keys.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::value::RawValue;

/// What is wrong with a body. Shown to the client, so it repeats nothing of what was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("the body is not a JSON object")]
    NotAnObject,
    #[error("the body names a key twice, or in two spellings")]
    DuplicateKey,
    #[error("the body lacks `{0}`, or it has the wrong type")]
    Field(&'static str),
    #[error("the query parameter `{0}` has a value that it cannot have, or is there twice")]
    Parameter(&'static str),
    #[error("a query parameter is not known here, or is there twice")]
    UnknownParameter,
    #[error("the login needs `{0}`, which is not supported")]
    Unsupported(&'static str),
}

/// A JSON object with the text of each value.
#[derive(Debug, Default)]
pub struct Object(Vec<(String, Box<RawValue>)>);

impl Object {
    /// Refuses an object in which two keys differ in nothing but case: what one reader takes for the statement,
    /// another may not.
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let object: Self = serde_json::from_slice(bytes).map_err(|_| Malformed::NotAnObject)?;
        let mut keys: Vec<_> = object.0.iter().map(|(key, _)| key.to_ascii_lowercase()).collect();
        keys.sort_unstable();
        if keys.windows(2).any(|pair| pair.first() == pair.last()) {
            return Err(Malformed::DuplicateKey);
        }
        Ok(object)
    }

    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_ref())
    }

    /// The value of a key as a type; `None` where it is missing, null or of another type.
    pub fn field<'a, T: Deserialize<'a>>(&'a self, key: &str) -> Option<T> {
        serde_json::from_str::<Option<T>>(self.raw(key)?.get()).ok().flatten()
    }

    /// The value of a key as an object; an empty one where it is missing or null.
    pub fn object(&self, key: &'static str) -> Result<Self, Malformed> {
        match self.raw(key).map(RawValue::get) {
            None | Some("null") => Ok(Self::default()),
            Some(text) => Self::parse(text.as_bytes()),
        }
    }

    pub fn set(&mut self, key: &str, value: &impl Serialize) {
        let Ok(value) = serde_json::value::to_raw_value(value) else { return };
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None => self.0.push((key.to_owned(), value)),
        }
    }

    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.0.retain(|(key, _)| keep(key));
    }

    pub fn keys(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_ref()))
    }

    pub fn to_vec(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A JSON text for people: without the white space between its parts, and with the characters that need no escape.
pub fn compact(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let (mut is_quoted, mut rest) = (false, json);
    while let Some(character) = rest.chars().next() {
        let one = character.len_utf8();
        let taken = match character {
            ' ' | '\t' | '\r' | '\n' if !is_quoted => {
                rest = rest.get(one..).unwrap_or_default();
                continue;
            }
            '\\' if let Some(plain) = unescaped(rest) => {
                compact.push(plain);
                rest = rest.get(UNICODE_ESCAPE..).unwrap_or_default();
                continue;
            }
            // With what is escaped, be it a quote.
            '\\' => rest.chars().take(2).map(char::len_utf8).sum(),
            _ => {
                is_quoted ^= character == '"';
                one
            }
        };
        compact.push_str(rest.get(..taken).unwrap_or_default());
        rest = rest.get(taken..).unwrap_or_default();
    }
    compact
}

const UNICODE_ESCAPE: usize = r"\u0000".len();

/// What `\u` and four digits stand for, if that is a character that may stand for itself.
fn unescaped(escape: &str) -> Option<char> {
    let digits = escape.strip_prefix("\\u")?.get(..4)?;
    let plain = char::from_u32(u32::from_str_radix(digits, 16).ok()?)?;
    (!plain.is_control() && plain != '"' && plain != '\\').then_some(plain)
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Object(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl Serialize for Object {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_changed_survives_to_the_letter() {
        let text = r#"{"b":12345678901234567890123,"a":{"x":[1.10,null]},"ü":"\u00e9"}"#;
        let mut object = Object::parse(text.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(object.to_vec()).unwrap(), text);
        object.set("a", &1);
        assert_eq!(
            String::from_utf8(object.to_vec()).unwrap(),
            r#"{"b":12345678901234567890123,"a":1,"ü":"\u00e9"}"#
        );
    }

    #[test]
    fn a_key_in_two_spellings_is_refused() {
        for text in [r#"{"a":1,"a":2}"#, r#"{"sqlText":"x","SQLTEXT":"y"}"#, r#"{"a":1,"\u0061":2}"#] {
            assert_eq!(Object::parse(text.as_bytes()).unwrap_err(), Malformed::DuplicateKey, "{text}");
        }
        for text in ["", "[]", "null", "{", "{\"a\":1} x", "\u{feff}{}"] {
            assert_eq!(Object::parse(text.as_bytes()).unwrap_err(), Malformed::NotAnObject, "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(Object::parse(format!("{{\"a\":{deep}").as_bytes()).is_err());
    }
}
