//! What a checkpoint of another program shows of its model.

use serde_json::Value;

/// Shapes of a file's tensors, and what the configuration that it was trained with says.
pub struct Evidence<'a> {
    shape: &'a dyn Fn(&str) -> Option<&'a [usize]>,
    values: &'a dyn Fn(&[&str]) -> Vec<Value>,
}

impl<'a> Evidence<'a> {
    /// `shape` gives that of a tensor by its name, `values` all literals, each once, that the training
    /// configuration gives to one of some names.
    pub fn new(
        shape: &'a dyn Fn(&str) -> Option<&'a [usize]>,
        values: &'a dyn Fn(&[&str]) -> Vec<Value>,
    ) -> Self {
        Evidence { shape, values }
    }

    /// Whether the file has this tensor.
    pub fn has(&self, name: &str) -> bool {
        (self.shape)(name).is_some()
    }

    /// Length of a tensor's axis; 0 where the tensor has none such.
    pub fn dim(&self, name: &str, axis: usize) -> Option<usize> {
        (self.shape)(name).map(|shape| shape.get(axis).copied().unwrap_or(0))
    }

    /// Literals of one kind that the training configuration gives to one of `names`.
    pub fn values<T: serde::de::DeserializeOwned>(&self, names: &[&str]) -> Vec<T> {
        (self.values)(names).into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect()
    }
}
