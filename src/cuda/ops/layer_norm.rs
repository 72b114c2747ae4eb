use super::CudaOp;
use super::activation::number;
use super::launches::storage;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::LayerNorm;
use crate::plan::Site;

/// Rows of a block, one warp each.
const WARPS: usize = 4;

/// Elements a lane keeps at most.
const MAX_HELD: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    rows: u32,
    channels: u32,
    eps: f32,
}

impl CudaOp for LayerNorm {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let y = site.outputs[0];
        let channels = y.shape.last();
        let rows = y.shape.len() / channels;
        let chunk = 16 / y.dtype.size();
        let piece = if channels.is_multiple_of(chunk) { chunk } else { 1 };
        let held = channels.div_ceil(32 * piece);
        let held = if held * piece <= MAX_HELD { held } else { 0 };
        let launch = Launch {
            source: "layer_norm.cu",
            entry: "layer_norm",
            defines: vec![
                storage(y.dtype),
                ("ACTIVATION", number(self.activation)),
                ("PIECE", piece as i64),
                ("HELD", held as i64),
                ("WARPS", WARPS as i64),
            ],
            grid: [rows.div_ceil(WARPS) as u32, 1, 1],
            block: [WARPS as u32 * 32, 1, 1],
            shared: 0,
            args: vec![
                Arg::Input(0),
                Arg::Input(1),
                Arg::Input(2),
                Arg::Output(0),
                Arg::of(&Params { rows: rows as u32, channels: channels as u32, eps: self.eps }),
            ],
        };
        Ok(Program {
            kernel: format!("warp a row, {}", if held > 0 { "held" } else { "read again" }),
            launches: vec![launch],
            packing: vec![Packing::plain(y.dtype)],
            ..Program::default()
        })
    }
}
