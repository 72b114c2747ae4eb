use super::CudaOp;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::Attention;
use crate::plan::Site;

/// Warps of a block.
const WARPS: usize = 4;

/// Queries of a warp: few, so that a hundred objects fill a GPU.
const QUERIES: usize = 2;

/// Shared memory that needs no opt-in, in bytes.
const SHARED: usize = 48 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    channels: u32,
    scale: f32,
}

/// Most keys of `d` channels that are in shared memory at once: a multiple of 32.
fn most_keys(d: usize) -> usize {
    let padded = d.next_multiple_of(4);
    let pitch = 4 * ((padded / 4) | 1);
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
            args: vec![
                Arg::Input(0),
                Arg::Output(0),
                Arg::of(&Params {
                    objects: objects as u32,
                    channels: channels as u32,
                    scale: (1.0 / (d as f64).sqrt()) as f32,
                }),
            ],
        };
        let kernel = format!("fused, {keys} keys at a time");
        Ok(Program { kernel, launches: vec![launch], ..Program::default() })
    }
}
