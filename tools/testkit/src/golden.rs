//! Golden tensors made by PyTorch (`tests/goldens`). They keep PyTorch's layouts (NCHW, OIHW).

use crate::root;
use knet::tensor::Tensor;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::HashMap;

/// Goldens computed in double precision and stored as f32: one rounding of at most 6e-8 per element.
pub const STORED: f64 = 1e-7;

/// NCHW to NHWC, and filters OIHW to KRSC.
pub const CHANNELS_LAST: [usize; 4] = [0, 2, 3, 1];

/// A golden file.
pub struct File {
    /// Name of the operator, or of the part of the network.
    pub op: &'static str,
    tensors: HashMap<String, Tensor>,
    /// Attributes by case.
    cases: Vec<(String, Value)>,
}

impl File {
    /// Reads `tests/goldens/<folder>/<op>.safetensors`.
    pub fn read(folder: &str, op: &'static str) -> Self {
        let path = format!("tests/goldens/{folder}/{op}.safetensors");
        let bytes = std::fs::read(root().join(&path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{path}: {error}"));
        let floats = file.iter().filter(|(_, view)| view.dtype() == Dtype::F32);
        let tensors = floats.map(|(name, view)| {
            let data = view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            (name.to_string(), Tensor::new(view.shape(), data.collect()))
        });
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let meta = header.metadata().as_ref().and_then(|m| m.get("meta"));
        let meta: Value = meta.map_or(Value::Null, |text| serde_json::from_str(text).unwrap());
        let cases = meta["cases"].as_object().into_iter().flatten();
        let cases = cases.map(|(name, attributes)| (name.clone(), attributes.clone())).collect();
        File { op, tensors: tensors.collect(), cases }
    }

    /// A tensor as it is stored.
    ///
    /// # Panics
    /// If the case has none of that name.
    pub fn get(&self, case: &str, tensor: &str) -> Tensor {
        self.find(case, tensor).unwrap_or_else(|| panic!("{}: no tensor {case}.{tensor}", self.op))
    }

    /// A tensor as it is stored, if the case has it.
    pub fn find(&self, case: &str, tensor: &str) -> Option<Tensor> {
        self.tensors.get(&format!("{case}.{tensor}")).cloned()
    }

    /// A feature map as NHWC, or a filter as KRSC.
    pub fn map(&self, case: &str, tensor: &str) -> Tensor {
        self.get(case, tensor).permute(&CHANNELS_LAST)
    }

    /// Several tensors as they are.
    pub fn all<const N: usize>(&self, case: &str, tensors: [&str; N]) -> Vec<Tensor> {
        tensors.iter().map(|tensor| self.get(case, tensor)).collect()
    }

    /// What `make` makes of each case that it knows, given its name and attributes.
    pub fn each<T>(&self, make: impl Fn(String, &str, &Value) -> Option<T>) -> Vec<T> {
        let named = |case: &str| format!("{}/{case}", self.op);
        self.cases.iter().filter_map(|(case, attributes)| make(named(case), case, attributes)).collect()
    }
}

/// A whole attribute of a case.
///
/// # Panics
/// If it is missing or not a whole number.
pub fn integer(attributes: &Value, name: &str) -> usize {
    attributes[name].as_u64().unwrap_or_else(|| panic!("attribute {name} of {attributes}")) as usize
}

/// The attribute `eps` of a case.
///
/// # Panics
/// If it is missing.
pub fn eps(attributes: &Value) -> f32 {
    attributes["eps"].as_f64().expect("eps") as f32
}
