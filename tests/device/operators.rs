//! The CUDA back end on a device: every case of every operator, whole models, the same bits from run to run.
//! It runs where `KNET_TEST_DEVICE` names a GPU: a real one (`tools/gpu-suite`) or the emulator's
//! (`tools/with-ptxemu`), on which a small and a larger case of each operator are run again, as
//! `tests/ops/cuda.rs` has emulated all of them.

use crate::{Groups, alone, beside};
use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, result};
use knet::cuda::gpu::Precision;
use knet::cuda::on_device::{DeviceSlice, ExternalStream};
use knet::cuda::post::MaskLogits;
use knet::cuda::pre::Preprocess;
use knet::cuda::tune::{self, Measured, Scope, Table, Timer};
use knet::cuda::{Device, Executor, Pipeline, Plan, Runtime, Told, select, stored};
use knet::engine::{self, InputSize, ModelOptions, Segmentation, SessionOptions};
use knet::graph::{Builder, Layout};
use knet::image::instance::InstanceConfig;
use knet::image::preprocess::{Geometry, PreprocessConfig};
use knet::image::view::{ImageView, PixelFormat, Plane, YuvMatrix};
use knet::ops::case::Case;
use knet::ops::epilogue::Epilogue;
use knet::ops::{Conv2d, GlobalAvgPool, Linear, Reshape, ValueType, all_cases};
use knet::task::DeviceResults;
use knet::task::instance::gpu::{self as instance, DeviceInstances, InstanceBuffer, Masks};
use knet::task::panoptic::gpu::DeviceAssignment;
use knet::task::semantic::gpu::DeviceClasses;
use knet::tensor::{DType, Tensor};
use knet::{Model, Session};
use libtest_mimic::{Failed, Trial};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use testkit::cuda_case::{given, one_node, parameters, seen};
use testkit::run::Operands;
use testkit::{cuda_case, device, model};

/// Operations of the largest case that is run: `KNET_TEST_FLOPS` (compute-sanitizer slows kernels down a
/// hundredfold), else few on the emulator, and all on a GPU.
fn most_flops(emulated: bool) -> u64 {
    match std::env::var("KNET_TEST_FLOPS") {
        Ok(text) => text.parse().expect("KNET_TEST_FLOPS is a number"),
        Err(_) if emulated => 200_000,
        Err(_) => u64::MAX,
    }
}

/// The cases that are run with their operations; on the emulator the smallest and the largest of each
/// operator below [`most_flops`].
fn cases(emulated: bool) -> Vec<(Case, u64)> {
    let most = most_flops(emulated);
    let mut of: BTreeMap<&str, Vec<(Case, u64)>> = BTreeMap::new();
    for case in all_cases().into_iter().filter(cuda_case::runs) {
        let flops = case.flops();
        if flops <= most {
            of.entry(case.op.name()).or_default().push((case, flops));
        }
    }
    if emulated {
        for cases in of.values_mut() {
            cases.sort_by_key(|(_, flops)| *flops);
            let inner = 1..cases.len().saturating_sub(1).max(1);
            cases.drain(inner);
        }
    }
    of.into_values().flatten().collect()
}

/// A runtime whose parameters are operands of [`one_node`].
fn runtime(ordinal: usize, precision: Precision, operands: Vec<Tensor>) -> knet::Result<Runtime> {
    Runtime::new(Device::open(ordinal)?, precision, parameters(operands))
}

/// The results of a run over `inputs`; indices as numbers.
fn run(executor: &mut Executor, inputs: &[Tensor]) -> knet::Result<Vec<Vec<f32>>> {
    for index in 0..executor.plan().inputs.len() {
        if executor.plan().inputs[index].1.ty.dtype == DType::I32 {
            let memory = executor.input_i32_mut(index).iter_mut();
            memory.zip(inputs[index].data()).for_each(|(index, &value)| *index = value as i32);
        } else {
            executor.input_mut(index).copy_from_slice(inputs[index].data());
        }
    }
    executor.run()?;
    let floats = |index: usize| match executor.output_type(index).dtype {
        DType::I32 => executor.output(index).iter().map(|v| v.to_bits() as i32 as f32).collect(),
        _ => executor.output(index).to_vec(),
    };
    Ok((0..executor.plan().outputs.len()).map(floats).collect())
}

