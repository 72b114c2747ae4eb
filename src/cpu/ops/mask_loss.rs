//! Mask losses, one matched object a task. Sums run over fixed lanes and blocks, the blocks in double
//! precision.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::exp::{LANES, sigmoid, softplus};
use crate::isa::simd;
use crate::ops::mask_loss::{DICE_EPS, MaskLoss, MaskLossGrad};
use rayon::prelude::*;

/// Pixels whose sums are kept in single precision.
const BLOCK: usize = 2048;

struct Planes {
    objects: usize,
    slots: usize,
    pixels: usize,
    isa: Isa,
}

impl Planes {
    fn new(context: &Context<'_>) -> Self {
        let (logits, targets) = (context.inputs[0].shape, context.inputs[1].shape);
        let pixels = logits[2] * logits[3];
        Planes { objects: logits[1], slots: targets[1], pixels, isa: context.isa }
    }

    /// Target of an object, counted over the batch.
    fn target<'a>(&self, targets: &'a [f32], matched: &[i32], object: usize) -> Option<&'a [f32]> {
        let slot = usize::try_from(matched[object]).ok()?;
        let plane = object / self.objects * self.slots + slot;
        Some(&targets[plane * self.pixels..][..self.pixels])
    }
}

struct Forward(Planes);

impl CpuOp for MaskLoss {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Forward(Planes::new(context)))
    }
}

impl Kernel for Forward {
    fn name(&self) -> String {
        "planes".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let ([logits, targets, ..], matched) = (args.inputs, args.input_i32(2));
        let [entropy, dice, sums, ..] = &mut args.outputs;
        let planes = &self.0;
        // The cross-entropy of an object passes through the place of `t.t`, which is added up again last.
        sums.par_chunks_mut(3).enumerate().for_each(|(object, sums)| {
            sums.fill(0.0);
            if let Some(target) = planes.target(targets, matched, object) {
                let logits = &logits[object * planes.pixels..][..planes.pixels];
                let [both, pp, entropy] = forward(planes.isa, logits, target).map(|v| v as f32);
                sums.copy_from_slice(&[both, pp, entropy]);
            }
        });
        let (mut total_entropy, mut total_dice) = (0.0, 0.0);
        for (object, sums) in sums.chunks_exact_mut(3).enumerate() {
            let Some(target) = planes.target(targets, matched, object) else { continue };
            total_entropy += f64::from(sums[2]);
            let tt = squares(planes.isa, target);
            sums[2] = tt as f32;
            let [both, pp] = [sums[0], sums[1]].map(f64::from);
            total_dice += 1.0 - 2.0 * both / (pp + DICE_EPS + tt + DICE_EPS);
        }
        entropy[0] = total_entropy as f32;
        dice[0] = total_dice as f32;
    }
}

simd! {
    /// `p.t`, `p.p` and the cross-entropy of a plane.
    fn forward(isa, logits: &[f32], target: &[f32]) -> [f64; 3] {
        let mut totals = [0.0f64; 3];
        for (x, t) in logits.chunks(BLOCK).zip(target.chunks(BLOCK)) {
            let mut lanes = [[0.0f32; LANES]; 3];
            let mut add = |lane: usize, x: f32, t: f32| {
                let p = sigmoid(x);
                lanes[0][lane] += p * t;
                lanes[1][lane] += p * p;
                lanes[2][lane] += softplus(x) - x * t;
            };
            let ((x, x_rest), (t, t_rest)) = (x.as_chunks::<LANES>(), t.as_chunks::<LANES>());
            for (x, t) in x.iter().zip(t) {
                for lane in 0..LANES {
                    add(lane, x[lane], t[lane]);
                }
            }
            for (lane, (&x, &t)) in x_rest.iter().zip(t_rest).enumerate() {
                add(lane, x, t);
            }
            for (total, lanes) in totals.iter_mut().zip(lanes) {
                *total += f64::from(lanes.iter().sum::<f32>());
            }
        }
        totals
    }
}

simd! {
    /// `t.t`.
    fn squares(isa, target: &[f32]) -> f64 {
        let mut total = 0.0;
        for block in target.chunks(BLOCK) {
            let mut lanes = [0.0f32; LANES];
            let (t, rest) = block.as_chunks::<LANES>();
            for t in t {
                for lane in 0..LANES {
                    lanes[lane] += t[lane] * t[lane];
                }
            }
            rest.iter().zip(&mut lanes).for_each(|(t, lane)| *lane += t * t);
            total += f64::from(lanes.iter().sum::<f32>());
        }
        total
    }
}

struct Backward(Planes);

impl CpuOp for MaskLossGrad {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        Box::new(Backward(Planes::new(context)))
    }
}

impl Kernel for Backward {
    fn name(&self) -> String {
        "planes".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let ([logits, targets, _, sums, entropy, dice, ..], matched) = (args.inputs, args.input_i32(2));
        let planes = &self.0;
        let (entropy, dice) = (entropy[0], f64::from(dice[0]));
        args.outputs[0].par_chunks_mut(planes.pixels.max(1)).enumerate().for_each(|(object, dx)| {
            let Some(target) = planes.target(targets, matched, object) else {
                dx.fill(0.0);
                return;
            };
            let [both, pp, tt] = [0, 1, 2].map(|i| f64::from(sums[3 * object + i]));
            let denominator = pp + DICE_EPS + tt + DICE_EPS;
            let of_target = (-2.0 * dice / denominator) as f32;
            let of_p = (4.0 * dice * both / (denominator * denominator)) as f32;
            let logits = &logits[object * planes.pixels..][..planes.pixels];
            backward(planes.isa, [entropy, of_target, of_p], logits, target, dx);
        });
    }
}

simd! {
    /// `dx = entropy (p - t) + (of_target t + of_p p) p (1 - p)`.
    fn backward(isa, factors: [f32; 3], logits: &[f32], target: &[f32], dx: &mut [f32]) {
        let [entropy, of_target, of_p] = factors;
        for ((dx, &x), &t) in dx.iter_mut().zip(logits).zip(target) {
            let p = sigmoid(x);
            *dx = entropy * (p - t) + (of_target * t + of_p * p) * (p * (1.0 - p));
        }
    }
}
