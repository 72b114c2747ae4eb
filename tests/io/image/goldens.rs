//! Access to golden tensors: those in the repository, and those in the shared folder when it is there.

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

/// A file under `tests/goldens`.
pub fn own(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(path)
}

/// The tensors of one safetensors file.
pub struct Goldens {
    bytes: Vec<u8>,
    path: PathBuf,
}

impl Goldens {
    pub fn open(path: PathBuf) -> Self {
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Goldens { bytes, path }
    }

    fn raw(&self, key: &str, dtype: Dtype) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.bytes).expect("a safetensors file");
        let view = file.tensor(key).unwrap_or_else(|e| panic!("{}: {key}: {e}", self.path.display()));
        assert_eq!(view.dtype(), dtype, "{key}");
        (view.shape().to_vec(), view.data().to_vec())
    }

    pub fn u8(&self, key: &str) -> (Vec<usize>, Vec<u8>) {
        self.raw(key, Dtype::U8)
    }

    pub fn f32(&self, key: &str) -> (Vec<usize>, Vec<f32>) {
        let (shape, data) = self.raw(key, Dtype::F32);
        (shape, data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    pub fn i32(&self, key: &str) -> (Vec<usize>, Vec<i32>) {
        let (shape, data) = self.raw(key, Dtype::I32);
        (shape, data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect())
    }

    pub fn u16(&self, key: &str) -> (Vec<usize>, Vec<u16>) {
        let (shape, data) = self.raw(key, Dtype::U16);
        (shape, data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect())
    }
}