fn check_case(case: &Case, precision: Precision, ordinal: usize) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let graph = one_node(case, Operands::Params);
    let runtime = runtime(ordinal, precision, inputs.clone())?;
    let target = runtime.target();
    let plan = Plan::build(&graph, |_, ty| stored(target)(ty), select(target))?;
    let inputs = seen(&plan, &inputs);
    let mut executor = Executor::with_floats(plan.clone(), &runtime)?;
    let given = given(&plan, &inputs);
    let runs = [run(&mut executor, &given)?, run(&mut executor, &given)?];
    let bits = |run: &[Vec<f32>]| run.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    if bits(&runs[0]) != bits(&runs[1]) {
        return Err("two runs give different bits".into());
    }
    Ok(cuda_case::compare(case, &plan, precision, &inputs, &runs[0])?)
}

/// Times every candidate of a case as `knet tune` does, then runs it as a table would have it.
fn check_candidates(case: &Case, precision: Precision, ordinal: usize, most: usize) -> Result<(), Failed> {
    let inputs = case.make_inputs(7);
    let graph = one_node(case, Operands::Params);
    let mut runtime = runtime(ordinal, precision, inputs.clone())?;
    let target = runtime.target();
    let modelled = Plan::build(&graph, |_, ty| stored(target)(ty), select(target))?;
    let tasks = tune::tasks(&modelled, &target, most)?;
    let [task] = &tasks[..] else { return Err(format!("{} tasks", tasks.len()).into()) };
    let mut timer = Timer::new(&runtime, &tasks, 2)?;
    for index in (0..task.candidates.len()).chain([0]) {
        timer.measure(task, index)?;
    }
    drop(timer);
    let inputs = seen(&modelled, &inputs);
    for program in &task.candidates {
        let mut table = Table::new(runtime.scope());
        let (kernel, model) = (program.kernel.clone(), modelled.steps[0].kernel.clone());
        let measured = Measured { kernel, microseconds: 1.0, model, model_microseconds: 2.0 };
        table.insert(task.site.site().to_string(), measured);
        runtime.adopt(table)?;
        let plan = Plan::build(&graph, |_, ty| stored(target)(ty), select(runtime.selection().clone()))?;
        if plan.steps[0].kernel != program.kernel {
            return Err(
                format!("planned as {}, the table says {}", plan.steps[0].kernel, program.kernel).into()
            );
        }
        let mut executor = Executor::with_floats(plan.clone(), &runtime)?;
        let found = run(&mut executor, &inputs)?;
        cuda_case::compare(case, &plan, precision, &inputs, &found)
            .map_err(|fault| format!("{}: {fault}", program.kernel))?;
    }
    // The table now asks for the last candidate; a plan of the cost models runs what it was planned with.
    let found = run(&mut Executor::with_floats(modelled.clone(), &runtime)?, &inputs)?;
    cuda_case::compare(case, &modelled, precision, &inputs, &found)?;
    // A step that this device cannot run, or that was planned with less memory than it takes, is refused.
    let mut wide = modelled.clone();
    if let Some(launch) = wide.steps[0].program.launches.first_mut() {
        launch.block = [1025, 1, 1];
    }
    let mut cramped = modelled;
    cramped.steps[0].program.workspace += cramped.steps[0].workspace.bytes + 1;
    for (plan, wanted) in [(wide, "threads"), (cramped, "bytes of workspace")] {
        match Executor::new(plan, &runtime) {
            Err(error) if error.to_string().contains(wanted) => {}
            _ => return Err(format!("a plan with too many {wanted} was bound").into()),
        }
    }
    let foreign = Table::new(Scope { device: "another".into(), ..runtime.scope() });
    match runtime.adopt(foreign) {
        Err(reason) if reason.contains("another") => Ok(()),
        _ => Err("a table of another device was taken".into()),
    }
}

/// Bytes of device memory as elements.
pub fn read<T: bytemuck::Pod + Default>(slice: DeviceSlice) -> Result<Vec<T>, Failed> {
    let mut values = vec![T::default(); slice.bytes / size_of::<T>()];
    // SAFETY: results of a run that is done.
    unsafe { result::memcpy_dtoh_sync(&mut values, slice.address) }.map_err(|e| format!("{e:?}"))?;
    Ok(values)
}

