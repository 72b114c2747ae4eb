//! Loading modules: PTX is parsed, anything else is refused as a driver without a matching GPU refuses it.

use std::ffi::{CStr, c_char};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ptxemu::Instance;

use crate::driver::Driver;
use crate::emulator;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, HostPtr, In, Out, entry_points};
use crate::function::{Function, Kernel};

/// A loaded module.
pub struct Module {
    loaded: Arc<Loaded>,
    /// Kernels that were looked up, by name.
    functions: Vec<(String, Handle)>,
}

/// The module's code and variables; kernels that are queued hold it too, and find it empty once it is
/// unloaded.
pub struct Loaded(Mutex<Option<Instance>>);

impl Loaded {
    /// The instance, `None` once it is unloaded.
    pub fn instance(&self) -> MutexGuard<'_, Option<Instance>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const ELF: [u8; 4] = *b"\x7fELF";
const FATBIN: [u8; 4] = 0xba55_ed50_u32.to_le_bytes();
const FATBIN_WRAPPER: [u8; 4] = 0x4662_43b1_u32.to_le_bytes();

/// The PTX version that a CUDA version came with. CUDA 12.5 and 12.6 share one; from 13.0 on they go
/// together.
fn ptx_version(cuda: u32) -> (u32, u32) {
    let (major, minor) = (cuda / 1000, cuda % 1000 / 10);
    match major {
        11 => (7, minor),
        12 if minor >= 6 => (8, minor - 1),
        _ => (major.saturating_sub(4), minor),
    }
}

/// The first word after a directive, comments aside.
fn directive<'a>(ptx: &'a str, name: &str) -> Option<&'a str> {
    let lines = ptx.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    lines
        .filter_map(|line| line.strip_prefix(name))
        .find_map(|rest| rest.split([' ', '\t', ',']).find(|word| !word.is_empty()))
}

