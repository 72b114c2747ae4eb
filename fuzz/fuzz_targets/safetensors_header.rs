//! Opens arbitrary bytes as a safetensors file and reads every tensor of what is accepted.
#![no_main]

use knet::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let Ok(checkpoint) = Checkpoint::from_bytes("fuzz", file.to_vec()) else { return };
    let mut covered = 0;
    for info in checkpoint.tensors() {
        assert_eq!(checkpoint.bytes(&info.name).map(<[u8]>::len), Some(info.bytes));
        covered += info.bytes;
        if let Ok(tensor) = checkpoint.load_f32(&info.name) {
            assert_eq!(tensor.shape().dims(), info.shape);
        }
    }
    assert!(covered + 8 <= file.len());
});