/// The device's context for a test that works beside an engine. Streams are made without waiting for the
/// whole context, which would break what another test captures meanwhile.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, Failed> {
    let context = CudaContext::new(ordinal)?;
    // SAFETY: the tests wait for their streams.
    unsafe { context.disable_event_tracking() };
    Ok(context)
}

/// An image in device memory at an odd address and pitch, on a stream of the test's own: the results of the
/// host's image.
fn check_on_device(name: &str, ordinal: usize) -> Result<(), Failed> {
    let (height, width, pitch) = (64, 96, 3 * 96 + 5);
    let mut engine = device::builder().model(name).precision(Precision::F16).size(None).build()?;
    let photo = model::photo(height as u32, width as u32);
    let wanted = engine.segment(&photo)?;
    let context = context(ordinal)?;
    let stream = context.new_stream()?;
    let mut bytes = vec![99; 1 + pitch * (height - 1) + 3 * width];
    for (y, row) in photo.as_raw().chunks(3 * width).enumerate() {
        bytes[1 + y * pitch..][..row.len()].copy_from_slice(row);
    }
    let swapped: Vec<u8> = std::iter::once(99)
        .chain(bytes[1..].chunks(pitch).flat_map(|row| {
            let (pixels, rest) = row.split_at(3 * width);
            pixels.chunks(3).flat_map(|p| [p[2], p[1], p[0]]).chain(rest.iter().copied()).collect::<Vec<u8>>()
        }))
        .collect();
    let (rgb, bgr) = (stream.clone_htod(&bytes)?, stream.clone_htod(&swapped)?);
    stream.synchronize()?;
    let size = (height, width);
    let on_device = |memory: &CudaSlice<u8>, format| {
        ImageView::new(format, size, &[Plane::device(memory.device_ptr(&stream).0 + 1, pitch)])
    };
    // SAFETY: the stream outlives the engine's work, for which this function waits.
    let external = unsafe { ExternalStream::from_raw(stream.cu_stream().cast()) };
    for (memory, format) in [(&rgb, PixelFormat::Rgb8), (&bgr, PixelFormat::Bgr8)] {
        let image = on_device(memory, format)?;
        // SAFETY: the memory lives until the wait below.
        let results = unsafe { engine.session_mut().segment_on_device(&image, external) }?;
        stream.synchronize()?;
        match results {
            DeviceResults::Instance(DeviceInstances { masks, mask_bytes, scores, places, .. }) => {
                let (bits, scores, places): (Vec<u8>, Vec<f32>, Vec<u32>) =
                    (read(masks)?, read(scores)?, read(places)?);
                assert!(!wanted.instances().is_empty());
                for (i, instance) in wanted.instances().iter().enumerate() {
                    assert_eq!(scores[i].to_bits(), instance.score.to_bits(), "instance {i}");
                    let mask = &bits[places[i] as usize * mask_bytes..][..(height * width).div_ceil(8)];
                    assert_eq!(mask, wanted.mask(instance).bytes(), "instance {i}");
                }
            }
            DeviceResults::Panoptic(DeviceAssignment { objects, areas, .. }) => {
                let (objects, areas): (Vec<u16>, Vec<u32>) = (read(objects)?, read(areas)?);
                let mut counted = vec![0; areas.len() / 2];
                objects.iter().for_each(|&object| counted[usize::from(object)] += 1);
                assert_eq!(objects.len(), height * width);
                assert_eq!(counted, areas[..areas.len() / 2]);
            }
            DeviceResults::Semantic(DeviceClasses { classes, .. }) => {
                let classes: Vec<u16> = read(classes)?;
                assert_eq!(classes, wanted.semantic().expect("a semantic result").map);
            }
        }
    }
    // Runs on two streams follow each other, and the host's image follows both.
    let second = context.new_stream()?;
    // SAFETY: as above.
    let other = unsafe { ExternalStream::from_raw(second.cu_stream().cast()) };
    let mut scores = Vec::new();
    for stream in [external, other, external] {
        // SAFETY: the memory lives until the wait below.
        let results =
            unsafe { engine.session_mut().segment_on_device(&on_device(&rgb, PixelFormat::Rgb8)?, stream) }?;
        scores.push(match results {
            DeviceResults::Instance(found) => found.scores,
            DeviceResults::Panoptic(found) => found.scores,
            DeviceResults::Semantic(found) => found.classes,
        });
    }
    assert!(engine.segment(&photo)? == wanted, "the host's image after the device's");
    assert!(scores.iter().all(|slice| *slice == scores[0]), "results stay in place");
    second.synchronize()?;
    stream.synchronize()?;
    // NV12: two planes at pitches of their own.
    let planes =
        (stream.clone_htod(&vec![120u8; 100 * height])?, stream.clone_htod(&vec![128u8; 104 * height / 2])?);
    let plane = |memory: &CudaSlice<u8>, stride| Plane::device(memory.device_ptr(&stream).0, stride);
    let nv12 = PixelFormat::Nv12(YuvMatrix::Bt709);
    let grey = ImageView::new(nv12, size, &[plane(&planes.0, 100), plane(&planes.1, 104)])?;
    // SAFETY: the memory lives until the wait below.
    let results = unsafe { engine.session_mut().segment_on_device(&grey, external) }?;
    stream.synchronize()?;
    if let DeviceResults::Instance(DeviceInstances { scores, .. }) = results {
        let found: Vec<f32> = read(scores)?;
        // Luma 120 of 16 to 235 is 121 of 0 to 255.
        let flat = engine.segment(&image::RgbImage::from_pixel(
            width as u32,
            height as u32,
            image::Rgb([121; 3]),
        ))?;
        let wanted: Vec<f32> = flat.instances().iter().map(|instance| instance.score).collect();
        assert_eq!(found[..wanted.len()], wanted);
    }

    let good = on_device(&rgb, PixelFormat::Rgb8)?;
    let address = rgb.device_ptr(&stream).0 + 1;
    let at = |address, stride| ImageView::new(PixelFormat::Rgb8, size, &[Plane::device(address, stride)]);
    // More than a device has: a driver may call a whole pool one allocation.
    let far = 1 << 40;
    let bad = [
        (at(address, far)?, "behind"),
        (at(address, usize::MAX)?, "more than memory has"),
        (at(photo.as_raw().as_ptr() as u64, pitch)?, "is no memory of"),
        (ImageView::from(&photo), "on the host"),
        (ImageView::new(nv12, size, &[plane(&planes.0, 100), plane(&planes.1, far)])?, "chroma: 32 rows"),
    ];
    // Its results can come to the host as well; the host's own photos take turns with it.
    for _ in 0..2 {
        assert!(engine.segment(good)? == wanted, "an image on the device, masks on the host");
        assert!(engine.segment(&photo)? == wanted, "the host's image between");
    }
    let nowhere = engine.segment(at(address, far)?).expect_err("too little memory");
    assert!(nowhere.kind() == knet::ErrorKind::Usage && nowhere.to_string().contains("behind"), "{nowhere}");
    let foreign = CudaContext::new_non_primary(ordinal, 0)?;
    // SAFETY: nothing is sent to its stream.
    unsafe { foreign.disable_event_tracking() };
    let stream_of_foreign = foreign.new_stream()?;
    // SAFETY: the stream lives until the end of this function.
    let elsewhere = unsafe { ExternalStream::from_raw(stream_of_foreign.cu_stream().cast()) };
    // SAFETY: refused before anything is read.
    match unsafe { engine.session_mut().segment_on_device(&good, elsewhere) } {
        Err(error) if error.to_string().contains("another context") => {}
        other => return Err(format!("a stream of another context: {other:?}").into()),
    }
    for (image, wanted) in bad {
        // SAFETY: refused before anything is read.
        match unsafe { engine.session_mut().segment_on_device(&image, external) } {
            Err(error) if error.kind() == knet::ErrorKind::Usage && error.to_string().contains(wanted) => {}
            other => return Err(format!("{wanted}: {other:?}").into()),
        }
    }
    Ok(())
}

