//! Events that have to fit: the longest texts and lists lose their ends, and `unmapped.truncated` says which, and how many
//! bytes they had. What identifies the event stays whole.

use serde_json::{Map, Value};

/// What is not longer than this stays.
const SHORT: usize = 48;

/// The same event in at most `limit` bytes, as far as its texts and lists are what makes it longer.
pub(super) fn shorten(json: &str, limit: usize) -> String {
    if json.len() <= limit {
        return json.to_owned();
    }
    // It was written by this program.
    let Ok(mut event) = serde_json::from_str::<Value>(json) else { return json.to_owned() };
    loop {
        let text = event.to_string();
        let excess = text.len().saturating_sub(limit);
        let Some((pointer, size)) = longest(&event).filter(|_| excess > 0) else { return text };
        // That it was cut takes room, too.
        let room = size.saturating_sub(excess + pointer.len() + SHORT);
        match event.pointer_mut(&pointer) {
            Some(Value::String(text)) => cut_text(text, room),
            Some(Value::Array(list)) => cut_list(list, room),
            _ => return text,
        }
        note(&mut event, &pointer, size);
    }
}

/// The text, or the list with more than one item, that takes the most bytes; where it is, and how many.
fn longest(event: &Value) -> Option<(String, usize)> {
    let mut longest = None;
    let mut left = vec![(String::new(), event)];
    while let Some((pointer, value)) = left.pop() {
        let size = match value {
            Value::String(text) => written(text),
            Value::Array(list) => {
                left.extend(
                    list.iter().enumerate().map(|(index, item)| (format!("{pointer}/{index}"), item)),
                );
                if list.len() > 1 { value.to_string().len() } else { 0 }
            }
            Value::Object(members) => {
                let members = members.iter().filter(|(key, _)| !(pointer.is_empty() && *key == "metadata"));
                left.extend(members.map(|(key, member)| (format!("{pointer}/{key}"), member)));
                0
            }
            _ => 0,
        };
        if size > SHORT && longest.as_ref().is_none_or(|(_, most)| size > *most) {
            longest = Some((pointer, size));
        }
    }
    longest
}

fn cut_text(text: &mut String, room: usize) {
    const ELLIPSIS: &str = "…";
    let room = room.max(SHORT / 2);
    let mut used = 2 + ELLIPSIS.len();
    let fits = |character: &char| {
        used += written_character(*character);
        used <= room
    };
    let mut kept: String = text.chars().take_while(fits).collect();
    kept.push_str(ELLIPSIS);
    *text = kept;
}

fn cut_list(list: &mut Vec<Value>, room: usize) {
    let mut used = 2;
    let fits = |item: &&Value| {
        used += item.to_string().len() + 1;
        used <= room
    };
    let kept = list.iter().take_while(fits).count();
    list.truncate(kept.clamp(1, list.len().saturating_sub(1).max(1)));
}

/// The first mention counts: it has the whole size.
fn note(event: &mut Value, pointer: &str, size: usize) {
    let Some(event) = event.as_object_mut() else { return };
    let unmapped = event.entry("unmapped").or_insert_with(|| Map::new().into());
    let Some(unmapped) = unmapped.as_object_mut() else { return };
    let truncated = unmapped.entry("truncated").or_insert_with(|| Map::new().into());
    if let Some(truncated) = truncated.as_object_mut() {
        truncated.entry(pointer).or_insert_with(|| size.into());
    }
}

/// Bytes of a text as JSON.
fn written(text: &str) -> usize {
    2 + text.chars().map(written_character).sum::<usize>()
}

fn written_character(character: char) -> usize {
    match character {
        '"' | '\\' | '\n' | '\r' | '\t' | '\u{8}' | '\u{c}' => 2,
        '\0'..='\u{1f}' => 6,
        _ => character.len_utf8(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_fits_stays_as_it_is() {
        let event = json!({ "message": "x".repeat(100) }).to_string();
        assert_eq!(shorten(&event, event.len()), event);
    }

    #[test]
    fn the_longest_goes_first_and_the_event_says_so() {
        let event = json!({
            "metadata": { "uid": "n".repeat(300) },
            "query_info": { "query_string": format!("select '{}'", "\0\u{1f409}\"".repeat(100_000)) },
            "message": "m".repeat(200),
        });
        let short = shorten(&event.to_string(), 4000);
        assert!((3500..=4000).contains(&short.len()), "{}", short.len());
        let short: Value = serde_json::from_str(&short).unwrap();
        assert_eq!(short["metadata"], event["metadata"]);
        assert_eq!(short["message"], event["message"]);
        let sql = short["query_info"]["query_string"].as_str().unwrap();
        assert!(sql.starts_with("select '\0\u{1f409}\"") && sql.ends_with('…'));
        let whole = event["query_info"]["query_string"].to_string().len();
        assert_eq!(short["unmapped"]["truncated"], json!({ "/query_info/query_string": whole }));
    }

    #[test]
    fn long_lists_lose_their_ends() {
        let names: Vec<String> = (0..100_000).map(|number| format!("DB.S.TABLE_{number}")).collect();
        let event =
            json!({ "unmapped": { "objects": names }, "actor": { "groups": vec!["g".repeat(60); 500] } });
        let short = shorten(&event.to_string(), 4096);
        assert!(short.len() <= 4096, "{}", short.len());
        let short: Value = serde_json::from_str(&short).unwrap();
        let kept = short["unmapped"]["objects"].as_array().unwrap();
        assert!(kept.len() < 200 && kept[0] == "DB.S.TABLE_0", "{}", kept.len());
        assert!(short["actor"]["groups"].as_array().unwrap().len() < 100);
        assert_eq!(short["unmapped"]["truncated"].as_object().unwrap().len(), 2);
    }
}
