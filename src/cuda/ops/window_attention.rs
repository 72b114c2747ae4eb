use super::launches::{dtype_number, elements, storage, vector};
use super::sum_parts::add_parts;
use super::{CudaOp, Rounding};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::window_attention::MASKED;
use crate::ops::{WindowAttention, WindowAttentionGrad};
use crate::plan::Site;
use crate::tensor::DType;

/// Tokens of a step of tensor cores.
const STEP: usize = 16;

/// Most tokens of a window whose logits a warp of tensor cores has registers for.
const MMA_TOKENS: usize = 144;

/// Most warps of a block.
const WARPS: usize = 4;

/// Queries, or keys, that a warp takes at once without tensor cores.
const SIDE: usize = 4;

/// Most tokens of a window whose gradients a warp has registers for without tensor cores.
const GRAD_TOKENS: usize = 256;

/// Blocks that the windows of gradients are shared among: enough for any device, so that none has a say in
/// the order of sums.
const GRAD_BLOCKS: usize = 2048;

/// Most shared memory of a block, in bytes: what every device has.
const SHARED: usize = 99 << 10;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    height: u32,
    width: u32,
    channels: u32,
    down: u32,
    across: u32,
    shift: u32,
    offset_stride: u32,
    head_stride: u32,
    scale: f32,
    mask: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct GradParams {
    map: Params,
    windows: u32,
    share: u32,
}

/// Whether `kernels/attention/window.cu` takes windows of this side and heads of so many channels.
fn on_tensor_cores(window: usize, depth: usize) -> bool {
    matches!(depth, 16 | 32 | 64) && window * window <= MMA_TOKENS
}

/// Floats from one row of a head's channels to the next: `PITCH` in `kernels/attention/window_rows.cuh`.
fn pitch(depth: usize) -> usize {
    4 * (depth.div_ceil(4) | 1)
}

/// Floats of a row of `kernels/attention/window_grad_any.cu` that has a number for each token.
fn line(op: &WindowAttention, depth: usize) -> usize {
    (op.window * op.window).next_multiple_of(32).max(64).max(depth.div_ceil(2))
}

/// Bytes of shared memory that `kernels/attention/window_any.cu` takes with so many keys at once.
fn shared_any(op: &WindowAttention, depth: usize, keys: usize) -> usize {
    let padded = depth.next_multiple_of(4);
    4 * (keys * (pitch(depth) + padded) + WARPS * SIDE * (padded + 32) + op.offsets())
}

/// Bytes of shared memory that `kernels/attention/window_grad.cu` is launched with, and that it has besides.
fn shared_grad(op: &WindowAttention, depth: usize) -> [usize; 2] {
    let tokens = op.window * op.window;
    let rows = tokens.next_multiple_of(STEP);
    let weights = 16 * (tokens.div_ceil(8) | 1);
    [rows * (4 * 2 * depth + weights), 4 * (op.offsets() + 3 * rows + rows / STEP * 2 * depth)]
}

/// Whether `kernels/attention/window_grad.cu` takes such windows.
fn grad_on_tensor_cores(op: &WindowAttention, depth: usize) -> bool {
    on_tensor_cores(op.window, depth) && shared_grad(op, depth).iter().sum::<usize>() <= SHARED
}

/// Bytes of shared memory that `kernels/attention/window_grad_any.cu` takes.
fn shared_grad_any(op: &WindowAttention, depth: usize) -> usize {
    let tokens = op.window * op.window;
    4 * (4 * tokens * pitch(depth) + WARPS * SIDE * line(op, depth) + 2 * op.offsets() + 3 * tokens)
}

/// Keys that are in shared memory at once, a multiple of 32; `None` if not even 32 fit.
fn keys_at_once(op: &WindowAttention, depth: usize) -> Option<usize> {
    let tokens = op.window * op.window;
    let keys = |rounds: usize| tokens.div_ceil(rounds).next_multiple_of(32);
    (1..=tokens.div_ceil(32)).map(keys).find(|&keys| shared_any(op, depth, keys) <= SHARED)
}

fn too_large(op: &WindowAttention, depth: usize) -> String {
    let window = op.window;
    format!(
        "windows of {window} x {window} pixels with heads of {depth} channels; the kernel has {SHARED} \
         bytes of shared memory"
    )
}