/// Indices go to the device and come back as they are, whatever floats their bits would be.
fn check_indices(ordinal: usize) -> Result<(), Failed> {
    let mut builder = Builder::new();
    let given = builder.input("given", ValueType::index([2, 3]));
    let flat = builder.node("flat", Reshape { shape: [6].into() }, &[given])?;
    builder.output("flat", flat);
    let runtime = runtime(ordinal, Precision::F16, Vec::new())?;
    let target = runtime.target();
    let plan = Plan::build(&builder.finish()?, |_, ty| stored(target)(ty), select(target))?;
    let mut executor = Executor::with_floats(plan, &runtime)?;
    // The bits of some are those of a NaN that signals.
    let indices = [-1, 0, 1, 0x7fa0_0001, i32::MAX, i32::MIN];
    executor.input_i32_mut(0).copy_from_slice(&indices);
    executor.run()?;
    let found: Vec<i32> = executor.output(0).iter().map(|v| v.to_bits() as i32).collect();
    if found != indices || executor.output_type(0) != ValueType::index([6]) {
        return Err(format!("{found:?}").into());
    }
    Ok(())
}

/// Rows of photos that are wide enough for post-processing to need more shared memory than a kernel may have
/// without asking, by pipelines of descending width around one network: what an earlier one asked for stays,
/// as its graph for results that stay on the device is captured when it is first asked for.
fn check_wide_photos(ordinal: usize) -> Result<(), Failed> {
    const WIDTHS: [usize; 3] = [11_500, 11_300, 10_900];
    let (height, input, objects, classes) = (32, (32, 352), 4, 2);
    let mut builder = Builder::new();
    let image = builder.input("image", ValueType::map([1, input.0, input.1, 3]));
    let mut params = Vec::new();
    let mut convolve = |name: &str, stride: [usize; 2], filter: [usize; 4]| {
        let op = Conv2d { stride, ..Conv2d::new() };
        let weights = Case::new(name, op, &[&filter]).make_inputs(5).remove(0);
        let filter = builder.param(&format!("operand{}", params.len()), &filter, Layout::Plain)?;
        params.push(weights);
        builder.node(name, op, &[image, filter])
    };
    // Of any result of four dimensions post-processing makes masks: here rows of it are objects, and channels
    // columns.
    let (rows, columns) = (input.0 / 8, input.1 / 8);
    let masks = convolve("masks", [8, 88], [columns, 8, 88, 3])?;
    let features = convolve("features", [8, 8], [objects * classes, 8, 8, 3])?;
    let pooled = builder.node("pooled", GlobalAvgPool, &[features])?;
    let scores = builder.node("scores", Reshape { shape: [objects, classes].into() }, &[pooled])?;
    assert_eq!(builder.shape(masks).dims(), [1, objects, rows, columns]);
    builder.output("scores", scores);
    builder.output("masks", masks);
    let runtime = runtime(ordinal, Precision::F16, params)?;
    let target = runtime.target();
    let plan = Plan::build(&builder.finish()?, |_, ty| stored(target)(ty), select(target))?;
    let mut executor = Executor::new(plan, &runtime)?;

    let instances = 2;
    let wide = |width: usize| {
        let source = (height, width);
        let geometry = Geometry { original: source, resized: input, padded: input };
        let (mean, std) = ([120.0; 3], [60.0; 3]);
        let preprocess = PreprocessConfig { mean, std, ..PreprocessConfig::default() };
        let preprocess = Preprocess::new(PixelFormat::Rgb8, source, &geometry, &preprocess);
        let logits = MaskLogits::of(executor.plan(), "masks", &geometry)?;
        let config = InstanceConfig { max_per_image: instances, ..InstanceConfig::default() };
        let post = instance::launches(&logits, classes, &config, &target).expect("sizes fit");
        Pipeline::new(&executor, &runtime, &preprocess, Told::default(), &post, &["masks", "scores"])
    };
    // The last one asks for less than 48 KiB, and has more with what the kernel declares by itself: 32 rows
    // of 48 bytes.
    let shared = WIDTHS.map(|width| {
        let (size, dtype) = ((rows, columns), DType::F16);
        let logits =
            MaskLogits { objects, size, dtype, padded: input, resized: input, original: (height, width) };
        let config = InstanceConfig { max_per_image: instances, ..InstanceConfig::default() };
        let post = instance::launches(&logits, classes, &config, &target).expect("sizes fit");
        post.program.launches.last().map_or(0, |masks| masks.shared)
    });
    assert!(shared[0] > shared[1] && shared[1] > 48 << 10, "{shared:?}");
    assert!(shared[2] <= 48 << 10 && shared[2] + 32 * 48 > 48 << 10, "{shared:?}");
    let mut pipelines = WIDTHS.map(wide).into_iter().collect::<knet::Result<Vec<_>>>()?;

    let context = context(ordinal)?;
    let stream = context.new_stream()?;
    // SAFETY: the stream outlives the work, for which this function waits.
    let external = unsafe { ExternalStream::from_raw(stream.cu_stream().cast()) };
    for (width, pipeline) in WIDTHS.into_iter().zip(&mut pipelines) {
        let photo = model::photo(height as u32, width as u32);
        pipeline.write(&ImageView::from(&photo))?;
        pipeline.run(&mut executor)?;
        let places = pipeline.host::<u32>(InstanceBuffer::Places as usize).to_vec();
        let extents = pipeline.host(InstanceBuffer::Extents as usize);
        let masks = Masks::new(pipeline.host(InstanceBuffer::HostMasks as usize), extents, (height, width));
        let mut wanted = vec![vec![0; height * width / 8]; instances];
        wanted.iter_mut().enumerate().try_for_each(|(place, mask)| masks.copy(place, 0..0, mask))?;
        assert!(wanted[0].iter().any(|&byte| byte != 0), "{width}: no pixel");
        let pixels = stream.clone_htod(photo.as_raw())?;
        let plane = Plane::device(pixels.device_ptr(&stream).0, 3 * width);
        let image = ImageView::new(PixelFormat::Rgb8, (height, width), &[plane])?;
        // SAFETY: the memory lives until the wait below.
        unsafe { pipeline.enqueue(&mut executor, &image, external) }?;
        stream.synchronize()?;
        let [masks, on_device] =
            [InstanceBuffer::Masks, InstanceBuffer::Places].map(|b| pipeline.device(b as usize));
        let (bits, on_device): (Vec<u8>, Vec<u32>) = (read(masks)?, read(on_device)?);
        let mask_bytes = instance::mask_bytes((height, width));
        assert_eq!(on_device, places, "{width}");
        for &place in places.iter().filter(|&&place| place != u32::MAX) {
            let mask = &bits[place as usize * mask_bytes..][..height * width / 8];
            assert!(mask == wanted[place as usize], "{width}: mask {place}");
        }
    }
    Ok(())
}

