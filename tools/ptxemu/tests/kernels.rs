//! Whole kernels through NVRTC.

mod common;

use common::{Bench, Params, noise};

#[repr(C)]
#[derive(Clone, Copy)]
struct P {
    n: i32,
    s: f32,
    k: [i32; 4],
}

#[test]
fn basic() {
    for arch in ["compute_80", "compute_100"] {
        let bench = Bench::new(&common::ptx_for("basic", arch, &[]));
        let a = noise(1, 256);
        let pa = bench.put("a", &a);
        let py = bench.put("y", &vec![0_f32; 2048]);
        let p = P { n: 200, s: 0.5, k: [1, 2, 3, 4] };
        let params = Params::new().arg(pa).arg(py).arg(p);
        let report = bench.run_with("k1", ([2, 1, 1], [128, 1, 1], 1024), &params, &Default::default());
        println!("{}", report.unwrap_or_else(|e| panic!("{e}")));
        let y: Vec<f32> = bench.get(py, 2048);
        println!("{:?}", &y[..4]);
        println!("{:?}", &y[512..520]);
    }
}
