//! Image pre- and post-processing on a GPU: the kernels, compiled by NVRTC to PTX and run on the emulator
//! with all checks on, against the CPU's implementation, bit for bit.

use image::RgbImage;
use knet::cuda::gpu::{Precision, Target};
use knet::cuda::launch::{Packing, Program};
use knet::cuda::pack::{pack, unpack};
use knet::cuda::post::{MaskLogits, PostProcess};
use knet::cuda::pre::Preprocess;
use knet::image::HeadOutput;
use knet::image::instance::InstanceConfig;
use knet::image::panoptic::{PanopticConfig, PanopticPostprocessor, PanopticResult};
use knet::image::preprocess::{Geometry, PreprocessConfig, Preprocessor};
use knet::image::semantic::{ClassLogits, SemanticPostprocessor, SemanticResult};
use knet::image::view::{ImageView, Memory as PlaneMemory, PixelFormat, Plane, YuvMatrix};
use knet::task::instance::gpu as instance;
use knet::task::panoptic::gpu::{self as panoptic, PanopticBuffer};
use knet::task::semantic::gpu::{self as semantic, SemanticBuffer};
use knet::tensor::{DType, Tensor};
use ptxemu::{Config, Memory, Options};
use testkit::emulate;
use testkit::emulate::run_program;

pub const STORAGE: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// Runs a program: the results, of these sizes in bytes. Every byte of a result must have been written,
/// unless it is `partial`.
pub fn run(program: &Program, inputs: &[&[u8]], outputs: &[usize], partial: bool) -> Vec<Vec<u8>> {
    let memory = Memory::new(Options::default()).unwrap();
    let operand = |bytes: &&[u8]| {
        let address = memory.alloc(bytes.len() as u64, "operand").unwrap();
        memory.write(address, bytes).unwrap();
        memory.protect(address).unwrap();
        address
    };
    let inputs: Vec<u64> = inputs.iter().map(operand).collect();
    let results: Vec<u64> = outputs.iter().map(|&n| memory.alloc(n as u64, "result").unwrap()).collect();
    let config = Config { seed: 3, ..Config::default() };
    run_program(program, &inputs, &results, &memory, &config).unwrap();
    let read = |(&address, &bytes): (&u64, &usize)| {
        let mut found = vec![0; bytes];
        let read = if partial { Memory::read_raw } else { Memory::read };
        read(&memory, address, &mut found).unwrap();
        found
    };
    results.iter().zip(outputs).map(read).collect()
}

/// Next 32 bits of a SplitMix64 stream.
pub fn random(state: &mut u64) -> u32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    ((z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 32) as u32
}

fn noise(bytes: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    (0..bytes).map(|_| random(&mut state) as u8).collect()
}

/// The network input that the CPU makes of an RGB image.
fn on_cpu(config: PreprocessConfig, (height, width): (usize, usize), rgb: Vec<u8>) -> (Geometry, Tensor) {
    let image = RgbImage::from_raw(width as u32, height as u32, rgb).unwrap();
    let mut preprocessor = Preprocessor::new(config).unwrap();
    let geometry = preprocessor.geometry(height, width);
    let mut out = vec![0.0; geometry.input_len()];
    preprocessor.run(&image, &mut out).unwrap();
    (geometry, Tensor::new([geometry.padded.0, geometry.padded.1, 3], out))
}

/// What a GPU is asked to do for this geometry.
fn request(config: PreprocessConfig, geometry: Geometry, format: PixelFormat, pitch: usize) -> Preprocess {
    let Geometry { original, resized, padded } = geometry;
    let PreprocessConfig { mean, std, .. } = config;
    Preprocess { format, source: original, pitch, resized, padded, mean, std }
}

