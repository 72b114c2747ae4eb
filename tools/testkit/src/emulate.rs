//! Runs plans for a GPU on the PTX emulator, launch by launch, without a driver: every value in an allocation
//! of its own, so that a kernel that strays by one byte is caught.

use crate::root;
use knet::cuda::cache::Cache;
use knet::cuda::gpu::{Caps, Precision, Target};
use knet::cuda::launch::{Arg, Launch, Packing, Program};
use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use knet::cuda::pack::{pack, unpack};
use knet::cuda::post::MaskLogits;
use knet::cuda::pre::{FORMATS, Preprocess};
use knet::cuda::{Plan, ops, select, stored};
use knet::dist::Share;
use knet::graph::Graph;
use knet::graph::passes::{DropRates, optimize};
use knet::image::instance::InstanceConfig;
use knet::image::panoptic::PanopticConfig;
use knet::image::preprocess::Geometry;
use knet::model::{Config, TapMode, build};
use knet::ops::ValueType;
use knet::plan::arena::Slot;
use knet::plan::constants::Constants;
use knet::plan::{Operand, Place, Site, Step};
use knet::task::boxes::gpu::{self as boxes, Detected};
use knet::task::instance::gpu as instance;
use knet::task::panoptic::gpu as panoptic;
use knet::task::semantic::gpu as semantic;
use knet::tensor::{DType, Tensor};
use knet::train::network::{LossWeights, TrainSpec, build_training};
use knet::train::optimizer::AdamWConfig;
use ptxemu::{Instance, Memory, Module, Options, Report};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock};

/// The smallest device the kernels are for: what runs there runs on later ones.
pub const CAPS: Caps = Caps {
    compute: (8, 0),
    multiprocessors: 4,
    shared_per_block: 166_912,
    shared_per_multiprocessor: 167_936,
    l2_bytes: 40 << 20,
    clock_mhz: 1410,
    bandwidth_gbs: 1555,
};

/// The plan of `graph` for that device.
pub fn plan(graph: &Graph, precision: Precision) -> knet::error::Result<Plan> {
    let target = Target { caps: CAPS, precision };
    Plan::build(graph, |_, ty| stored(target)(ty), select(target))
}

/// The compiler of suites: what `KNET_NVRTC` names, else what `tools/setup-cuda` installed, else what a
/// program would find.
pub fn nvrtc() -> knet::error::Result<&'static Nvrtc> {
    static INSTALLED: OnceLock<Option<Nvrtc>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let path = root().join("target/cuda/nvidia/cu13/lib/libnvrtc.so.13");
        let named = std::env::var_os("KNET_NVRTC").is_some_and(|named| !named.is_empty());
        if named { None } else { Nvrtc::open(&path).ok() }
    });
    installed.as_ref().map_or_else(Nvrtc::get, Ok)
}

/// What a compiler made for suites, which share it in `target/tmp`, one folder a version.
pub fn cache(nvrtc: &Nvrtc) -> Cache {
    let (major, minor) = nvrtc.version();
    Cache::at(root().join(format!("target/tmp/kernels-{major}.{minor}")))
}

/// What NVRTC makes of `job`.
///
/// # Errors
/// Without NVRTC, and if it does not compile.
pub fn ptx(job: &Job) -> knet::error::Result<Vec<u8>> {
    let nvrtc = nvrtc()?;
    Ok(cache(nvrtc).compile(job, || Ok(nvrtc))?.code)
}

/// The PTX of a launch's source, compiled and parsed once a process.
pub fn module(launch: &Launch) -> Result<Arc<Module>, String> {
    type Known = Mutex<HashMap<Job, Arc<Module>>>;
    static KNOWN: OnceLock<Known> = OnceLock::new();
    let job = Job {
        source: launch.source,
        defines: launch.defines.clone(),
        compute: CAPS.compute,
        code: Code::Ptx,
    };
    let known = KNOWN.get_or_init(Known::default);
    if let Some(module) = known.lock().unwrap().get(&job) {
        return Ok(module.clone());
    }
    let ptx = ptx(&job).map_err(|e| e.to_string())?;
    let text = std::str::from_utf8(&ptx).map_err(|e| e.to_string())?.trim_end_matches('\0');
    let module = Arc::new(Module::parse(text).map_err(|e| format!("{}: {e}", launch.source))?);
    known.lock().unwrap().insert(job, module.clone());
    Ok(module)
}

/// A run: the results as floats.
pub struct Run<'a> {
    /// What is run.
    pub plan: &'a Plan,
    /// Values of the plan's constants.
    pub constants: &'a Constants,
    /// How the emulator runs.
    pub config: ptxemu::Config,
}

