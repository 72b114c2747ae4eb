//! CUDA launches as plain data: what a step runs on a GPU, decided by pure functions of shapes and
//! capabilities, so that launch geometry is printed and tested where there is no GPU.

use super::compile::sources;
use super::gpu::Caps;
use crate::plan::Site;
use crate::tensor::DType;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use std::fmt;

/// What a CUDA kernel's parameter is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Arg {
    /// Pointer to an operand of the step.
    Input(usize),
    /// Pointer to a result of the step.
    Output(usize),
    /// Pointer into the step's workspace, at this byte (a multiple of 256).
    Workspace(usize),
    /// A null pointer: an operand that this launch lacks.
    Null,
    /// A plain struct, by value.
    Struct(Vec<u8>),
    /// Pointer to these, one after the other, each from a multiple of 8 bytes on: whoever binds the launch
    /// puts them into device memory. So a launch may have more operands than a kernel has parameters.
    Table(Vec<Arg>),
}

impl Arg {
    /// A plain struct, by value.
    pub fn of<T: bytemuck::NoUninit>(params: &T) -> Arg {
        Arg::Struct(bytemuck::bytes_of(params).to_vec())
    }

    /// The argument's bytes, from a multiple of 8 on; `address` gives those of pointers.
    ///
    /// # Errors
    /// What `address` says.
    pub fn words<E>(&self, address: &mut impl FnMut(&Arg) -> Result<u64, E>) -> Result<Vec<u64>, E> {
        let word = |chunk: &[u8]| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        };
        Ok(match self {
            Arg::Null => vec![0],
            Arg::Struct(bytes) => bytes.chunks(8).map(word).collect(),
            pointer => vec![address(pointer)?],
        })
    }
}

/// One kernel launch. One that is read back names kernels that this build has, or is refused.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Launch {
    /// File under `kernels/`.
    pub source: &'static str,
    /// The `__global__` function.
    pub entry: &'static str,
    /// Macros that specialise the source, in order.
    pub defines: Vec<(&'static str, i64)>,
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block in x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: u32,
    /// Arguments, in the order of the kernel's parameters.
    pub args: Vec<Arg>,
}

impl Launch {
    /// Checks the launch against the device's limits. `static_shared`: bytes of shared memory that the kernel
    /// declares by itself, which the compiled kernel knows; they and the launch's dynamic ones share one
    /// limit.
    ///
    /// # Errors
    /// A sentence with the numbers.
    pub fn check(&self, caps: &Caps, static_shared: u32) -> Result<(), String> {
        let threads: u64 = self.block.iter().map(|&n| u64::from(n)).product();
        let place = format!("{}:{}", self.source, self.entry);
        if threads == 0 || threads > 1024 {
            return Err(format!(
                "{place}: a block of {:?} has {threads} threads, 1 to 1024 can run",
                self.block
            ));
        }
        if self.grid.contains(&0)
            || self.grid[0] > i32::MAX as u32
            || self.grid[1..].iter().any(|&n| n > 65_535)
        {
            return Err(format!(
                "{place}: a grid of {:?} blocks; 1 to 2147483647, 65535, 65535 can run",
                self.grid
            ));
        }
        let (wanted, limit) = (self.shared.saturating_add(static_shared), caps.shared_per_block);
        if wanted > limit {
            return Err(format!("{place}: {wanted} bytes of shared memory a block, the device has {limit}"));
        }
        Ok(())
    }
}

impl fmt::Display for Launch {
    /// `file:entry<defines> grid x block, shared`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let defines: Vec<String> =
            self.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let ([gx, gy, gz], [bx, by, bz]) = (self.grid, self.block);
        write!(f, "{}:{}<{}> ", self.source, self.entry, defines.join(","))?;
        write!(f, "{gx}x{gy}x{gz} blocks of {bx}x{by}x{bz}, {} B shared", self.shared)
    }
}

/// A launch as it is read back.
#[derive(Deserialize)]
struct Written {
    source: String,
    entry: String,
    defines: Vec<(String, i64)>,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    args: Vec<Arg>,
}

// Not derived: that would borrow the names from what is read.
impl<'de> Deserialize<'de> for Launch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Launch::try_from(Written::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

impl TryFrom<Written> for Launch {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let Written { source, entry, defines, grid, block, shared, args } = written;
        let file = sources::file(&source).ok_or_else(|| format!("no kernel source `{source}`"))?;
        let word = |name: &str| {
            let found = sources::word(file, name);
            found.ok_or_else(|| format!("`{name}` does not occur in kernels/{source}"))
        };
        Ok(Launch {
            source: file,
            entry: word(&entry)?,
            defines: defines
                .iter()
                .map(|(name, value)| Ok((word(name)?, *value)))
                .collect::<Result<_, String>>()?,
            grid,
            block,
            shared,
            args,
        })
    }
}

/// How a constant operand lies in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Packing {
    /// Element type.
    pub dtype: DType,
    /// The last dimensions that make a row: 1 for the last alone, 3 for all taps of a filter.
    pub row_dims: usize,
    /// Rows become columns: element (i, j) of the matrix of rows goes to row j, place i.
    pub transposed: bool,
    /// Rows, after transposing, are followed by zeros up to a multiple of this. 1 leaves them as they are.
    pub row_multiple: usize,
}

impl Packing {
    /// As the graph lays it out, in this type.
    pub fn plain(dtype: DType) -> Self {
        Packing { dtype, row_dims: 1, transposed: false, row_multiple: 1 }
    }
}

/// Everything a step runs on a GPU.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Program {
    /// The choice, for people.
    pub kernel: String,
    /// Launches, in order.
    pub launches: Vec<Launch>,
    /// Workspace in bytes.
    pub workspace: usize,
    /// How operands lie, if they are constants; operands beyond the end are [`Packing::plain`] f32.
    pub packing: Vec<Packing>,
}

impl Program {
    /// Checks all launches against the device's limits, as far as is known before kernels are compiled: of
    /// shared memory the dynamic. Kernels of operators have one kind alone, those of post-processing both.
    ///
    /// # Errors
    /// As [`Launch::check`].
    pub fn check(&self, caps: &Caps) -> Result<(), String> {
        self.launches.iter().try_for_each(|launch| launch.check(caps, 0))
    }

    /// Packing of operand `input`, if it is a constant.
    pub fn packing_of(&self, input: usize) -> Packing {
        self.packing.get(input).copied().unwrap_or(Packing::plain(DType::F32))
    }
}

impl Site<'_> {
    /// Element type in memory of operand `input`, if the program packs its constants by `packing`.
    pub fn dtype(&self, input: usize, packing: Packing) -> DType {
        if self.constant[input] { packing.dtype } else { self.inputs[input].dtype }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn static_and_dynamic_shared_memory_share_one_limit() {
        let launch = Launch {
            source: "a.cu",
            entry: "a",
            defines: Vec::new(),
            grid: [1; 3],
            block: [32, 1, 1],
            shared: 232_000,
            args: Vec::new(),
        };
        assert_eq!(launch.check(&Caps::H100, 448), Ok(()));
        let fault = launch.check(&Caps::H100, 449).unwrap_err();
        assert_eq!(fault, "a.cu:a: 232449 bytes of shared memory a block, the device has 232448");
    }
}
