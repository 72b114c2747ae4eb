//! Depthwise convolution of maps that are stored otherwise than in f32: a task widens the rows of the map
//! that a band of outputs reads, convolves them in cache, and stores the outputs as they are wanted.

use super::{ConvShape, depthwise};
use crate::cpu::dot::PerThread;
use crate::cpu::element::Element;
use crate::cpu::gemm::{Epilogue, SharedMut, Target, for_each_task, on};
use crate::isa::{Isa, simd};

/// A depthwise convolution without residual, its filters packed as [`super::ConvKernel::Depthwise`] has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DepthwiseBands {
    /// What is computed.
    pub shape: ConvShape,
    /// The instruction set.
    pub isa: Isa,
}

impl DepthwiseBands {
    /// Rows of outputs of a band: what is widened for them stays in L2.
    fn band(&self) -> usize {
        const MOST: usize = 96 << 10;
        let s = &self.shape;
        let row = s.c_in * (s.stride[0] * s.width + s.out_width());
        let fit = (MOST / row.max(1)).saturating_sub(self.reach() / s.stride[0]).max(1);
        // Some for every thread.
        fit.min(s.out_height().div_ceil(8)).max(1)
    }

    /// Rows of the map from the first that an output reads to the last.
    fn reach(&self) -> usize {
        self.shape.dilation[0] * (self.shape.kernel[0] - 1) + 1
    }

    fn map_len(&self) -> usize {
        let s = &self.shape;
        ((self.band() - 1) * s.stride[0] + self.reach()).min(s.height) * s.width * s.c_in
    }

    fn thread_len(&self) -> usize {
        let s = &self.shape;
        (self.map_len() + self.band() * s.out_width() * s.c_in).next_multiple_of(16)
    }

    /// Floats of workspace that [`DepthwiseBands::run`] needs in a pool of so many threads.
    pub fn workspace_len(&self, threads: usize) -> usize {
        if self.shape.out_pixels() == 0 { 0 } else { threads * self.thread_len() }
    }

    /// `y = epilogue(conv(x))`, in parallel.
    ///
    /// # Panics
    /// When a slice is shorter than the shape says, or the workspace has no room for a thread of this pool.
    pub(crate) fn run<X: Element, Y: Element>(
        &self,
        x: &[X],
        packed: &[f32],
        epilogue: &Epilogue<'_>,
        y: &mut [Y],
        workspace: &mut [f32],
    ) {
        let s = &self.shape;
        if s.out_pixels() == 0 {
            return;
        }
        assert!(x.len() >= s.input_len(), "input of {} values for {s:?}", x.len());
        assert!(packed.len() >= s.filter_len(), "packed filter of {} values for {s:?}", packed.len());
        assert!(y.len() >= s.output_len(), "output of {} values for {s:?}", y.len());
        assert!(epilogue.residual.is_none(), "a residual in {s:?}");
        let (shared, parts) = (SharedMut::new(y), PerThread::new(workspace, self.thread_len()));
        let (row_in, row_out) = (s.width * s.c_in, s.out_width() * s.c_in);
        let bands = s.out_height().div_ceil(self.band());
        for_each_task(s.batch * bands, |task| {
            let (image, first) = (task / bands, task % bands * self.band());
            let lines = self.band().min(s.out_height() - first);
            // The rows that the band reads, of which those from `top` to `bottom` lie on the map.
            let (start, rows) = (first * s.stride[0], (lines - 1) * s.stride[0] + self.reach());
            let top = start.saturating_sub(s.padding[0]).min(s.height);
            let bottom = (start + rows).saturating_sub(s.padding[0]).clamp(top, s.height);
            let above = (s.padding[0] + top - start).min(rows);
            // SAFETY: one task runs on a thread at a time, and each has the rows of its outputs.
            let (workspace, y) = unsafe {
                let y = shared.get().add((image * s.out_height() + first) * row_out);
                (parts.own(), std::slice::from_raw_parts_mut(y, lines * row_out))
            };
            let (map, sums) = workspace.split_at_mut(self.map_len());
            let (map, sums) = (&mut map[..(bottom - top) * row_in], &mut sums[..lines * row_out]);
            let from = (image * s.height + top) * row_in;
            widen(self.isa, &x[from..from + map.len()], map);
            let shape = ConvShape {
                batch: 1,
                height: bottom - top,
                padding: [above, s.padding[1]],
                padding_end: [rows - above - (bottom - top), s.padding_end[1]],
                ..*s
            };
            let finish = epilogue.finish(lines * s.out_width(), s.c_out, s.c_out);
            let target = Target { c: sums.as_mut_ptr(), ldc: s.c_out, finish };
            let layer = depthwise::Layer { shape, x: map.as_ptr(), filter: packed.as_ptr(), target };
            (0..lines).for_each(|row| on(self.isa, depthwise::OutputRow { layer: &layer, row }));
            narrow(self.isa, sums, y);
        });
    }
}

simd! {
    fn widen<E: Element>(isa, x: &[E], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.widen());
    }
}

simd! {
    fn narrow<E: Element>(isa, x: &[f32], y: &mut [E]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = E::narrow(*x));
    }
}
