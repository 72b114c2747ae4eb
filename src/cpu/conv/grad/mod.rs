//! Gradients of a convolution: of its map ([`InputGrad`]) and of its filters ([`FilterGrad`]).

mod deform;
mod depthwise;
mod filter;
mod input;
mod phase;

use super::ConvShape;

pub use deform::DeformInputGrad;
pub use filter::FilterGrad;
pub use input::InputGrad;
use phase::Phase;

/// A convolution of which a gradient is taken: `[batch, map, c_in]` by filters
/// `[c_out, kernel, c_in / groups]` to `[batch, out, c_out]`. How many zeros follow the map does not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GradShape {
    /// Images.
    pub batch: usize,
    /// Rows and columns of the map.
    pub map: [usize; 2],
    /// Rows and columns of the result.
    pub out: [usize; 2],
    /// Channels of the map.
    pub c_in: usize,
    /// Channels of the result.
    pub c_out: usize,
    /// Rows and columns of a filter.
    pub kernel: [usize; 2],
    /// Rows and columns between neighbouring results.
    pub stride: [usize; 2],
    /// Zero rows above, zero columns left of the map.
    pub padding: [usize; 2],
    /// Rows and columns between neighbouring taps.
    pub dilation: [usize; 2],
    /// Groups; divides both channel counts.
    pub groups: usize,
}

impl GradShape {
    /// Values of the map.
    pub fn map_len(&self) -> usize {
        self.batch * self.map[0] * self.map[1] * self.c_in
    }

    /// Pixels of the result, all images.
    pub fn out_pixels(&self) -> usize {
        self.batch * self.out[0] * self.out[1]
    }

    /// Values of the result.
    pub fn out_len(&self) -> usize {
        self.out_pixels() * self.c_out
    }

    /// Values of the filters.
    pub fn filter_len(&self) -> usize {
        self.c_out * self.kernel[0] * self.kernel[1] * self.c_in / self.groups
    }

    /// One filter a channel, of few enough taps.
    fn is_depthwise(&self) -> bool {
        let taps = self.kernel[0] * self.kernel[1];
        self.groups > 1 && self.groups == self.c_in && self.c_in == self.c_out && taps <= depthwise::TAPS
    }

    /// The convolution of the result's gradient by the turned filters that gives the gradient of the map, if
    /// it is one: stride 1.
    fn turned(&self) -> Option<ConvShape> {
        let reach = |axis: usize| self.dilation[axis] * (self.kernel[axis] - 1);
        let before = |axis: usize| reach(axis).checked_sub(self.padding[axis]);
        let after = |axis: usize| (self.map[axis] + reach(axis)).checked_sub(self.out[axis] + before(axis)?);
        let shape = ConvShape {
            batch: self.batch,
            height: self.out[0],
            width: self.out[1],
            c_in: self.c_out,
            c_out: self.c_in,
            kernel: self.kernel,
            stride: [1; 2],
            padding: [before(0)?, before(1)?],
            padding_end: [after(0)?, after(1)?],
            dilation: self.dilation,
            groups: self.groups,
        };
        let same = [shape.out_height(), shape.out_width()] == self.map;
        (self.stride == [1; 2] && same).then_some(shape)
    }
}