/// Asserts that the kernels make `wanted` of these planes, in every storage type.
fn assert_input(preprocess: &Preprocess, planes: &[&[u8]], wanted: &Tensor, dtypes: &[DType]) {
    for &dtype in dtypes {
        let wanted = pack(wanted, Packing::plain(dtype));
        let launch = preprocess.launch(dtype).unwrap();
        let program = Program { launches: vec![launch], ..Program::default() };
        let found = run(&program, planes, &[wanted.len()], false).remove(0);
        let differ =
            unpack(&found, dtype).iter().zip(unpack(&wanted, dtype)).filter(|(a, b)| **a != *b).count();
        assert!(found == wanted, "{preprocess:?} {dtype:?}: {differ} elements differ");
    }
}

#[test]
fn rgb_and_bgr_inputs_have_the_cpu_s_bits() {
    let bounds = |short, long, divisor| PreprocessConfig {
        size: Some((short, long)),
        divisor,
        ..PreprocessConfig::default()
    };
    // Up, down by 1.7, exact halving, identity, one row, one pixel; rows of whole chunks and not.
    let cases = [
        ((37, 53), bounds(48, 96, 32)),
        ((83, 61), bounds(36, 64, 32)),
        ((64, 40), bounds(20, 32, 8)),
        ((21, 30), PreprocessConfig { size: None, divisor: 32, ..PreprocessConfig::default() }),
        ((1, 70), bounds(9, 90, 1)),
        ((1, 1), bounds(5, 5, 7)),
    ];
    for (index, (size, config)) in cases.into_iter().enumerate() {
        let rgb = noise(size.0 * size.1 * 3, index as u64);
        let (geometry, wanted) = on_cpu(config, size, rgb.clone());
        let pitch = size.1 * 3 + index;
        let rows = |swap: bool| -> Vec<u8> {
            let mut bytes = vec![0xEE; size.0 * pitch];
            for (row, out) in rgb.chunks(size.1 * 3).zip(bytes.chunks_mut(pitch)) {
                for (pixel, out) in row.chunks(3).zip(out.chunks_mut(3)) {
                    let swapped = [pixel[2], pixel[1], pixel[0]];
                    out.copy_from_slice(if swap { &swapped } else { pixel });
                }
            }
            bytes
        };
        let dtypes = if index == 0 { &STORAGE[..] } else { &STORAGE[index % 2..][..1] };
        assert_input(&request(config, geometry, PixelFormat::Rgb8, pitch), &[&rows(false)], &wanted, dtypes);
        assert_input(
            &request(config, geometry, PixelFormat::Bgr8, pitch),
            &[&rows(true)],
            &wanted,
            &[DType::F16],
        );
    }
}

#[test]
fn nv12_inputs_are_converted_as_opencv_does() {
    let (height, width, pitch) = (38, 54, 64);
    let config = PreprocessConfig { size: Some((48, 96)), ..PreprocessConfig::default() };
    let luma = noise(height * pitch, 11);
    let chroma = noise(height / 2 * pitch, 12);
    // OpenCV's factors of BT.601, and those of BT.709 from its weights of red and blue.
    let (kr, kb, chroma_range) = (0.2126, 0.0722, 255.0 / 224.0);
    let (red, blue, green) =
        (2.0 * (1.0 - kr) * chroma_range, 2.0 * (1.0 - kb) * chroma_range, 1.0 - kr - kb);
    for (matrix, factors) in [
        (YuvMatrix::Bt601, [1.164, 2.018, -0.391, -0.813, 1.596]),
        (YuvMatrix::Bt709, [255.0 / 219.0, blue, -blue * kb / green, -red * kr / green, red]),
    ] {
        let [y_all, u_blue, u_green, v_green, v_red] = factors.map(|f: f64| (f * 1_048_576.0).round() as i32);
        let mut rgb = Vec::new();
        for (row, column) in (0..height).flat_map(|row| (0..width).map(move |column| (row, column))) {
            let at = row / 2 * pitch + column / 2 * 2;
            let [u, v] = [chroma[at], chroma[at + 1]].map(|c| i32::from(c) - 128);
            let y = i32::from(luma[row * pitch + column].max(16) - 16) * y_all + (1 << 19);
            let colour = [y + v_red * v, y + v_green * v + u_green * u, y + u_blue * u];
            rgb.extend(colour.map(|c| (c >> 20).clamp(0, 255) as u8));
        }
        let (geometry, wanted) = on_cpu(config, (height, width), rgb);
        let preprocess = request(config, geometry, PixelFormat::Nv12(matrix), pitch);
        assert_input(&preprocess, &[&luma, &chroma], &wanted, &[DType::F32, DType::F16]);
    }
}

