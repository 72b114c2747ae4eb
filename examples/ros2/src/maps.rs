//! Results as messages: maps of instances and classes, what the classes are called, the overlay.

use crate::messages::{Bytes, Header, Image, LabelInfo, Time, VisionClass};
use knet::Segmentation;
use knet::image::RgbImage;
use knet::image::classes::Class;
use knet::image::output::instance_numbers;
use knet::image::overlay::{draw, instance_layers, panoptic_layers, semantic_layers};
use knet::image::view::ImageView;
use knet::task::Found;

/// The name of what belongs to no class, by `vision_msgs`.
const UNLABELED: &str = "UNLABELED";

/// What pixels of a class map are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// `mono8`: up to 255 classes.
    Mono8,
    /// `mono16`.
    Mono16,
}

impl Depth {
    /// The smaller one that so many classes fit.
    pub fn of(classes: usize) -> Depth {
        if classes <= usize::from(u8::MAX) { Depth::Mono8 } else { Depth::Mono16 }
    }

    /// The value of pixels without a class: the largest.
    pub fn unlabeled(self) -> u16 {
        match self {
            Depth::Mono8 => u8::MAX.into(),
            Depth::Mono16 => u16::MAX,
        }
    }
}

/// The objects of a frame: which one each pixel belongs to, and what they are.
pub struct Objects {
    size: (usize, usize),
    /// Place of the object in the result plus one, 0 where there is none. Of instances that overlap, the
    /// best.
    of_pixel: Vec<u16>,
    /// Class index of each object.
    classes: Vec<u16>,
}

impl Objects {
    /// Those of a result: instances, best first; segments of a panoptic map; classes of a semantic one,
    /// largest first.
    pub fn new(found: &Segmentation) -> Objects {
        let size = found.size();
        let number = |place: usize| u16::try_from(place + 1).unwrap_or(u16::MAX);
        let (of_pixel, classes): (Vec<u16>, Vec<usize>) = match found.found() {
            Found::Instance(result) => {
                let classes = result.instances().iter().map(|instance| instance.label);
                (instance_numbers(result, size), classes.collect())
            }
            Found::Panoptic(map) => {
                let classes = map.segments.iter().map(|segment| segment.category);
                let place = |id| map.segments.iter().position(|segment| segment.id == id).map_or(0, number);
                (runs(&map.map, place), classes.collect())
            }
            Found::Semantic(map) => {
                let present: Vec<usize> = map.present().into_iter().map(|(class, _)| class).collect();
                let place = |class| present.iter().position(|&c| c == usize::from(class)).map_or(0, number);
                (runs(&map.map, place), present)
            }
        };
        let classes = classes.into_iter().map(|class| u16::try_from(class).unwrap_or(u16::MAX)).collect();
        Objects { size, of_pixel, classes }
    }

    /// `mono16`: the object of each pixel, 0 for none.
    pub fn instance_map(&self, header: &Header) -> Image {
        let data = self.of_pixel.iter().flat_map(|object| object.to_le_bytes()).collect();
        image(header, self.size, "mono16", data)
    }

    /// The class index of each pixel, [`Depth::unlabeled`] for none.
    pub fn class_map(&self, header: &Header, depth: Depth) -> Image {
        let class_of: Vec<u16> =
            std::iter::once(depth.unlabeled()).chain(self.classes.iter().copied()).collect();
        let classes = self.of_pixel.iter().map(|&object| class_of[usize::from(object)]);
        match depth {
            Depth::Mono8 => image(header, self.size, "mono8", classes.map(|class| class as u8).collect()),
            Depth::Mono16 => image(header, self.size, "mono16", classes.flat_map(u16::to_le_bytes).collect()),
        }
    }
}

/// `place` of every value; neighbours mostly have the same.
fn runs<T: Copy + PartialEq>(values: &[T], place: impl Fn(T) -> u16) -> Vec<u16> {
    let mut last = None;
    let number = |&value: &T| match last {
        Some((same, number)) if same == value => number,
        _ => last.insert((value, place(value))).1,
    };
    values.iter().map(number).collect()
}

/// What the values of class maps mean.
pub fn label_info(classes: &[Class], depth: Depth, threshold: f32) -> LabelInfo {
    let named = classes.iter().zip(0..).map(|(class, class_id)| (class_id, class.name.to_string()));
    let all = named.chain([(depth.unlabeled(), UNLABELED.to_string())]);
    LabelInfo {
        header: Header { stamp: Time::now(), frame_id: String::new() },
        class_map: all.map(|(class_id, class_name)| VisionClass { class_id, class_name }).collect(),
        threshold,
    }
}

