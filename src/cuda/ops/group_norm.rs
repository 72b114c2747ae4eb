use super::CudaOp;
use super::activation::number;
use super::launches::{elements, storage, vector};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::GroupNorm;
use crate::plan::Site;
use crate::tensor::Shape;

/// Threads of a block of `group_norm_moments` and of `group_norm_apply`.
const MOMENTS_THREADS: usize = 256;
const APPLY_THREADS: usize = 512;
/// Pixels that a thread of each takes: `MOMENT_PIXELS` and `APPLY_PIXELS` of `kernels/group_norm.cu`.
const PIXELS: [usize; 2] = [16, 8];
/// Threads of a block, and elements of a group it takes: `THREADS` and `PART` of `kernels/group_norm_any.cu`.
const ANY: [usize; 2] = [256, 8192];
/// Bytes of the moments of a part.
const MOMENTS_BYTES: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    pixels: u32,
    vectors: u32,
    groups: u32,
    parts: u32,
    part_pixels: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AnyParams {
    elements: u32,
    channels: u32,
    groups: u32,
    width: u32,
    parts: u32,
    eps: f32,
}

/// What differs between the two forms of the kernels, each of which is two launches: the moments, then the
/// result.
struct Form {
    kernel: &'static str,
    source: &'static str,
    entries: [&'static str; 2],
    grids: [[u32; 3]; 2],
    blocks: [[u32; 3]; 2],
    shared: [usize; 2],
    params: Arg,
    /// Macros beyond the element type and the activation.
    defines: Vec<(&'static str, i64)>,
    /// Parts of a group whose moments are kept.
    parts: usize,
}

/// Pixels are whole chunks, and a block has room for at least one.
fn by_chunks(op: &GroupNorm, x: Shape, vectors: usize) -> Form {
    let (pixels, channels) = (x[1] * x[2], x[3]);
    let rows = [MOMENTS_THREADS / vectors, APPLY_THREADS / vectors];
    let part_pixels = rows[0] * PIXELS[0];
    let parts = pixels.div_ceil(part_pixels);
    let params = Params {
        pixels: pixels as u32,
        vectors: vectors as u32,
        groups: op.groups as u32,
        parts: parts as u32,
        part_pixels: part_pixels as u32,
        eps: op.eps,
    };
    let apply_blocks = pixels.div_ceil(rows[1] * PIXELS[1]);
    Form {
        kernel: "chunks",
        source: "group_norm.cu",
        entries: ["group_norm_moments", "group_norm_apply"],
        grids: [parts, apply_blocks].map(|blocks| [blocks as u32, x[0] as u32, 1]),
        blocks: rows.map(|rows| [vectors as u32, rows as u32, 1]),
        shared: [(2 * (channels + 8) + 1) * rows[0] * size_of::<f32>(), 3 * op.groups * size_of::<f32>()],
        params: Arg::of(&params),
        defines: vec![("WIDTH", (channels / op.groups) as i64)],
        parts,
    }
}

/// Any number of channels.
fn by_elements(op: &GroupNorm, x: Shape) -> Form {
    let width = x[3] / op.groups;
    let count = x[1] * x[2] * width;
    let parts = count.div_ceil(ANY[1]);
    let params = AnyParams {
        elements: count as u32,
        channels: x[3] as u32,
        groups: op.groups as u32,
        width: width as u32,
        parts: parts as u32,
        eps: op.eps,
    };
    Form {
        kernel: "elements",
        source: "group_norm_any.cu",
        entries: ["group_norm_any_moments", "group_norm_any_apply"],
        grids: [[parts as u32, op.groups as u32, x[0] as u32]; 2],
        blocks: [[ANY[0] as u32, 1, 1]; 2],
        shared: [0; 2],
        params: Arg::of(&params),
        defines: Vec::new(),
        parts,
    }
}

impl CudaOp for GroupNorm {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let x = site.inputs[0];
        elements(x)?;
        let vectors = x.shape[3] / vector(x.dtype, x.shape[3]);
        let form = match vector(x.dtype, x.shape[3]) > 1 && vectors <= MOMENTS_THREADS {
            true => by_chunks(self, x.shape, vectors),
            false => by_elements(self, x.shape),
        };
        let parts = Arg::Workspace(0);
        let launch = |index: usize, args: Vec<Arg>| Launch {
            source: form.source,
            entry: form.entries[index],
            defines: [storage(x.dtype), ("ACTIVATION", number(self.activation))]
                .into_iter()
                .chain(form.defines.iter().copied())
                .collect(),
            grid: form.grids[index],
            block: form.blocks[index],
            shared: form.shared[index] as u32,
            args: args.into_iter().chain([form.params.clone()]).collect(),
        };
        let moments = launch(0, vec![Arg::Input(0), parts.clone()]);
        let apply = launch(1, vec![Arg::Input(0), parts, Arg::Input(1), Arg::Input(2), Arg::Output(0)]);
        Ok(Program {
            kernel: format!("two sweeps, {}", form.kernel),
            launches: vec![moments, apply],
            workspace: x.shape[0] * self.groups * form.parts * MOMENTS_BYTES,
            ..Program::default()
        })
    }
}
