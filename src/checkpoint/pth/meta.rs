//! The plain values of a checkpoint's `meta` dict, as JSON.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value as Json};

use super::pickle::Unpickled;
use super::value::{Id, Value};

/// Deepest nesting that is kept.
const MAX_DEPTH: usize = 8;
/// Most values and bytes of text that are kept. Values may be shared, so that a small pickle can describe a
/// tree of any size; upstream's `meta` (with the training configuration as text) has under 100 kB.
const MAX_COST: usize = 4 << 20;

/// Entries of a dict whose keys are strings and whose values are plain.
pub(super) fn plain_entries(pickle: &Unpickled, id: Id) -> BTreeMap<String, Json> {
    let Value::Dict(pairs) = pickle.get(id) else { return BTreeMap::new() };
    let mut left = MAX_COST;
    pairs
        .iter()
        .filter_map(|&(key, value)| {
            Some((pickle.str(key)?.to_string(), plain(pickle, value, MAX_DEPTH, &mut left)?))
        })
        .collect()
}

fn plain(pickle: &Unpickled, id: Id, depth: usize, left: &mut usize) -> Option<Json> {
    let depth = depth.checked_sub(1)?;
    let value = pickle.get(id);
    *left = left.checked_sub(match value {
        Value::Str(text) => 1 + text.len(),
        _ => 1,
    })?;
    Some(match value {
        Value::None => Json::Null,
        Value::Bool(b) => Json::Bool(*b),
        Value::Int(i) => Json::Number(Number::from_i128(*i)?),
        Value::Float(f) => Json::Number(Number::from_f64(*f)?),
        Value::Str(text) => Json::String(text.to_string()),
        Value::Tuple(items) => {
            items.iter().map(|&i| plain(pickle, i, depth, left)).collect::<Option<Vec<_>>>()?.into()
        }
        Value::List(items) | Value::Set(items) => {
            items.iter().map(|&i| plain(pickle, i, depth, left)).collect::<Option<Vec<_>>>()?.into()
        }
        Value::Dict(pairs) => pairs
            .iter()
            .map(|&(k, v)| Some((pickle.str(k)?.to_string(), plain(pickle, v, depth, left)?)))
            .collect::<Option<Map<_, _>>>()?
            .into(),
        _ => return None,
    })
}
