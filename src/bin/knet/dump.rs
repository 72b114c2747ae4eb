//! `knet dump`

use crate::size::{self, Size};
use crate::voice::tell;
use crate::{ModelArguments, guard, picture};
use clap::Args;
use knet::checkpoint::{StorageType, TensorData, TensorOut, write_safetensors};
use knet::cpu::Arithmetic;
use knet::engine::Segmentation;
use knet::image::decode::{Limits, decode_checked};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Write every intermediate tensor of one image, by PyTorch's names and layouts
///
/// For comparing a converted checkpoint with the official code: tensors are full, NCHW, and called as in the
/// reference data (`backbone.C2` ... `s2.mask_preds`, `s2.cls_score`, `final.*`). Bit masks are packed
/// row-major, most significant bit first.
#[derive(Args)]
pub struct Arguments {
    #[command(flatten)]
    model: ModelArguments,

    /// The image
    #[arg(long, value_name = "FILE")]
    image: PathBuf,

    /// Take the image as already resized: only normalise and pad it
    #[arg(long)]
    no_resize: bool,

    /// Size of the original photo, to which masks are brought [default: the image's own]
    #[arg(long, value_name = "HxW", value_parser = size::parse)]
    ori_size: Option<Size>,

    /// File to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,

    /// Replace a file that this command did not make (an input never)
    #[arg(long)]
    overwrite: bool,
}

pub fn run(arguments: &Arguments) -> knet::Result<()> {
    let weights = arguments.model.weights_file();
    let inputs: guard::Inputs = weights.into_iter().chain([arguments.image.clone()]).collect();
    let own = |path: &Path| guard::is_checkpoint_with(path, &["model", "image"]);
    guard::check(&arguments.out, &inputs, own, arguments.overwrite)?;
    // What is compared digit by digit is computed exactly, asked for or not.
    let mut builder = arguments.model.engine().arithmetic(Arithmetic::Exact);
    if arguments.no_resize {
        builder = builder.size(None);
    }
    let mut engine = arguments.model.build(builder)?;
    let image = decode_checked(&arguments.image, &Limits::default())?;
    let image = picture(&arguments.image.display().to_string(), image);
    let own = || Size { height: image.height() as usize, width: image.width() as usize };
    let Size { height, width } = arguments.ori_size.unwrap_or_else(own);
    let taps = engine.session_mut().taps(&image)?;
    let segmentation = engine.session_mut().segment_resized(&image, (height, width))?;
    let finals = finals(&segmentation);
    let taps = taps.iter().map(|(name, tensor)| (name.as_str(), tensor.shape(), tensor.data()));
    let taps: Vec<_> = taps.collect();
    let tensors = taps
        .iter()
        .map(|(name, shape, data)| TensorOut { name, shape: shape.dims(), data: TensorData::F32(data) })
        .chain(finals.iter().map(|f| TensorOut {
            name: f.name,
            shape: &f.shape,
            data: TensorData::Raw(f.dtype, &f.bytes),
        }));
    let mut metadata = BTreeMap::new();
    metadata.insert("model".to_string(), engine.config().name.clone());
    metadata.insert("image".to_string(), arguments.image.display().to_string());
    write_safetensors(&arguments.out, tensors, &metadata)?;
    tell(format_args!("{}: {} tensors", arguments.out.display(), taps.len() + finals.len()))
}

struct Final {
    name: &'static str,
    shape: Vec<usize>,
    dtype: StorageType,
    bytes: Vec<u8>,
}

impl Final {
    fn f32(name: &'static str, values: impl IntoIterator<Item = f32>) -> Self {
        let bytes: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
        Final { name, shape: vec![bytes.len() / 4], dtype: StorageType::F32, bytes }
    }

    fn i32(name: &'static str, shape: Option<[usize; 2]>, values: impl IntoIterator<Item = usize>) -> Self {
        let bytes: Vec<u8> = values.into_iter().flat_map(|v| (v as i32).to_le_bytes()).collect();
        let shape = shape.map_or(vec![bytes.len() / 4], |s| s.to_vec());
        Final { name, shape, dtype: StorageType::I32, bytes }
    }
}

/// The results by upstream's names.
fn finals(segmentation: &Segmentation) -> Vec<Final> {
    let (height, width) = segmentation.size();
    if let Some(semantic) = segmentation.semantic() {
        let classes = semantic.map.iter().map(|&class| usize::from(class));
        return vec![
            Final::i32("final.argmax_ori_size", Some([height, width]), classes),
            Final::i32("final.areas", None, semantic.areas.iter().copied()),
        ];
    }
    let Some(panoptic) = segmentation.panoptic() else {
        let instances = segmentation.instances();
        let packed = pack(instances.iter().map(|i| segmentation.mask(i).bytes()), height * width);
        let result = segmentation.instance_result();
        let boxed = |i| Some((result?.detector_box(i)?, i.score));
        let dets: Vec<f32> =
            instances.iter().filter_map(boxed).flat_map(|([l, t, r, b], s)| [l, t, r, b, s]).collect();
        let dets = Final { shape: vec![dets.len() / 5, 5], ..Final::f32("final.dets", dets) };
        let found = vec![
            Final::f32("final.scores", instances.iter().map(|i| i.score)),
            Final::i32("final.labels", None, instances.iter().map(|i| i.label)),
            Final::i32("final.mask_indices", None, instances.iter().map(|i| i.mask_index)),
            Final::i32("final.mask_area", None, instances.iter().map(|i| i.area)),
            Final::i32("final.masks_shape", None, [instances.len(), height, width]),
            Final {
                name: "final.masks_packed",
                shape: vec![packed.len()],
                dtype: StorageType::U8,
                bytes: packed,
            },
        ];
        // Of a two-stage detector alone.
        return found.into_iter().chain((dets.shape[0] > 0).then_some(dets)).collect();
    };
    let trace = &panoptic.trace;
    let list = |name, values: &[u32]| Final::i32(name, None, values.iter().map(|&v| v as usize));
    let map =
        |name, values: &[u32]| Final::i32(name, Some([height, width]), values.iter().map(|&v| v as usize));
    vec![
        Final::f32("final.total_scores", trace.total_scores.iter().copied()),
        list("final.total_labels", &trace.total_labels),
        list("final.sorted_inds", &trace.sorted_inds),
        list("final.mask_area", &trace.mask_area),
        list("final.original_area", &trace.original_area),
        map("final.argmax_ids", &trace.argmax_ids),
        map("final.pan", &panoptic.map),
    ]
}

/// Masks of `pixels` bits each, one after the other without gaps.
fn pack<'a>(masks: impl Iterator<Item = &'a [u8]>, pixels: usize) -> Vec<u8> {
    let mut packed = Vec::new();
    let mut filled = 0;
    for mask in masks {
        packed.resize((filled + pixels).div_ceil(8), 0u8);
        for bit in (0..pixels).filter(|bit| mask[bit / 8] & (0x80 >> (bit % 8)) != 0) {
            packed[(filled + bit) / 8] |= 0x80 >> ((filled + bit) % 8);
        }
        filled += pixels;
    }
    packed
}
