//! The filters of a training step as its kernels read them, of many in a launch.

use super::CudaOp;
use super::items::Items;
use super::launches::{elements, expect_f32, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::PackFilters;
use crate::plan::Site;

/// Filters and channels of a block: `TILE` of `kernels/pack_filters.cu`.
const TILE: usize = 64;
/// Threads of a block: `THREADS` of `kernels/pack_filters.cu`.
const THREADS: u32 = 256;
/// Elements that a thread moves at once, of whose multiples channels are, and filters that are turned:
/// `CHUNK` of `kernels/pack_filters.cu`.
pub(in crate::cuda) const CHUNK: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PackParams {
    items: u32,
}

impl CudaOp for PackFilters {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        expect_f32(site, 0..site.inputs.len())?;
        let mut items = Items::default();
        for (filter, operand, result) in self.places() {
            let w = site.inputs[operand];
            let [filters, channels] = [w.shape[0], w.shape[3]];
            elements(w)?;
            if !channels.is_multiple_of(CHUNK) || filter.turned && !filters.is_multiple_of(CHUNK) {
                return Err(format!("filter {w} is not of whole chunks of {CHUNK} channels"));
            }
            if filters == 0 {
                continue;
            }
            let operands = (0..5)
                .map(|index| if index < filter.operands() { Arg::Input(operand + index) } else { Arg::Null });
            let mut next = result..;
            let results = [filter.straight, filter.turned, filter.norm.is_some()]
                .map(|asked| if asked { next.next().map_or(Arg::Null, Arg::Output) } else { Arg::Null });
            // A filter without terms has a bias.
            let taps = (w.shape[1] * w.shape[2]).max(1);
            let channel_tiles = channels.div_ceil(TILE).max(1);
            let [filters, taps, channels, channel_tiles, blocks] =
                [filters, taps, channels, channel_tiles, filters.div_ceil(TILE) * taps * channel_tiles]
                    .map(|number| number as u32);
            let eps = filter.norm.unwrap_or_default().to_bits();
            items.push(operands.chain(results), &[filters, taps, channels, eps, channel_tiles], blocks)?;
        }
        let (count, blocks) = (items.count, items.blocks);
        let launch = Launch {
            source: "pack_filters.cu",
            entry: "pack_filters",
            defines: vec![storage(target.precision.storage())],
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            args: vec![items.table(), Arg::of(&PackParams { items: count })],
        };
        let kernel = format!("{count} filters");
        Ok(Program { kernel, launches: vec![launch], ..Program::default() })
    }
}
