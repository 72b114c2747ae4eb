//! From CUDA C++ to code for a device: the sources, NVIDIA's compiler and where it is found, and the cache of
//! what it made.

pub mod bundled;
pub mod cache;
mod entry;
pub(super) mod find;
pub mod nvrtc;
mod rights;
pub mod sources;

use crate::error::{Error, Result};

/// What to compile.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Job {
    /// File under `kernels/`.
    pub source: &'static str,
    /// Macros that specialise it.
    pub defines: Vec<(&'static str, i64)>,
    /// Compute capability, such as (9, 0).
    pub compute: (u32, u32),
    /// Form of the result.
    pub code: Code,
}

/// Form of compiled code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The device's own code: loads on drivers of this NVRTC's major version, and on later ones.
    Cubin,
    /// Text that the driver compiles: loads on later devices, and on no driver older than this NVRTC.
    Ptx,
}

impl Job {
    /// Options for the compiler, which together with the sources decide the result.
    pub fn options(&self) -> Vec<String> {
        let mut options = vec![
            self.code.architecture(self.compute),
            "--std=c++17".into(),
            "-default-device".into(),
            "--generate-line-info".into(),
        ];
        options.extend(self.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
        options
    }

    /// Source, macros and architecture, for people.
    pub(super) fn title(&self) -> String {
        let defines: Vec<String> =
            self.defines.iter().map(|(name, value)| format!("-D{name}={value}")).collect();
        format!("kernels/{} ({} for sm_{}{})", self.source, defines.join(" "), self.compute.0, self.compute.1)
    }
}

impl Code {
    /// What `KNET_CUDA_CODE` asks for: `cubin`, the default, or `ptx`.
    ///
    /// # Errors
    /// [`Error::Usage`] for another value.
    pub fn wanted() -> Result<Code> {
        match std::env::var("KNET_CUDA_CODE").as_deref() {
            Err(_) | Ok("") => Ok(Code::Cubin),
            Ok(name) => Code::named(name)
                .ok_or_else(|| Error::usage(format!("KNET_CUDA_CODE={name}: takes cubin or ptx"))),
        }
    }

    /// The form of this name.
    pub fn named(name: &str) -> Option<Code> {
        [Code::Cubin, Code::Ptx].into_iter().find(|code| code.name() == name)
    }

    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Code::Cubin => "cubin",
            Code::Ptx => "ptx",
        }
    }

    /// Whether a driver for this version of CUDA loads code of that version of NVRTC.
    pub fn suits(self, driver: (u32, u32), compiler: (u32, u32)) -> bool {
        match self {
            Code::Cubin => driver.0 >= compiler.0,
            Code::Ptx => driver >= compiler,
        }
    }

    /// The compiler's option for code of this form for devices of this compute capability.
    pub(super) fn architecture(self, (major, minor): (u32, u32)) -> String {
        let kind = match self {
            Code::Cubin => "sm",
            Code::Ptx => "compute",
        };
        format!("--gpu-architecture={kind}_{major}{minor}")
    }

    /// Whether `code` is whole, as far as the driver, which is told no length, would read it: a cubin up to
    /// its last table, PTX with its final NUL.
    pub(super) fn is_whole(self, code: &[u8]) -> bool {
        match self {
            Code::Ptx => code.last() == Some(&0),
            Code::Cubin => cubin_bytes(code).is_some_and(|bytes| bytes <= code.len() as u64),
        }
    }
}

/// Where the tables and sections of a cubin end: 64-bit little-endian ELF.
fn cubin_bytes(code: &[u8]) -> Option<u64> {
    let number = |at: usize, bytes: usize| {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(code.get(at..at + bytes)?);
        Some(u64::from_le_bytes(word))
    };
    if !code.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    // Offset, size of an entry and number of entries of the program headers and of the section headers.
    let (programs, sections) =
        ((number(32, 8)?, number(54, 2)?, number(56, 2)?), (number(40, 8)?, number(58, 2)?, number(60, 2)?));
    let mut end = 64;
    for (offset, size, count) in [programs, sections] {
        end = end.max(offset.checked_add(size * count)?);
    }
    for index in 0..sections.2 {
        let header = usize::try_from(sections.0.checked_add(index * sections.1)?).ok()?;
        // SHT_NOBITS (8) takes no room in the file.
        if number(header.checked_add(4)?, 4)? != 8 {
            end = end
                .max(number(header.checked_add(24)?, 8)?.checked_add(number(header.checked_add(32)?, 8)?)?);
        }
    }
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one section of 8 bytes at 64, and the table of two section headers (the first one empty)
    /// after it.
    fn cubin() -> Vec<u8> {
        let mut code = vec![0; 72 + 2 * 64];
        code[..6].copy_from_slice(b"\x7fELF\x02\x01");
        code[40..48].copy_from_slice(&72u64.to_le_bytes());
        code[58..60].copy_from_slice(&64u16.to_le_bytes());
        code[60..62].copy_from_slice(&2u16.to_le_bytes());
        let section = 72 + 64;
        code[section + 4] = 1;
        code[section + 24..][..8].copy_from_slice(&64u64.to_le_bytes());
        code[section + 32..][..8].copy_from_slice(&8u64.to_le_bytes());
        code
    }

    #[test]
    fn code_that_was_cut_short_is_not_whole() {
        let code = cubin();
        assert!(Code::Cubin.is_whole(&code));
        for cut in 0..code.len() {
            assert!(!Code::Cubin.is_whole(&code[..cut]), "cut at {cut}");
        }
        let mut beyond = code.clone();
        beyond[72 + 64 + 32..][..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(!Code::Cubin.is_whole(&beyond), "a section beyond the end");
        assert!(Code::Ptx.is_whole(b".version 7.8\n\0"));
        assert!(!Code::Ptx.is_whole(b".version 7.8\n") && !Code::Ptx.is_whole(b""));
    }

    #[test]
    fn drivers_load_what_is_no_newer_than_they_are() {
        for (driver, compiler, cubin, ptx) in [
            ((13, 0), (13, 0), true, true),
            ((13, 0), (13, 5), true, false),
            ((12, 9), (13, 0), false, false),
        ] {
            let suits = [Code::Cubin, Code::Ptx].map(|code| code.suits(driver, compiler));
            assert_eq!(suits, [cubin, ptx], "{driver:?} {compiler:?}");
        }
    }

    #[test]
    fn options_name_the_architecture_and_the_macros() {
        let mut job =
            Job { source: "cast.cu", defines: vec![("A", 1), ("B", -2)], compute: (9, 0), code: Code::Cubin };
        let options = job.options();
        assert!(
            ["--gpu-architecture=sm_90", "-DA=1", "-DB=-2"].iter().all(|o| options.iter().any(|p| p == o))
        );
        job.code = Code::Ptx;
        assert!(job.options().contains(&"--gpu-architecture=compute_90".to_string()));
        assert_eq!(job.title(), "kernels/cast.cu (-DA=1 -DB=-2 for sm_90)");
    }
}
