//! A frame as its owner has it: packed or planar, on the host or on a GPU, with rows as far apart as they
//! are. [`ImageView`] borrows the pixels; [`PixelFormat`] is the one place that knows how formats lie.

use crate::error::{Error, Result};
use ::image::RgbImage;
use rayon::prelude::*;

/// Most planes of a format.
pub const MAX_PLANES: usize = 3;

/// How luma and chroma become red, green and blue; 8 bits, video range (luma 16 to 235).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum YuvMatrix {
    /// ITU-R BT.601, with OpenCV's coefficients (`COLOR_YUV2RGB_NV12`): standard definition, and most
    /// cameras.
    #[default]
    Bt601,
    /// ITU-R BT.709: high definition video.
    Bt709,
}

impl YuvMatrix {
    /// Factors of luma, U in blue, U in green, V in green, V in red, times 2^20.
    pub(crate) fn coefficients(self) -> [i32; 5] {
        match self {
            YuvMatrix::Bt601 => [1_220_542, 2_116_026, -409_993, -852_492, 1_673_527],
            YuvMatrix::Bt709 => [1_220_945, 2_215_014, -223_607, -558_796, 1_879_825],
        }
    }

    /// Red, green, blue of a pixel, in OpenCV's fixed point with 20 fractional bits.
    fn rgb(self, luma: u8, u: u8, v: u8) -> [u8; 3] {
        let [all, u_blue, u_green, v_green, v_red] = self.coefficients();
        let luma = (i32::from(luma) - 16).max(0) * all + (1 << 19);
        let (u, v) = (i32::from(u) - 128, i32::from(v) - 128);
        let colour = [luma + v_red * v, luma + v_green * v + u_green * u, luma + u_blue * u];
        colour.map(|value| (value >> 20).clamp(0, 255) as u8)
    }
}

/// How the pixels of an 8-bit image lie in memory, rows from top to bottom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PixelFormat {
    /// Three bytes a pixel: red, green, blue.
    #[default]
    Rgb8,
    /// Three bytes a pixel: blue, green, red.
    Bgr8,
    /// Four bytes a pixel: red, green, blue, and one that is not looked at.
    Rgba8,
    /// Four bytes a pixel: blue, green, red, and one that is not looked at.
    Bgra8,
    /// A byte a pixel: red, green and blue alike.
    Gray8,
    /// A plane of luma, and a plane of interleaved U and V, one pair for 2 x 2 pixels. Even sides.
    Nv12(YuvMatrix),
    /// A plane of luma, one of U and one of V, these with a byte for 2 x 2 pixels. Even sides.
    I420(YuvMatrix),
}

/// The bytes of a plane without what lies between its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaneShape {
    /// What the plane holds, for people.
    pub name: &'static str,
    /// Number of rows.
    pub rows: usize,
    /// Bytes of a row.
    pub row_bytes: usize,
}

impl PixelFormat {
    /// Number of planes, 1 to [`MAX_PLANES`].
    pub fn planes(self) -> usize {
        match self {
            PixelFormat::Nv12(_) => 2,
            PixelFormat::I420(_) => 3,
            _ => 1,
        }
    }

    /// Whether chroma has half as many rows and columns as luma.
    pub fn is_subsampled(self) -> bool {
        self.planes() > 1
    }

    /// The planes of an image of `(height, width)` pixels, in order.
    pub fn shapes(self, (height, width): (usize, usize)) -> impl Iterator<Item = PlaneShape> {
        let packed = |bytes| [PlaneShape { name: "pixels", rows: height, row_bytes: bytes * width }; 3];
        let luma = PlaneShape { name: "luma", rows: height, row_bytes: width };
        let chroma = |name, bytes| PlaneShape { name, rows: height / 2, row_bytes: bytes * (width / 2) };
        let shapes = match self {
            PixelFormat::Rgb8 | PixelFormat::Bgr8 => packed(3),
            PixelFormat::Rgba8 | PixelFormat::Bgra8 => packed(4),
            PixelFormat::Gray8 => packed(1),
            PixelFormat::Nv12(_) => [luma, chroma("chroma", 2), chroma("chroma", 2)],
            PixelFormat::I420(_) => [luma, chroma("U", 1), chroma("V", 1)],
        };
        shapes.into_iter().take(self.planes())
    }

