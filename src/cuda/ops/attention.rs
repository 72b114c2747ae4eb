use super::CudaOp;
use super::launches::expect_f32;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::{Attention, AttentionGrad};
use crate::plan::Site;

/// Warps of a block.
const WARPS: usize = 4;

/// Queries of a warp: few, so that a hundred objects fill a GPU.
const QUERIES: usize = 2;

/// Shared memory that needs no opt-in, in bytes.
const SHARED: usize = 48 << 10;

/// Rows that a warp owns where gradients are computed.
const SIDE: usize = 4;

/// Most rows of the other side that are in shared memory at once there.
const MOST_KEYS: usize = 128;

/// Shared memory of a block there, in bytes: what every device has.
const SHARED_GRAD: usize = 99 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    channels: u32,
    scale: f32,
}

impl Params {
    fn new([objects, channels]: [usize; 2], d: usize) -> Self {
        let scale = (1.0 / (d as f64).sqrt()) as f32;
        Params { objects: objects as u32, channels: channels as u32, scale }
    }
}

/// Floats of a head's `d` channels in shared memory, and from one row that a lane reads to the next: `PADDED`
/// and `PITCH` in `kernels/attention/rows.cuh`.
fn row(d: usize) -> (usize, usize) {
    (d.next_multiple_of(4), 4 * (d.div_ceil(4) | 1))
}

/// Bytes of shared memory that `kernels/attention/grad.cu` takes with so many rows at once.
fn shared_grad(d: usize, keys: usize) -> usize {
    let (padded, pitch) = row(d);
    4 * (2 * keys * pitch + 2 * WARPS * SIDE * (padded + 32))
}

/// Most keys of `d` channels that are in shared memory at once: a multiple of 32.
fn most_keys(d: usize) -> usize {
    let (padded, pitch) = row(d);
    let queries = WARPS * QUERIES * padded * 4;
    let weights = WARPS * 32 * QUERIES * 4;
    SHARED.saturating_sub(queries + weights) / (4 * (pitch + padded)) / 32 * 32
}

impl CudaOp for Attention {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let [batch, objects, channels] = [0, 1, 2].map(|axis| site.outputs[0].shape[axis]);
        let d = channels / self.heads;
        let most = most_keys(d);
        if most == 0 {
            return Err(format!("heads of {d} channels do not fit in {SHARED} bytes of shared memory"));
        }
        let keys = objects.div_ceil(objects.div_ceil(most)).next_multiple_of(32);
        let launch = Launch {
            source: "attention.cu",
            entry: "attention",
            defines: vec![
                ("D", d as i64),
                ("KEYS", keys as i64),
                ("QUERIES", QUERIES as i64),
                ("WARPS", WARPS as i64),
            ],
            grid: [objects.div_ceil(WARPS * QUERIES) as u32, self.heads as u32, batch as u32],
            block: [WARPS as u32 * 32, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Output(0), Arg::of(&Params::new([objects, channels], d))],
        };
        let kernel = format!("fused, {keys} keys at a time");
        Ok(Program { kernel, launches: vec![launch], ..Program::default() })
    }
}

impl CudaOp for AttentionGrad {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        expect_f32(site, 0..2)?;
        let [batch, objects, channels] = [0, 1, 2].map(|axis| site.inputs[1].shape[axis]);
        let d = channels / self.heads;
        let fits = |keys: &usize| shared_grad(d, *keys) <= SHARED_GRAD;
        let keys = (1..=MOST_KEYS / 32).rev().map(|warps| 32 * warps).find(fits).ok_or_else(|| {
            format!("heads of {d} channels do not fit in {SHARED_GRAD} bytes of shared memory")
        })?;
        let launch = |entry| Launch {
            source: "attention/grad.cu",
            entry,
            defines: vec![
                ("D", d as i64),
                ("KEYS", keys as i64),
                ("SIDE", SIDE as i64),
                ("WARPS", WARPS as i64),
            ],
            grid: [objects.div_ceil(WARPS * SIDE) as u32, self.heads as u32, batch as u32],
            block: [WARPS as u32 * 32, 1, 1],
            shared: shared_grad(d, keys) as u32,
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Output(0),
                Arg::Workspace(0),
                Arg::of(&Params::new([objects, channels], d)),
            ],
        };
        Ok(Program {
            kernel: format!("recomputed, {keys} rows at a time"),
            launches: ["attention_grad_queries", "attention_grad_keys"].map(launch).into(),
            // Sixteen bytes a query of each head.
            workspace: batch * self.heads * objects * 16,
            ..Program::default()
        })
    }
}
