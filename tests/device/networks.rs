//! The parts that networks of each family are compared in ([`Bench::check`]); together they are the network.
//!
//! On the emulator the deep maps of some take minutes, so that a few parts of those run by default; the others
//! are the ignored trials `parts/../rest`: `--include-ignored`. A GPU runs them all.

use crate::beside;
use crate::parts::Bench;
use knet::cuda::gpu::Precision;
use knet::cuda::gpu::Precision::{Bf16, F16, F32};
use libtest_mimic::{Failed, Trial};
use testkit::model_golden::Golden;
use testkit::parts::network_parts;

/// A model whose goldens the repository has.
struct Model {
    name: &'static str,
    /// Cases beside `a` on a GPU.
    more: &'static [&'static str],
    /// Precisions on a GPU.
    precisions: &'static [Precision],
    /// Precisions on the emulator.
    emulated: &'static [Precision],
    /// Parts that the emulator runs by default: the smallest map or the fewest layers of each kind that other
    /// models lack. All of them if there are none.
    quick: &'static [&'static str],
}

/// In f16 and bf16 on either device, two cases on a GPU.
const WHOLE: Model =
    Model { name: "", more: &["b"], precisions: &[F16, Bf16], emulated: &[F16, Bf16], quick: &[] };

/// In f32 and f16.
const OTHER: Model =
    Model { name: "", more: &[], precisions: &[F32, F16], emulated: &[F32, F16], quick: &[] };

const MODELS: [Model; 5] = [
    Model { name: "knet_s3_r50_fpn", ..WHOLE },
    // The backbone is that of the instance model.
    Model { name: "knet_s3_r50_fpn_panoptic", emulated: &[F16], ..WHOLE },
    // Deformable convolutions, one of them of stride 2.
    Model { name: "knet_s3_r101_dcn_panoptic", quick: &["C5"], ..OTHER },
    // Windows that are shifted, and larger than the map.
    Model { name: "knet_s3_upernet_swin-t", quick: &["C5", "pyramid pooling"], ..OTHER },
    // Kernels twice as wide as their updator.
    Model { name: "knet_s3_fcn_r50-d8", quick: &["stage 2"], ..OTHER },
];

/// Checks the parts whose names `chosen` takes; all faults are the trial's.
fn check(
    golden: Golden,
    precision: Precision,
    ordinal: usize,
    chosen: impl Fn(&str) -> bool,
) -> Result<(), Failed> {
    let bench = Bench::new(golden, precision, ordinal)?;
    let mut faults = Vec::new();
    for part in network_parts(&bench.bench.config).iter().filter(|part| chosen(&part.name)) {
        faults.extend(bench.check(part).map_err(|error| format!("{}: {error}", part.name))?);
    }
    if faults.is_empty() { Ok(()) } else { Err(faults.join("\n").into()) }
}

/// Its trials on the device under test.
pub fn trials(ordinal: usize, emulated: bool) -> Vec<Trial> {
    let mut trials = Vec::new();
    for model in MODELS {
        let precisions = if emulated { model.emulated } else { model.precisions };
        let cases = if emulated { vec!["a"] } else { [&["a"], model.more].concat() };
        for (case, &precision) in cases.iter().flat_map(|&case| precisions.iter().map(move |p| (case, p))) {
            let name = format!("parts/{}/{case}/{}", model.name, precision.name());
            let golden = move || Golden::open(model.name, case);
            let quick = move |part: &str| model.quick.is_empty() || model.quick.contains(&part);
            if !model.quick.is_empty() {
                let rest = move || check(golden(), precision, ordinal, |part| !quick(part));
                trials.push(beside(format!("{name}/rest"), rest).with_ignored_flag(emulated));
            }
            trials.push(beside(name, move || check(golden(), precision, ordinal, quick)));
        }
    }
    trials
}
