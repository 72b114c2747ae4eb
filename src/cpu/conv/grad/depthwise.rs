//! Gradients of depthwise convolutions: vectors run over channels.

use std::ops::Range;

use crate::cpu::gemm::{Arch, Job, SharedMut, Vector, add_up, for_each_task, on};
use crate::isa::Isa;

use super::{GradShape, Phase};

/// Most taps of a filter.
pub(super) const TAPS: usize = 64;

/// Packs KRSC filters as `[tap][channel]`.
pub(super) fn pack(s: &GradShape, filter: &[f32], packed: &mut [f32]) {
    let taps = s.kernel[0] * s.kernel[1];
    for (c, filter) in filter[..s.filter_len()].chunks_exact(taps).enumerate() {
        for (tap, &w) in filter.iter().enumerate() {
            packed[tap * s.c_in + c] = w;
        }
    }
}

/// `dx` from `dy` and filters packed as `[tap][channel]`: every pixel gathers the results that read it.
pub(super) fn input_grad(s: &GradShape, isa: Isa, dy: &[f32], packed: &[f32], dx: &mut [f32]) {
    let dx = SharedMut::new(dx);
    for_each_task(s.batch * s.map[0] * usize::from(s.map[1] > 0), |line| {
        on(isa, Line { shape: s, dy, packed, dx, line });
    });
}

/// One line of the map: `line` counts through all images.
struct Line<'a> {
    shape: &'a GradShape,
    dy: &'a [f32],
    packed: &'a [f32],
    dx: SharedMut,
    line: usize,
}

impl Job for Line<'_> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        let s = self.shape;
        let (image, y) = (self.line / s.map[0], self.line % s.map[0]);
        let rows = Phase::new(s, 0, (y + s.padding[0]) % s.stride[0]);
        let reader = |phase: &Phase, axis: usize, n: usize, tap: usize| {
            let out = phase.origin + (n + tap * phase.dilation) as isize;
            (out >= 0 && out < s.out[axis] as isize).then_some(out)
        };
        let mut terms = [(0, 0); TAPS];
        for residue in 0..s.stride[1] {
            let columns = Phase::new(s, 1, residue);
            // Pixel `n` reads what pixel 0 of the phase reads, `n` results further; those next to the edge
            // read less.
            let mut collect = |n: Option<usize>| {
                let mut count = 0;
                for i in 0..rows.taps {
                    let n_of_row = (y - rows.first) / rows.stride;
                    let Some(oy) = reader(&rows, 0, n_of_row, i) else { continue };
                    let line = (image * s.out[0]) as isize + oy;
                    for j in 0..columns.taps {
                        if n.is_none_or(|n| reader(&columns, 1, n, j).is_some()) {
                            let ox = columns.origin + (j * columns.dilation) as isize;
                            let tap = rows.tap(i) * s.kernel[1] + columns.tap(j);
                            terms[count] = ((line * s.out[1] as isize + ox) * s.c_in as isize, tap * s.c_in);
                            count += 1;
                        }
                    }
                }
                (terms, count)
            };
            let (inner, inner_count) = collect(None);
            for n in 0..columns.count {
                let inside = columns.taps == 0
                    || (reader(&columns, 1, n, 0).is_some()
                        && reader(&columns, 1, n, columns.taps - 1).is_some());
                let at = self.line * s.map[1] + columns.first + n * columns.stride;
                let pixel = Pixel {
                    dy: self.dy.as_ptr().wrapping_add(n * s.c_in),
                    filter: self.packed.as_ptr(),
                    dx: self.dx.get().wrapping_add(at * s.c_in),
                    channels: s.c_in,
                };
                // SAFETY: a pixel of this task's line; terms point at whole pixels of dy and taps of the
                // filters.
                unsafe {
                    if inside {
                        pixel.gather::<A>(&inner[..inner_count]);
                    } else {
                        let (edge, count) = collect(Some(n));
                        pixel.gather::<A>(&edge[..count]);
                    }
                }
            }
        }
    }
}

/// One pixel of the map and what it is gathered from.
struct Pixel {
    dy: *const f32,
    filter: *const f32,
    dx: *mut f32,
    channels: usize,
}

