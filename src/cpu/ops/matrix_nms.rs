//! Matrix NMS, image by image: every mask is read once, for its pixels as bits and their probabilities; what
//! two masks of a class have in common is counted word by word. A task is a mask, and what it finds lies in
//! scratch of its own.

use super::super::kernel::{Args, Context, CpuOp, Kernel};
use super::exp::{exp, sigmoid};
use crate::isa::{Isa, simd};
use crate::ops::MatrixNms;
use bytemuck::Zeroable;
use rayon::prelude::*;

/// Logits of a word of bits.
const WORD: usize = 32;

/// Words whose probabilities are added up in f32.
const BLOCK: usize = 64;

/// The intersection over union of masks of different classes, which is not asked for.
const OF_OTHERS: f32 = -1.0;

/// What is kept of a mask besides its bits.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Mask {
    /// Which of the operand's it is.
    index: u32,
    class: u32,
    /// Pixels; 0 of one that does not count.
    area: u32,
    /// Its place among those that count.
    rank: u32,
    /// The largest intersection over union with one before it.
    worst: f32,
    score: f32,
}

/// Floats of a [`Mask`].
const MASK: usize = size_of::<Mask>() / size_of::<f32>();

/// Operands, results and scratch of one image.
struct Image<'a> {
    logits: &'a [f32],
    scores: &'a [f32],
    candidates: &'a [i32],
    left: &'a mut [f32],
    places: &'a mut [i32],
    labels: &'a mut [i32],
    count: &'a mut i32,
    scratch: &'a mut [f32],
}

struct Masks {
    op: MatrixNms,
    count: usize,
    pixels: usize,
    isa: Isa,
}

impl CpuOp for MatrixNms {
    fn kernel(&self, context: &Context<'_>) -> Box<dyn Kernel> {
        let masks = context.inputs[0].shape;
        let (count, pixels) = (masks[1], masks[2] * masks[3]);
        Box::new(Masks { op: self.clone(), count, pixels, isa: context.isa })
    }
}

impl Masks {
    fn words(&self) -> usize {
        self.pixels.div_ceil(WORD)
    }

    fn suppress(&self, image: Image<'_>) {
        image.left.fill(0.0);
        image.places.fill(0);
        image.labels.fill(0);
        *image.count = 0;
        if self.count * self.pixels == 0 {
            return;
        }
        let (bits, rest) = image.scratch.split_at_mut(self.count * self.words());
        let (masks, ious) = rest.split_at_mut(self.count * MASK);
        let (bits, masks): (&mut [u32], &mut [Mask]) =
            (bytemuck::cast_slice_mut(bits), bytemuck::cast_slice_mut(masks));
        masks.par_iter_mut().zip(bits.par_chunks_mut(self.words())).enumerate().for_each(
            |(index, (mask, bits))| {
                let logits = &image.logits[index * self.pixels..][..self.pixels];
                *mask = self.measured(index, image.candidates[index], image.scores[index], logits, bits);
            },
        );
        masks.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.index.cmp(&b.index)));
        let counted = masks.iter().take_while(|mask| mask.area > 0).count();
        let masks = &mut masks[..counted];
        let (sorted, bits) = (&*masks, &*bits);
        ious.par_chunks_mut(self.count)
            .take(sorted.len())
            .enumerate()
            .for_each(|(rank, row)| self.intersect(sorted, bits, rank, row));
        self.decay(masks, ious);
        masks.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.rank.cmp(&b.rank)));
        let kept = masks.iter().take(self.op.keep).take_while(|mask| mask.area > 0);
        for (place, mask) in kept.enumerate() {
            image.left[place] = mask.score;
            image.places[place] = mask.index as i32;
            image.labels[place] = mask.class as i32;
            *image.count += 1;
        }
    }

    /// A mask's pixels as bits, and its score with its quality in it.
    fn measured(&self, index: usize, candidate: i32, score: f32, logits: &[f32], bits: &mut [u32]) -> Mask {
        let (class, least) = self.op.asked(candidate);
        let (index, class, score_of_none) = (index as u32, class as u32, f32::NEG_INFINITY);
        let none = Mask { index, class, score: score_of_none, ..Mask::zeroed() };
        if score.partial_cmp(&self.op.score_threshold) != Some(std::cmp::Ordering::Greater) {
            return none;
        }
        let (area, sum) = measure(self.isa, logits, bits);
        match area as usize > least {
            true => Mask { area, score: score * (sum / f64::from(area)) as f32, ..none },
            false => none,
        }
    }

    /// The intersection over union of the mask at `rank` with those before it, then the largest.
    fn intersect(&self, masks: &[Mask], bits: &[u32], rank: usize, row: &mut [f32]) {
        let of = |mask: &Mask| &bits[mask.index as usize * self.words()..][..self.words()];
        let own = &masks[rank];
        let mut worst = 0.0f32;
        for (iou, before) in row.iter_mut().zip(&masks[..rank]) {
            *iou = OF_OTHERS;
            if before.class == own.class {
                let both = in_common(self.isa, of(before), of(own));
                *iou = both as f32 / (before.area + own.area - both) as f32;
                worst = worst.max(*iou);
            }
        }
        row[rank] = worst;
    }

    /// Lowers the scores, and marks those that are too low as of no area.
    fn decay(&self, masks: &mut [Mask], ious: &[f32]) {
        for (rank, row) in ious.chunks_exact(self.count).enumerate().take(masks.len()) {
            masks[rank].worst = row[rank];
            let mut decay = 1.0f32;
            for (&iou, before) in row.iter().zip(&masks[..rank]).filter(|&(&iou, _)| iou != OF_OTHERS) {
                decay = decay.min(exp(-self.op.sigma * (iou * iou - before.worst * before.worst)));
            }
            let mask = &mut masks[rank];
            (mask.rank, mask.score) = (rank as u32, mask.score * decay);
            if mask.score < self.op.least_score {
                (mask.area, mask.score) = (0, f32::NEG_INFINITY);
            }
        }
    }
}

