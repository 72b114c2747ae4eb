//! The device that whole-model suites run on: the CPU, or what `KNET_TEST_DEVICE` names. `tools/with-ptxemu`
//! and `tools/gpu-suite` run the same suites on the CUDA back end with it.

use knet::Engine;
use knet::cuda::gpu::Precision;
use knet::engine::{Compute, Device, EngineBuilder};

/// The device under test.
pub fn device() -> Device {
    std::env::var("KNET_TEST_DEVICE").map_or(Device::Cpu, |text| text.parse().expect("a device"))
}

/// An engine on the device under test, in f32.
pub fn builder() -> EngineBuilder {
    Engine::builder().device(device()).precision(Precision::F32)
}

/// Where training steps are computed: on the device under test, in f32.
pub fn compute() -> Compute {
    Compute { device: device(), ..Compute::cpu(0) }
}
