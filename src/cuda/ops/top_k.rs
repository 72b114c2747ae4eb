use super::CudaOp;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Program};
use crate::ops::TopK;
use crate::plan::Site;

/// Most keys a block sorts.
const MAX_SIZE: usize = 2048;

/// Bytes of a key.
const KEY: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    row: u32,
    length: u32,
    k: u32,
}

impl CudaOp for TopK {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let [rows, row] = [site.inputs[0].shape[0], site.inputs[0].shape[1]];
        if row > MAX_SIZE && 2 * self.k > MAX_SIZE {
            // A pass would not shorten the list enough to end.
            let most = MAX_SIZE / 2;
            return Err(format!("top {} of rows of {row}: at most {most} of rows beyond {MAX_SIZE}", self.k));
        }
        // Lists of keys go to and fro between two places.
        let list = (rows * row.div_ceil(MAX_SIZE) * self.k * KEY).next_multiple_of(256);
        let mut launches = Vec::new();
        let mut length = row;
        loop {
            let chunks = length.div_ceil(MAX_SIZE);
            let size = length.div_ceil(chunks).next_power_of_two().clamp(64, MAX_SIZE);
            let chunks = length.div_ceil(size);
            let (first, last) = (launches.is_empty(), chunks == 1);
            let (from, to) = ((launches.len() + 1) % 2 * list, launches.len() % 2 * list);
            launches.push(Launch {
                source: "top_k.cu",
                entry: "top_k",
                defines: vec![("SIZE", size as i64), ("FIRST", i64::from(first)), ("LAST", i64::from(last))],
                grid: [chunks as u32, rows as u32, 1],
                block: [size as u32 / 2, 1, 1],
                shared: 0,
                args: vec![
                    Arg::Input(0),
                    if first { Arg::Null } else { Arg::Workspace(from) },
                    if last { Arg::Null } else { Arg::Workspace(to) },
                    Arg::Output(0),
                    Arg::Output(1),
                    Arg::of(&Params { row: row as u32, length: length as u32, k: self.k as u32 }),
                ],
            });
            if last {
                break;
            }
            length = chunks * self.k;
        }
        let workspace = if launches.len() > 1 { 2 * list } else { 0 };
        let kernel = format!("bitonic, {} passes", launches.len());
        Ok(Program { kernel, launches, workspace, ..Program::default() })
    }
}