#[test]
fn every_format_is_read_as_the_cpu_reads_it() {
    let (size, config) = ((38, 54), PreprocessConfig { size: Some((48, 96)), ..PreprocessConfig::default() });
    let formats = [
        PixelFormat::Rgba8,
        PixelFormat::Bgra8,
        PixelFormat::Gray8,
        PixelFormat::I420(YuvMatrix::Bt601),
        PixelFormat::I420(YuvMatrix::Bt709),
        PixelFormat::Nv12(YuvMatrix::Bt709),
    ];
    for (index, format) in formats.into_iter().enumerate() {
        // Rows of the caller's with gaps of their own.
        let memory: Vec<(Vec<u8>, usize)> = format
            .shapes(size)
            .enumerate()
            .map(|(plane, shape)| {
                let stride = shape.row_bytes + 3 + plane;
                (noise(shape.rows * stride, 100 + (10 * index + plane) as u64), stride)
            })
            .collect();
        let planes: Vec<Plane<'_>> =
            memory.iter().map(|(bytes, stride)| Plane::host(bytes, *stride)).collect();
        let view = ImageView::new(format, size, &planes).unwrap();
        let mut preprocessor = Preprocessor::new(config).unwrap();
        let geometry = preprocessor.geometry(size.0, size.1);
        let mut wanted = vec![0.0; geometry.input_len()];
        preprocessor.run(view, &mut wanted).unwrap();
        let wanted = Tensor::new([geometry.padded.0, geometry.padded.1, 3], wanted);

        let preprocess = Preprocess::new(format, size, &geometry, &config);
        let mut staged = vec![0; preprocess.bytes()];
        for ((plane, shape), placed) in view.planes().zip(preprocess.planes()) {
            let PlaneMemory::Host(bytes) = plane.memory else { panic!("{format:?}") };
            for y in 0..shape.rows {
                let row = &bytes[y * plane.stride..][..shape.row_bytes];
                staged[placed.offset + y * preprocess.pitch..][..row.len()].copy_from_slice(row);
            }
        }
        let (luma, chroma) = staged.split_at(preprocess.chroma());
        assert_input(&preprocess, &[luma, chroma], &wanted, &[STORAGE[index % 3]]);
    }
}

