//! What all plans on one device share: compiled kernels and constants.

use super::compile::cache::{Cache, Compiled};
use super::compile::nvrtc::Nvrtc;
use super::compile::{Code, Job, bundled};
use super::device::{Device, fault};
use super::memory::DeviceBuffer;
use super::pack;
use super::selection::Selection;
use super::tune::{Scope, Table};
use crate::bundle::Bundle;
use crate::cuda::gpu::{Precision, Target};
use crate::cuda::launch::{Launch, Packing};
use crate::error::{Error, Result};
use crate::plan::Const;
use crate::plan::constants::{Constants, ParamLoader, Store};
use cudarc::driver::{DriverError, result, sys};
use rayon::prelude::*;
use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Shared memory a block may have without asking, static and dynamic together, in bytes.
const SHARED_WITHOUT_OPT_IN: u32 = 48 << 10;

/// A stream of a device, with the kernels and constants that plans have asked for so far; these it shares
/// with every runtime that was [forked](Runtime::fork) from it.
pub struct Runtime {
    device: Arc<Device>,
    selection: Selection,
    shared: Arc<Shared>,
}

/// What does not depend on a stream.
struct Shared {
    code: Code,
    cache: Cache,
    constants: Constants,
    modules: Mutex<HashMap<Job, Arc<Module>>>,
    packed: Store<(String, Packing), DeviceBuffer>,
    bundle: Option<Arc<Bundle>>,
}

/// Loaded code.
struct Module {
    device: Arc<Device>,
    handle: sys::CUmodule,
    /// Dynamic shared memory that launches of each kernel may have, in bytes, where that was asked for.
    shared: Mutex<HashMap<&'static str, u32>>,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: as above; it is only read.
unsafe impl Sync for Module {}

impl Drop for Module {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: loaded once, unloaded once; functions hold the module while they can be launched.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// A kernel ready to launch.
#[derive(Clone)]
pub(crate) struct Function {
    handle: sys::CUfunction,
    /// Keeps the code loaded.
    _module: Arc<Module>,
}

// SAFETY: a handle of the driver, which may be used from any thread.
unsafe impl Send for Function {}

impl Function {
    pub(crate) fn handle(&self) -> sys::CUfunction {
        self.handle
    }
}

impl Runtime {
    /// Starts on `device` with kernels from the user's cache. `KNET_CUDA_CODE=ptx` gives the driver PTX
    /// instead of the device's own code, for devices that this NVRTC does not know.
    ///
    /// # Errors
    /// As [`Runtime::check`].
    pub fn new(device: Device, precision: Precision, load: Box<ParamLoader>) -> Result<Runtime> {
        Runtime::check(&device)?;
        let selection = Target { caps: *device.caps(), precision }.into();
        Ok(Runtime::over(device, selection, Code::wanted()?, Constants::new(load), None))
    }

    /// Starts on `device` with the constants of a bundle and its code, which is of form `code`: nothing is
    /// packed, and neither the cache nor a compiler is asked for anything. Kernels are chosen by `selection`,
    /// as they were when the bundle was made.
    pub fn bundled(device: Device, selection: Selection, code: Code, bundle: Arc<Bundle>) -> Runtime {
        Runtime::over(device, selection, code, Constants::none(), Some(bundle))
    }

    fn over(
        device: Device,
        selection: Selection,
        code: Code,
        constants: Constants,
        bundle: Option<Arc<Bundle>>,
    ) -> Runtime {
        let shared = Shared {
            code,
            cache: Cache::user(),
            constants,
            modules: Mutex::default(),
            packed: Store::default(),
            bundle,
        };
        Runtime { selection, device: Arc::new(device), shared: Arc::new(shared) }
    }

    /// A runtime with the same kernels and constants and a stream of its own, for work that goes on beside
    /// this one's.
    ///
    /// # Errors
    /// [`Error::Cuda`] as the driver says.
    pub fn fork(&self) -> Result<Runtime> {
        let device = Arc::new(self.device.with_new_stream()?);
        Ok(Runtime { device, selection: self.selection.clone(), shared: self.shared.clone() })
    }

