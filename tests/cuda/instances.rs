//! Instances on a GPU: the kernels that rank pairs and make masks at the size of the photo, of mask logits
//! or in boxes, against the CPU's implementation, bit for bit.

use crate::image::{STORAGE, chains, described, mask_logits, random, run, sizes};
use knet::cuda::gpu::{Precision, Target};
use knet::cuda::launch::Packing;
use knet::cuda::pack::{pack, unpack};
use knet::cuda::post::MaskLogits;
use knet::image::HeadOutput;
use knet::image::bitmask::PixelBox;
use knet::image::instance::{Detections, InstanceConfig, InstancePostprocessor, InstanceResult, Paster};
use knet::image::preprocess::Geometry;
use knet::task::boxes::gpu::{self as boxes, Detected};
use knet::task::instance::gpu::{self as instance, Extent, InstanceBuffer, bands, mask_bytes};
use knet::tensor::{DType, Tensor};
use testkit::emulate;

/// Runs the instance kernels and asserts that they find what the CPU finds. Gives the number of pixels of
/// all instances.
fn assert_instances(
    described: &MaskLogits,
    geometry: &Geometry,
    config: InstanceConfig,
    logits: &Tensor,
    class_logits: &[f32],
) -> usize {
    let (objects, classes) = (described.objects, class_logits.len() / described.objects);
    let (mask_size, mask_logits) = (described.size, logits.data());
    let head = HeadOutput { objects, classes, class_logits, mask_size, mask_logits };
    let mut result = InstanceResult::default();
    InstancePostprocessor::new(config).run(&head, geometry, &mut result).unwrap();

    let target = Target { caps: emulate::CAPS, precision: Precision::F16 };
    let post = instance::launches(described, classes, &config, &target).unwrap();
    let operands: [&[u8]; 2] =
        [&pack(logits, Packing::plain(described.dtype)), bytemuck::cast_slice(class_logits)];
    let found = run(&post.program, &operands, &sizes(&post), true);
    let objects: Vec<u32> = bytemuck::pod_collect_to_vec(&found[InstanceBuffer::Objects as usize]);
    assert_eq!(objects.iter().filter(|&&object| object != u32::MAX).count(), result.masks().len());
    for instance in result.instances() {
        assert_eq!(objects[instance.slot] as usize, instance.mask_index, "{described:?}");
    }
    assert_same(&found, &result, classes, geometry.original)
}

/// Asserts that the buffers hold a result. Gives the number of pixels of all instances.
fn assert_same(
    found: &[Vec<u8>],
    result: &InstanceResult,
    classes: usize,
    size @ (_, width): (usize, usize),
) -> usize {
    let (mask_bytes, bands) = (mask_bytes(size), bands(size));
    let buffer = |which: InstanceBuffer| &found[which as usize];
    let words = |which| bytemuck::pod_collect_to_vec::<u8, u32>(buffer(which));
    let (scores, indices) = (words(InstanceBuffer::Scores), words(InstanceBuffer::Pairs));
    let slots = words(InstanceBuffer::Places);
    let kept = slots.iter().take_while(|&&slot| slot != u32::MAX).count();
    assert!(slots[kept..].iter().all(|&slot| slot == u32::MAX), "{slots:?}");
    assert_eq!(kept, result.instances().len(), "{size:?}");

    let extents: Vec<Extent> = bytemuck::pod_collect_to_vec(buffer(InstanceBuffer::Extents));
    let unused = &extents[result.masks().len() * bands..];
    assert!(unused.iter().all(|&extent| extent == Extent::NOTHING), "{size:?}: unused places have pixels");
    let mut pixels = 0;
    for (i, instance) in result.instances().iter().enumerate() {
        let index = instance.mask_index * classes + instance.label;
        assert_eq!((scores[i], indices[i]), (instance.score.to_bits(), index as u32), "{size:?}: {i}");
        assert_eq!(slots[i] as usize, instance.slot, "{size:?}: {i}");
        let wanted = result.mask(instance).bytes();
        let (mask, tail) =
            buffer(InstanceBuffer::Masks)[instance.slot * mask_bytes..][..mask_bytes].split_at(wanted.len());
        assert!(mask == wanted, "{size:?}: mask of object {} differs", instance.mask_index);
        assert!(tail.iter().all(|&byte| byte == 0), "{size:?}");
        // The host's copy lacks the bands without pixels.
        let host =
            buffer(InstanceBuffer::HostMasks)[instance.slot * mask_bytes..].chunks(Extent::ROWS * width / 8);
        for ((band, host), wanted) in
            extents[instance.slot * bands..].iter().zip(host).zip(wanted.chunks(Extent::ROWS * width / 8))
        {
            assert!(band.area == 0 || host[..wanted.len()] == *wanted, "{size:?}: the host's copy");
        }
        let bands = extents[instance.slot * bands..][..bands].iter();
        let extent = bands.fold(Extent::NOTHING, |all, &band| all.join(band));
        assert_eq!(extent.area as usize, instance.area, "{size:?}");
        pixels += instance.area;
        let bbox = match extent.area {
            0 => PixelBox::default(),
            _ => PixelBox {
                x: extent.left as usize,
                y: extent.top as usize,
                width: (extent.right + 1 - extent.left) as usize,
                height: (extent.bottom + 1 - extent.top) as usize,
            },
        };
        assert_eq!(bbox, instance.bbox, "{size:?}");
    }
    pixels
}

