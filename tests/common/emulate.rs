//! Runs plans for a GPU on the PTX emulator, launch by launch, without a driver: every value in an allocation of its own,
//! so that a kernel that strays by one byte is caught.

use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use knet::cuda::pack::{pack, unpack};
use knet::cuda::post::{self, MaskLogits};
use knet::cuda::pre::{PixelFormat, Preprocess, YuvMatrix};
use knet::cuda::{ops, select, stored};
use knet::graph::Graph;
use knet::ops::ValueType;
use knet::plan::arena::Slot;
use knet::plan::constants::Constants;
use knet::plan::launch::{Arg, Caps, Launch, Packing, Precision, Program, Target};
use knet::plan::{Operand, Place, Plan, Site};
use knet::tensor::{DType, Tensor};
use ptxemu::{Config, Instance, Memory, Module, Options};
use std::collections::HashMap;
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
    Plan::build_stored(graph, stored(target), select(target))
}

/// What a step runs.
pub fn program(step: &knet::plan::Step, precision: Precision) -> Program {
    let types = |operands: &[Operand]| operands.iter().map(|o| o.ty).collect::<Vec<ValueType>>();
    let constant: Vec<bool> = step.inputs.iter().map(|o| matches!(o.place, Place::Const(_))).collect();
    let (inputs, outputs) = (types(&step.inputs), types(&step.outputs));
    let site = Site { op: &step.op, inputs: &inputs, constant: &constant, outputs: &outputs };
    ops::program(&site, &Target { caps: CAPS, precision }).expect("the plan chose it")
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
    let ptx = Nvrtc::get().and_then(|nvrtc| nvrtc.compile(&job)).map_err(|e| e.to_string())?;
    let text = std::str::from_utf8(&ptx).map_err(|e| e.to_string())?.trim_end_matches('\0');
    let module = Arc::new(Module::parse(text).map_err(|e| format!("{}: {e}", launch.source))?);
    known.lock().unwrap().insert(job, module.clone());
    Ok(module)
}

