use super::launches::{elements, expect_f32, per_element, storage};
use super::sum_parts::add_parts;
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{
    Extents, POOL_F32, POOL_F32_THREADS, PoolTile, pool_candidates, pool_f32_candidates,
};
use crate::ops::mask_loss::DICE_EPS;
use crate::ops::matching_cost::{ClassCost, MaskCost};
use crate::plan::Site;

/// Threads of a block: `THREADS` of `kernels/mask/cost.cu`.
const THREADS: u32 = 256;

/// Slots of a tile: `BN` of `kernels/mask/cost.cu`. Its tiles are those of mask pooling, with slots for
/// channels.
const SLOTS: usize = 128;
const _: () = assert!(SLOTS == PoolTile::CHANNELS);

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    slots: u32,
    pixels: u32,
    split: u32,
    object_tiles: u32,
    record: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct MaskParams {
    pairs: u32,
    of_image: u32,
    objects: u32,
    slots: u32,
    all_objects: u32,
    pixels: f32,
    agreement: f32,
    dice: f32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ClassParams {
    pairs: u32,
    of_image: u32,
    rows: u32,
    classes: u32,
    slots: u32,
    weight: f32,
}

/// A way to make the sums that costs are made of.
struct Product {
    source: &'static str,
    entry: &'static str,
    defines: Vec<(&'static str, i64)>,
    threads: u32,
    shared: usize,
    object_tiles: usize,
    slot_tiles: usize,
    /// Pixels of a block, and blocks that share an image's.
    split: usize,
    splits: usize,
}

/// What fits, the preferred first; slots are channels to `extents`.
fn products(extents: &Extents, target: &Target) -> Vec<Product> {
    if !target.precision.is_half() {
        let of = |(split, splits)| Product {
            source: "mask/cost_f32.cu",
            entry: "mask_cost_f32",
            defines: Vec::new(),
            threads: POOL_F32_THREADS,
            shared: 0,
            object_tiles: extents.objects.div_ceil(POOL_F32),
            slot_tiles: extents.channels.div_ceil(POOL_F32),
            split,
            splits,
        };
        return pool_f32_candidates(extents, &target.caps).into_iter().map(of).collect();
    }
    let of = |tile: PoolTile| Product {
        source: "mask/cost.cu",
        entry: "mask_cost",
        defines: vec![
            storage(target.precision.storage()),
            ("BANDS", tile.objects.bands as i64),
            ("STAGES", tile.stages as i64),
            ("WIDE", i64::from(extents.pixels.is_multiple_of(8))),
        ],
        threads: THREADS,
        shared: tile.shared(),
        object_tiles: tile.objects.count,
        slot_tiles: tile.channels,
        split: tile.split,
        splits: tile.splits,
    };
    pool_candidates(extents, &target.caps).into_iter().map(of).collect()
}

/// The sums, those of all splits together, and the costs.
fn program(op: &MaskCost, extents: &Extents, product: Product) -> Program {
    let &Extents { batch, objects, channels: slots, pixels } = extents;
    let pairs = batch * objects * slots;
    let record = pairs + 2 * batch * (objects + slots);
    let params = Params {
        objects: objects as u32,
        slots: slots as u32,
        pixels: pixels as u32,
        split: product.split as u32,
        object_tiles: product.object_tiles as u32,
        record: record as u32,
    };
    let splits = product.splits;
    let all = if splits > 1 { (record * 4).next_multiple_of(256) } else { 0 };
    let (sums, parts) = (Arg::Workspace(0), Arg::Workspace(all));
    let mut launches = vec![Launch {
        source: product.source,
        entry: product.entry,
        defines: product.defines,
        grid: [splits as u32, (product.object_tiles * product.slot_tiles) as u32, batch as u32],
        block: [product.threads, 1, 1],
        shared: product.shared as u32,
        args: vec![Arg::Input(0), Arg::Input(1), parts.clone(), Arg::of(&params)],
    }];
    if splits > 1 {
        launches.push(add_parts(splits, record, parts, sums.clone()));
    }
    let params = MaskParams {
        pairs: pairs as u32,
        of_image: (objects * slots) as u32,
        objects: objects as u32,
        slots: slots as u32,
        all_objects: (batch * objects) as u32,
        pixels: pixels as f32,
        agreement: op.mask_weight / pixels as f32,
        dice: op.dice_weight,
        eps: DICE_EPS as f32,
    };
    launches.push(Launch {
        source: "matching_cost.cu",
        entry: "mask_cost_of_sums",
        args: vec![sums, Arg::Output(0), Arg::of(&params)],
        ..per_element(pairs)
    });
    let math = if product.source == "mask/cost.cu" { "mma" } else { "f32" };
    Program {
        kernel: format!("{math} split {splits}"),
        launches,
        workspace: all + splits * record * 4,
        ..Program::default()
    }
}

impl CudaOp for MaskCost {
    /// Probabilities.
    const ROUNDING: Rounding = Rounding::Samples;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        Ok(self.candidates(site, target)?.remove(0))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        let packing = Packing::plain(target.precision.storage());
        if (0..2).any(|input| site.dtype(input, packing) != packing.dtype) {
            return Err(format!(
                "masks and targets of several types; the kernel takes {}",
                packing.dtype.name()
            ));
        }
        elements(site.inputs[0])?;
        elements(site.inputs[1])?;
        let [masks, targets] = [0, 1].map(|input| site.inputs[input].shape);
        let extents =
            Extents { batch: masks[0], objects: masks[1], channels: targets[1], pixels: masks[2] * masks[3] };
        let planned = |product| Program { packing: vec![packing; 2], ..program(self, &extents, product) };
        Ok(products(&extents, target).into_iter().map(planned).collect())
    }
}

impl CudaOp for ClassCost {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, [0])?;
        let (logits, cost) = (site.inputs[0].shape, site.outputs[0]);
        let pairs = elements(cost)?;
        let [objects, slots] = [cost.shape[1], cost.shape[2]];
        let params = ClassParams {
            pairs,
            of_image: (objects * slots) as u32,
            rows: logits[1] as u32,
            classes: logits[2] as u32,
            slots: slots as u32,
            weight: self.weight,
        };
        let launch = Launch {
            source: "matching_cost.cu",
            entry: "class_cost",
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Output(0), Arg::of(&params)],
            ..per_element(pairs as usize)
        };
        Ok(Program { kernel: "pairs".into(), launches: vec![launch], ..Program::default() })
    }
}