/// `rgb8`: the frame with what was found in it.
///
/// # Errors
/// As [`draw`] and [`ImageView::to_rgb`].
pub fn overlay(
    header: &Header,
    frame: &ImageView<'_>,
    found: &Segmentation,
    classes: &[Class],
) -> knet::Result<Image> {
    let layers = match found.found() {
        Found::Instance(result) => instance_layers(result, classes, 0.0),
        Found::Panoptic(map) => panoptic_layers(map, classes),
        Found::Semantic(map) => semantic_layers(map, classes),
    };
    let (height, width) = frame.size();
    let mut photo = RgbImage::new(width as u32, height as u32);
    frame.to_rgb(&mut photo)?;
    Ok(image(header, frame.size(), "rgb8", draw(&photo, &layers)?.into_raw()))
}

/// An image without gaps between its rows, of the frame with `header`.
fn image(header: &Header, (height, width): (usize, usize), encoding: &str, data: Vec<u8>) -> Image {
    Image {
        header: header.clone(),
        height: height as u32,
        width: width as u32,
        encoding: encoding.to_string(),
        is_bigendian: 0,
        step: (data.len() / height.max(1)) as u32,
        data: Bytes(data),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use knet::Engine;
    use knet::engine::WeightSource;
    use knet::image::image_rs::Rgb;
    use std::collections::BTreeMap;

    /// What a model with random weights finds: much.
    fn found(model: &str) -> Segmentation {
        let photo = RgbImage::from_fn(96, 64, |x, y| Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8]));
        let builder = Engine::builder().weights(WeightSource::Seeded(1)).model(model).size(Some((64, 96)));
        builder.min_score(0.0).threads(1).build().unwrap().segment(&photo).unwrap()
    }

    fn values(image: &Image) -> Vec<u16> {
        let (pixels, _) = image.data.0.as_chunks::<2>();
        pixels.iter().map(|&value| u16::from_le_bytes(value)).collect()
    }

    #[test]
    fn maps_of_each_task_agree_with_the_result() {
        let header = Header { frame_id: "camera".into(), ..Header::default() };
        for model in ["knet_s3_lite0_fpn", "knet_s3_r50_fpn_panoptic", "knet_s3_fcn_r50-d8"] {
            let found = found(model);
            let objects = Objects::new(&found);
            let (instances, classes) =
                (objects.instance_map(&header), objects.class_map(&header, Depth::Mono8));
            assert_eq!((&instances.header, instances.height, instances.step), (&header, 64, 192), "{model}");
            assert_eq!((&*classes.encoding, classes.width, classes.step), ("mono8", 96, 96), "{model}");
            let mut areas = BTreeMap::new();
            for (pixel, object) in values(&instances).into_iter().enumerate() {
                *areas.entry(object).or_insert(0) += 1;
                let class = classes.data.0[pixel];
                match usize::from(object).checked_sub(1) {
                    None => assert_eq!(class, 255),
                    Some(place) => assert_eq!(u16::from(class), objects.classes[place]),
                }
            }
            match found.found() {
                Found::Instance(result) => assert_eq!(areas[&1], result.instances()[0].area),
                Found::Panoptic(map) => {
                    map.segments.iter().zip(1..).for_each(|(s, n)| assert_eq!(areas[&n], s.area))
                }
                Found::Semantic(map) => {
                    map.present().iter().zip(1..).for_each(|(p, n)| assert_eq!(areas[&n], p.1))
                }
            }
            let wide = objects.class_map(&header, Depth::Mono16);
            let same = values(&wide).iter().zip(&classes.data.0).all(|(&wide, &narrow)| match wide {
                u16::MAX => narrow == 255,
                class => class == u16::from(narrow),
            });
            assert!(same && wide.encoding == "mono16", "{model}");
        }
    }

    #[test]
    fn the_largest_value_is_the_one_without_a_class() {
        let mut classes = knet::image::classes::coco().to_vec();
        let info = label_info(&classes, Depth::of(classes.len()), 0.25);
        assert_eq!((info.class_map.len(), info.threshold), (134, 0.25));
        assert_eq!((info.class_map[0].class_id, &*info.class_map[0].class_name), (0, "person"));
        assert_eq!((info.class_map[133].class_id, &*info.class_map[133].class_name), (255, "UNLABELED"));
        assert_eq!((Depth::of(255), Depth::of(256)), (Depth::Mono8, Depth::Mono16));
        classes.clear();
        assert_eq!(label_info(&classes, Depth::Mono16, 0.0).class_map[0].class_id, 65535);
    }
}
