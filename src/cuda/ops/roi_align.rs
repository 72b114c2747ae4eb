use super::CudaOp;
use super::divisor::divisor;
use super::launches::{dtype_number, elements, expect_f32, per_element, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::RoiAlign;
use crate::plan::Site;
use crate::tensor::DType;

/// Most levels of a pyramid: `LEVELS` of `kernels/boxes/roi_align.cu`.
const LEVELS: usize = 4;

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Level {
    height: u32,
    width: u32,
    scale: f32,
    from: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    level: [Level; LEVELS],
    levels: u32,
    size: u32,
    vectors: u32,
    by_size: [u32; 2],
    by_vectors: [u32; 2],
    by_count: [u32; 2],
    finest: f32,
}

/// The least number whose logarithm to base 2 is `level`, as [`RoiAlign::level`] rounds it: so near to a
/// whole one that another logarithm might round to the other side.
fn least(level: usize) -> f32 {
    let mut least = (1u32 << level) as f32;
    while least.next_down().log2() >= level as f32 {
        least = least.next_down();
    }
    least
}

impl CudaOp for RoiAlign {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (y, last) = (site.outputs[0], site.inputs.len() - 1);
        elements(y)?;
        expect_f32(site, [last])?;
        if last > LEVELS {
            return Err(format!("{last} levels; the kernel takes up to {LEVELS}"));
        }
        let packing = Packing::plain(site.dtype(0, Packing::plain(y.dtype)));
        let dtype = packing.dtype;
        let mut level = [Level::default(); LEVELS];
        for (index, to) in level[..last].iter_mut().enumerate() {
            let map = site.inputs[index];
            elements(map)?;
            if site.dtype(index, packing) != dtype {
                return Err(format!("level {index} is stored as {map}, the first as {}", site.inputs[0]));
            }
            let scale = 1.0 / (self.stride << index) as f32;
            let [height, width] = [1, 2].map(|axis| map.shape[axis] as u32);
            *to = Level { height, width, scale, from: least(index) };
        }
        let vector = vector(dtype, y.shape[3]);
        let vectors = y.shape[3] / vector;
        let params = Params {
            level,
            levels: last as u32,
            size: self.size as u32,
            vectors: vectors as u32,
            by_size: divisor(self.size),
            by_vectors: divisor(vectors),
            by_count: divisor(site.inputs[last].shape[1]),
            finest: self.finest,
        };
        let of_box = per_element(self.size * self.size * vectors);
        let map = |index: usize| if index < last { Arg::Input(index) } else { Arg::Null };
        let launch = Launch {
            source: "boxes/roi_align.cu",
            entry: "roi_align",
            defines: vec![storage(dtype), ("RESULT", dtype_number(y.dtype)), ("VECTOR", vector as i64)],
            grid: [y.shape[0] as u32, of_box.grid[0], 1],
            args: (0..LEVELS).map(map).chain([Arg::Input(last), Arg::Output(0), Arg::of(&params)]).collect(),
            ..of_box
        };
        let mut packing = vec![packing; last];
        packing.push(Packing::plain(DType::F32));
        Ok(Program {
            kernel: format!("samples x{vector}"),
            launches: vec![launch],
            packing,
            ..Program::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::Role;

    /// Around the sides at which a box changes levels, as floats: the kernel compares where the reference
    /// takes a logarithm.
    #[test]
    fn levels_begin_where_the_reference_has_them_begin() {
        let op = RoiAlign { size: 7, stride: 4, finest: 1.0, role: Role::Map };
        let of = |side: f32| (1..LEVELS).filter(|&level| side / op.finest + 1e-6 >= least(level)).count();
        for level in 1..LEVELS {
            let mut side = (1u32 << level) as f32 * (1.0 - 4e-6);
            for _ in 0..100 {
                // One side of the box is 1, so that the other is its area, and the side that counts its root.
                let area = side * side;
                assert_eq!(of(area.sqrt()), op.level([0.0, 0.0, area, 1.0], LEVELS), "{side}");
                side = side.next_up();
            }
        }
    }
}
