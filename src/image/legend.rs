//! A legend beside a picture: what its colours stand for.

use image::RgbImage;

use super::overlay::Layer;
use super::palette::ink_on;
use super::text;

/// Background of the legend.
const GROUND: [u8; 3] = [24; 3];
/// Least and largest size of its text, in pixels.
const TEXT: (f32, f32) = (11.0, 40.0);

/// The picture with a column at its right that names the layers, in their order, as many as its height has
/// room for; a last line counts the others.
pub fn beside(picture: &RgbImage, layers: &[Layer]) -> RgbImage {
    let (width, height) = picture.dimensions();
    let extent = ((width * height) as f32).sqrt();
    let em = (extent * 0.028).clamp(TEXT.0, TEXT.1);
    let (line, margin) = (em * 1.5, em * 0.6);
    let room = (((height as f32 - 2.0 * margin) / line) as usize).max(1);
    let shown = if layers.len() > room { room - 1 } else { layers.len() };
    let more = (shown < layers.len()).then(|| format!("and {} more", layers.len() - shown));
    let labels = layers[..shown].iter().map(|layer| layer.label.as_str()).chain(more.as_deref());
    let widest = labels.clone().map(|label| text::width(label, em)).fold(0.0, f32::max);
    let column = (widest + 3.0 * margin + em).ceil() as u32;
    let mut canvas = RgbImage::from_pixel(width + column, height, image::Rgb(GROUND));
    image::imageops::replace(&mut canvas, picture, 0, 0);
    let left = width as f32 + margin;
    for (index, label) in labels.enumerate() {
        let top = margin + index as f32 * line;
        if let Some(layer) = layers[..shown].get(index) {
            fill(&mut canvas, [left, top, em, em], layer.colour);
        }
        text::draw(&mut canvas, label, left + em + margin, top + em * 0.87, em, ink_on(GROUND));
    }
    canvas
}

/// Fills a rectangle of left, top, width and height.
fn fill(canvas: &mut RgbImage, [left, top, width, height]: [f32; 4], colour: [u8; 3]) {
    let (right, bottom) = ((left + width) as u32, (top + height) as u32);
    for y in (top as u32)..bottom.min(canvas.height()) {
        for x in (left as u32)..right.min(canvas.width()) {
            canvas.put_pixel(x, y, image::Rgb(colour));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::bitmask::BitMask;
    use std::borrow::Cow;

    #[test]
    fn what_has_no_room_is_counted() {
        let layer = |n: usize| Layer {
            mask: Cow::Owned(BitMask::new(60, 80)),
            colour: [200, n as u8, 0],
            label: format!("class {n} 5%"),
        };
        let layers: Vec<Layer> = (0..30).map(layer).collect();
        let picture = RgbImage::from_pixel(80, 60, image::Rgb([9; 3]));
        for count in [0, 1, 2, 30] {
            let legend = beside(&picture, &layers[..count]);
            assert!(legend.width() > 80 && legend.height() == 60);
            assert!((0..60).all(|y| (0..80).all(|x| legend.get_pixel(x, y)[0] == 9)));
            let shown = (0..30u8).filter(|&n| legend.pixels().any(|pixel| pixel.0 == [200, n, 0])).count();
            // Three lines fit: two classes and how many more there are.
            assert_eq!(shown, if count == 30 { 1 } else { count });
        }
    }
}
