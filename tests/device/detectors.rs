//! Two-stage detectors on the device: a small one from the photo to masks beside the CPU, the choice of
//! detections between values of the official code, and whole models against it. The last take the emulator
//! an hour: there they are ignored trials (`--include-ignored`).

use crate::beside;
use crate::operators::{context, read};
use crate::rcnn_golden::{PIXELS, check, nearest, run};
use cudarc::driver::DevicePtr;
use knet::checkpoint::StorageType;
use knet::cpu::Arithmetic;
use knet::cuda::gpu::Precision;
use knet::cuda::on_device::ExternalStream;
use knet::cuda::{self, Executor, Runtime};
use knet::engine::source::{Opened, open};
use knet::engine::{Device, Segmentation, WeightSource};
use knet::graph::passes::optimize;
use knet::graph::{Source, ValueId};
use knet::image::view::{ImageView, PixelFormat, Plane};
use knet::model::rcnn::{DET_BOXES, DET_COUNT, DET_LABELS, DET_SCORES, IMAGE_INFO};
use knet::model::{TapMode, build};
use knet::ops::Op;
use knet::task::DeviceResults;
use libtest_mimic::{Failed, Trial};
use std::path::Path;
use testkit::device;
use testkit::model::{photo, seeded_entries, small_detector, write_entries};
use testkit::model_golden::Golden;
use testkit::parts::cut;

/// Score, class and box of each instance, best first.
fn rows(found: &Segmentation) -> (Vec<usize>, Vec<f32>) {
    let result = found.instance_result().expect("instances");
    let instances = result.instances();
    let row = |i: &knet::image::instance::Instance| {
        let [left, top, right, bottom] = result.detector_box(i).expect("a box");
        [left, top, right, bottom, i.score]
    };
    (instances.iter().map(|i| i.label).collect(), instances.iter().flat_map(row).collect())
}

/// A small cascade in f32: what the CPU finds, but for rounding; the same bits again after another photo, and in
/// results that stay on the device.
fn check_small(ordinal: usize) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let weights = folder.path().join("cascade.safetensors");
    let config = small_detector(3);
    write_entries(&weights, &seeded_entries(&config, 7), Some(&config.to_json()), StorageType::F32);
    let builder = |device| {
        let weights = WeightSource::File(Path::new(&weights).into());
        device::builder().weights(weights).device(device).arithmetic(Arithmetic::Exact).size(None).threads(2)
    };
    let (height, width) = (64, 96);
    let image = photo(height, width);
    let wanted = builder(Device::Cpu).build()?.segment(&image)?;
    let mut engine = builder(Device::Cuda(ordinal)).build()?;
    let found = engine.segment(&image)?;
    let ((wanted_labels, wanted_rows), (labels, found_rows)) = (rows(&wanted), rows(&found));
    assert!(labels.len() > 10 && labels.len() == wanted_labels.len(), "{labels:?} for {wanted_labels:?}");
    let pairs = nearest(&found_rows, &wanted_rows, 5, |ours, theirs| labels[ours] == wanted_labels[theirs]);
    let (mut different, mut off) = (0, 0.0f32);
    for (&(ours, distance), theirs) in pairs.iter().zip(wanted.instances()) {
        assert!(distance < PIXELS, "{:?} is {distance} off", &wanted_rows[5 * theirs.mask_index..][..5]);
        let bytes = found.mask(&found.instances()[ours]).bytes().iter().zip(wanted.mask(theirs).bytes());
        different += bytes.map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
        off = off.max(distance);
    }
    println!("{} detections, off by {off:.1e}; {different} mask bits differ", pairs.len());
    assert!(different <= 20, "{different} mask bits differ");

    engine.segment(&image::imageops::flip_horizontal(&image))?;
    assert!(engine.segment(&image)? == found, "the same bits after another photo");
    let context = context(ordinal)?;
    let stream = context.new_stream()?;
    let memory = stream.clone_htod(image.as_raw())?;
    stream.synchronize()?;
    let plane = Plane::device(memory.device_ptr(&stream).0, 3 * width as usize);
    let size = (height as usize, width as usize);
    let view = ImageView::new(PixelFormat::Rgb8, size, &[plane])?;
    // SAFETY: the stream outlives the engine's work, for which this function waits.
    let external = unsafe { ExternalStream::from_raw(stream.cu_stream().cast()) };
    // SAFETY: the memory lives until the wait below.
    let results = unsafe { engine.session_mut().segment_on_device(&view, external) }?;
    stream.synchronize()?;
    let DeviceResults::Instance(results) = results else { return Err("no instances".into()) };
    let (bits, places): (Vec<u8>, Vec<u32>) = (read(results.masks)?, read(results.places)?);
    let boxes: Vec<[f32; 4]> = read(results.boxes.ok_or("no boxes")?)?;
    for (place, instance) in found.instances().iter().enumerate() {
        assert_eq!(places[place] as usize, place);
        assert_eq!(boxes[place].as_slice(), &found_rows[5 * place..][..4]);
        let mask = &bits[place * results.mask_bytes..][..(size.0 * size.1).div_ceil(8)];
        assert_eq!(mask, found.mask(instance).bytes(), "mask {place}");
    }
    // Its time is that of a photo which fills the input: told nothing, it would have no proposals.
    assert_eq!(engine.session_mut().time_network(size, 0)?.len(), 0);
    Ok(())
}

