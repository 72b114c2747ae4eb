use super::CudaOp;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::TopK;
use crate::plan::Site;

/// Most keys a block sorts.
const MAX_SIZE: usize = 2048;

/// Keys that a block sorts where lists of up to so many are merged.
const SMALL_MERGE: usize = 256;

/// Bytes of a key.
const KEY: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    row: u32,
    length: u32,
    k: u32,
}

/// A launch: of lists of `length` keys, the `k` largest of each chunk of `size`.
pub(super) struct Pass {
    length: usize,
    k: usize,
    size: usize,
}

impl Pass {
    fn over(length: usize, k: usize) -> Pass {
        let chunks = length.div_ceil(MAX_SIZE);
        Pass { length, k, size: length.div_ceil(chunks).next_power_of_two().clamp(64, MAX_SIZE) }
    }

    fn chunks(&self) -> usize {
        self.length.div_ceil(self.size)
    }

    /// Of `rows` lists, which are those of elements (the operand, in rows of `row`) in the first pass, and
    /// become the results in the last.
    fn launch(&self, rows: u32, row: usize, [first, last]: [bool; 2], [from, to]: [Arg; 2]) -> Launch {
        let of_step = |there: bool, arg: Arg| if there { arg } else { Arg::Null };
        Launch {
            source: "top_k.cu",
            entry: "top_k",
            defines: vec![("SIZE", self.size as i64), ("FIRST", first.into()), ("LAST", last.into())],
            grid: [self.chunks() as u32, rows, 1],
            block: [self.size as u32 / 2, 1, 1],
            shared: 0,
            args: vec![
                of_step(first || last, Arg::Input(0)),
                of_step(!first, from),
                of_step(!last, to),
                of_step(last, Arg::Output(0)),
                of_step(last, Arg::Output(1)),
                Arg::of(&Params { row: row as u32, length: self.length as u32, k: self.k as u32 }),
            ],
        }
    }

    /// Of `rows` lists of keys, which are keys again.
    pub(super) fn of_keys(&self, rows: u32, from: Arg, to: Arg) -> Launch {
        self.launch(rows, 0, [false; 2], [from, to])
    }
}

/// That passes end: that each shortens lists of more than a block sorts.
fn check(k: usize, length: usize) -> Result<(), String> {
    let most = MAX_SIZE / 2;
    match length > MAX_SIZE && k > most {
        true => Err(format!("top {k} of rows of {length}: at most {most} of rows beyond {MAX_SIZE}")),
        false => Ok(()),
    }
}

/// The passes that leave the `k` largest of lists of `length` keys, and how many those are.
///
/// # Errors
/// A sentence, for more than passes can leave of so long lists.
pub(super) fn merging(mut length: usize, k: usize) -> Result<(Vec<Pass>, usize), String> {
    let (mut passes, k) = (Vec::new(), k.min(length));
    check(k, length)?;
    if k == 0 {
        return Ok((passes, k));
    }
    loop {
        // Two sizes for all: whole models have large lists, and of the others it does not matter.
        let size = if length <= SMALL_MERGE { SMALL_MERGE } else { MAX_SIZE };
        let pass = Pass { length, k, size };
        let chunks = pass.chunks();
        passes.push(pass);
        if chunks == 1 {
            return Ok((passes, k));
        }
        length = chunks * k;
    }
}

impl CudaOp for TopK {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let [rows, row] = [site.inputs[0].shape[0], site.inputs[0].shape[1]];
        check(self.k, row)?;
        // Lists of keys go to and fro between two places.
        let list = (rows * row.div_ceil(MAX_SIZE) * self.k * KEY).next_multiple_of(256);
        let mut launches = Vec::new();
        let mut length = row;
        loop {
            let pass = Pass::over(length, self.k);
            let (first, last) = (launches.is_empty(), pass.chunks() == 1);
            let (from, to) = ((launches.len() + 1) % 2 * list, launches.len() % 2 * list);
            let lists = [Arg::Workspace(from), Arg::Workspace(to)];
            launches.push(pass.launch(rows as u32, row, [first, last], lists));
            if last {
                break;
            }
            length = pass.chunks() * self.k;
        }
        let workspace = if launches.len() > 1 { 2 * list } else { 0 };
        let kernel = format!("bitonic, {} passes", launches.len());
        Ok(Program { kernel, launches, workspace, ..Program::default() })
    }
}