    /// Refuses an image of `(height, width)` pixels that the format cannot have.
    ///
    /// # Errors
    /// [`Error::Usage`] for no pixels, and for odd sides where chroma has half of them.
    pub fn check(self, (height, width): (usize, usize)) -> Result<()> {
        if height == 0 || width == 0 {
            return Err(Error::usage(format!("a {height}x{width} image has no pixels")));
        }
        if self.is_subsampled() && !(height.is_multiple_of(2) && width.is_multiple_of(2)) {
            return Err(Error::usage(format!(
                "{self:?} images have even sides, this one is {height}x{width}"
            )));
        }
        Ok(())
    }
}

/// Where the rows of a plane are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory<'a> {
    /// In these bytes; the last row may end where its pixels do.
    Host(&'a [u8]),
    /// At this address of a GPU.
    Device(u64),
}

/// Rows of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plane<'a> {
    /// Where the first row begins.
    pub memory: Memory<'a>,
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl<'a> Plane<'a> {
    /// Rows on the host.
    pub fn host(bytes: &'a [u8], stride: usize) -> Self {
        Plane { memory: Memory::Host(bytes), stride }
    }

    /// Rows in device memory.
    pub fn device(address: u64, stride: usize) -> Self {
        Plane { memory: Memory::Device(address), stride }
    }
}

/// An 8-bit image that someone else owns. Made by [`ImageView::new`], or from an [`RgbImage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageView<'a> {
    format: PixelFormat,
    size: (usize, usize),
    /// The first [`PixelFormat::planes`] of them.
    planes: [Plane<'a>; MAX_PLANES],
}

impl<'a> ImageView<'a> {
    /// An image of `size` (height, width) whose planes lie here, in the order of [`PixelFormat::shapes`].
    ///
    /// # Errors
    /// [`Error::Usage`] as [`PixelFormat::check`]; for another number of planes than the format has, planes
    /// on the host and on a device, rows that overlap, and a plane of the host that ends too early.
    pub fn new(format: PixelFormat, size: (usize, usize), planes: &[Plane<'a>]) -> Result<Self> {
        format.check(size)?;
        let refuse = |reason: String| {
            Error::usage(format!("a {}x{} image of format {format:?}: {reason}", size.0, size.1))
        };
        if planes.len() != format.planes() {
            let names: Vec<_> = format.shapes(size).map(|shape| shape.name).collect();
            let (names, found) = (names.join(", "), planes.len());
            return Err(refuse(format!("{found} planes given, it has {} ({names})", format.planes())));
        }
        let on_device = |plane: &Plane<'_>| matches!(plane.memory, Memory::Device(_));
        if planes.iter().any(on_device) && !planes.iter().all(on_device) {
            return Err(refuse("one plane is in device memory, another is not".into()));
        }
        for (plane, PlaneShape { name, rows, row_bytes }) in planes.iter().zip(format.shapes(size)) {
            let stride = plane.stride;
            if stride < row_bytes {
                return Err(refuse(format!(
                    "{name}: rows of {row_bytes} bytes overlap at a stride of {stride}"
                )));
            }
            let needed = stride.checked_mul(rows - 1).and_then(|bytes| bytes.checked_add(row_bytes));
            if let Memory::Host(bytes) = plane.memory
                && needed.is_none_or(|needed| needed > bytes.len())
            {
                let needed = needed.map_or("more than memory has".into(), |needed| format!("{needed} bytes"));
                return Err(refuse(format!(
                    "{name}: {rows} rows of {row_bytes} bytes at a stride of {stride} take {needed}, there are {}",
                    bytes.len()
                )));
            }
        }
        let mut all = [Plane::host(&[], 0); MAX_PLANES];
        all[..planes.len()].copy_from_slice(planes);
        Ok(ImageView { format, size, planes: all })
    }

    /// An image of one plane on the host without gaps between its rows.
    ///
    /// # Errors
    /// As [`ImageView::new`].
    pub fn packed(format: PixelFormat, size: (usize, usize), bytes: &'a [u8]) -> Result<Self> {
        let stride = format.shapes(size).next().map_or(0, |shape| shape.row_bytes);
        ImageView::new(format, size, &[Plane::host(bytes, stride)])
    }

    /// How its pixels lie.
    pub fn format(&self) -> PixelFormat {
        self.format
    }

    /// Height and width.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The planes and their shapes.
    pub fn planes(&self) -> impl Iterator<Item = (Plane<'a>, PlaneShape)> {
        self.planes.into_iter().zip(self.format.shapes(self.size))
    }

    /// Whether its pixels are in device memory.
    pub fn is_on_device(&self) -> bool {
        matches!(self.planes[0].memory, Memory::Device(_))
    }

    /// All pixels, if they are red, green, blue on the host without gaps between rows.
    pub(crate) fn as_rgb(&self) -> Option<&'a [u8]> {
        let Plane { memory: Memory::Host(bytes), stride } = self.planes[0] else { return None };
        let (height, width) = self.size;
        let contiguous = self.format == PixelFormat::Rgb8 && stride == 3 * width;
        contiguous.then(|| &bytes[..stride * height])
    }