/// A run: the results as floats.
pub struct Run<'a> {
    pub plan: &'a Plan,
    pub constants: &'a Constants,
    pub precision: Precision,
    pub config: Config,
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
                let tensor = self.run.constants.constant(self.run.plan, index).map_err(|e| e.to_string())?;
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
        let tensor = self.run.constants.constant(plan, index).map_err(|e| e.to_string())?;
        let bytes = pack(&tensor, packing);
        let key = &plan.consts[index].key;
        let address = self.memory.alloc(bytes.len() as u64, key).map_err(|e| e.to_string())?;
        self.write(address, &bytes)?;
        self.constants.insert((index, packing), address);
        Ok(address)
    }

    fn step(&mut self, step: &knet::plan::Step) -> Result<(), String> {
        let program = program(step, self.run.precision);
        // Results may take the slot of a value that is read last here only if the planner let them overlap: it does not.
        for output in &step.outputs {
            self.define(output, &step.name)?;
        }
        let workspace = match program.workspace {
            0 => None,
            bytes => Some(self.memory.alloc(bytes as u64, "workspace").map_err(|e| e.to_string())?),
        };
        for launch in &program.launches {
            launch.check(&CAPS)?;
            let module = module(launch)?;
            let entry = module.entry(launch.entry).ok_or_else(|| format!("no kernel in {launch}"))?.clone();
            if entry.params.len() != launch.args.len() {
                let (has, given) = (entry.params.len(), launch.args.len());
                return Err(format!("{launch}: {has} parameters, {given} arguments"));
            }
            let mut params = vec![0u8; entry.param_bytes as usize];
            for (param, arg) in entry.params.iter().zip(&launch.args) {
                let address = |operand: &Operand| match operand.place {
                    Place::Arena(slot) => Ok(self.live[&slot]),
                    Place::Const(_) => Err("a result is no constant".to_string()),
                };
                let bytes = match arg {
                    Arg::Input(i) => match step.inputs[*i].place {
                        Place::Arena(_) => address(&step.inputs[*i])?,
                        Place::Const(index) => self.constant(index, program.packing_of(*i))?,
                    }
                    .to_le_bytes()
                    .to_vec(),
                    Arg::Output(i) => address(&step.outputs[*i])?.to_le_bytes().to_vec(),
                    Arg::Workspace(offset) => {
                        let base = workspace.ok_or_else(|| format!("{launch}: no workspace"))?;
                        (base + *offset as u64).to_le_bytes().to_vec()
                    }
                    Arg::Null => vec![0; 8],
                    Arg::Struct(bytes) => bytes.clone(),
                };
                if bytes.len() != param.size as usize {
                    let (has, given) = (param.size, bytes.len());
                    return Err(format!("{launch}: `{}` has {has} bytes, was given {given}", param.name));
                }
                params[param.offset as usize..][..bytes.len()].copy_from_slice(&bytes);
            }
            let instance = Instance::new(module, &self.memory).map_err(|e| e.to_string())?;
            let geometry = ptxemu::Launch {
                grid: launch.grid,
                block: launch.block,
                dynamic_shared: launch.shared,
                params: &params,
            };
            ptxemu::launch(&instance, launch.entry, &geometry, &self.memory, &self.run.config)
                .map_err(|e| format!("{launch}: {e}"))?;
            instance.unload(&self.memory).map_err(|e| e.to_string())?;
        }
        if let Some(address) = workspace {
            self.memory.free(address).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

/// `tensor` rounded to what the device stores.
pub fn rounded(tensor: &Tensor, dtype: DType) -> Tensor {
    Tensor::new(tensor.shape(), unpack(&pack(tensor, Packing::plain(dtype)), dtype))
}

/// A source and its defines.
pub type Variant = (&'static str, Vec<(&'static str, i64)>);

/// Every kernel variant that the cases of the operators, pre- and post-processing ask for, in every precision, once each.
pub fn variants() -> Vec<Variant> {
    let mut found = std::collections::BTreeSet::new();
    for case in knet::ops::all_cases() {
        let Ok(outputs) = case.op.infer(&case.inputs) else { continue };
        for precision in Precision::ALL {
            let target = Target { caps: CAPS, precision };
            for constants in [true, false] {
                let constant: Vec<bool> = (0..case.inputs.len()).map(|i| constants && i > 0).collect();
                let place = |(i, &ty): (usize, &ValueType)| if constant[i] { ty } else { stored(target)(ty) };
                let inputs: Vec<ValueType> = case.inputs.iter().enumerate().map(place).collect();
                let outputs: Vec<ValueType> = outputs.iter().map(|&ty| stored(target)(ty)).collect();
                let site = Site { op: &case.op, inputs: &inputs, constant: &constant, outputs: &outputs };
                let Ok(program) = ops::program(&site, &target) else { continue };
                found.extend(program.launches.into_iter().map(|launch| (launch.source, launch.defines)));
            }
        }
    }
    for dtype in Precision::ALL.map(Precision::storage) {
        found.extend(image_launches(dtype).into_iter().map(|launch| (launch.source, launch.defines)));
    }
    found.into_iter().collect()
}

/// Pre- and post-processing of a small photo.
fn image_launches(dtype: DType) -> Vec<Launch> {
    let (original, resized, padded) = ((20, 30), (40, 60), (64, 64));
    let formats = [PixelFormat::Rgb8, PixelFormat::Bgr8, PixelFormat::Nv12(YuvMatrix::Bt601)];
    let preprocess = formats.map(|format| {
        let (mean, std) = ([0.0; 3], [1.0; 3]);
        Preprocess { format, source: original, pitch: 90, resized, padded, mean, std }.launch(dtype)
    });
    let logits = MaskLogits { objects: 4, size: (8, 8), dtype, padded, resized, original };
    let programs = [post::instance_masks(&logits, 3), post::panoptic(&logits, 2, 5, 2)];
    let postprocess = programs.into_iter().flat_map(|program| program.expect("sizes fit").launches);
    preprocess.into_iter().map(|launch| launch.expect("sizes fit")).chain(postprocess).collect()
}