#[test]
fn instance_masks_have_the_cpu_s_bits() {
    // A row of photo that needs more shared memory than a kernel has without asking.
    let wide = (Geometry { original: (32, 11_000), resized: (32, 352), padded: (32, 352) }, 8);
    for (index, (geometry, stride)) in chains().into_iter().chain([wide]).enumerate() {
        let (objects, dtype) = (6, STORAGE[index % 3]);
        let described = described(geometry, stride, objects, dtype);
        let logits = mask_logits(objects, described.size, dtype, index as u64);
        // Better scores for later objects, so that places and objects are in different orders.
        let class_logits: Vec<f32> = (0..objects).map(|i| i as f32).collect();
        let pixels =
            assert_instances(&described, &geometry, InstanceConfig::default(), &logits, &class_logits);
        assert!(pixels > 0, "{described:?}: masks without pixels show nothing");
    }
}

#[test]
fn instances_are_ranked_as_the_cpu_ranks_them() {
    // Small photos; 160 x 144 logits are several runs of the quality's sums, the last of them short.
    let tiny = Geometry { original: (5, 6), resized: (32, 30), padded: (32, 32) };
    let large = Geometry { original: (12, 11), resized: (1280, 1150), padded: (1280, 1152) };
    let all = InstanceConfig::default();
    for (index, (geometry, objects, classes, config)) in [
        // More pairs than a block sorts at a time, and equal scores.
        (tiny, 30, 80, all),
        (tiny, 7, 5, InstanceConfig { max_per_image: 500, min_score: 0.4, ..all }),
        (tiny, 9, 6, InstanceConfig { max_per_image: 20, proposals: 6, things: 4, ..all }),
        (large, 3, 4, InstanceConfig { mask_score: true, min_score: 0.2, ..all }),
    ]
    .into_iter()
    .enumerate()
    {
        let dtype = STORAGE[(index + 1) % 3];
        let described = described(geometry, 8, objects, dtype);
        let logits = mask_logits(objects, described.size, dtype, 20 + index as u64);
        let mut state = index as u64;
        let draw = |_| (random(&mut state) % 41) as f32 * 0.25 - 5.0;
        let mut class_logits: Vec<f32> = (0..objects * classes).map(draw).collect();
        class_logits[3] = f32::NAN;
        assert_instances(&described, &geometry, config, &logits, &class_logits);
    }
}

/// Boxes and scores of detections, best first, of which so many are there and count from a score on.
struct Found {
    boxes: Vec<[f32; 4]>,
    scores: Vec<f32>,
    labels: Vec<i32>,
    count: i32,
    min_score: f32,
}