/// What the kernels of a site have in common.
struct Windows<'a> {
    op: &'a WindowAttention,
    params: Params,
    packing: Vec<Packing>,
    defines: Vec<(&'static str, i64)>,
    images: usize,
    depth: usize,
    /// Element type of maps.
    dtype: DType,
}

impl<'a> Windows<'a> {
    /// Of the operands `qkv`, bias and table.
    fn new(op: &'a WindowAttention, site: &Site<'_>) -> Result<Self, String> {
        let qkv = site.inputs[0];
        elements(qkv)?;
        let [images, height, width, channels] = [0, 1, 2, 3].map(|axis| qkv.shape[axis]);
        let channels = channels / 3;
        let depth = channels / op.heads;
        let [down, across] = op.windows(qkv.shape);
        // A constant table is turned, so that a head's biases lie side by side.
        let turned = Packing { transposed: true, ..Packing::plain(DType::F32) };
        let map = Packing::plain(qkv.dtype);
        let (offset_stride, head_stride) = if site.constant[2] { (1, op.offsets()) } else { (op.heads, 1) };
        let params = Params {
            height: height as u32,
            width: width as u32,
            channels: channels as u32,
            down: down as u32,
            across: across as u32,
            shift: op.shift as u32,
            offset_stride: offset_stride as u32,
            head_stride: head_stride as u32,
            scale: (1.0 / (depth as f64).sqrt()) as f32,
            mask: MASKED,
        };
        let defines = vec![
            storage(qkv.dtype),
            ("BIAS", dtype_number(site.dtype(1, map))),
            ("D", depth as i64),
            ("WINDOW", op.window as i64),
        ];
        let packing = vec![map, map, turned, map];
        Ok(Windows { op, params, packing, defines, images, depth, dtype: qkv.dtype })
    }

