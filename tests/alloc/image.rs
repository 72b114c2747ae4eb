//! Pre- and post-processing allocate nothing after the first call at a size.

use crate::allocations;
use image::{Rgb, RgbImage};
use knet::image::HeadOutput;
use knet::image::instance::{InstanceConfig, InstancePostprocessor, InstanceResult};
use knet::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use knet::image::preprocess::{PreprocessConfig, Preprocessor};
use knet::image::semantic::{ClassLogits, SemanticPostprocessor, SemanticResult};

pub fn later_calls_at_a_size_allocate_nothing() {
    let photo = RgbImage::from_fn(150, 100, |x, y| Rgb([x as u8, y as u8, 7]));
    let config = PreprocessConfig { size: Some((120, 200)), ..PreprocessConfig::default() };
    let mut preprocessor = Preprocessor::new(config).unwrap();
    let geometry = preprocessor.geometry(100, 150);
    let mut input = vec![0.0; geometry.input_len()];
    let mask_size = (geometry.padded.0 / 8, geometry.padded.1 / 8);
    let mask_logits: Vec<f32> = (0..12 * mask_size.0 * mask_size.1).map(|i| (i as f32 * 0.1).sin()).collect();
    let class_logits: Vec<f32> = (0..12 * 5).map(|i| (i as f32).cos()).collect();
    let head = HeadOutput {
        objects: 12,
        classes: 5,
        class_logits: &class_logits,
        mask_size,
        mask_logits: &mask_logits,
    };
    let mut instances = InstanceResult::default();
    let mut instance_post =
        InstancePostprocessor::new(InstanceConfig { mask_score: true, ..InstanceConfig::default() });
    let mut panoptic = PanopticResult::default();
    let config = PanopticConfig { proposals: 10, things: 3, stuff: 2, ..PanopticConfig::default() };
    let mut panoptic_post = PanopticPostprocessor::new(config);
    let class_maps = ClassLogits { classes: 12, size: mask_size, values: &mask_logits };
    let mut semantic =
        [false, true].map(|confidence| (SemanticPostprocessor::new(confidence), SemanticResult::default()));

    // One thread: with more, rayon itself sets up a thread's queue when that thread first finds work,
    // whenever that is.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    pool.install(|| {
        let mut step = || {
            preprocessor.run(&photo, &mut input).unwrap();
            instance_post.run(&head, &geometry, &mut instances).unwrap();
            panoptic_post.run(&head, &geometry, &mut panoptic).unwrap();
            for (post, result) in &mut semantic {
                post.run(&class_maps, &geometry, result).unwrap();
            }
        };
        step();
        let count = allocations(|| (0..20).for_each(|_| step()));
        assert_eq!(count, 0, "allocations in 20 further calls");
    });
    assert_eq!(instances.instances().len(), 60);
}
