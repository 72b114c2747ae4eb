//! Reads arbitrary bytes as a PyTorch checkpoint.
//!
//! Zip checksums make most mutations end early, so the input is also read as the pickle of a zip whose
//! container is sound.
#![no_main]

use knet::checkpoint::pth;
use libfuzzer_sys::fuzz_target;

fn read(file: &[u8]) {
    let Ok(file) = pth::read_bytes("fuzz", file) else { return };
    for tensor in &file.tensors {
        assert_eq!(tensor.to_f32().shape().dims(), tensor.shape);
    }
}

fuzz_target!(|input: &[u8]| {
    read(input);
    read(&stored_zip(&[("a/data.pkl", input), ("a/data/0", &[7; 64])]));
});

/// A zip of uncompressed entries.
fn stored_zip(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in entries {
        let offset = file.len() as u32;
        // Version, flags, method, time and date; then checksum, both sizes and the lengths of name and extra.
        let mut fields = vec![10, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        fields.extend(crc32(data).to_le_bytes());
        fields.extend([(data.len() as u32).to_le_bytes(); 2].as_flattened());
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&fields);
        file.extend(name.as_bytes());
        file.extend(*data);
        directory.extend(b"PK\x01\x02\x0a\x00");
        directory.extend(&fields);
        // Comment length, disk, attributes.
        directory.extend([0; 10]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, length, count) = (file.len() as u32, directory.len() as u32, entries.len() as u16);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(); 2].as_flattened());
    file.extend(length.to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    })
}
