//! Where NVRTC is looked for. In this order, and of each place the newest version first:
//!
//! 1. the file that `KNET_NVRTC` names: then there is no other place;
//! 2. beside the executable;
//! 3. the CUDA toolkit: `CUDA_PATH`, `CUDA_HOME`, `/usr/local/cuda`, `/usr/local/cuda-*`;
//! 4. the `site-packages` (`dist-packages`) of Python, where `nvidia/cu13/lib` and `nvidia/cuda_nvrtc/lib`
//!    are what PyTorch and `pip install nvidia-cuda-nvrtc` bring: `VIRTUAL_ENV`, `CONDA_PREFIX`, the prefix
//!    of each `python3` on the path, the user's own. No Python is run;
//! 5. the loader's path.
//!
//! Every place is an absolute path: a relative one in a variable is ignored (in `KNET_NVRTC` it is an error),
//! as the code of whatever folder one happens to stand in must not run.

use super::nvrtc::Nvrtc;
use std::collections::HashSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What to do, for messages.
const REMEDY: &str = "install it (CUDA toolkit 12.0 or later, or `pip install nvidia-cuda-nvrtc` in the active Python environment), or \
                      name the file of a 64-bit libnvrtc by KNET_NVRTC";

/// What the search depends on.
struct Surroundings<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
    executable: Option<PathBuf>,
    /// Where toolkits are installed.
    toolkits: &'a Path,
}

/// The first candidate that compiles, or why none does.
pub(super) fn find() -> Result<Nvrtc, String> {
    let surroundings = Surroundings {
        variable: &|name| std::env::var_os(name),
        executable: std::env::current_exe().ok(),
        toolkits: Path::new("/usr/local"),
    };
    first_that_works(surroundings.candidates()?)
}

/// The files called `name` in the folder `within` of the `site-packages` of Python, best first.
pub(in crate::cuda) fn in_python(within: &str, name: &str) -> Vec<PathBuf> {
    let surroundings = Surroundings {
        variable: &|name| std::env::var_os(name),
        executable: None,
        toolkits: Path::new("/usr/local"),
    };
    let files = surroundings.site_packages().into_iter().map(|packages| packages.join(within).join(name));
    files.filter(|file| file.is_absolute() && file.is_file()).collect()
}

fn first_that_works(candidates: Vec<PathBuf>) -> Result<Nvrtc, String> {
    let mut tried = String::new();
    for path in candidates {
        match Nvrtc::load(&path) {
            Ok(nvrtc) => return Ok(nvrtc),
            Err(reason) => tried += &format!("\n  {}: {reason}", path.display()),
        }
    }
    if tried.is_empty() {
        tried = " nothing: no place has such a file, and the loader is not asked, as LD_LIBRARY_PATH has an empty or relative part".into();
    }
    Err(format!("no NVRTC, the compiler of CUDA kernels, that works: {REMEDY}; tried:{tried}"))
}

