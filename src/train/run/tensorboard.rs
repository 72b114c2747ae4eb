//! Event files for TensorBoard: scalars only.
//!
//! A file is a sequence of TFRecords: length (u64), CRC of the length, data, CRC of the data, all
//! little-endian; the CRC is CRC-32C rotated right by 15 bits plus a constant. The data are protobuf
//! messages:
//! `Event { 1: wall_time (double), 2: step (int64), 3: file_version (string), 5: Summary }`,
//! `Summary { 1: repeated Value { 1: tag (string), 2: simple_value (float) } }`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// Added to a rotated CRC, so that a CRC of data that hold CRCs stays useful.
const MASK: u32 = 0xa282_ead8;

/// An open event file.
#[derive(Debug)]
pub struct EventFile {
    path: PathBuf,
    file: File,
}

impl EventFile {
    /// Begins a new file in `folder`. A resumed run has one for each of its parts, which TensorBoard joins.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path) -> Result<EventFile> {
        let name = format!("events.out.tfevents.{:010}.knet.{}", wall_time() as u64, std::process::id());
        let path = folder.join(name);
        let file =
            OpenOptions::new().create(true).append(true).open(&path).map_err(|e| Error::io(&path, e))?;
        let mut events = EventFile { path, file };
        let mut event = Message::default();
        event.double(1, wall_time());
        event.bytes(3, b"brain.Event:2");
        events.record(&event.0)?;
        Ok(events)
    }

    /// Writes scalars of one step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars<'a>(&mut self, step: u64, values: impl IntoIterator<Item = (&'a str, f64)>) -> Result<()> {
        let mut summary = Message::default();
        for (tag, value) in values {
            let mut entry = Message::default();
            entry.bytes(1, tag.as_bytes());
            entry.float(2, value as f32);
            summary.bytes(1, &entry.0);
        }
        let mut event = Message::default();
        event.double(1, wall_time());
        event.integer(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, e))
    }
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn masked_crc(data: &[u8]) -> u32 {
    crc32c::crc32c(data).rotate_right(15).wrapping_add(MASK)
}

/// A protobuf message while it is written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn tag(&mut self, field: u64, wire: u64) {
        self.varint(field << 3 | wire);
    }

    fn integer(&mut self, field: u64, value: u64) {
        self.tag(field, 0);
        self.varint(value);
    }

    fn double(&mut self, field: u64, value: f64) {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, value: &[u8]) {
        self.tag(field, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }

    fn float(&mut self, field: u64, value: f32) {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CRC of RFC 3720, and a message as the protobuf compiler's Python code writes it.
    #[test]
    fn known_bytes() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        let mut value = Message::default();
        value.bytes(1, b"loss");
        value.float(2, 0.5);
        let mut event = Message::default();
        event.integer(2, 300);
        event.bytes(5, &value.0);
        assert_eq!(event.0, b"\x10\xac\x02\x2a\x0b\x0a\x04loss\x15\x00\x00\x00\x3f");
    }
}
