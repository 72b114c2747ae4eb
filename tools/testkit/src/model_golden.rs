//! Goldens of whole models (`tests/goldens/<model>`, see the README there): what PyTorch computed for one
//! image.

use crate::{root, shared};
use image::RgbImage;
use knet::checkpoint::Checkpoint;
use knet::image::bitmask::BitMask;
use knet::image::decode::{Limits, decode};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// One case of one model.
pub struct Golden {
    /// Name of the model, and of its folder.
    pub model: &'static str,
    /// `a`, `b` or `odd`: a small photo, a larger one, and one of sides that nothing divides.
    pub case: &'static str,
    /// Taps, stored in full or sampled, and final results.
    pub tensors: Checkpoint,
    /// Shapes and samplings of the taps, and what is no tensor.
    pub meta: Value,
    /// File of the photo.
    inputs: PathBuf,
}

impl Golden {
    /// Reads a case that the repository holds.
    pub fn open(model: &'static str, case: &'static str) -> Golden {
        Golden::read(&goldens().join(model), model, case)
    }

    /// As [`Golden::open`], of a case that the reference data alone may hold; `None` without them.
    pub fn find(model: &'static str, case: &'static str) -> Option<Golden> {
        if goldens().join(model).join(file_of(case)).exists() {
            return Some(Golden::open(model, case));
        }
        let folder = shared::reference(&format!("goldens of {model}"), model)?;
        Some(Golden::read(&folder, model, case))
    }

    fn read(folder: &Path, model: &'static str, case: &'static str) -> Golden {
        let meta = std::fs::read_to_string(folder.join("meta.json")).unwrap();
        let meta: Value = serde_json::from_str(&meta).unwrap();
        let meta = meta["cases"][case].clone();
        let inputs =
            if case == "odd" { "inputs_seg/seg_odd.png".into() } else { format!("inputs/{case}.png") };
        let inputs = folder.parent().unwrap().join(inputs);
        Golden { model, case, tensors: Checkpoint::open(folder.join(file_of(case))).unwrap(), meta, inputs }
    }

    /// The photo.
    pub fn image(&self) -> RgbImage {
        decode(&self.inputs, &Limits::default()).unwrap()
    }

    /// (height, width) of the photo that results are for.
    pub fn original(&self) -> (usize, usize) {
        let side = |i: usize| self.meta["ori_shape"][i].as_u64().unwrap() as usize;
        (side(0), side(1))
    }

    /// A stored tensor.
    pub fn values(&self, name: &str) -> Vec<f32> {
        self.tensors.load_f32(name).unwrap().into_data()
    }

    /// A stored tensor of whole numbers.
    pub fn indices(&self, name: &str) -> Vec<usize> {
        self.values(name).into_iter().map(|v| v as usize).collect()
    }

    /// `final.masks_packed`, one mask for each of the instances.
    pub fn masks(&self) -> Vec<BitMask> {
        let &[count, height, width] = self.indices("final.masks_shape").as_slice() else { unreachable!() };
        let packed = self.tensors.bytes("final.masks_packed").unwrap();
        let bit = |i: usize| packed[i / 8] & (0x80 >> (i % 8)) != 0;
        let mask = |n| BitMask::from_fn(height, width, |y, x| bit((n * height + y) * width + x));
        (0..count).map(mask).collect()
    }

    /// The stored part of a tap's values: all, or the first 64 and then every `stride`-th.
    pub fn sample(&self, name: &str, values: &[f32]) -> Vec<f64> {
        let entry = &self.meta["tensors"][name];
        let stride = if entry["stored"] == "sub" { entry["stride"].as_u64().unwrap() as usize } else { 1 };
        let kept = (0..values.len()).filter(|i| *i < 64 || (i - 64) % stride == 0);
        kept.map(|i| f64::from(values[i])).collect()
    }
}

/// Name of a case's file.
fn file_of(case: &str) -> String {
    match case {
        "a" => "golden.safetensors".into(),
        other => format!("golden_{other}.safetensors"),
    }
}

/// The folder of all goldens.
pub fn goldens() -> PathBuf {
    root().join("tests/goldens")
}