/// Cases of operators with a choice.
fn choices() -> Vec<Case> {
    vec![
        Case::new("taps", Conv2d::with(1, 1), &[&[1, 5, 7, 16], &[24, 3, 3, 16]]),
        Case::new("stem", Conv2d::with(2, 3), &[&[1, 11, 14, 3], &[24, 7, 7, 3]]),
        Case::new("depthwise", Conv2d { groups: 8, ..Conv2d::with(1, 1) }, &[&[1, 6, 7, 8], &[8, 3, 3, 1]]),
        Case::new("linear", Linear { epilogue: Epilogue::BIAS }, &[&[1, 5, 260], &[12, 260], &[12]]),
    ]
}

/// The same photo many times, alternating with another of another size: the same masks each time.
fn check_determinism(name: &str, precision: Precision, emulated: bool) -> Result<(), Failed> {
    let runs = if emulated { 3 } else { 100 };
    let mut engine = device::builder().model(name).precision(precision).size(Some((64, 96))).build()?;
    let photo = model::photo(96, 128);
    // Others leave their traces in the same buffers: one of the same size, and one of another.
    let others = [image::imageops::flip_horizontal(&photo), model::photo(64, 64)];
    let first = engine.segment(&photo)?;
    let mut result = Segmentation::default();
    for run in 1..runs {
        if run % 10 == 1 {
            for other in &others {
                engine.segment(other)?;
            }
        }
        engine.segment_into(&photo, &mut result)?;
        if result != first {
            return Err(format!("run {run} differs from the first").into());
        }
    }
    Ok(())
}