impl Run<'_> {
    /// Runs the plan over these inputs and gives its results.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Vec<f32>>, String> {
        let memory = Memory::new(Options::default()).map_err(|e| e.to_string())?;
        let mut state = State { run: self, memory, live: HashMap::new(), constants: HashMap::new() };
        for ((name, operand), tensor) in self.plan.inputs.iter().zip(inputs) {
            let bytes = pack(tensor, Packing::plain(operand.ty.dtype));
            state.define(operand, name)?;
            let Place::Arena(slot) = operand.place else { return Err("an input is no constant".into()) };
            state.write(state.live[&slot], &bytes)?;
        }
        for step in &self.plan.steps {
            state.step(step)?;
        }
        self.plan.outputs.iter().map(|(_, operand)| state.read(operand)).collect()
    }
}

struct State<'a> {
    run: &'a Run<'a>,
    memory: Memory,
    /// Address of the value that now occupies each slot of the arena.
    live: HashMap<Slot, u64>,
    constants: HashMap<(usize, Packing), u64>,
}

impl State<'_> {
    fn define(&mut self, operand: &Operand, name: &str) -> Result<(), String> {
        if let Place::Arena(slot) = operand.place {
            let address = self.memory.alloc(slot.bytes as u64, name).map_err(|e| e.to_string())?;
            if let Some(old) = self.live.insert(slot, address) {
                self.memory.free(old).map_err(|e| e.to_string())?;
            }
        }
        Ok(())
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), String> {
        if bytes.is_empty() { Ok(()) } else { self.memory.write(address, bytes).map_err(|e| e.to_string()) }
    }

    fn read(&self, operand: &Operand) -> Result<Vec<f32>, String> {
        match operand.place {
            Place::Const(index) => {
                let tensor =
                    self.run.constants.constant(&self.run.plan.consts, index).map_err(|e| e.to_string())?;
                Ok(tensor.data().to_vec())
            }
            Place::Arena(slot) => {
                let mut bytes = vec![0; operand.ty.bytes()];
                if !bytes.is_empty() {
                    self.memory.read(self.live[&slot], &mut bytes).map_err(|e| e.to_string())?;
                }
                Ok(unpack(&bytes, operand.ty.dtype))
            }
        }
    }

    fn constant(&mut self, index: usize, packing: Packing) -> Result<u64, String> {
        if let Some(&known) = self.constants.get(&(index, packing)) {
            return Ok(known);
        }
        let plan = self.run.plan;
        let tensor = self.run.constants.constant(&plan.consts, index).map_err(|e| e.to_string())?;
        let bytes = pack(&tensor, packing);
        let key = &plan.consts[index].key;
        let address = self.memory.alloc(bytes.len() as u64, key).map_err(|e| e.to_string())?;
        self.write(address, &bytes)?;
        self.constants.insert((index, packing), address);
        Ok(address)
    }

    fn step(&mut self, step: &Step<Program>) -> Result<(), String> {
        let program = &step.program;
        // Results may take the slot of a value that is read last here only if the planner let them overlap:
        // it does not.
        for output in &step.outputs {
            self.define(output, &step.name)?;
        }
        let mut inputs = Vec::new();
        for (index, operand) in step.inputs.iter().enumerate() {
            inputs.push(match operand.place {
                Place::Arena(slot) => self.live[&slot],
                Place::Const(constant) => self.constant(constant, program.packing_of(index))?,
            });
        }
        let address = |operand: &Operand| match operand.place {
            Place::Arena(slot) => Ok(self.live[&slot]),
            Place::Const(_) => Err("a result is no constant".to_string()),
        };
        let outputs = step.outputs.iter().map(address).collect::<Result<Vec<u64>, String>>()?;
        run_program(program, &inputs, &outputs, &self.memory, &self.run.config)?;
        Ok(())
    }
}

/// Runs the launches of `program` over operands and results at these addresses.
pub fn run_program(
    program: &Program,
    inputs: &[u64],
    outputs: &[u64],
    memory: &Memory,
    config: &ptxemu::Config,
) -> Result<Report, String> {
    let mut report = Report::default();
    let workspace = match program.workspace {
        0 => None,
        bytes => Some(memory.alloc(bytes as u64, "workspace").map_err(|e| e.to_string())?),
    };
    let operands = Operands { inputs, outputs, workspace };
    for launch in &program.launches {
        report.merge(&run_launch(launch, &operands, memory, config)?);
    }
    if let Some(address) = workspace {
        memory.free(address).map_err(|e| e.to_string())?;
    }
    Ok(report)
}

