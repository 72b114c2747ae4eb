//! Colours that are easy to tell apart.

/// Bright colours of well-separated hues, ordered so that neighbours differ most.
#[rustfmt::skip]
const DISTINCT: [[u8; 3]; 20] = [
    [255, 64, 88], [0, 168, 255], [255, 190, 0], [46, 204, 113], [190, 80, 255],
    [255, 122, 24], [0, 214, 201], [255, 92, 205], [150, 220, 40], [86, 104, 255],
    [255, 142, 130], [0, 140, 120], [255, 226, 92], [140, 196, 255], [200, 30, 110],
    [168, 118, 62], [120, 240, 170], [210, 170, 255], [190, 60, 40], [90, 150, 60],
];

/// Colour number `i` of a list of 60, which then starts again: 20 colours, the same darker, the same lighter.
pub fn distinct(i: usize) -> [u8; 3] {
    let colour = DISTINCT[i % DISTINCT.len()];
    match i / DISTINCT.len() % 3 {
        0 => colour,
        1 => colour.map(|v| v / 2),
        _ => colour.map(|v| (255 - u16::from(255 - v) * 38 / 100) as u8),
    }
}

/// Colour of class `i` of `count`: one of the 60, or where those do not do, of hues that the golden angle
/// spreads, in three shades.
pub fn class_colour(i: usize, count: usize) -> [u8; 3] {
    if count <= 3 * DISTINCT.len() {
        return distinct(i);
    }
    let hue = (i as f32 * 137.508) % 360.0 / 60.0;
    let value = [1.0, 0.72, 0.5][i % 3];
    let saturation = [0.85, 0.6, 0.95][i / 3 % 3];
    let chroma = value * saturation;
    let second = chroma * (1.0 - (hue % 2.0 - 1.0).abs());
    let (r, g, b) = match hue as usize {
        0 => (chroma, second, 0.0),
        1 => (second, chroma, 0.0),
        2 => (0.0, chroma, second),
        3 => (0.0, second, chroma),
        4 => (second, 0.0, chroma),
        _ => (chroma, 0.0, second),
    };
    [r, g, b].map(|v| ((v + value - chroma) * 255.0 + 0.5) as u8)
}

/// White or black, whichever reads better on `colour` (relative luminance, Rec. 709).
pub(super) fn ink_on(colour: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = colour.map(f32::from);
    if 0.2126 * r + 0.7152 * g + 0.0722 * b > 150.0 { [16; 3] } else { [255; 3] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_colours_as_classes() {
        let colours: std::collections::HashSet<[u8; 3]> = (0..171).map(|i| class_colour(i, 171)).collect();
        assert_eq!(colours.len(), 171);
        assert_eq!(class_colour(7, 60), distinct(7));
    }

    #[test]
    fn sixty_colours_differ() {
        let colours: Vec<[u8; 3]> = (0..60).map(distinct).collect();
        let apart =
            |a: &[u8; 3], b: &[u8; 3]| a.iter().zip(b).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(0);
        for (i, a) in colours.iter().enumerate() {
            let nearest = colours[..i].iter().map(|b| apart(a, b)).min();
            assert!(nearest.is_none_or(|nearest| nearest >= 20), "{i}: {a:?}, {nearest:?}");
        }
        assert_eq!((distinct(0), distinct(60)), ([255, 64, 88], [255, 64, 88]));
    }
}