/// Two sessions of one model: weights are on the device once, each works on a stream of its own, and at once
/// they give what each gives alone.
fn check_sessions(ordinal: usize) -> Result<(), Failed> {
    let options = ModelOptions {
        name: Some("knet_s3_r50_fpn".into()),
        device: engine::Device::Cuda(ordinal),
        ..ModelOptions::default()
    };
    let model = Model::load(&options)?;
    let size = InputSize::Within(32, 64);
    let session = || Session::new(model.clone(), &SessionOptions { size, ..Default::default() });
    let device = Device::open(ordinal)?;
    let photos = [model::photo(64, 96), model::photo(50, 100)];
    let free = || device.memory().map(|(free, _)| free);

    let start = free()?;
    let mut first = session()?;
    let wanted = first.segment(&photos[0])?;
    let (one, weights) = (free()?, model.weight_bytes());
    let mut second = session()?;
    let other = second.segment(&photos[1])?;
    let two = free()?;
    assert_eq!(model.weight_bytes(), weights, "the second session has brought weights again");
    assert!(start - one > weights && weights > 50 << 20, "{} bytes for weights of {weights}", start - one);
    assert!(one - two < weights / 4, "{} bytes for a second session, weights are {weights}", one - two);

    let run = |session: &mut Session, photo: &image::RgbImage, wanted: &Segmentation| {
        (0..3).try_for_each(|time| match session.segment(photo) {
            Ok(found) if found == *wanted => Ok(()),
            Ok(_) => Err(format!("run {time} beside another session differs")),
            Err(error) => Err(error.to_string()),
        })
    };
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| run(&mut second, &photos[1], &other));
        run(&mut first, &photos[0], &wanted)?;
        beside.join().map_err(|_| "a thread panicked")??;
        Ok(())
    })
}

