//! Operators, as trials that walk the registry and the goldens: a new operator needs no line here. The first
//! part of a trial's name is its file: `cargo test --test ops cases/conv2d`.

mod cases;
mod cuda;
mod golden_gradients;
mod goldens;
mod gradients;
mod quantized;

use libtest_mimic::Arguments;

fn main() {
    let suites = [
        cases::trials,
        quantized::trials,
        gradients::trials,
        goldens::trials,
        golden_gradients::trials,
        cuda::trials,
    ];
    let trials = suites.into_iter().flat_map(|suite| suite()).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
