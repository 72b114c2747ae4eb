//! The text of JSON files, which may have hundreds of megabytes: it is in memory once.

use std::path::Path;

use crate::error::{Error, Result};
use crate::fsio::read_file;

/// What Python writes for numbers that JSON does not have.
const WORDS: [&str; 3] = ["NaN", "-Infinity", "Infinity"];

/// The text of a JSON file. Bare `NaN` and `Infinity` become strings: they are no JSON, and a field that
/// needs a number then says what it found. Only a file that has such is copied, once, while it is read.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = read_file(path)?;
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(Error::data(path, "is UTF-16 text, not UTF-8: save it as UTF-8"));
    }
    let mut text =
        String::from_utf8(bytes).map_err(|_| Error::data(path, "not JSON text: it is not UTF-8"))?;
    if text.starts_with('\u{feff}') {
        text.remove(0);
    }
    Ok(quote_words(&text).unwrap_or(text))
}

/// The text with quotes around [`WORDS`] outside of strings; `None` if there are no such words.
fn quote_words(text: &str) -> Option<String> {
    // One search for both infinities.
    if !text.contains(WORDS[0]) && !text.contains(WORDS[2]) {
        return None;
    }
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len() + 64);
    let (mut at, mut copied, mut inside) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'\\' if inside => at += 1,
            b'"' => inside = !inside,
            _ if inside => {}
            _ => {
                if let Some(word) = WORDS.iter().find(|word| bytes[at..].starts_with(word.as_bytes())) {
                    out.push_str(&text[copied..at]);
                    out.extend(["\"", word, "\""]);
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
        }
        at += 1;
    }
    out.push_str(&text[copied..]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_are_no_json_are_quoted_outside_of_strings() {
        assert_eq!(quote_words(r#"{"a": 1}"#), None);
        assert_eq!(
            quote_words(r#"{"NaN \" NaN": [NaN, -Infinity,Infinity], "ü": "Infinity"}"#).unwrap(),
            r#"{"NaN \" NaN": ["NaN", "-Infinity","Infinity"], "ü": "Infinity"}"#
        );
    }
}