/// Fewer stages than the model has, told beforehand or for want of time, are a graph of their own.
fn check_stages(ordinal: usize) -> Result<(), Failed> {
    let options = ModelOptions {
        name: Some("knet_s3_lite0_fpn".into()),
        device: engine::Device::Cuda(ordinal),
        ..ModelOptions::default()
    };
    let model = Model::load(&options)?;
    let photo = model::photo(64, 96);
    let session = |stages| {
        let options = SessionOptions { stages, size: InputSize::Within(64, 96), ..Default::default() };
        Session::new(model.clone(), &options)
    };
    let (whole, first) = (session(None)?.segment(&photo)?, session(Some(1))?.segment(&photo)?);
    assert_eq!((whole.stages(), first.stages()), (3, 1));
    assert!(whole.found() != first.found(), "stages change nothing");
    let mut session = session(None)?;
    session.set_deadline(Some(Duration::ZERO));
    session.warm_up(64, 96)?;
    // Of the first frame no time is known.
    session.segment(&photo)?;
    assert!(session.segment(&photo)? == first, "no time");
    session.set_deadline(Some(Duration::from_secs(3600)));
    assert!(session.segment(&photo)? == whole, "enough time");
    Ok(())
}

/// All trials by operator, or what else the first part of their names is, with the operations of each group.
pub fn groups(ordinal: usize, emulated: bool) -> Groups {
    let mut groups = Groups::new();
    let mut add = |group: &str, flops: u64, trial: Trial| {
        let (sum, trials) = groups.entry(group.to_string()).or_default();
        *sum += flops;
        trials.push(trial);
    };
    // The emulator has run every program already; here it runs what binds them, of 32 bits and of 16.
    let precisions = if emulated { &[Precision::F32, Precision::F16][..] } else { &Precision::ALL };
    for (case, flops) in cases(emulated) {
        for &precision in precisions {
            let name = format!("{}/{}", case.full_name(), precision.name());
            let (operator, case) = (case.op.name(), case.clone());
            add(operator, flops, beside(name, move || check_case(&case, precision, ordinal)));
        }
    }
    for (case, precision) in choices().into_iter().flat_map(|case| Precision::ALL.map(|p| (case.clone(), p)))
    {
        let name = format!("tuning/{}/{}", case.name, precision.name());
        let most = if emulated { 4 } else { 1000 };
        add("tuning", 0, beside(name, move || check_candidates(&case, precision, ordinal, most)));
    }
    add("indices", 0, beside("indices/as_operands", move || check_indices(ordinal)));
    add("pipeline", 0, beside("pipeline/wide_photos", move || check_wide_photos(ordinal)));
    add("stages", 0, beside("stages/as_there_is_time", move || check_stages(ordinal)));
    add("sessions", 0, alone("sessions/share_weights", move || check_sessions(ordinal)));
    let precisions = if emulated { &[Precision::F16][..] } else { &Precision::ALL };
    for name in ["knet_s3_lite0_fpn", "knet_s3_r50_fpn_panoptic"] {
        for &precision in precisions {
            let check = move || check_determinism(name, precision, emulated);
            add("determinism", 0, beside(format!("determinism/{name}/{}", precision.name()), check));
        }
        add("on_device", 0, beside(format!("on_device/{name}"), move || check_on_device(name, ordinal)));
    }
    groups
}
