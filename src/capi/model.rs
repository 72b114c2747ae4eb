//! Models.

use super::status::{Fault, guarded, knet_status};
use super::structs::{Versioned, give, handle, read, text, write};
use knet::cpu::Arithmetic;
use knet::engine::{Device, ModelOptions, WeightSource};
use knet::image::classes::Class;
use knet::model::Task;
use knet::tensor::Precision;
use knet::{Error, Model};
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

/// One mask per object; objects may overlap.
pub const KNET_TASK_INSTANCE: u32 = 1;
/// Every pixel belongs to one segment, an object or a region.
pub const KNET_TASK_PANOPTIC: u32 = 2;
/// Every pixel belongs to one class.
pub const KNET_TASK_SEMANTIC: u32 = 3;

pub(crate) fn task_code(task: Task) -> u32 {
    match task {
        Task::Instance => KNET_TASK_INSTANCE,
        Task::Panoptic => KNET_TASK_PANOPTIC,
        Task::Semantic => KNET_TASK_SEMANTIC,
    }
}

/// f16 on a GPU; on a CPU bf16 if it has AMX and `exact` is 0, else f32.
pub const KNET_PRECISION_DEFAULT: u32 = 0;
/// f32.
pub const KNET_PRECISION_F32: u32 = 1;
/// f32 in memory, multiplied as three tf32 products on tensor cores.
pub const KNET_PRECISION_TF32X3: u32 = 2;
/// f16 in memory, f32 sums. A CPU takes f32.
pub const KNET_PRECISION_F16: u32 = 3;
/// bf16 in memory, f32 sums. A CPU needs AVX-512 BF16 or AMX for it.
pub const KNET_PRECISION_BF16: u32 = 4;
/// The 8-bit integers of weights that `knet quantize` made, multiplied by AVX-VNNI, AVX-512 VNNI or AMX of a
/// CPU; the rest as by default. By default such weights are computed so where they can be.
pub const KNET_PRECISION_INT8: u32 = 5;

/// Where a model comes from and where it computes.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_model_options {
    /// sizeof(knet_model_options).
    pub struct_size: u32,
    /// A KNET_PRECISION_*.
    pub precision: u32,
    /// The file with the weights, UTF-8; or "seeded:N", random weights that are the same everywhere.
    pub weights: *const c_char,
    /// Instead of `weights`, such a file in memory. It must stay there until the model and all its sessions
    /// are closed.
    pub weights_data: *const c_void,
    /// Bytes of `weights_data`.
    pub weights_size: usize,
    /// Name of the model, for weights that do not say it; else NULL.
    pub name: *const c_char,
    /// "cpu", "cuda", "cuda:N"; "auto" or NULL: a GPU if there is one, else the CPU.
    pub device: *const c_char,
    /// Not 0: kernels of the CPU round as PyTorch's do, and are a fifth slower.
    pub exact: u32,
    /// Zero.
    pub reserved: u32,
}

// SAFETY: plain numbers and pointers, which may be NULL.
unsafe impl Versioned for knet_model_options {
    const NAME: &'static str = "knet_model_options";
    const FIRST: usize = size_of::<knet_model_options>();
}

/// What a class index means.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct knet_class {
    /// sizeof(knet_class).
    pub struct_size: u32,
    /// Category id in result files (COCO's ids have gaps).
    pub id: u32,
    /// Name for people, UTF-8. Lives as long as the model.
    pub name: *const c_char,
    /// 1 for countable objects, 0 for regions (sky, grass).
    pub is_thing: u32,
    /// Usual colour: red, green, blue, and 255.
    pub colour: [u8; 4],
}

// SAFETY: as above.
unsafe impl Versioned for knet_class {
    const NAME: &'static str = "knet_class";
    const FIRST: usize = size_of::<knet_class>();
}

/// Weights in memory, shared by any number of sessions. Opaque.
pub struct knet_model {
    pub(crate) model: Arc<Model>,
    classes: Vec<(CString, Class)>,
    device: CString,
    note: Option<CString>,
}

fn owned(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

/// Loads a model. It is written to `*model`, NULL if it cannot be loaded.
///
/// KNET_ERROR_USAGE: unknown model or device. KNET_ERROR_IO, _CHECKPOINT, _WEIGHTS: the file.
/// KNET_ERROR_NO_DEVICE: a GPU was named and cannot be used.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_open(
    options: *const knet_model_options,
    model: *mut *mut knet_model,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        unsafe {
            give(std::ptr::null_mut(), model, "model")?;
            let opened = open(&read(options)?)?;
            give(Box::into_raw(Box::new(opened)), model, "model")
        }
    })
}

