//! Reads arbitrary text as the configuration of a model and goes on to a plan.
//!
//! The text is also put into the metadata of a checkpoint without tensors, which must be refused in no time
//! whatever model it says it is.
#![no_main]

use knet::checkpoint::Checkpoint;
use knet::cpu::{self, Selection};
use knet::engine::source;
use knet::graph::passes::optimize;
use knet::isa::Isa;
use knet::model::{Config, TapMode, build};
use libfuzzer_sys::fuzz_target;

/// Graphs beyond these cost seconds each under a sanitizer; what a file may ask for is bounded by its
/// tensors, which is tried first.
const MOST_STAGES: usize = 3;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let header = serde_json::json!({"__metadata__": {source::CONFIG_KEY: text}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    if let Ok(file) = Checkpoint::from_bytes("fuzz", file) {
        assert!(source::open_checkpoint(file, None).is_err());
    }
    let Ok(config) = Config::from_json(text) else { return };
    assert_eq!(Config::from_json(&config.to_json()).as_ref().ok(), Some(&config));
    if config.head.stages > MOST_STAGES {
        return;
    }
    let network =
        build(&config, 1, [32, 64], TapMode::Predictions).expect("a configuration that was checked");
    let graph = optimize(network.graph).expect("a graph that was built here");
    let plan = cpu::plan(&graph, Selection::new(Isa::Portable, 1)).expect("a sound graph");
    assert!(plan.arena_bytes > 0 && !plan.steps.is_empty());
});