impl Pixel {
    /// `dx[c] = sum over terms of dy[term.0 + c] * filter[term.1 + c]`.
    ///
    /// # Safety
    /// All ranges are inside their arrays; features as for `A`.
    #[inline(always)]
    unsafe fn gather<A: Arch>(&self, terms: &[(isize, usize)]) {
        let Pixel { dy, filter, dx, channels } = *self;
        let lanes = A::V::LANES;
        let mut c = 0;
        // SAFETY: the contract above; lanes past the channels are neither read nor written.
        unsafe {
            while c + 2 * lanes <= channels {
                let mut sums = [A::V::splat(0.0); 2];
                for &(i, j) in terms {
                    let (dy, w) = (dy.wrapping_offset(i).add(c), filter.add(j + c));
                    sums[0] = A::V::load(dy).mul_add(A::V::load(w), sums[0]);
                    sums[1] = A::V::load(dy.add(lanes)).mul_add(A::V::load(w.add(lanes)), sums[1]);
                }
                sums[0].store(dx.add(c));
                sums[1].store(dx.add(c + lanes));
                c += 2 * lanes;
            }
            while c < channels {
                let count = channels - c;
                let mut sum = A::V::splat(0.0);
                for &(i, j) in terms {
                    let dy = A::V::load_up_to(dy.wrapping_offset(i).add(c), count);
                    sum = dy.mul_add(A::V::load_up_to(filter.add(j + c), count), sum);
                }
                sum.store_up_to(dx.add(c), count);
                c += lanes;
            }
        }
    }
}

/// Lines of the result that one partial sum of the filter gradient takes: at most 32 partial sums.
fn lines_of_chunk(s: &GradShape) -> usize {
    (s.batch * s.out[0]).div_ceil(32).max(1)
}

/// Values of workspace that [`filter_grad`] needs: a partial sum a chunk of lines, `[tap][channel]`, and the
/// whole.
pub(super) fn filter_workspace_len(s: &GradShape) -> usize {
    ((s.batch * s.out[0]).div_ceil(lines_of_chunk(s)) + 1) * s.filter_len()
}

/// KRSC `dw`: chunks of lines of the result in parallel, then their partial sums in order.
pub(super) fn filter_grad(
    s: &GradShape,
    isa: Isa,
    x: &[f32],
    dy: &[f32],
    dw: &mut [f32],
    workspace: &mut [f32],
) {
    let (size, lines, step) = (s.filter_len(), s.batch * s.out[0], lines_of_chunk(s));
    let dw = &mut dw[..size];
    let (sum, parts) = workspace[..filter_workspace_len(s)].split_at_mut(size);
    let shared = SharedMut::new(parts);
    for_each_task(lines.div_ceil(step), |i| {
        // SAFETY: every task has a partial sum of its own.
        let sums = unsafe { std::slice::from_raw_parts_mut(shared.get().add(i * size), size) };
        sums.fill(0.0);
        on(isa, Lines { shape: s, x, dy, lines: i * step..((i + 1) * step).min(lines), sums });
    });
    if lines == 0 {
        dw.fill(0.0);
        return;
    }
    add_up(parts, sum);
    let taps = s.kernel[0] * s.kernel[1];
    for (c, filter) in dw.chunks_exact_mut(taps).enumerate() {
        for (tap, w) in filter.iter_mut().enumerate() {
            *w = sum[tap * s.c_in + c];
        }
    }
}

/// Some lines of the result, counted through all images.
struct Lines<'a> {
    shape: &'a GradShape,
    x: &'a [f32],
    dy: &'a [f32],
    lines: Range<usize>,
    /// `[tap][channel]`.
    sums: &'a mut [f32],
}

impl Job for Lines<'_> {
    #[inline(always)]
    fn run<A: Arch>(mut self) {
        let s = self.shape;
        for line in self.lines.clone() {
            let (image, oy) = (line / s.out[0], line % s.out[0]);
            for ky in 0..s.kernel[0] {
                let y = (oy * s.stride[0] + ky * s.dilation[0]).checked_sub(s.padding[0]);
                let Some(y) = y.filter(|&y| y < s.map[0]) else { continue };
                let x = (image * s.map[0] + y) * s.map[1];
                match s.kernel[1] {
                    3 => self.taps::<A, 3>(line, x, ky, 0),
                    5 => self.taps::<A, 5>(line, x, ky, 0),
                    kernel => (0..kernel).for_each(|kx| self.taps::<A, 1>(line, x, ky, kx)),
                }
            }
        }
    }
}

