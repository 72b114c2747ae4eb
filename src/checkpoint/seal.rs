//! Sealed safetensors: laid out to be mapped and read in place, with a checksum over all of it.
//!
//! Tensors of f32 lie at multiples of [`ALIGNMENT`] bytes, in front of all others. The last tensor is the
//! seal: the CRC-32C of every byte before it, header included. It tells an accident from a whole file;
//! whoever changes one on purpose can seal it again, so that what reads the tensors trusts their names and
//! lengths no more than those of any file.

use super::fault::Fault;
use super::write::{header, write_all};
use super::{StorageType, TensorData, TensorInfo, TensorOut};
use crate::error::{Error, Result};
use crate::fsio::atomic_write;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

/// Tensors of f32 begin at multiples of so many bytes: a line of the processor's cache.
pub const ALIGNMENT: usize = 64;

/// Name of the seal.
const SEAL: &str = "knet.crc32c";

/// Bytes that one thread sums up at a time.
const CHUNK: usize = 1 << 20;

/// Writes a sealed file, all or nothing. `metadata` becomes `__metadata__`. Equal input gives equal bytes.
///
/// # Errors
/// As [`write_safetensors`](super::write_safetensors); [`Error::Checkpoint`] also for tensors of f32 that do
/// not fill whole multiples of [`ALIGNMENT`], and for types that would lie before them.
pub fn write_sealed<'a>(
    path: impl AsRef<Path>,
    tensors: impl IntoIterator<Item = TensorOut<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let path = path.as_ref();
    let mut tensors: Vec<TensorOut<'_>> = tensors.into_iter().collect();
    let fits = |data: &TensorData<'_>| match data.dtype() {
        StorageType::F32 => data.bytes().is_multiple_of(ALIGNMENT),
        other => other.size() < StorageType::F32.size(),
    };
    if let Some(tensor) = tensors.iter().find(|tensor| !fits(&tensor.data)) {
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            key: Some(tensor.name.to_string()),
            offset: None,
            reason: format!(
                "{} bytes of {} in a file to be mapped",
                tensor.data.bytes(),
                tensor.data.dtype()
            ),
        });
    }
    let unknown = [0; 4];
    tensors.push(TensorOut { name: SEAL, shape: &[4], data: TensorData::Raw(StorageType::U8, &unknown) });
    let header = header(path, &mut tensors, metadata, ALIGNMENT)?;
    // One-byte types are the last, and among equals the order is kept.
    tensors.pop();
    atomic_write(path, |out| {
        let mut summed = Summed { out, sum: 0 };
        write_all(&mut summed, &header, &tensors)?;
        let Summed { out, sum } = summed;
        out.write_all(&sum.to_le_bytes())
    })
}

/// Hands bytes on, and sums them up.
struct Summed<W> {
    out: W,
    sum: u32,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.sum = crc32c::crc32c_append(self.sum, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Checks the seal of a file with these tensors, which are in the order of their data.
pub(super) fn check(tensors: &[TensorInfo], file: &[u8]) -> Result<(), Fault> {
    let seal = tensors.last().filter(|tensor| tensor.name == SEAL && tensor.bytes == 4);
    let Some((body, seal)) = seal.and_then(|_| file.split_last_chunk::<4>()) else {
        return Err(Fault::file(None, format!("not sealed: it does not end with `{SEAL}`")));
    };
    let sums = body.par_chunks(CHUNK).map(|chunk| (crc32c::crc32c(chunk), chunk.len()));
    let join = |(first, length): (u32, usize), (second, more): (u32, usize)| {
        (crc32c::crc32c_combine(first, second, more), length + more)
    };
    let (sum, _) = sums.reduce(|| (0, 0), join);
    if sum.to_le_bytes() != *seal {
        let at = body.len() as u64;
        return Err(Fault::file(at, "its checksum is not that of its bytes: it is damaged or was changed"));
    }
    Ok(())
}