/// From what the official code's box heads say to its detections: boxes are moved, scores averaged, and
/// the best of each class kept. What is chosen is the same, in the same order.
fn check_choice(ordinal: usize) -> Result<(), Failed> {
    let Some(golden) = Golden::find("cascade_mask_rcnn_r50_fpn", "a") else { return Ok(()) };
    let Opened { config, load, .. } = open(&WeightSource::Seeded(0), Some(golden.model))?;
    let (height, width) = golden.original();
    let network = build(&config, 1, [height, width], TapMode::All)?;
    let graph = &network.graph;
    let last = |op: fn(&Op) -> bool| graph.nodes().iter().rev().find(|node| op(&node.op)).expect("a node");
    let detections = last(|op| matches!(op, Op::NonMaxSuppression(_)));
    let is_told = |id: &&ValueId| {
        let value = graph.value(**id);
        matches!(value.source, Source::Input) && value.name == IMAGE_INFO
    };
    let told = graph.nodes().iter().flat_map(|node| &node.inputs).find(is_told).expect("the second input");
    let given =
        ["stage2.rois", "stage2.bbox_pred", "stage0.cls_score", "stage1.cls_score", "stage2.cls_score"];
    let mut inputs: Vec<(String, ValueId)> = given
        .iter()
        .map(|&name| {
            let tap = network.taps.iter().find(|tap| tap.name == name).expect("a tap");
            (name.to_string(), tap.value)
        })
        .collect();
    inputs.extend([(IMAGE_INFO.to_string(), *told), ("count".to_string(), detections.inputs[2])]);
    let names = [DET_BOXES, DET_SCORES, DET_LABELS, DET_COUNT];
    let outputs: Vec<(String, ValueId)> =
        names.iter().zip(&detections.outputs).map(|(name, &id)| (name.to_string(), id)).collect();
    let runtime = Runtime::new(cuda::Device::open(ordinal)?, Precision::F32, load)?;
    let plan = cuda::plan(&optimize(cut(graph, &inputs, &outputs))?, runtime.target())?;
    let mut executor = Executor::with_floats(plan, &runtime)?;
    for (index, name) in given.iter().enumerate() {
        let values = golden.values(name);
        // Upstream's regions begin with the number of their image.
        let values = match name.ends_with("rois") {
            true => values.chunks(5).flat_map(|region| region[1..].to_vec()).collect(),
            false => values,
        };
        executor.input_mut(index).copy_from_slice(&values);
    }
    executor.input_mut(given.len()).copy_from_slice(&[height as f32, width as f32, 1.0, 1.0]);
    executor.input_i32_mut(given.len() + 1).fill(golden.values("stage0.rois").len() as i32 / 5);
    executor.run()?;
    let integers = |index: usize| executor.output(index).iter().map(|v| v.to_bits() as i32 as usize);
    assert_eq!(integers(3).collect::<Vec<_>>(), [100]);
    assert_eq!(integers(2).collect::<Vec<_>>(), golden.indices("final.det_labels"));
    let mut off = 0.0f32;
    for (place, wanted) in golden.values("final.dets").chunks(5).enumerate() {
        let found = executor.output(0)[4 * place..][..4].iter().chain(&executor.output(1)[place..][..1]);
        off = found.zip(wanted).map(|(a, b)| (a - b).abs()).fold(off, f32::max);
    }
    println!("detections off by {off:.1e}");
    assert!(off < 1e-4, "detections are {off} off");
    Ok(())
}

/// A whole model, as `tests/model/rcnn.rs` has it on the CPU.
fn check_golden(golden: Option<Golden>, ordinal: usize) -> Result<(), Failed> {
    let Some(golden) = golden else { return Ok(()) };
    let found = run(&golden, |graph, load, inputs| {
        let runtime = Runtime::new(cuda::Device::open(ordinal)?, Precision::F32, load)?;
        let mut executor = Executor::with_floats(cuda::plan(graph, runtime.target())?, &runtime)?;
        for (index, values) in inputs.into_iter().enumerate() {
            executor.input_mut(index).copy_from_slice(values);
        }
        executor.run()?;
        let result = |(index, (name, _)): (usize, &(String, _))| {
            (name.clone(), (executor.output_type(index).shape, executor.output(index).to_vec()))
        };
        Ok(executor.plan().outputs.iter().enumerate().map(result).collect())
    })?;
    check(&golden, &found, 0, 50);
    Ok(())
}

/// Its trials on the device under test.
pub fn trials(ordinal: usize, emulated: bool) -> Vec<Trial> {
    let mut trials = vec![
        beside("detectors/small", move || check_small(ordinal)),
        beside("detectors/choice", move || check_choice(ordinal)),
    ];
    for (model, case) in ["mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn"]
        .into_iter()
        .flat_map(|model| ["a", "b"].map(|case| (model, case)))
    {
        let check = move || check_golden(Golden::find(model, case), ordinal);
        trials.push(beside(format!("detectors/{model}/{case}"), check).with_ignored_flag(emulated));
    }
    trials
}