/// # Safety
/// The pointers are NULL or as the header says.
unsafe fn open(options: &knet_model_options) -> Result<knet_model, Fault> {
    let knet_model_options { weights_data, weights_size, .. } = *options;
    // SAFETY: as the caller says.
    let (path, name, device) = unsafe {
        (
            text(options.weights, "knet_model_options.weights")?,
            text(options.name, "knet_model_options.name")?,
            text(options.device, "knet_model_options.device")?,
        )
    };
    let weights = match (path, weights_data.is_null()) {
        (Some(path), true) => path.parse::<WeightSource>().map_err(Fault::argument)?,
        (None, false) => {
            // SAFETY: the header asks that the bytes outlive the model and its sessions.
            let bytes = unsafe { std::slice::from_raw_parts(weights_data.cast::<u8>(), weights_size) };
            WeightSource::Embedded { name: "the weights in memory", bytes }
        }
        _ => return Err(Fault::argument("knet_model_options: give either weights or weights_data")),
    };
    let device = device.map_or(Ok(Device::Auto), str::parse::<Device>)?;
    let arithmetic = if options.exact == 0 { Arithmetic::Fast } else { Arithmetic::Exact };
    let (precision, int8) = precision(options.precision)?;
    let name = name.map(String::from);
    // With its features the library has more of them.
    #[allow(clippy::needless_update)]
    let options =
        ModelOptions { weights, name, device, precision, int8, arithmetic, ..ModelOptions::default() };
    let model = Model::load(&options)?;
    Ok(knet_model {
        classes: model.classes().into_iter().map(|class| (owned(&class.name), class)).collect(),
        device: owned(&model.device()),
        note: model.device_note().map(owned),
        model,
    })
}

/// How maps are stored by a code, `None` for the device's own; and whether integers have to be multiplied.
fn precision(code: u32) -> Result<(Option<Precision>, Option<bool>), Fault> {
    Ok(match code {
        KNET_PRECISION_DEFAULT => (None, None),
        KNET_PRECISION_F32 => (Some(Precision::F32), None),
        KNET_PRECISION_TF32X3 => (Some(Precision::Tf32x3), None),
        KNET_PRECISION_F16 => (Some(Precision::F16), None),
        KNET_PRECISION_BF16 => (Some(Precision::Bf16), None),
        KNET_PRECISION_INT8 => (None, Some(true)),
        other => {
            return Err(Fault::argument(format!(
                "knet_model_options.precision is {other}: no KNET_PRECISION_*"
            )));
        }
    })
}

/// Closes a model; NULL is allowed. Its sessions go on until they are closed themselves.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_close(model: *mut knet_model) {
    let _ = guarded(|| {
        if !model.is_null() {
            // SAFETY: made by `knet_model_open`, closed once.
            drop(unsafe { Box::from_raw(model) });
        }
        Ok(())
    });
}

/// The KNET_TASK_* that the model was made for; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_task(model: *const knet_model) -> u32 {
    // SAFETY: the handle is as the header asks.
    unsafe { model.as_ref() }.map_or(0, |model| task_code(model.model.config().task))
}

/// Where the model computes, for people: the GPU's name and the precision, or the CPU's instruction set.
/// Lives as long as the model; empty for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_device(model: *const knet_model) -> *const c_char {
    // SAFETY: as above.
    unsafe { model.as_ref() }.map_or(c"".as_ptr(), |model| model.device.as_ptr())
}

/// Why device "auto" took the CPU; NULL if it did not, or a device was named. Lives as long as the model.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_device_note(model: *const knet_model) -> *const c_char {
    // SAFETY: as above.
    let note = unsafe { model.as_ref() }.and_then(|model| model.note.as_ref());
    note.map_or(std::ptr::null(), |note| note.as_ptr())
}

/// Number of classes; 0 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_class_count(model: *const knet_model) -> u32 {
    // SAFETY: as above.
    unsafe { model.as_ref() }.map_or(0, |model| model.classes.len() as u32)
}

/// What the class of this index, from 0, means.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn knet_model_class(
    model: *const knet_model,
    index: u32,
    class: *mut knet_class,
) -> knet_status {
    guarded(|| {
        // SAFETY: the pointers are as the header asks.
        let model = unsafe { handle(model, "model") }?;
        let Some((name, found)) = model.classes.get(index as usize) else {
            let count = model.classes.len();
            return Err(Error::usage(format!("class {index}: the model has {count} classes")).into());
        };
        let [red, green, blue] = found.colour;
        let value = knet_class {
            struct_size: 0,
            id: found.id,
            name: name.as_ptr(),
            is_thing: u32::from(found.is_thing),
            colour: [red, green, blue, 255],
        };
        // SAFETY: as above.
        unsafe { write(value, class) }
    })
}