/// Runs the kernel that pastes masks of `cells` and asserts that it finds what the CPU finds. Gives the
/// number of pixels of all instances.
fn assert_pasted(
    found: &Found,
    probabilities: &[f32],
    cells: (usize, usize),
    geometry: &Geometry,
    dtype: DType,
) -> usize {
    let (places, classes) = (found.scores.len(), 5);
    let shape = [places, cells.0, cells.1];
    let stored = pack(&Tensor::new(shape, probabilities.to_vec()), Packing::plain(dtype));
    let there = (found.count.max(0) as usize).min(places);
    let detections = Detections {
        boxes: &found.boxes.as_flattened()[..4 * there],
        scores: &found.scores[..there],
        labels: &found.labels[..there],
        mask_size: cells,
        probabilities: &unpack(&stored, dtype)[..there * cells.0 * cells.1],
    };
    let mut result = InstanceResult::default();
    Paster::default().run(&detections, geometry, found.min_score, &mut result).unwrap();

    let detected = Detected { places, classes, mask_size: cells, dtype };
    let post = boxes::launches(&detected, geometry, found.min_score).unwrap();
    let count = [found.count];
    let operands: [&[u8]; 5] = [
        bytemuck::cast_slice(&found.boxes),
        bytemuck::cast_slice(&found.scores),
        bytemuck::cast_slice(&found.labels),
        bytemuck::cast_slice(&count),
        &stored,
    ];
    let buffers = run(&post.program, &operands, &sizes(&post), true);
    assert_eq!(buffers[InstanceBuffer::Boxes as usize], bytemuck::cast_slice::<_, u8>(&found.boxes));
    assert_same(&buffers, &result, classes, geometry.original)
}

#[test]
fn masks_are_pasted_into_boxes_with_the_cpu_s_bits() {
    for (index, (geometry, _)) in chains().into_iter().enumerate() {
        let mut state = 80 + index as u64;
        let mut draw =
            |low: f32, high: f32| low + (high - low) * (random(&mut state) as f32 / u32::MAX as f32);
        let [height, width] = [geometry.original.0, geometry.original.1].map(|side| side as f32);
        // Within the photo and beyond it, the last of whole numbers; then what is no box.
        let mut drawn = || {
            let (left, top) = (draw(-0.2, 0.7) * width, draw(-0.2, 0.7) * height);
            [left, top, left + draw(0.0, 0.9) * width, top + draw(0.0, 0.9) * height]
        };
        let mut boxes: Vec<[f32; 4]> = (0..4).map(|_| drawn()).collect();
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        boxes.extend([
            [0.0, 0.0, width, height],
            [3.0, 3.0, 3.0, 3.0],
            [6.0, 6.0, 2.0, 2.0],
            [nan; 4],
            [-inf, 0.0, inf, 5.0],
            [0.0, nan, 5.0, 5.0],
            [-1e30, -1e30, 1e30, 1e30],
            drawn(),
            drawn(),
        ]);
        let places = boxes.len();
        // Masks as wide as a mask head's, and others; every seventh probability is none.
        let cells = [(28, 28), (5, 33), (1, 1)][index % 3];
        let probabilities: Vec<f32> = (0..places * cells.0 * cells.1)
            .map(|i| if i % 7 == 3 && index == 2 { nan } else { draw(0.1, 1.0) })
            .collect();
        let mut found = Found {
            boxes,
            scores: (0..places).map(|i| 0.9 - 0.05 * i as f32).collect(),
            labels: (0..places).map(|i| i as i32 % 5).collect(),
            count: places as i32 - 1,
            min_score: 0.0,
        };
        let pixels = assert_pasted(&found, &probabilities, cells, &geometry, STORAGE[index % 3]);
        assert!(pixels > 0, "{geometry:?}: masks without pixels show nothing");
        // Fewer count by their scores; none are there.
        found.min_score = 0.77;
        let fewer = assert_pasted(&found, &probabilities, cells, &geometry, STORAGE[index % 3]);
        assert!(fewer <= pixels, "{geometry:?}");
        found.count = -1;
        assert_eq!(assert_pasted(&found, &probabilities, cells, &geometry, STORAGE[index % 3]), 0);
    }
}

#[test]
fn photos_that_no_mask_is_pasted_into_are_refused() {
    let detected = Detected { places: 3, classes: 5, mask_size: (28, 28), dtype: DType::F16 };
    let geometry = |original| Geometry { original, resized: (32, 32), padded: (32, 32) };
    for size in [(0, 131), (50_000, 50_000)] {
        let reason = boxes::launches(&detected, &geometry(size), 0.0).unwrap_err();
        assert!(reason.contains(&format!("{size:?}")), "{reason}");
    }
    let nothing = boxes::launches(&Detected { places: 0, ..detected }, &geometry((3, 4)), 0.0).unwrap();
    assert!(nothing.program.launches.is_empty());
}