    /// A launch for each head of each window, or of each of so many shares of them.
    fn launch(&self, source: &'static str, entry: &'static str, more: &[(&'static str, usize)]) -> Launch {
        let Params { down, across, .. } = self.params;
        let more = more.iter().map(|&(name, value)| (name, value as i64));
        Launch {
            source,
            entry,
            defines: self.defines.iter().copied().chain(more).collect(),
            grid: [self.op.heads as u32 * across, down, self.images as u32],
            block: [WARPS as u32 * 32, 1, 1],
            shared: 0,
            args: vec![Arg::Input(0), Arg::Input(1), Arg::Input(2), Arg::Output(0), Arg::of(&self.params)],
        }
    }

    /// Elements of a load without tensor cores.
    fn vector(&self) -> (&'static str, usize) {
        ("VECTOR", vector(self.dtype, self.depth))
    }

    fn tensor_cores(&self) -> Launch {
        let steps = (self.op.window * self.op.window).div_ceil(STEP);
        // No more warps than have as many steps each as the one that has most.
        let warps = steps.div_ceil(steps.div_ceil(WARPS));
        Launch {
            block: [warps as u32 * 32, 1, 1],
            shared: (3 * steps * STEP * self.depth * self.dtype.size()) as u32,
            ..self.launch("attention/window.cu", "window_attention", &[("WARPS", warps)])
        }
    }

    fn any(&self, keys: usize) -> Launch {
        let more = [("KEYS", keys), ("QUERIES", SIDE), ("WARPS", WARPS), self.vector()];
        Launch {
            shared: shared_any(self.op, self.depth, keys) as u32,
            ..self.launch("attention/window_any.cu", "window_attention_any", &more)
        }
    }

    /// Gradients of the map, and parts of the others at these bytes of the workspace, of `share` windows
    /// each.
    fn grad(&self, tensor_cores: bool, share: usize, shares: usize, parts: [usize; 2]) -> Launch {
        let Params { down, across, .. } = self.params;
        let windows = self.images as u32 * down * across;
        let params = GradParams { map: self.params, windows, share: share as u32 };
        let launch = if tensor_cores {
            let steps = (self.op.window * self.op.window).div_ceil(STEP);
            Launch {
                block: [steps as u32 * 32, 1, 1],
                shared: shared_grad(self.op, self.depth)[0] as u32,
                ..self.launch("attention/window_grad.cu", "window_attention_grad", &[])
            }
        } else {
            let more = [("SIDE", SIDE), ("WARPS", WARPS), ("LINE", line(self.op, self.depth)), self.vector()];
            Launch {
                shared: shared_grad_any(self.op, self.depth) as u32,
                ..self.launch("attention/window_grad_any.cu", "window_attention_grad_any", &more)
            }
        };
        let [table, bias] = parts.map(Arg::Workspace);
        let inputs = (0..4).map(Arg::Input);
        Launch {
            grid: [self.op.heads as u32, shares as u32, 1],
            args: inputs.chain([Arg::Output(0), table, bias, Arg::of(&params)]).collect(),
            ..launch
        }
    }
}

impl CudaOp for WindowAttention {
    /// Weights, for their product with values.
    const ROUNDING: Rounding = Rounding::Between;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let windows = Windows::new(self, site)?;
        let (kernel, launch) = if target.precision.is_half() && on_tensor_cores(self.window, windows.depth) {
            ("mma".to_string(), windows.tensor_cores())
        } else {
            let keys = keys_at_once(self, windows.depth).ok_or_else(|| too_large(self, windows.depth))?;
            (format!("f32, {keys} keys at a time"), windows.any(keys))
        };
        Ok(Program { kernel, launches: vec![launch], packing: windows.packing, ..Program::default() })
    }
}

impl CudaOp for WindowAttentionGrad {
    /// Weights, and their slopes, which are made of them.
    const ROUNDING: Rounding = Rounding::BetweenTwice;

    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let op = &self.of;
        let windows = Windows::new(op, site)?;
        let tensor_cores = target.precision.is_half() && grad_on_tensor_cores(op, windows.depth);
        let tokens = op.window * op.window;
        if !tensor_cores && tokens > GRAD_TOKENS {
            return Err(format!(
                "windows of {tokens} pixels; the kernel of gradients takes up to {GRAD_TOKENS}"
            ));
        }
        if !tensor_cores && shared_grad_any(op, windows.depth) > SHARED {
            return Err(too_large(op, windows.depth));
        }
        let count = if site.inputs[0].shape.is_empty() {
            0
        } else {
            windows.images * op.windows(site.inputs[0].shape).iter().product::<usize>()
        };
        let share = count.div_ceil((GRAD_BLOCKS / op.heads).max(1)).max(1);
        let shares = count.div_ceil(share);
        let [bias, table] = [1, 2].map(|output| site.outputs[output].shape.len());
        let at_bias = (shares * table * 4).next_multiple_of(256);
        let mut launches = Vec::new();
        if shares > 0 {
            launches.push(windows.grad(tensor_cores, share, shares, [0, at_bias]));
        }
        for (output, count, at) in [(1, bias, at_bias), (2, table, 0)] {
            if count > 0 {
                launches.push(add_parts(shares, count, Arg::Workspace(at), Arg::Output(output)));
            }
        }
        Ok(Program {
            kernel: format!("{} in {shares} shares", if tensor_cores { "mma" } else { "f32" }),
            launches,
            workspace: (at_bias + shares * bias * 4).max(256),
            packing: windows.packing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_windows_of_swin_run_on_tensor_cores_and_odd_heads_do_not() {
        assert!([7, 12].iter().all(|&window| on_tensor_cores(window, 32)));
        assert!(on_tensor_cores(1, 16) && on_tensor_cores(12, 64));
        assert!(!on_tensor_cores(13, 32) && !on_tensor_cores(7, 24) && !on_tensor_cores(7, 128));
        let grad =
            |window, depth| grad_on_tensor_cores(&WindowAttention { heads: 1, window, shift: 0 }, depth);
        assert!(grad(7, 32) && grad(12, 32) && grad(10, 64) && !grad(11, 64));
    }

    #[test]
    fn keys_come_in_as_few_rounds_as_fit() {
        let keys = |window, depth| keys_at_once(&WindowAttention { heads: 1, window, shift: 0 }, depth);
        assert_eq!(keys(1, 1), Some(32));
        assert_eq!(keys(7, 32), Some(64));
        assert_eq!(keys(12, 32), Some(160));
        assert_eq!(keys(20, 32), Some(224), "400 keys in two rounds");
        assert!(keys(80, 32).is_none() && keys(2, 4096).is_none());
    }
}