    /// Writes red, green, blue of every pixel to `out`, `[height, width, 3]`, on the threads of the pool that
    /// it is called in.
    ///
    /// # Errors
    /// [`Error::Usage`] for an image in device memory; [`Error::Shape`] for another length of `out`.
    pub fn to_rgb(&self, out: &mut [u8]) -> Result<()> {
        let (height, width) = self.size;
        if out.len() != 3 * height * width {
            let reason = format!("{} bytes for {height}x{width} pixels of 3", out.len());
            return Err(Error::Shape { op: "image", value: "RGB".into(), reason });
        }
        let mut rows: [&[u8]; MAX_PLANES] = [&[]; MAX_PLANES];
        for (rows, (plane, _)) in rows.iter_mut().zip(self.planes()) {
            match plane.memory {
                Memory::Host(bytes) => *rows = bytes,
                Memory::Device(_) => return Err(Error::usage("the image is in the memory of a GPU")),
            }
        }
        let row = |plane: usize, y: usize| &rows[plane][y * self.planes[plane].stride..];
        out.par_chunks_mut(3 * width.max(1)).enumerate().for_each(|(y, out)| {
            let out = out.as_chunks_mut::<3>().0;
            let pixels = row(0, y);
            match self.format {
                PixelFormat::Rgb8 => out.as_flattened_mut().copy_from_slice(&pixels[..3 * width]),
                PixelFormat::Bgr8 => swizzle::<3>(pixels, out, [2, 1, 0]),
                PixelFormat::Rgba8 => swizzle::<4>(pixels, out, [0, 1, 2]),
                PixelFormat::Bgra8 => swizzle::<4>(pixels, out, [2, 1, 0]),
                PixelFormat::Gray8 => swizzle::<1>(pixels, out, [0; 3]),
                PixelFormat::Nv12(matrix) => {
                    let chroma = row(1, y / 2);
                    for (x, out) in out.iter_mut().enumerate() {
                        *out = matrix.rgb(pixels[x], chroma[x & !1], chroma[x | 1]);
                    }
                }
                PixelFormat::I420(matrix) => {
                    let (u, v) = (row(1, y / 2), row(2, y / 2));
                    for (x, out) in out.iter_mut().enumerate() {
                        *out = matrix.rgb(pixels[x], u[x / 2], v[x / 2]);
                    }
                }
            }
        });
        Ok(())
    }
}

/// Picks three of the `N` bytes of each pixel.
fn swizzle<const N: usize>(pixels: &[u8], out: &mut [[u8; 3]], order: [usize; 3]) {
    for (pixel, out) in pixels.as_chunks::<N>().0.iter().zip(out) {
        *out = order.map(|channel| pixel[channel]);
    }
}