#[test]
fn impossible_images_are_refused_with_the_numbers() {
    let good = Preprocess {
        format: PixelFormat::Nv12(YuvMatrix::Bt601),
        source: (20, 30),
        pitch: 32,
        resized: (40, 60),
        padded: (64, 64),
        mean: [0.0; 3],
        std: [1.0; 3],
    };
    good.launch(DType::F16).unwrap();
    for (bad, word) in [
        (Preprocess { source: (0, 30), ..good }, "(0, 30)"),
        (Preprocess { source: (21, 30), ..good }, "21x30"),
        (Preprocess { pitch: 29, ..good }, "29"),
        (Preprocess { format: PixelFormat::Rgb8, ..good }, "90 bytes"),
        (Preprocess { padded: (64, 59), ..good }, "(64, 59)"),
        (Preprocess { std: [1.0, 0.0, 1.0], ..good }, "deviation"),
    ] {
        let error = bad.launch(DType::F16).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
}

/// Smooth blobs with some noise, as the network would be asked for them.
pub fn mask_logits(objects: usize, (height, width): (usize, usize), dtype: DType, seed: u64) -> Tensor {
    let mut state = seed;
    let mut data = Vec::new();
    for object in 0..objects {
        let mut draw =
            |low: f32, high: f32| low + (high - low) * (random(&mut state) as f32 / u32::MAX as f32);
        let (y, x) = (draw(0.0, height as f32), draw(0.0, width as f32));
        let (size, gain) = (draw(0.1, 0.5) * height.max(width) as f32, draw(2.0, 8.0));
        // Every fourth object has no pixel at all.
        let lift = if object % 4 == 3 { -30.0 } else { 0.0 };
        for i in 0..height * width {
            let (dy, dx) = ((i / width) as f32 + 0.5 - y, (i % width) as f32 + 0.5 - x);
            data.push(gain * (1.0 - (dy * dy + dx * dx).sqrt() / size) + lift + draw(-0.4, 0.4));
        }
    }
    let tensor = Tensor::new([objects, height, width], data);
    let bytes = pack(&tensor, Packing::plain(dtype));
    Tensor::new([objects, height, width], unpack(&bytes, dtype))
}

/// Sizes of masks on their way to a photo.
pub fn chains() -> [(Geometry, usize); 6] {
    let chain = |original, resized, padded, stride| (Geometry { original, resized, padded }, stride);
    [
        chain((75, 131), (60, 90), (64, 96), 8),
        chain((40, 57), (90, 128), (96, 128), 8),
        chain((60, 90), (60, 90), (64, 96), 8),
        chain((33, 200), (16, 96), (32, 96), 4),
        // A tiny photo under a large network input: more stride-4 rows than are held at a time.
        chain((9, 7), (256, 200), (256, 224), 8),
        chain((1, 1), (32, 32), (32, 32), 8),
    ]
}

pub fn described(geometry: Geometry, stride: usize, objects: usize, dtype: DType) -> MaskLogits {
    let Geometry { original, resized, padded } = geometry;
    let size = (padded.0 / stride, padded.1 / stride);
    MaskLogits { objects, size, dtype, padded, resized, original }
}

/// Bytes of the buffers.
pub fn sizes(post: &PostProcess) -> Vec<usize> {
    post.buffers.iter().map(|buffer| buffer.bytes).collect()
}

#[test]
fn panoptic_pixels_go_to_the_cpu_s_objects() {
    let config = PanopticConfig { proposals: 5, things: 35, stuff: 3, ..PanopticConfig::default() };
    let (objects, classes) = (config.proposals + config.stuff, config.things + config.stuff);
    for (index, (geometry, stride)) in chains().into_iter().enumerate() {
        let dtype = STORAGE[(index + 1) % 3];
        let described = described(geometry, stride, objects, dtype);
        let mut logits = mask_logits(objects, described.size, dtype, 40 + index as u64);
        // Two objects that are equal in everything: the first wins.
        let pixels = described.size.0 * described.size.1;
        logits.data_mut().copy_within(0..pixels, 2 * pixels);
        let mut state = index as u64;
        let mut class_logits: Vec<f32> =
            (0..objects * classes).map(|_| (random(&mut state) % 33) as f32 * 0.25 - 6.0).collect();
        class_logits[7] = f32::NAN;
        class_logits.copy_within(0..classes, 2 * classes);
        let head = HeadOutput {
            objects,
            classes,
            class_logits: &class_logits,
            mask_size: described.size,
            mask_logits: logits.data(),
        };
        let mut result = PanopticResult::default();
        PanopticPostprocessor::new(config).run(&head, &geometry, &mut result).unwrap();

        let post = panoptic::launches(&described, &config).unwrap();
        let operands: [&[u8]; 2] =
            [&pack(&logits, Packing::plain(dtype)), bytemuck::cast_slice(&class_logits)];
        let found = run(&post.program, &operands, &sizes(&post), false);
        let words = |which| bytemuck::pod_collect_to_vec::<u8, u32>(&found[which as usize]);
        let trace = &result.trace;
        let scores: Vec<u32> = trace.total_scores.iter().map(|score| score.to_bits()).collect();
        assert_eq!(words(PanopticBuffer::Scores), scores, "{described:?}");
        assert_eq!(words(PanopticBuffer::Classes), trace.total_labels, "{described:?}");
        let ids: Vec<u32> = bytemuck::pod_collect_to_vec::<u8, u16>(&found[PanopticBuffer::Objects as usize])
            .into_iter()
            .map(u32::from)
            .collect();
        let differ = ids.iter().zip(&trace.argmax_ids).filter(|(a, b)| a != b).count();
        assert_eq!(differ, 0, "{described:?}: pixels at other objects");
        assert_eq!(
            words(PanopticBuffer::Areas),
            [trace.mask_area.as_slice(), &trace.original_area].concat(),
            "{described:?}"
        );
        assert!(
            geometry.original.0 == 1 || ids.iter().any(|&id| id != ids[0]),
            "{described:?}: one object has all"
        );
    }
}

#[test]
fn semantic_pixels_go_to_the_cpu_s_classes() {
    const CLASSES: usize = 5;
    for (index, (geometry, stride)) in chains().into_iter().enumerate() {
        let dtype = STORAGE[(index + 2) % 3];
        let described = described(geometry, stride, CLASSES, dtype);
        let mut logits = mask_logits(CLASSES, described.size, dtype, 60 + index as u64);
        // Two classes that are equal in everything: the first wins.
        let pixels = described.size.0 * described.size.1;
        logits.data_mut().copy_within(0..pixels, 3 * pixels);
        let head = ClassLogits { classes: CLASSES, size: described.size, values: logits.data() };
        for confidence in [false, true] {
            let mut result = SemanticResult::default();
            SemanticPostprocessor::new(confidence).run(&head, &geometry, &mut result).unwrap();
            let post = semantic::launches(&described, confidence).unwrap();
            let operands: [&[u8]; 1] = [&pack(&logits, Packing::plain(dtype))];
            let found = run(&post.program, &operands, &sizes(&post), false);
            let classes: Vec<u16> = bytemuck::pod_collect_to_vec(&found[SemanticBuffer::Classes as usize]);
            assert!(classes == result.map, "{described:?}: pixels of other classes");
            if confidence {
                let bits: Vec<u32> =
                    bytemuck::pod_collect_to_vec(&found[SemanticBuffer::Confidence as usize]);
                let wanted: Vec<u32> = result.confidence.iter().map(|v| v.to_bits()).collect();
                assert!(bits == wanted, "{described:?}: other confidences");
            }
            assert!(geometry.original.0 == 1 || result.present().len() > 1, "{described:?}: one class");
        }
    }
    let (geometry, stride) = chains()[0];
    let good = described(geometry, stride, CLASSES, DType::F16);
    for bad in [MaskLogits { objects: 0, ..good }, MaskLogits { size: (0, 12), ..good }] {
        assert!(semantic::launches(&bad, false).unwrap_err().contains("classes over maps"), "{bad:?}");
    }
}

#[test]
fn masks_of_other_sizes_are_refused() {
    let (geometry, stride) = chains()[0];
    let good = described(geometry, stride, 4, DType::F16);
    let target = Target { caps: emulate::CAPS, precision: Precision::F16 };
    let launches = |logits: &MaskLogits, max_per_image| {
        let config = InstanceConfig { max_per_image, proposals: 4, things: 5, ..InstanceConfig::default() };
        instance::launches(logits, 5, &config, &target)
    };
    launches(&good, 3).unwrap();
    assert!(launches(&good, 0).unwrap().program.launches.is_empty());
    for bad in [
        MaskLogits { size: (7, 12), ..good },
        MaskLogits { resized: (65, 90), ..good },
        MaskLogits { original: (0, 131), ..good },
    ] {
        assert!(launches(&bad, 3).unwrap_err().contains("("), "{bad:?}");
    }
    let config = PanopticConfig { proposals: 2, things: 5, stuff: 1, ..PanopticConfig::default() };
    assert!(panoptic::launches(&good, &config).unwrap_err().contains("4 objects"));
}