impl Lines<'_> {
    /// Adds one line's terms of the `N` taps from `(ky, kx)` on, all channels; `x` is the first pixel of the
    /// line of the map that they read.
    #[inline(always)]
    fn taps<A: Arch, const N: usize>(&mut self, line: usize, x: usize, ky: usize, kx: usize) {
        let s = self.shape;
        // Results whose taps all lie on the map; the few beside them go one by one.
        let left = |kx: usize| s.padding[1].saturating_sub(kx * s.dilation[1]).div_ceil(s.stride[1]);
        let right = |kx: usize| {
            let room = (s.map[1] + s.padding[1]).saturating_sub(kx * s.dilation[1]);
            room.div_ceil(s.stride[1]).min(s.out[1])
        };
        let from = left(kx);
        let inside = from..right(kx + N - 1).max(from);
        let lanes = A::V::LANES;
        let mut c = 0;
        while c < s.c_in {
            let count = (s.c_in - c).min(2 * lanes);
            // SAFETY: channels c..c + count of pixels inside both maps, taps inside the sums.
            unsafe {
                if count == 2 * lanes {
                    self.run_of::<A, N, 2>([line, x, ky, kx], c, lanes, inside.clone());
                } else {
                    let count = count.min(lanes);
                    self.run_of::<A, N, 1>([line, x, ky, kx], c, count, inside.clone());
                }
                for tap in 0..N {
                    let (from, to) = (left(kx + tap), right(kx + tap));
                    let before = from..to.min(inside.start);
                    let after = from.max(inside.end)..to;
                    for rest in [before, after] {
                        if count == 2 * lanes {
                            self.run_of::<A, 1, 2>([line, x, ky, kx + tap], c, lanes, rest);
                        } else {
                            self.run_of::<A, 1, 1>([line, x, ky, kx + tap], c, count.min(lanes), rest);
                        }
                    }
                }
            }
            c += if count == 2 * lanes { count } else { lanes };
        }
    }

    /// The terms of results `results` of the line, for `N` taps and `V` vectors of channels from `c` on, the
    /// last of `count` lanes.
    ///
    /// # Safety
    /// All taps of these results lie on the map; features as for `A`.
    #[inline(always)]
    unsafe fn run_of<A: Arch, const N: usize, const V: usize>(
        &mut self,
        [line, x, ky, kx]: [usize; 4],
        c: usize,
        count: usize,
        results: Range<usize>,
    ) {
        if results.is_empty() {
            return;
        }
        let s = self.shape;
        let lanes = A::V::LANES;
        // SAFETY: the contract above.
        unsafe {
            let mut sums = [[A::V::splat(0.0); V]; N];
            let first = results.start * s.stride[1] + kx * s.dilation[1] - s.padding[1];
            let mut dy = self.dy.as_ptr().add((line * s.out[1] + results.start) * s.c_in + c);
            let mut map = self.x.as_ptr().add((x + first) * s.c_in + c);
            for _ in results {
                for v in 0..V {
                    let grad = A::V::load_up_to(dy.add(v * lanes), count);
                    for n in 0..N {
                        let at = map.add(n * s.dilation[1] * s.c_in + v * lanes);
                        sums[n][v] = A::V::load_up_to(at, count).mul_add(grad, sums[n][v]);
                    }
                }
                dy = dy.wrapping_add(s.c_in);
                map = map.wrapping_add(s.stride[1] * s.c_in);
            }
            for n in 0..N {
                for v in 0..V {
                    let at = (ky * s.kernel[1] + kx + n) * s.c_in + c + v * lanes;
                    let to = self.sums.as_mut_ptr().add(at);
                    sums[n][v].add(A::V::load_up_to(to, count)).store_up_to(to, count);
                }
            }
        }
    }
}
