//! Colours that are easy to tell apart.

/// Bright colours of well-separated hues, ordered so that neighbours differ most.
#[rustfmt::skip]
const DISTINCT: [[u8; 3]; 20] = [
    [255, 64, 88], [0, 168, 255], [255, 190, 0], [46, 204, 113], [190, 80, 255],
    [255, 122, 24], [0, 214, 201], [255, 92, 205], [150, 220, 40], [86, 104, 255],
    [255, 142, 130], [0, 140, 120], [255, 226, 92], [140, 196, 255], [200, 30, 110],
    [168, 118, 62], [120, 240, 170], [210, 170, 255], [190, 60, 40], [90, 150, 60],
];

/// Colour number `i` of a fixed list of 20, which then starts again.
pub fn distinct(i: usize) -> [u8; 3] {
    DISTINCT[i % DISTINCT.len()]
}

/// White or black, whichever reads better on `colour` (relative luminance, Rec. 709).
pub(super) fn ink_on(colour: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = colour.map(f32::from);
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 150.0 { [16; 3] } else { [255; 3] }
}