impl Surroundings<'_> {
    /// Files that may be NVRTC, best first; bare names are for the loader.
    fn candidates(&self) -> Result<Vec<PathBuf>, String> {
        if let Some(named) = (self.variable)("KNET_NVRTC").filter(|named| !named.is_empty()) {
            let named = PathBuf::from(named);
            return match named.is_absolute() {
                true => Ok(vec![named]),
                false => Err(format!("no NVRTC: KNET_NVRTC={} is no absolute path", named.display())),
            };
        }
        let names: &[&str] = if cfg!(windows) {
            &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll", "nvrtc64_112_0.dll"]
        } else {
            &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"]
        };
        let mut folders: Vec<PathBuf> =
            self.executable.iter().filter_map(|path| path.parent()).map(PathBuf::from).collect();
        for root in self.toolkits() {
            folders.extend(["lib64", "lib", "bin"].map(|folder| root.join(folder)));
        }
        for packages in self.site_packages() {
            for wheel in ["cu13", "cuda_nvrtc"] {
                folders.extend(["lib", "bin"].map(|folder| packages.join("nvidia").join(wheel).join(folder)));
            }
        }
        // The loader's own first part, which it would follow to the working directory.
        let loader = self.paths("LD_LIBRARY_PATH");
        folders.extend(loader.iter().filter(|path| path.is_absolute()).cloned());
        let mut seen = HashSet::new();
        let mut found: Vec<PathBuf> = folders
            .iter()
            .filter(|folder| folder.is_absolute())
            .flat_map(|folder| names.iter().map(move |name| folder.join(name)))
            .filter(|path| std::fs::canonicalize(path).is_ok_and(|file| seen.insert(file)))
            .collect();
        if loader.iter().all(|path| path.is_absolute()) {
            found.extend(names.iter().map(PathBuf::from));
        }
        Ok(found)
    }

    /// An absolute path in a variable.
    fn folder(&self, name: &str) -> Option<PathBuf> {
        (self.variable)(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// A list of folders in a variable.
    fn paths(&self, name: &str) -> Vec<PathBuf> {
        (self.variable)(name)
            .filter(|list| !list.is_empty())
            .map_or(Vec::new(), |list| std::env::split_paths(&list).collect())
    }

    fn toolkits(&self) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> =
            ["CUDA_PATH", "CUDA_HOME"].iter().filter_map(|name| self.folder(name)).collect();
        roots.push(self.toolkits.join("cuda"));
        roots.extend(versions(self.toolkits, "cuda-"));
        roots
    }

    fn site_packages(&self) -> Vec<PathBuf> {
        let mut prefixes: Vec<PathBuf> =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(|name| self.folder(name)).collect();
        for folder in self.paths("PATH").into_iter().filter(|folder| folder.is_absolute()) {
            let python = folder.join("python3");
            // Of a link, such as a virtual environment has, both ends.
            let real = std::fs::canonicalize(&python);
            let places = real.is_ok().then_some(python).into_iter().chain(real);
            prefixes.extend(places.filter_map(|path| Some(path.parent()?.parent()?.to_path_buf())));
        }
        prefixes.extend(self.folder("HOME").map(|home| home.join(".local")));
        let mut found = Vec::new();
        for prefix in prefixes {
            if cfg!(windows) {
                found.push(prefix.join("Lib/site-packages"));
            }
            // Debian keeps what pip installs for the whole machine in a prefix below.
            for lib in [prefix.join("lib"), prefix.join("local/lib")] {
                for python in versions(&lib, "python3") {
                    found.extend(["site-packages", "dist-packages"].map(|packages| python.join(packages)));
                }
            }
        }
        found
    }
}

