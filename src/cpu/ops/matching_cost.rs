//! Matching costs: probabilities times targets by packed GEMM; class costs entry by entry.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::Isa;
use super::exp::{LANES, sigmoid};
use crate::cpu::gemm::{BLayout, Epilogue, Gemm};
use crate::isa::simd;
use crate::ops::mask_loss::DICE_EPS;
use crate::ops::matching_cost::{ClassCost, MaskCost};
use rayon::prelude::*;

/// Pixels whose sums are kept in single precision.
const BLOCK: usize = 2048;

struct Masks {
    op: MaskCost,
    batch: usize,
    objects: usize,
    slots: usize,
    pixels: usize,
    isa: Isa,
}

impl CpuOp for MaskCost {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let [batch, objects, h, w] = [0, 1, 2, 3].map(|axis| context.inputs[0].shape[axis]);
        let slots = context.inputs[1].shape[1];
        Box::new(Masks { op: *self, batch, objects, slots, pixels: h * w, isa: context.isa })
    }
}

impl Masks {
    fn gemm(&self) -> Gemm {
        Gemm { m: self.objects, n: self.slots, k: self.pixels, isa: self.isa }
    }
}

impl Kernel for Masks {
    fn name(&self) -> String {
        format!("gemm {}", self.isa)
    }

    /// Probabilities and packed targets of one image, and sum and sum of squares of every plane.
    fn workspace(&self) -> usize {
        self.objects * self.pixels + self.gemm().packed_len() + 2 * (self.objects + self.slots)
    }

    fn run(&self, args: &mut Args<'_>) {
        let [logits, targets, ..] = args.inputs;
        let gemm = self.gemm();
        let (p, rest) = args.workspace.split_at_mut(self.objects * self.pixels);
        let (packed, rest) = rest.split_at_mut(gemm.packed_len());
        let (of_p, of_t) = rest[..2 * (self.objects + self.slots)].split_at_mut(2 * self.objects);
        let plane = self.pixels.max(1);
        for image in 0..self.batch {
            let logits = &logits[image * p.len()..][..p.len()];
            let planes = p.par_chunks_mut(plane).zip(logits.par_chunks(plane));
            planes.zip(of_p.par_chunks_mut(2)).for_each(|((p, logits), of_p)| {
                probabilities(self.isa, logits, p);
                of_p.copy_from_slice(&sums(self.isa, p).map(|v| v as f32));
            });
            let size = self.slots * self.pixels;
            let targets = &targets[image * size..][..size];
            targets.par_chunks(plane).zip(of_t.par_chunks_mut(2)).for_each(|(t, of_t)| {
                of_t.copy_from_slice(&sums(self.isa, t).map(|v| v as f32));
            });
            gemm.pack_b(targets, BLayout::Transposed, packed);
            let cost = &mut args.outputs[0][image * self.objects * self.slots..][..self.objects * self.slots];
            gemm.run(p, self.pixels, packed, &Epilogue::default(), cost, self.slots);
            for (index, cost) in cost.iter_mut().enumerate() {
                let (object, slot) = (index / self.slots, index % self.slots);
                let [both, p, pp] = [*cost, of_p[2 * object], of_p[2 * object + 1]].map(f64::from);
                let [t, tt] = [of_t[2 * slot], of_t[2 * slot + 1]].map(f64::from);
                let pixels = self.pixels as f64;
                let agreement = (both + (pixels - p - t + both)) / pixels;
                let dice = 2.0 * both / (pp + DICE_EPS + tt + DICE_EPS);
                let weighted =
                    f64::from(self.op.mask_weight) * agreement + f64::from(self.op.dice_weight) * dice;
                *cost = -weighted as f32;
            }
        }
    }
}

simd! {
    /// Sigmoid.
    fn probabilities(isa, logits: &[f32], p: &mut [f32]) {
        p.iter_mut().zip(logits).for_each(|(p, &x)| *p = sigmoid(x));
    }
}

simd! {
    /// Sum and sum of squares.
    fn sums(isa, x: &[f32]) -> [f64; 2] {
        let mut totals = [0.0f64; 2];
        for block in x.chunks(BLOCK) {
            let mut lanes = [[0.0f32; LANES]; 2];
            let (whole, rest) = block.as_chunks::<LANES>();
            for x in whole {
                for lane in 0..LANES {
                    lanes[0][lane] += x[lane];
                    lanes[1][lane] += x[lane] * x[lane];
                }
            }
            for (lane, x) in rest.iter().enumerate() {
                lanes[0][lane] += x;
                lanes[1][lane] += x * x;
            }
            for (total, lanes) in totals.iter_mut().zip(lanes) {
                *total += f64::from(lanes.iter().sum::<f32>());
            }
        }
        totals
    }
}

struct Classes {
    op: ClassCost,
    dims: [usize; 3],
    slots: usize,
}

impl CpuOp for ClassCost {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let dims = [0, 1, 2].map(|axis| context.inputs[0].shape[axis]);
        Box::new(Classes { op: *self, dims, slots: context.inputs[1].shape[1] })
    }
}

impl Kernel for Classes {
    fn name(&self) -> String {
        "entries".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let (logits, labels) = (args.inputs[0], args.input_i32(1));
        for (index, cost) in args.outputs[0].iter_mut().enumerate() {
            let (row, slot) = (index / self.slots, index % self.slots);
            let (image, object) = (row / self.op.objects, row % self.op.objects);
            let label = labels[image * self.slots + slot];
            let logit = ClassCost::logit(&self.dims, image, object, label);
            *cost = logit.map_or(0.0, |index| self.op.cost(f64::from(logits[index])) as f32);
        }
    }
}
