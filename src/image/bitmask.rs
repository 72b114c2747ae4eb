//! Binary masks, one bit a pixel.

use super::rle;
use crate::error::Result;

/// A box in pixels: left and top edge, width, height. All zero for an empty mask.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PixelBox {
    /// Column of the left edge.
    pub x: usize,
    /// Row of the top edge.
    pub y: usize,
    /// Number of columns.
    pub width: usize,
    /// Number of rows.
    pub height: usize,
}

/// A binary mask of `height` x `width` pixels, packed row-major without row alignment, most significant bit
/// first; the unused bits of the last byte are zero (NumPy `packbits` of the flattened mask).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct BitMask {
    height: usize,
    width: usize,
    bits: Vec<u8>,
}

impl BitMask {
    /// An empty mask.
    pub fn new(height: usize, width: usize) -> Self {
        BitMask { height, width, bits: vec![0; (height * width).div_ceil(8)] }
    }

    /// The mask of the pixels for which `inside(row, column)` holds.
    pub fn from_fn(height: usize, width: usize, mut inside: impl FnMut(usize, usize) -> bool) -> Self {
        let mut mask = BitMask::new(height, width);
        for y in 0..height {
            for x in 0..width {
                if inside(y, x) {
                    mask.set(y, x);
                }
            }
        }
        mask
    }

    /// Makes it an empty mask of another size, keeping the memory.
    pub fn reset(&mut self, height: usize, width: usize) {
        (self.height, self.width) = (height, width);
        self.bits.clear();
        self.bits.resize((height * width).div_ceil(8), 0);
    }

    /// Takes all pixels out of these rows, and out of those that share a byte with them.
    pub(super) fn clear_rows(&mut self, rows: std::ops::Range<usize>) {
        self.bits[rows.start * self.width / 8..(rows.end * self.width).div_ceil(8)].fill(0);
    }

    /// Takes the pixels of these columns out of row `y`.
    pub(super) fn clear(&mut self, y: usize, columns: std::ops::Range<usize>) {
        for at in y * self.width + columns.start..y * self.width + columns.end {
            self.bits[at / 8] &= !(0x80 >> (at % 8));
        }
    }

    /// Number of pixels that both masks, of one size, have in these rows. Rows that share a byte with them
    /// may hold pixels of one of the masks, not of both.
    pub(super) fn common(&self, other: &BitMask, rows: std::ops::Range<usize>) -> usize {
        let bytes = rows.start * self.width / 8..(rows.end * self.width).div_ceil(8);
        let (a, b) = (&self.bits[bytes.clone()], &other.bits[bytes]);
        let ((a, rest), (b, last)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
        let words = a.iter().zip(b).map(|(a, b)| u64::from_ne_bytes(*a) & u64::from_ne_bytes(*b));
        let bytes = rest.iter().zip(last).map(|(a, b)| u64::from(a & b));
        words.chain(bytes).map(|both| both.count_ones() as usize).sum()
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The packed bits.
    pub fn bytes(&self) -> &[u8] {
        &self.bits
    }

    /// The packed bits, for writers that keep the tail zero.
    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bits
    }

    /// True if the pixel belongs to the mask.
    ///
    /// # Panics
    /// If the pixel lies outside.
    pub fn get(&self, y: usize, x: usize) -> bool {
        let at = self.offset(y, x);
        self.bits[at / 8] & (0x80 >> (at % 8)) != 0
    }

    /// Adds a pixel to the mask.
    ///
    /// # Panics
    /// If the pixel lies outside.
    pub fn set(&mut self, y: usize, x: usize) {
        let at = self.offset(y, x);
        self.bits[at / 8] |= 0x80 >> (at % 8);
    }

    /// Number of pixels in the mask.
    pub fn area(&self) -> usize {
        let (words, tail) = self.bits.as_chunks::<8>();
        let ones: u32 = words.iter().map(|w| u64::from_ne_bytes(*w).count_ones()).sum();
        ones as usize + tail.iter().map(|b| b.count_ones() as usize).sum::<usize>()
    }

    /// The smallest box that holds every pixel of the mask.
    pub fn bbox(&self) -> PixelBox {
        let (mut left, mut right) = (usize::MAX, 0);
        let (mut top, mut bottom) = (usize::MAX, 0);
        for y in 0..self.height {
            let mut row = None;
            let mut at = 0;
            while at < self.width {
                let word = self.word(y, at);
                if word != 0 {
                    let first = at + word.leading_zeros() as usize;
                    let last = at + 63 - word.trailing_zeros() as usize;
                    row = Some((row.map_or(first, |(f, _)| f), last));
                }
                at += Self::WORD;
            }
            if let Some((first, last)) = row {
                (left, right) = (left.min(first), right.max(last));
                (top, bottom) = (top.min(y), y);
            }
        }
        match left {
            usize::MAX => PixelBox::default(),
            _ => PixelBox { x: left, y: top, width: right - left + 1, height: bottom - top + 1 },
        }
    }

    /// The pixels of the mask as `(row, column)`, row by row.
    pub fn pixels(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let width = self.width;
        self.bits.iter().enumerate().filter(|(_, byte)| **byte != 0).flat_map(move |(i, &byte)| {
            (0..8).filter(move |bit| byte & (0x80 >> bit) != 0).map(move |bit| {
                let at = i * 8 + bit;
                (at / width, at % width)
            })
        })
    }

    /// Compressed COCO run lengths of the mask, as pycocotools writes them.
    pub fn to_rle(&self) -> String {
        rle::encode(self)
    }

    /// The mask of compressed COCO run lengths.
    ///
    /// # Errors
    /// As [`rle::decode`].
    pub fn from_rle(counts: &str, height: usize, width: usize) -> Result<Self> {
        rle::decode(counts, height, width)
    }

    /// Pixels that one [`BitMask::word`] holds.
    pub(super) const WORD: usize = 56;

    /// Up to [`BitMask::WORD`] pixels of row `y` from column `x`, the first in the top bit; the rest is zero.
    pub(super) fn word(&self, y: usize, x: usize) -> u64 {
        let count = (self.width - x).min(Self::WORD);
        let at = y * self.width + x;
        let bytes = &self.bits[at / 8..];
        // 56 pixels at any bit offset lie within eight bytes.
        let word = match bytes.first_chunk::<8>() {
            Some(chunk) => u64::from_be_bytes(*chunk),
            None => {
                let mut chunk = [0; 8];
                chunk[..bytes.len()].copy_from_slice(bytes);
                u64::from_be_bytes(chunk)
            }
        };
        (word << (at % 8)) & !(u64::MAX >> count)
    }

    fn offset(&self, y: usize, x: usize) -> usize {
        let (height, width) = (self.height, self.width);
        assert!(y < height && x < width, "pixel ({y}, {x}) of a {height} x {width} mask");
        y * width + x
    }
}
