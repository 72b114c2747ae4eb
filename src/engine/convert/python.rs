//! What a training configuration of mmdetection says, which checkpoints hold as Python text. Nothing is
//! executed: literals that are assigned to a name, or passed under it, are found and read.

use serde_json::Value;

/// Deepest nesting of lists that is read.
const MAX_DEPTH: usize = 8;

/// Every literal that `text` gives to one of `names` (`name=literal` or `'name': literal`), each once, in
/// order. Values that are no literals (variables, calls) are passed over.
pub(super) fn values(text: &str, names: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    let mut rest = text;
    let mut before = ' ';
    while let Some(first) = rest.chars().next() {
        let word = !(before.is_alphanumeric() || before == '_');
        let name = names.iter().find(|name| word && rest.starts_with(**name));
        if let Some(value) = name.and_then(|name| given(&rest[name.len()..]))
            && !found.contains(&value)
        {
            found.push(value);
        }
        before = first;
        rest = &rest[first.len_utf8()..];
    }
    found
}

/// The literal after a name: `= literal`, or `': literal`.
fn given(after: &str) -> Option<Value> {
    let after = after.trim_start_matches([' ', '\t']);
    let value = match after.strip_prefix('=') {
        Some(value) => value,
        None => after.strip_prefix(['\'', '"'])?.trim_start().strip_prefix(':')?,
    };
    literal(value, MAX_DEPTH).map(|(value, _)| value)
}

/// A literal at the start of `text`, and what follows it.
fn literal(text: &str, depth: usize) -> Option<(Value, &str)> {
    let text = text.trim_start();
    let first = text.chars().next()?;
    match first {
        '(' | '[' => list(&text[1..], if first == '(' { ')' } else { ']' }, depth.checked_sub(1)?),
        '\'' | '"' => {
            let end = text[1..].find(first)? + 1;
            Some((text[1..end].into(), &text[end + 1..]))
        }
        _ => {
            let end = text.find(|c: char| !(c.is_alphanumeric() || "_.+-".contains(c))).unwrap_or(text.len());
            let value = match &text[..end] {
                "True" => true.into(),
                "False" => false.into(),
                "None" => Value::Null,
                // Python writes `1.`, JSON does not read it.
                number => match number.parse::<i64>() {
                    Ok(whole) => whole.into(),
                    Err(_) => serde_json::Number::from_f64(number.parse().ok()?)?.into(),
                },
            };
            Some((value, &text[end..]))
        }
    }
}

/// The items up to `close`.
fn list(mut text: &str, close: char, depth: usize) -> Option<(Value, &str)> {
    let mut items = Vec::new();
    loop {
        text = text.trim_start();
        if let Some(rest) = text.strip_prefix(close) {
            return Some((items.into(), rest));
        }
        let (item, rest) = literal(text, depth)?;
        items.push(item);
        let rest = rest.trim_start();
        text = match rest.strip_prefix(',') {
            Some(rest) => rest,
            None if rest.starts_with(close) => rest,
            None => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_under_their_names() {
        let text = "num_stuff_classes = 53\nhead=dict(num_heads=8, heads={'num_heads': 4, \"num_heads\" : 8}, xnum_heads=3)\n\
                    cfg=dict(mean=[1., -2.5e1, 3], to_rgb=False, scale=[(1333, 640), (1333, 800)], name='a b', other=num_heads)\n\
                    num_heads == 9";
        assert_eq!(values(text, &["num_heads"]), [json!(8), json!(4)]);
        assert_eq!(values(text, &["num_thing_classes", "num_stuff_classes"]), [json!(53)]);
        assert_eq!(values(text, &["mean"]), [json!([1.0, -25.0, 3])]);
        assert_eq!(values(text, &["to_rgb"]), [json!(false)]);
        assert_eq!(values(text, &["scale"]), [json!([[1333, 640], [1333, 800]])]);
        assert_eq!(values(text, &["name"]), [json!("a b")]);
        assert!(values(text, &["other", "head", "cfg"]).is_empty());
        for broken in
            ["mean=[1, 2", "mean=[1 2]", "mean='", "mean=", "mean=[[[[[[[[[[1]]]]]]]]]]", "mean={1}"]
        {
            assert!(values(broken, &["mean"]).is_empty(), "{broken}");
        }
    }
}