/// The entries of `folder` whose names are `prefix` and a version, newest first.
fn versions(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<(Vec<u32>, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('.');
            let numbers = version.split('.').filter(|part| !part.is_empty());
            Some((numbers.map(|part| part.parse().ok()).collect::<Option<Vec<u32>>>()?, entry.path()))
        })
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, path)| path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::fs;

    /// Candidates below `root` that are files, relative to it, and whether the loader is asked at the end.
    fn search(root: &Path, executable: Option<&str>, variables: &[(&str, String)]) -> (Vec<String>, bool) {
        let variables: HashMap<&str, &String> =
            variables.iter().map(|(name, value)| (*name, value)).collect();
        let surroundings = Surroundings {
            variable: &|name| variables.get(name).map(OsString::from),
            executable: executable.map(|path| root.join(path)),
            toolkits: &root.join("local"),
        };
        let found = surroundings.candidates().unwrap();
        let (files, names): (Vec<_>, Vec<_>) = found.into_iter().partition(|path| path.is_absolute());
        let relative = |path: &PathBuf| path.strip_prefix(root).unwrap().to_str().unwrap().to_string();
        (files.iter().map(relative).collect(), !names.is_empty())
    }

    fn touch(root: &Path, file: &str) {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::write(root.join(file), "").unwrap();
    }

    #[test]
    #[cfg(unix)]
    fn places_are_searched_in_the_documented_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let files = [
            "bin/libnvrtc.so.12",
            "toolkit/lib64/libnvrtc.so.13",
            "local/cuda-13.0/lib64/libnvrtc.so.13",
            "local/cuda-12.10/lib64/libnvrtc.so.12",
            "local/cuda-12.9/lib64/libnvrtc.so.12",
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "venv/lib/python3.12/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "usr/local/lib/python3.11/dist-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
            "home/.local/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
            "loader/libnvrtc.so.13",
        ];
        files.iter().for_each(|file| touch(root, file));
        touch(root, "usr/bin/python3");
        std::os::unix::fs::symlink("cuda-12.9", root.join("local/cuda")).unwrap();
        let at = |path: &str| root.join(path).to_str().unwrap().to_string();
        let variables = [
            ("CUDA_HOME", at("toolkit")),
            ("VIRTUAL_ENV", at("venv")),
            ("PATH", format!("{}:{}", at("nothing"), at("usr/bin"))),
            ("HOME", at("home")),
            ("LD_LIBRARY_PATH", at("loader")),
        ];
        // The file behind a link counts once, where it comes first.
        let mut wanted = files.map(String::from).to_vec();
        wanted.remove(4);
        wanted.insert(2, "local/cuda/lib64/libnvrtc.so.12".into());
        assert_eq!(search(root, Some("bin/knet"), &variables), (wanted, true));
    }

    #[test]
    fn relative_paths_in_variables_count_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let relative = |name: &'static str| (name, "src".to_string());
        let names = ["CUDA_PATH", "CUDA_HOME", "VIRTUAL_ENV", "CONDA_PREFIX", "PATH", "HOME"];
        let (files, loader) = search(folder.path(), None, &names.map(relative));
        assert!(files.is_empty() && loader, "{files:?}");
        // The loader would take an empty or relative part for the working directory.
        for list in ["lib:/opt/lib", ":/opt/lib", "/opt/lib:"] {
            assert_eq!(
                search(folder.path(), None, &[("LD_LIBRARY_PATH", list.into())]),
                (vec![], false),
                "{list}"
            );
        }
        for named in ["libnvrtc.so", "./libnvrtc.so.13", "target/cuda/libnvrtc.so.13"] {
            let variable = |name: &str| (name == "KNET_NVRTC").then(|| named.into());
            let toolkits = folder.path();
            let refused = Surroundings { variable: &variable, executable: None, toolkits }.candidates();
            assert_eq!(refused.unwrap_err(), format!("no NVRTC: KNET_NVRTC={named} is no absolute path"));
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn every_candidate_that_does_not_serve_is_listed_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("text"), "no library at all, whatever it is called\n".repeat(4)).unwrap();
        // The first bytes of a 32-bit library for x86.
        let mut header = vec![0; 128];
        header[..20].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x03\0");
        fs::write(at("narrow"), header).unwrap();
        let fifo = std::ffi::CString::new(at("fifo").to_str().unwrap()).unwrap();
        // SAFETY: a NUL-terminated path.
        assert_eq!(unsafe { libc::mkfifo(fifo.as_ptr(), 0o600) }, 0);
        let own = PathBuf::from("libc.so.6");
        let names = ["text", "narrow", "fifo", "missing"];
        let said = first_that_works(names.map(at).into_iter().chain([own]).collect()).err().unwrap();
        let reasons = ["invalid ELF header", "ELFCLASS32", "no regular file", "No such file"];
        for (name, reason) in names.iter().zip(reasons) {
            let line = said.lines().find(|line| line.contains(&format!("{}: ", at(name).display())));
            assert!(line.is_some_and(|line| line.contains(reason)), "{name}, {reason}: {said}");
        }
        assert!(said.contains("libc.so.6: ") && said.contains("nvrtcCreateProgram"), "{said}");
        assert!(said.contains("KNET_NVRTC") && said.contains("pip install"), "{said}");
        assert!(first_that_works(Vec::new()).err().unwrap().contains("tried: nothing"));
    }
}
