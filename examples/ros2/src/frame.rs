//! An image of the bus as the library takes it.

use crate::messages::Image;
use knet::image::view::{ImageView, PixelFormat, Plane, YuvMatrix};

/// The encodings that are taken, by the names of `sensor_msgs/image_encodings.hpp`. All have values of a
/// byte, so that the order of bytes does not matter.
const ENCODINGS: [(&str, PixelFormat); 6] = [
    ("rgb8", PixelFormat::Rgb8),
    ("bgr8", PixelFormat::Bgr8),
    ("rgba8", PixelFormat::Rgba8),
    ("bgra8", PixelFormat::Bgra8),
    ("mono8", PixelFormat::Gray8),
    ("nv12", PixelFormat::Nv12(YuvMatrix::Bt601)),
];

/// The pixels of `image`, where they lie.
///
/// # Errors
/// Why it cannot be taken, with its encoding and the numbers.
pub fn view(image: &Image) -> Result<ImageView<'_>, String> {
    let Image { height, width, encoding, step, data, .. } = image;
    let Some(&(_, format)) = ENCODINGS.iter().find(|(name, _)| name == encoding) else {
        let known = ENCODINGS.map(|(name, _)| name).join(", ");
        return Err(format!("a {height}x{width} image has the encoding `{encoding}`, not one of {known}"));
    };
    let (size, stride, bytes) = ((*height as usize, *width as usize), *step as usize, &*data.0);
    let planes: &[Plane<'_>] = match format {
        // Chroma follows luma, in rows that are as long.
        PixelFormat::Nv12(_) => {
            let luma = stride.saturating_mul(size.0);
            let Some((luma, chroma)) = bytes.split_at_checked(luma) else {
                let there = bytes.len();
                return Err(format!(
                    "a {height}x{width} {encoding} image has {luma} bytes of luma at a step of {stride}, there are {there}"
                ));
            };
            &[Plane::host(luma, stride), Plane::host(chroma, stride)]
        }
        _ => &[Plane::host(bytes, stride)],
    };
    ImageView::new(format, size, planes).map_err(|error| format!("encoding `{encoding}`: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::Bytes;

    fn image(encoding: &str, (height, width): (u32, u32), step: u32, bytes: usize) -> Image {
        let data = Bytes((0..bytes).map(|i| i as u8).collect());
        Image { height, width, encoding: encoding.into(), step, data, ..Image::default() }
    }

    fn rgb(image: &Image) -> Vec<u8> {
        let mut out = vec![0; 3 * (image.height * image.width) as usize];
        view(image).unwrap().to_rgb(&mut out).unwrap();
        out
    }

    #[test]
    fn rows_are_a_step_apart() {
        assert_eq!(rgb(&image("rgb8", (2, 1), 5, 10)), [0, 1, 2, 5, 6, 7]);
        assert_eq!(rgb(&image("bgr8", (2, 1), 5, 10)), [2, 1, 0, 7, 6, 5]);
        assert_eq!(rgb(&image("bgra8", (2, 1), 6, 12)), [2, 1, 0, 8, 7, 6]);
        // The last row may end with its pixels.
        assert_eq!(rgb(&image("mono8", (2, 2), 7, 9)), [[0; 3], [1; 3], [7; 3], [8; 3]].concat());
        let padded = image("nv12", (2, 2), 8, 8 * 3);
        let plain = Image { step: 2, data: Bytes(vec![0, 1, 8, 9, 16, 17]), ..padded.clone() };
        assert_eq!(rgb(&padded), rgb(&plain));
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        for (image, words) in [
            (
                image("bayer_rggb8", (4, 6), 6, 24),
                "a 4x6 image has the encoding `bayer_rggb8`, not one of rgb8,",
            ),
            (image("", (4, 6), 6, 24), "the encoding ``"),
            (image("rgb8", (0, 6), 18, 0), "a 0x6 image has no pixels"),
            (image("rgb8", (4, 6), 17, 100), "rows of 18 bytes overlap at a stride of 17"),
            (
                image("bgr8", (4, 6), 18, 71),
                "encoding `bgr8`: a 4x6 image of format Bgr8: pixels: 4 rows of 18 bytes",
            ),
            (image("nv12", (4, 6), 6, 20), "24 bytes of luma at a step of 6, there are 20"),
            (
                image("nv12", (4, 6), 6, 35),
                "chroma: 2 rows of 6 bytes at a stride of 6 take 12 bytes, there are 11",
            ),
            (image("nv12", (3, 6), 6, 99), "even sides"),
            (image("mono8", (u32::MAX, u32::MAX), u32::MAX, 9), "there are 9"),
            (image("nv12", (u32::MAX - 1, u32::MAX - 1), u32::MAX, 9), "there are 9"),
        ] {
            let reason = view(&image).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
