//! Tokens of PTX: words (names, numbers, dotted opcodes), strings and single punctuation characters.

use crate::fault::ParseError;

/// A token's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A name, number, directive or opcode with its dots: `%rd1`, `.reg`, `ld.global.L1::no_allocate.u32`,
    /// `0f3F800000`.
    Word,
    /// A quoted string, without its quotes.
    Text,
    /// One character.
    Punct(char),
}

/// A token with its place in the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'t> {
    pub kind: Kind,
    pub text: &'t str,
    pub line: u32,
    pub column: u32,
    /// Byte offset in the source.
    pub start: usize,
}

impl Token<'_> {
    pub fn is(&self, c: char) -> bool {
        self.kind == Kind::Punct(c)
    }

    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column,
            text: self.text.to_owned(),
            message: message.into(),
        }
    }
}

/// Splits `source` into tokens; comments vanish.
pub(crate) fn lex(source: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = source.as_bytes();
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$' | b'%' | b'.');
    let mut tokens = Vec::with_capacity(source.len() / 4);
    let (mut at, mut line, mut line_start) = (0, 1, 0);
    while at < bytes.len() {
        let start = at;
        let column = (start - line_start + 1) as u32;
        let token = |kind, text| Token { kind, text, line, column, start };
        match bytes[at] {
            b'\n' => {
                line += 1;
                line_start = at + 1;
                at += 1;
            }
            b if b.is_ascii_whitespace() || b == 0 => at += 1,
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += source[at..].find('\n').unwrap_or(bytes.len() - at);
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let Some(len) = source[at..].find("*/") else {
                    return Err(token(Kind::Punct('/'), "/*").error("the comment is never closed"));
                };
                for (i, _) in source[at..at + len].match_indices('\n') {
                    line += 1;
                    line_start = at + i + 1;
                }
                at += len + 2;
            }
            b'"' => {
                let Some(len) = source[at + 1..].find(['"', '\n']).filter(|l| bytes[at + 1 + l] == b'"')
                else {
                    return Err(token(Kind::Text, "\"").error("the string is never closed"));
                };
                tokens.push(token(Kind::Text, &source[at + 1..at + 1 + len]));
                at += len + 2;
            }
            b if word(b) => {
                while at < bytes.len() {
                    let colons =
                        bytes[at..].starts_with(b"::") && bytes.get(at + 2).is_some_and(|b| word(*b));
                    if colons {
                        at += 2;
                    } else if word(bytes[at]) {
                        at += 1;
                    } else {
                        break;
                    }
                }
                tokens.push(token(Kind::Word, &source[start..at]));
            }
            b if b.is_ascii() => {
                at += 1;
                tokens.push(token(Kind::Punct(b as char), &source[start..at]));
            }
            _ => {
                let c = source[at..].chars().next().unwrap_or(' ');
                let text = &source[at..at + c.len_utf8()];
                return Err(token(Kind::Punct(c), text).error("unexpected character"));
            }
        }
    }
    Ok(tokens)
}
