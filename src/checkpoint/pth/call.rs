//! The constructors behind allowed globals: what each may be given and the inert value it makes.

use super::super::StorageType;
use super::pickle::Machine;
use super::value::{Global, Id, Storage, TensorArgs, Value};

type Step<T> = Result<T, String>;

/// `callable(*args)` for an allowed callable; `at` is the offset of the opcode.
pub(super) fn reduce(m: &mut Machine, callable: Id, args: Id, at: u64) -> Step<Id> {
    let Value::Global(global) = *m.value(callable) else {
        return Err("something that is not an allowed function is called".into());
    };
    let Value::Tuple(args) = m.value(args) else {
        return Err(format!("{global:?} is called without a tuple of arguments"));
    };
    // At most seven arguments are ever looked at: copying so few costs nothing and frees the borrow.
    let count = args.len();
    let args: Vec<Id> = args.iter().copied().take(8).collect();
    let misuse = || format!("{global:?} is called with arguments it does not take");
    match (global, args.as_slice()) {
        (Global::RebuildTensor, &[storage, offset, size, stride, ..]) if (4..=7).contains(&count) => {
            if !matches!(m.value(storage), Value::Storage(_)) {
                return Err(misuse());
            }
            m.add(Value::Tensor(TensorArgs { storage, offset, size, stride, at }))
        }
        (Global::RebuildParameter, &[tensor, _, _]) => match m.value(tensor) {
            Value::Tensor(_) => Ok(tensor),
            _ => Err(misuse()),
        },
        (Global::OrderedDict | Global::Dict, &[]) => m.add(Value::Dict(Vec::new())),
        (Global::OrderedDict | Global::Dict, &[items]) => {
            let dict = dict_from(m, items).ok_or_else(misuse)?;
            m.charge(dict.len())?;
            m.add(Value::Dict(dict))
        }
        (Global::List, &[]) => m.add(Value::List(Vec::new())),
        (Global::Tuple | Global::Size, &[]) => m.add(Value::Tuple(Box::default())),
        (Global::Set, &[]) => m.add(Value::Set(Vec::new())),
        (Global::List | Global::Tuple | Global::Size | Global::Set, &[items]) => {
            let items: &[Id] = match m.value(items) {
                Value::Tuple(items) => items,
                Value::List(items) | Value::Set(items) => items,
                _ => return Err(misuse()),
            };
            let items = items.to_vec();
            m.charge(items.len())?;
            m.add(match global {
                Global::List => Value::List(items),
                Global::Set => Value::Set(items),
                _ => Value::Tuple(items.into()),
            })
        }
        (Global::Int | Global::Float | Global::Bool, &[value]) => match (global, m.value(value)) {
            (Global::Int, Value::Int(_))
            | (Global::Float, Value::Float(_))
            | (Global::Bool, Value::Bool(_)) => Ok(value),
            (Global::Bool, &Value::Int(v)) => m.add(Value::Bool(v != 0)),
            _ => Err(misuse()),
        },
        (Global::NumpyDtype, &[code, ..]) if count <= 3 => {
            let Value::Str(code) = m.value(code) else { return Err(misuse()) };
            // Codes are two or three characters; structured types are of no use here.
            let code = if code.len() <= 8 { code.clone() } else { "".into() };
            m.add(Value::NumpyDtype { code, big: false })
        }
        (Global::NumpyScalar, &[dtype, bytes]) => {
            let (Value::NumpyDtype { code, big }, Value::Bytes(bytes)) = (m.value(dtype), m.value(bytes))
            else {
                return Err(misuse());
            };
            let value = if *big { Value::Opaque } else { numpy_scalar(code, bytes) };
            m.add(value)
        }
        // Pickles below protocol 3 write bytes as `_codecs.encode(text, 'latin1')`.
        (Global::Encode, &[text, encoding]) => {
            let (Value::Str(text), Value::Str(encoding)) = (m.value(text), m.value(encoding)) else {
                return Err(misuse());
            };
            if !matches!(&**encoding, "latin1" | "latin-1") {
                return Err(misuse());
            }
            let bytes: Option<Box<[u8]>> = text.chars().map(|c| u8::try_from(u32::from(c)).ok()).collect();
            let bytes = bytes.ok_or_else(misuse)?;
            m.charge(bytes.len())?;
            m.add(Value::Bytes(bytes))
        }
        _ => Err(misuse()),
    }
}