/// Where a program's operands, results and workspace lie.
pub struct Operands<'a> {
    /// Addresses of the operands.
    pub inputs: &'a [u64],
    /// Addresses of the results.
    pub outputs: &'a [u64],
    /// Address of the workspace, if the program has one.
    pub workspace: Option<u64>,
}

/// Runs one launch.
pub fn run_launch(
    launch: &Launch,
    operands: &Operands,
    memory: &Memory,
    config: &ptxemu::Config,
) -> Result<Report, String> {
    let module = module(launch)?;
    let entry = module.entry(launch.entry).ok_or_else(|| format!("no kernel in {launch}"))?.clone();
    launch.check(&CAPS, entry.static_shared)?;
    if entry.params.len() != launch.args.len() {
        let (has, given) = (entry.params.len(), launch.args.len());
        return Err(format!("{launch}: {has} parameters, {given} arguments"));
    }
    let mut address = |arg: &Arg| match arg {
        Arg::Input(i) => Ok(operands.inputs[*i]),
        Arg::Output(i) => Ok(operands.outputs[*i]),
        Arg::Workspace(offset) => {
            let base = operands.workspace.ok_or_else(|| format!("{launch}: no workspace"))?;
            Ok(base + *offset as u64)
        }
        Arg::Null | Arg::Struct(_) | Arg::Table(_) => Err(format!("{launch}: no pointer")),
    };
    let mut params = vec![0u8; entry.param_bytes as usize];
    let mut tables = Vec::new();
    for (param, arg) in entry.params.iter().zip(&launch.args) {
        let bytes = match arg {
            Arg::Struct(bytes) => bytes.clone(),
            Arg::Table(args) => {
                let mut words = Vec::new();
                for arg in args {
                    words.extend(arg.words(&mut address)?);
                }
                let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let table = memory.alloc(bytes.len() as u64, "table").map_err(|e| e.to_string())?;
                memory.write(table, &bytes).map_err(|e| e.to_string())?;
                tables.push(table);
                table.to_le_bytes().to_vec()
            }
            other => other.words(&mut address)?[0].to_le_bytes().to_vec(),
        };
        if bytes.len() != param.size as usize {
            let (has, given) = (param.size, bytes.len());
            return Err(format!("{launch}: `{}` has {has} bytes, was given {given}", param.name));
        }
        params[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    let instance = Instance::new(module, memory).map_err(|e| e.to_string())?;
    let geometry = ptxemu::Launch {
        grid: launch.grid,
        block: launch.block,
        dynamic_shared: launch.shared,
        params: &params,
    };
    let report = ptxemu::launch(&instance, launch.entry, &geometry, memory, config)
        .map_err(|e| format!("{launch}: {e}"))?;
    instance.unload(memory).map_err(|e| e.to_string())?;
    tables.into_iter().try_for_each(|table| memory.free(table)).map_err(|e| e.to_string())?;
    Ok(report)
}

/// `tensor` rounded to what the device stores.
pub fn rounded(tensor: &Tensor, dtype: DType) -> Tensor {
    Tensor::new(tensor.shape(), unpack(&pack(tensor, Packing::plain(dtype)), dtype))
}

/// A kernel as it is compiled and launched.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Variant {
    /// Name of the source.
    pub source: &'static str,
    /// Name of the function.
    pub entry: &'static str,
    /// Macros it is compiled with.
    pub defines: Vec<(&'static str, i64)>,
    /// Threads of a block.
    pub threads: u32,
    /// Most dynamic shared memory it is launched with.
    pub shared: u32,
    /// Whether a model asks for it, not only a case.
    pub of_model: bool,
}

/// Every kernel variant that the cases of the operators, the models, pre- and post-processing ask for, in
/// every precision, once each.
pub fn variants() -> Vec<Variant> {
    let mut found = BTreeMap::new();
    let mut add = |launch: &Launch, model: bool| {
        let key = (launch.source, launch.entry, launch.defines.clone());
        let threads = launch.block.iter().product();
        let most: &mut (u32, u32, bool) = found.entry(key).or_default();
        *most = (most.0.max(threads), most.1.max(launch.shared), most.2 || model);
    };
    let targets = [CAPS, Caps::H100]
        .into_iter()
        .flat_map(|caps| Precision::ALL.map(|precision| Target { caps, precision }));
    for target in targets {
        for case in knet::ops::all_cases() {
            let Ok(outputs) = case.op.infer(&case.inputs) else { continue };
            for constants in [true, false] {
                let constant: Vec<bool> = (0..case.inputs.len()).map(|i| constants && i > 0).collect();
                let place = |(i, &ty): (usize, &ValueType)| if constant[i] { ty } else { stored(target)(ty) };
                let inputs: Vec<ValueType> = case.inputs.iter().enumerate().map(place).collect();
                let outputs: Vec<ValueType> = outputs.iter().map(|&ty| stored(target)(ty)).collect();
                let site = Site { op: &case.op, inputs: &inputs, constant: &constant, outputs: &outputs };
                let Ok(program) = ops::program(&site, &target) else { continue };
                program.launches.iter().for_each(|launch| add(launch, false));
            }
        }
        // A GPU trains with cases' kernels, of other widths here and there; they are held to what cases are.
        let plan = knet::cuda::plan(&training_graph(), target).expect("a plan");
        plan.steps.iter().flat_map(|step| &step.program.launches).for_each(|launch| add(launch, false));
        for (name, size) in MODELS {
            let config = Config::named(name).expect("a model of ours");
            let network = build(&config, 1, size, TapMode::Off).expect("a size it takes");
            let graph = optimize(network.graph).expect("a sound graph");
            let plan = knet::cuda::plan(&graph, target).expect("a plan");
            // What models ask for on the emulated device, which nobody has, is held to as little as cases
            // are.
            for step in &plan.steps {
                step.program.launches.iter().for_each(|launch| add(launch, target.caps == Caps::H100));
            }
        }
    }
    for dtype in Precision::ALL.map(Precision::storage) {
        image_launches(dtype).iter().for_each(|launch| add(launch, true));
    }
    let variant = |((source, entry, defines), (threads, shared, of_model))| Variant {
        source,
        entry,
        defines,
        threads,
        shared,
        of_model,
    };
    found.into_iter().map(variant).collect()
}

/// A training step of `knet_s3_r50_fpn_panoptic`, as upstream freezes it, over two images of 800 x 1344.
pub fn training_graph() -> Graph {
    let spec = TrainSpec {
        config: &Config::named("knet_s3_r50_fpn_panoptic").expect("a model of ours"),
        batch: 2,
        size: [800, 1344],
        max_objects: 12,
        weights: LossWeights::default(),
        frozen: &["backbone.conv1.", "backbone.bn1.", "backbone.layer1."].map(String::from),
        train_batch_norm: false,
        dropout: DropRates::default(),
        seed: 0,
        optimizer: Some(&AdamWConfig::default()),
        accumulate: 1,
        recompute: 0,
        share: Share::ALONE,
    };
    build_training(&spec).expect("a training step").graph
}

/// Models and sizes of input whose kernels are gated.
const MODELS: [(&str, [usize; 2]); 8] = [
    ("knet_s3_r50_fpn", [800, 1344]),
    ("knet_s3_r50_fpn", [128, 192]),
    ("knet_s3_r101_fpn", [800, 1344]),
    ("knet_s3_r50_fpn_panoptic", [800, 1344]),
    ("knet_s3_r101_dcn_panoptic", [800, 1344]),
    ("knet_s3_lite0_fpn", [320, 320]),
    ("mask_rcnn_r50_fpn", [800, 1344]),
    ("cascade_mask_rcnn_r50_fpn", [800, 1344]),
];

/// Pre- and post-processing of a small photo.
fn image_launches(dtype: DType) -> Vec<Launch> {
    let (original, resized, padded) = ((20, 30), (40, 60), (64, 64));
    let preprocess = FORMATS.map(|format| {
        let (mean, std) = ([0.0; 3], [1.0; 3]);
        Preprocess { format, source: original, pitch: 120, resized, padded, mean, std }.launch(dtype)
    });
    let logits = MaskLogits { objects: 4, size: (8, 8), dtype, padded, resized, original };
    let target = Target { caps: CAPS, precision: Precision::F16 };
    let ranked = [false, true].map(|mask_score| {
        let config = InstanceConfig { max_per_image: 3, proposals: 4, things: 5, mask_score, min_score: 0.0 };
        instance::launches(&logits, 5, &config, &target)
    });
    let config = PanopticConfig { proposals: 2, things: 5, stuff: 2, ..PanopticConfig::default() };
    let semantic = [false, true].map(|confidence| semantic::launches(&logits, confidence));
    let geometry = Geometry { original, resized, padded };
    let detected = Detected { places: 3, classes: 5, mask_size: (28, 28), dtype };
    let pasted = boxes::launches(&detected, &geometry, 0.0);
    let posts = ranked.into_iter().chain([panoptic::launches(&logits, &config), pasted]).chain(semantic);
    let postprocess = posts.flat_map(|post| post.expect("sizes fit").program.launches);
    preprocess.into_iter().map(|launch| launch.expect("sizes fit")).chain(postprocess).collect()
}