    /// Whether kernels for `device` can come from anywhere. NVRTC is looked for only where the cache has none
    /// for it: a cache that has all kernels of a plan needs no compiler.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown value of `KNET_CUDA_CODE`; [`Error::Cuda`] for a cache that others can
    /// write to, and if there is no NVRTC and nothing in the cache for this device.
    pub fn check(device: &Device) -> Result<()> {
        if !Cache::user().serves(device.caps().compute, Code::wanted()?)? {
            Nvrtc::get()?;
        }
        Ok(())
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What kernels are chosen for.
    pub fn target(&self) -> Target {
        self.selection.target()
    }

    /// How kernels are chosen.
    pub fn selection(&self) -> &Selection {
        &self.selection
    }

    /// What a tuning table must hold for to be of use here.
    pub fn scope(&self) -> Scope {
        Scope::new(self.device.name(), &self.target())
    }

    /// Chooses kernels by a table from now on: plans made before are not for this runtime any more.
    ///
    /// # Errors
    /// A sentence if it was measured elsewhere, in another precision or with other kernels; it is then not
    /// used.
    pub fn adopt(&mut self, table: Table) -> std::result::Result<(), String> {
        table.check(&self.scope())?;
        self.selection = Selection::tuned(self.target(), Arc::new(table));
        Ok(())
    }

    /// As [`Constants::trim`].
    pub fn trim(&self) {
        self.shared.constants.trim();
    }

    /// Bytes of the constants in device memory, which all plans share.
    pub fn constant_bytes(&self) -> usize {
        self.shared.packed.total(DeviceBuffer::len)
    }

    /// Constants on the host.
    pub(crate) fn constants(&self) -> &Constants {
        &self.shared.constants
    }

    /// Compiles, several at a time, and loads whatever `launches` need and is not loaded yet.
    pub(crate) fn load(&self, launches: &[&Launch]) -> Result<()> {
        let mut jobs: Vec<Job> = launches.iter().map(|launch| self.job(launch)).collect();
        {
            let known = lock(&self.shared.modules);
            let mut seen = std::collections::HashSet::new();
            jobs.retain(|job| !known.contains_key(job) && seen.insert(job.clone()));
        }
        let code = |job| match &self.shared.bundle {
            Some(bundle) => bundled::find(bundle, job),
            None => self.shared.cache.compile(job, Nvrtc::get),
        };
        let compiled: Vec<Compiled> = jobs.par_iter().map(code).collect::<Result<_>>()?;
        self.device.bind()?;
        for (job, compiled) in jobs.into_iter().zip(compiled) {
            let handle = self.module(&job, &compiled)?;
            let module = Arc::new(Module { device: self.device.clone(), handle, shared: Mutex::default() });
            lock(&self.shared.modules).insert(job, module);
        }
        Ok(())
    }

    /// Loads code. What the cache had of a compiler that this driver is too old for is compiled again by the
    /// one that is here.
    fn module(&self, job: &Job, compiled: &Compiled) -> Result<sys::CUmodule> {
        // SAFETY: a whole cubin, or PTX text with its final NUL, from the compiler or an entry that was
        // checked for it.
        let load = |code: &[u8]| unsafe { result::module::load_data(code.as_ptr().cast()) };
        let error = match load(&compiled.code) {
            Ok(handle) => return Ok(handle),
            Err(error) => error,
        };
        if self.shared.bundle.is_some() {
            return Err(self.refused(job, compiled, error));
        }
        match Nvrtc::get() {
            Ok(nvrtc) if compiled.entry.is_some() && is_refusal(error) => {
                let renewed = self.shared.cache.renew(job, nvrtc)?;
                load(&renewed.code).map_err(|error| self.refused(job, &renewed, error))
            }
            _ => Err(self.refused(job, compiled, error)),
        }
    }

    /// The driver's refusal of code, and what to do.
    fn refused(&self, job: &Job, compiled: &Compiled, error: DriverError) -> Error {
        let (driver, compiler) = (self.device.driver(), compiled.compiler);
        let from = compiled.entry.as_ref().map_or(String::new(), |path| format!(" from {}", path.display()));
        let remedy = match (job.code.suits(driver, compiler), &compiled.entry) {
            _ if self.shared.bundle.is_some() => {
                "update the driver, or make the bundle with an NVRTC no newer than it, named by KNET_NVRTC"
            }
            (false, _) => "update the driver, or name an NVRTC no newer than it by KNET_NVRTC",
            (true, Some(_)) => "`knet cache clear` removes it, and NVRTC compiles it again",
            (true, None) => "KNET_NVRTC names another compiler",
        };
        let ((major, minor), (by_major, by_minor)) = (driver, compiler);
        let what = format!(
            "the driver, for CUDA {major}.{minor}, does not load {}{from}, compiled by NVRTC {by_major}.{by_minor} ({remedy})",
            job.title()
        );
        fault(&what, error)
    }

    /// The loaded kernel of `launch`, which may be launched with that much shared memory from now on.
    ///
    /// # Errors
    /// [`Error::Cuda`] if the kernel is not loaded or the device cannot run the launch.
    pub(crate) fn function(&self, launch: &Launch) -> Result<Function> {
        let missing = || Error::Cuda(format!("{launch} is not loaded"));
        let module = lock(&self.shared.modules).get(&self.job(launch)).cloned().ok_or_else(missing)?;
        let name = CString::new(launch.entry).map_err(|_| missing())?;
        self.device.bind()?;
        // SAFETY: a loaded module.
        let handle = unsafe { result::module::get_function(module.handle, name) }
            .map_err(|e| fault(&format!("kernels/{} has no kernel `{}`", launch.source, launch.entry), e))?;
        self.provide_shared(&module, handle, launch)?;
        Ok(Function { handle, _module: module })
    }

    /// Checks the launch, and lets it have its shared memory. What launches of a kernel may have is an
    /// attribute of the kernel, which all of them share: it is raised, and never lowered.
    fn provide_shared(&self, module: &Module, handle: sys::CUfunction, launch: &Launch) -> Result<()> {
        use sys::CUfunction_attribute_enum as Attribute;
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES;
        // SAFETY: a function of the loaded module.
        let declared = unsafe { result::function::get_function_attribute(handle, attribute) }
            .map_err(|e| fault(&format!("{launch}: its shared memory is not known"), e))?;
        let declared = declared.max(0) as u32;
        launch.check(self.device.caps(), declared).map_err(Error::Cuda)?;
        // Held until the attribute is set: two threads may ask for the same kernel.
        let mut provided = lock(&module.shared);
        let provided = provided.entry(launch.entry).or_insert(SHARED_WITHOUT_OPT_IN.saturating_sub(declared));
        if launch.shared > *provided {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            unsafe { result::function::set_function_attribute(handle, attribute, launch.shared as i32) }
                .map_err(|e| fault(&format!("{launch}: no {} bytes of shared memory", launch.shared), e))?;
            *provided = launch.shared;
        }
        Ok(())
    }

    /// Constant `index` of a plan's `consts` on the device, copied there once.
    pub(crate) fn packed(
        &self,
        consts: &[Const],
        index: usize,
        packing: Packing,
    ) -> Result<Arc<DeviceBuffer>> {
        let Const { key, ty, .. } = &consts[index];
        self.shared.packed.get((key.clone(), packing), || {
            if let Some(bundle) = &self.shared.bundle {
                let name = pack::name(key, packing);
                let (bytes, wanted) = (bundle.bytes(&name)?, pack::packed_bytes(ty.shape, packing));
                if bytes.len() != wanted {
                    let reason = format!("{} bytes, the plan reads {wanted}", bytes.len());
                    return Err(bundle.refused(&name, reason));
                }
                return DeviceBuffer::of(&self.device, bytes, key);
            }
            let bytes = pack::pack(self.constants().constant(consts, index)?.as_ref(), packing);
            DeviceBuffer::of(&self.device, &bytes, key)
        })
    }

    fn job(&self, launch: &Launch) -> Job {
        Job {
            source: launch.source,
            defines: launch.defines.clone(),
            compute: self.device.caps().compute,
            code: self.shared.code,
        }
    }
}

/// Whether an error of loading is about the code, not about the device or its context.
fn is_refusal(error: DriverError) -> bool {
    use sys::CUresult::*;
    let of_code = [
        CUDA_ERROR_INVALID_IMAGE,
        CUDA_ERROR_INVALID_PTX,
        CUDA_ERROR_INVALID_SOURCE,
        CUDA_ERROR_NO_BINARY_FOR_GPU,
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
    ];
    of_code.contains(&error.0)
}

/// A poisoned lock only means that another thread panicked between two whole insertions.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