/// The pairs of a dict, or of a list or tuple of two-element lists or tuples.
fn dict_from(m: &Machine, items: Id) -> Option<Vec<(Id, Id)>> {
    let sequence = |id: Id| -> Option<&[Id]> {
        match m.value(id) {
            Value::Tuple(items) => Some(items),
            Value::List(items) => Some(items),
            _ => None,
        }
    };
    if let Value::Dict(pairs) = m.value(items) {
        return Some(pairs.clone());
    }
    sequence(items)?
        .iter()
        .map(|&pair| match sequence(pair)? {
            &[key, value] => Some((key, value)),
            _ => None,
        })
        .collect()
}

fn numpy_scalar(code: &str, bytes: &[u8]) -> Value {
    fn exact<const N: usize>(bytes: &[u8]) -> Option<[u8; N]> {
        bytes.try_into().ok()
    }
    let value = match code {
        "f8" => exact(bytes).map(|b| Value::Float(f64::from_le_bytes(b))),
        "f4" => exact(bytes).map(|b| Value::Float(f64::from(f32::from_le_bytes(b)))),
        "i8" => exact(bytes).map(|b| Value::Int(i128::from(i64::from_le_bytes(b)))),
        "i4" => exact(bytes).map(|b| Value::Int(i128::from(i32::from_le_bytes(b)))),
        "u8" => exact(bytes).map(|b| Value::Int(i128::from(u64::from_le_bytes(b)))),
        "u1" => exact(bytes).map(|[b]| Value::Int(i128::from(b))),
        "b1" => exact(bytes).map(|[b]| Value::Bool(b != 0)),
        _ => None,
    };
    value.unwrap_or(Value::Opaque)
}

/// `BUILD`: attributes set on an object after its making. Only dicts (the `_metadata` of a `state_dict`,
/// which is dropped) and NumPy dtypes (their byte order) take any.
pub(super) fn set_state(m: &mut Machine, target: Id, state: Id) -> Step<()> {
    let is_big = match m.value(state) {
        Value::Tuple(items) => {
            items.get(1).is_some_and(|&order| matches!(m.value(order), Value::Str(s) if &**s == ">"))
        }
        _ => false,
    };
    match &mut m.values[target as usize] {
        Value::Dict(_) => Ok(()),
        Value::NumpyDtype { big, .. } => {
            *big = is_big;
            Ok(())
        }
        _ => Err("attributes are set on something that takes none".into()),
    }
}

/// A persistent id `('storage', type, key, location, numel[, view])`: a reference to data outside the pickle.
pub(super) fn persistent(m: &Machine, id: Id) -> Step<Value> {
    let storage = || -> Option<Storage> {
        let Value::Tuple(parts) = m.value(id) else { return None };
        let (&[tag, class, key, _location, numel], view) = parts.split_first_chunk::<5>()?;
        let (Value::Str(tag), Value::Global(Global::Storage(dtype)), Value::Str(_)) =
            (m.value(tag), m.value(class), m.value(key))
        else {
            return None;
        };
        let view = match view {
            [] => None,
            [view] => match m.value(*view) {
                Value::None => None,
                Value::Tuple(parts) => match parts[..] {
                    [_key, offset, size] => Some((unsigned(m, offset)?, unsigned(m, size)?)),
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        };
        let dtype: StorageType = *dtype;
        (&**tag == "storage").then_some(Storage { dtype, key, numel: unsigned(m, numel)?, view })
    };
    storage().map(Value::Storage).ok_or_else(|| "malformed storage reference".into())
}

fn unsigned(m: &Machine, id: Id) -> Option<u64> {
    match m.value(id) {
        Value::Int(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}