impl<'a> From<&'a RgbImage> for ImageView<'a> {
    fn from(image: &'a RgbImage) -> Self {
        let (height, width) = (image.height() as usize, image.width() as usize);
        let pixels = Plane::host(image.as_raw(), 3 * width);
        let planes = [pixels, Plane::host(&[], 0), Plane::host(&[], 0)];
        ImageView { format: PixelFormat::Rgb8, size: (height, width), planes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pixels of a view, one array each.
    fn rgb(view: &ImageView<'_>) -> Vec<[u8; 3]> {
        let (height, width) = view.size();
        let mut out = vec![0; 3 * height * width];
        view.to_rgb(&mut out).unwrap();
        out.as_chunks().0.to_vec()
    }

    #[test]
    fn every_packed_format_gives_its_colours_whatever_the_stride() {
        let pixels = [[10, 20, 30], [40, 50, 60], [70, 80, 90], [1, 2, 3]];
        let lay = |bytes: &dyn Fn([u8; 3]) -> Vec<u8>, gap: usize| -> (Vec<u8>, usize) {
            let row = |row: &[[u8; 3]]| row.iter().flat_map(|&pixel| bytes(pixel)).collect::<Vec<u8>>();
            let (first, second) = (row(&pixels[..2]), row(&pixels[2..]));
            let stride = first.len() + gap;
            ([first, vec![0xEE; gap], second].concat(), stride)
        };
        type Lay = fn([u8; 3]) -> Vec<u8>;
        let formats: [(PixelFormat, Lay); 4] = [
            (PixelFormat::Rgb8, |p| p.to_vec()),
            (PixelFormat::Bgr8, |[r, g, b]| vec![b, g, r]),
            (PixelFormat::Rgba8, |[r, g, b]| vec![r, g, b, 9]),
            (PixelFormat::Bgra8, |[r, g, b]| vec![b, g, r, 9]),
        ];
        for (format, bytes) in formats {
            for gap in [0, 5] {
                let (memory, stride) = lay(&bytes, gap);
                let view = ImageView::new(format, (2, 2), &[Plane::host(&memory, stride)]).unwrap();
                assert_eq!(rgb(&view), pixels, "{format:?} {gap}");
                let rgb8 = format == PixelFormat::Rgb8 && gap == 0;
                assert_eq!(view.as_rgb().is_some(), rgb8, "{format:?} {gap}");
            }
        }
        let view = ImageView::packed(PixelFormat::Gray8, (1, 3), &[7, 8, 9]).unwrap();
        assert_eq!(rgb(&view), [[7; 3], [8; 3], [9; 3]]);
    }

    #[test]
    fn nv12_and_i420_are_two_orders_of_the_same_bytes() {
        let luma: Vec<u8> = (0..4 * 6).map(|i| (i * 11) as u8).collect();
        let u: Vec<u8> = (0..2 * 3).map(|i| (i * 41) as u8).collect();
        let v: Vec<u8> = (0..2 * 3).map(|i| 255 - (i * 37) as u8).collect();
        let both: Vec<u8> = u.iter().zip(&v).flat_map(|(&u, &v)| [u, v]).collect();
        for matrix in [YuvMatrix::Bt601, YuvMatrix::Bt709] {
            let nv12 = [Plane::host(&luma, 6), Plane::host(&both, 6)];
            let i420 = [Plane::host(&luma, 6), Plane::host(&u, 3), Plane::host(&v, 3)];
            let nv12 = ImageView::new(PixelFormat::Nv12(matrix), (4, 6), &nv12).unwrap();
            let i420 = ImageView::new(PixelFormat::I420(matrix), (4, 6), &i420).unwrap();
            assert_eq!(rgb(&nv12), rgb(&i420), "{matrix:?}");
        }
        // Black, white and full red of BT.601, as OpenCV has them.
        let colour = |luma, u, v| YuvMatrix::Bt601.rgb(luma, u, v);
        assert_eq!([colour(16, 128, 128), colour(235, 128, 128)], [[0; 3], [255; 3]]);
        assert_eq!(colour(82, 90, 240), [255, 1, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let bytes = [0; 64];
        let plane = |stride| Plane::host(&bytes, stride);
        let nv12 = PixelFormat::Nv12(YuvMatrix::Bt601);
        let refused = |format, size, planes: &[Plane<'_>]| match ImageView::new(format, size, planes) {
            Ok(view) => panic!("{view:?}"),
            Err(error) => error.to_string(),
        };
        for (message, words) in [
            (refused(PixelFormat::Rgb8, (0, 4), &[plane(12)]), "a 0x4 image has no pixels"),
            (refused(nv12, (3, 4), &[plane(4), plane(4)]), "even sides, this one is 3x4"),
            (refused(nv12, (4, 4), &[plane(4)]), "1 planes given, it has 2 (luma, chroma)"),
            (refused(PixelFormat::Rgba8, (2, 4), &[plane(15)]), "rows of 16 bytes overlap at a stride of 15"),
            (
                refused(PixelFormat::Rgb8, (6, 4), &[plane(12)]),
                "at a stride of 12 take 72 bytes, there are 64",
            ),
            (refused(PixelFormat::Gray8, (3, 4), &[plane(usize::MAX / 2 + 1)]), "take more than memory has"),
            (refused(nv12, (4, 4), &[plane(4), Plane::device(1, 4)]), "another is not"),
        ] {
            assert!(message.contains(words), "{message}");
        }
        // The last row may end with its pixels.
        ImageView::new(PixelFormat::Gray8, (4, 4), &[plane(20)]).unwrap();
        let view = ImageView::new(PixelFormat::Gray8, (4, 4), &[Plane::device(256, 4)]).unwrap();
        assert!(view.is_on_device() && view.to_rgb(&mut [0; 48]).is_err());
    }
}