impl Kernel for Masks {
    fn name(&self) -> String {
        format!("bits {}", self.isa)
    }

    fn workspace(&self) -> usize {
        self.count * (self.words() + MASK + self.count)
    }

    fn run(&self, args: &mut Args<'_>) {
        let (candidates, [logits, scores, ..]) = (args.input_i32(2), args.inputs);
        let (count, keep) = (self.count, self.op.keep);
        let [left, places, labels, counts, ..] = &mut args.outputs;
        let places: &mut [i32] = bytemuck::cast_slice_mut(places);
        let labels: &mut [i32] = bytemuck::cast_slice_mut(labels);
        let counts: &mut [i32] = bytemuck::cast_slice_mut(counts);
        for (b, taken) in counts.iter_mut().enumerate() {
            self.suppress(Image {
                logits: &logits[b * count * self.pixels..][..count * self.pixels],
                scores: &scores[b * count..][..count],
                candidates: &candidates[b * count..][..count],
                left: &mut left[b * keep..][..keep],
                places: &mut places[b * keep..][..keep],
                labels: &mut labels[b * keep..][..keep],
                count: taken,
                scratch: args.workspace,
            });
        }
    }
}

/// The bits of the positive logits of a word; their probabilities are added to the sums.
#[inline(always)]
fn word(x: &[f32; WORD], sums: &mut [f32; WORD]) -> u32 {
    let mut bits = 0;
    for lane in 0..WORD {
        bits |= u32::from(x[lane] > 0.0) << lane;
    }
    if bits != 0 {
        for lane in 0..WORD {
            sums[lane] += if x[lane] > 0.0 { sigmoid(x[lane]) } else { 0.0 };
        }
    }
    bits
}

simd! {
    /// Sets the bits of the positive logits; gives how many there are and the sum of their probabilities.
    fn measure(isa, logits: &[f32], bits: &mut [u32]) -> (u32, f64) {
        let (mut area, mut total) = (0, 0.0);
        for (logits, bits) in logits.chunks(WORD * BLOCK).zip(bits.chunks_mut(BLOCK)) {
            let mut sums = [0f32; WORD];
            let (words, rest) = logits.as_chunks::<WORD>();
            for (x, bits) in words.iter().zip(bits.iter_mut()) {
                *bits = word(x, &mut sums);
            }
            if let Some(bits) = bits.get_mut(words.len()) {
                let mut x = [0.0; WORD];
                x[..rest.len()].copy_from_slice(rest);
                *bits = word(&x, &mut sums);
            }
            area += bits.iter().map(|word| word.count_ones()).sum::<u32>();
            total += sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
        }
        (area, total)
    }
}

simd! {
    /// How many bits both have.
    fn in_common(isa, a: &[u32], b: &[u32]) -> u32 {
        a.iter().zip(b).map(|(a, b)| (a & b).count_ones()).sum()
    }
}