/// Refuses PTX that is newer than the driver or needs a newer GPU.
fn check_target(driver: &Driver, call: &Call, ptx: &str) -> Outcome {
    let invalid =
        |what: &str| call.refuse(CUresult::INVALID_PTX, format_args!("the PTX has no valid {what}"));
    let version = directive(ptx, ".version").and_then(|text| {
        let (major, minor) = text.split_once('.')?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let version = version.ok_or_else(|| invalid(".version"))?;
    let newest = ptx_version(driver.settings.driver_version);
    if version > newest {
        let why = format_args!(
            "PTX {}.{} is newer than this driver's {}.{}",
            version.0, version.1, newest.0, newest.1
        );
        return Err(call.refuse(CUresult::UNSUPPORTED_PTX_VERSION, why));
    }
    let target = directive(ptx, ".target").ok_or_else(|| invalid(".target"))?;
    let digits = target.strip_prefix("sm_").ok_or_else(|| invalid(".target"))?;
    let feature = digits.trim_start_matches(|c: char| c.is_ascii_digit());
    let number: u32 = digits[..digits.len() - feature.len()].parse().map_err(|_| invalid(".target"))?;
    let (major, minor) = driver.device.capability();
    let own = 10 * major + minor;
    let fits = match feature {
        // Architecture-specific code runs on that architecture alone, family-specific code on its family.
        "a" => number == own,
        "f" => number <= own && number / 10 == major,
        _ => number <= own,
    };
    if fits {
        return Ok(());
    }
    Err(call.refuse(CUresult::NO_BINARY_FOR_GPU, format_args!("PTX for {target} does not run on sm_{own}")))
}

fn load(driver: &mut Driver, call: &mut Call, place: Out<Handle>, ptx: &str) -> Outcome {
    driver.refuse_unsafe_while_capturing()?;
    check_target(driver, call, ptx)?;
    let module = ptxemu::Module::parse(ptx)
        .map_err(|error| call.refuse(CUresult::INVALID_PTX, format_args!("{error}")))?;
    let names: Vec<&str> = module.entries().map(|entry| entry.name.as_str()).collect();
    call.note(format_args!("kernels={}", names.join(",")));
    let instance = Instance::new(Arc::new(module), &driver.memory.emulated);
    let instance =
        instance.map_err(|fault| call.refuse(emulator::result_of(&fault), format_args!("{fault}")))?;
    let loaded = Arc::new(Loaded(Mutex::new(Some(instance))));
    place.set(driver.modules.add(Module { loaded, functions: Vec::new() }))
}

fn load_image(driver: &mut Driver, call: &mut Call, place: Out<Handle>, image: HostPtr) -> Outcome {
    if image.address() == 0 || place.is_null() {
        return Err(CUresult::INVALID_VALUE);
    }
    let mut magic = [0; 4];
    for (index, byte) in magic.iter_mut().enumerate() {
        // SAFETY: an image is a NUL-terminated text or a binary of more than four bytes; reading stops at a
        // NUL.
        unsafe { image.add(index).read(std::slice::from_mut(byte)) };
        if *byte == 0 {
            break;
        }
    }
    if [ELF, FATBIN, FATBIN_WRAPPER].contains(&magic) {
        let why = format_args!(
            "this is GPU machine code; only PTX runs here (KNET_CUDA_CODE=ptx makes knet emit it)"
        );
        return Err(call.refuse(CUresult::NO_BINARY_FOR_GPU, why));
    }
    // SAFETY: the API takes an image that is not a binary for a NUL-terminated text.
    let text = unsafe { CStr::from_ptr(image.0.cast::<c_char>()) };
    let ptx = text
        .to_str()
        .map_err(|_| call.refuse(CUresult::INVALID_IMAGE, format_args!("neither PTX nor a CUDA binary")))?;
    load(driver, call, place, ptx)
}

fn lookup(driver: &mut Driver, module: Handle, name: &str) -> Outcome<Handle> {
    let state = driver.modules.get_mut(module)?;
    if let Some((_, function)) = state.functions.iter().find(|(known, _)| known == name) {
        return Ok(*function);
    }
    let entry = match &*state.loaded.instance() {
        Some(instance) => instance.module().entry(name).cloned(),
        None => None,
    };
    let kernel = Kernel { loaded: state.loaded.clone(), entry: entry.ok_or(CUresult::NOT_FOUND)?, module };
    let function = driver.functions.add(Function::new(kernel));
    state.functions.push((name.to_owned(), function));
    Ok(function)
}

fn entry_names(driver: &Driver, module: Handle) -> Outcome<Vec<String>> {
    let instance = driver.modules.get(module)?.loaded.instance();
    Ok(instance
        .iter()
        .flat_map(|instance| instance.module().entries())
        .map(|entry| entry.name.clone())
        .collect())
}

entry_points! {
    /// Loads PTX text.
    healthy fn cuModuleLoadData(module: Out<Handle>, image: HostPtr) |call, driver| {
        load_image(driver, call, module, image)
    }

    /// Loads PTX text; the options of the PTX compiler have no effect.
    healthy fn cuModuleLoadDataEx(
        module: Out<Handle>, image: HostPtr, count: u32, _options: In<u32>, _values: In<Handle>,
    ) |call, driver| {
        call.note(format_args!("options={count}"));
        load_image(driver, call, module, image)
    }

    /// Always refused: a fat binary holds machine code.
    healthy fn cuModuleLoadFatBinary(_module: Out<Handle>, _image: HostPtr) |call, _| {
        Err(call.refuse(CUresult::NO_BINARY_FOR_GPU, format_args!("fat binaries are not supported; load PTX")))
    }

    /// Loads a file of PTX text.
    healthy fn cuModuleLoad(module: Out<Handle>, path: In<c_char>) |call, driver| {
        let path = PathBuf::from(path.text()?);
        call.note(format_args!("path={}", path.display()));
        let mut image = std::fs::read(path).map_err(|_| CUresult::FILE_NOT_FOUND)?;
        image.extend([0; 4]);
        load_image(driver, call, module, HostPtr(image.as_mut_ptr().cast()))
    }

    /// Waits for everything that is queued and frees the module's variables. Kernels of it that a graph still
    /// holds fail.
    healthy fn cuModuleUnload(module: Handle) |_, driver| {
        driver.modules.get(module)?;
        driver.refuse_unsafe_while_capturing()?;
        driver.run_everything()?;
        let module = driver.modules.remove(module)?;
        for (_, function) in module.functions {
            driver.functions.remove(function)?;
        }
        let instance = module.loaded.instance().take();
        match instance {
            Some(instance) => instance.unload(&driver.memory.emulated).map_err(emulator::report_fault),
            None => Ok(()),
        }
    }

    /// A kernel by name.
    healthy fn cuModuleGetFunction(function: Out<Handle>, module: Handle, name: In<c_char>) |call, driver| {
        let name = name.text()?;
        call.note(format_args!("name={name}"));
        function.set(lookup(driver, module, &name)?)
    }

    /// Number of kernels.
    healthy fn cuModuleGetFunctionCount(count: Out<u32>, module: Handle) |_, driver| {
        count.set(entry_names(driver, module)?.len() as u32)
    }

    /// The first kernels, in the order of the text.
    healthy fn cuModuleEnumerateFunctions(functions: Out<Handle>, count: u32, module: Handle) |_, driver| {
        let names = entry_names(driver, module)?;
        for (index, name) in names.iter().take(count as usize).enumerate() {
            functions.set_at(index, lookup(driver, module, name)?)?;
        }
        Ok(())
    }

    /// Address and size of a variable.
    healthy fn cuModuleGetGlobal_v2(
        address: Out<u64>, bytes: Out<usize>, module: Handle, name: In<c_char>,
    ) |call, driver| {
        let name = name.text()?;
        call.note(format_args!("name={name}"));
        let instance = driver.modules.get(module)?.loaded.instance();
        let variable = instance.as_ref().and_then(|instance| instance.global(&name)).ok_or(CUresult::NOT_FOUND)?;
        address.offer(variable.address);
        bytes.offer(variable.bytes as usize);
        Ok(())
    }

    /// Modules are loaded at once.
    anytime fn cuModuleGetLoadingMode(mode: Out<u32>) |_, ()| {
        mode.set(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_versions_follow_the_toolkits() {
        let pairs = [
            (11080, (7, 8)),
            (12000, (8, 0)),
            (12050, (8, 5)),
            (12060, (8, 5)),
            (12080, (8, 7)),
            (12090, (8, 8)),
            (13050, (9, 5)),
        ];
        for (cuda, ptx) in pairs {
            assert_eq!(ptx_version(cuda), ptx, "CUDA {cuda}");
        }
    }

    #[test]
    fn directives_are_found_behind_comments() {
        let ptx = "//\n// .version 1.0\n.version 9.5 // newest\n.target sm_90a, debug\n";
        assert_eq!(directive(ptx, ".version"), Some("9.5"));
        assert_eq!(directive(ptx, ".target"), Some("sm_90a"));
        assert_eq!(directive(ptx, ".address_size"), None);
    }
}
