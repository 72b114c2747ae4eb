//! The backend for NVIDIA's Triton Inference Server: built as `docs/serving.md` says, against an installed
//! prefix, and loaded by a real server, whose clients get what the library gives.

use super::{Prefix, root, run};
use knet::image::decode::{Limits, decode};
use std::path::Path;
use std::process::Command;

/// Builds the backend with CMake and installs it.
fn backend(prefix: &Prefix) -> std::path::PathBuf {
    let cmake = root().join("target/cmake/cmake/data/bin/cmake");
    assert!(cmake.exists(), "{}: run tools/setup-cmake", cmake.display());
    let (build, installed) = (prefix.0.path().join("build"), prefix.0.path().join("triton"));
    let mut configure = Command::new(&cmake);
    configure.arg("-S").arg(root().join("integrations/triton")).arg("-B").arg(&build);
    configure.arg(format!("-DCMAKE_PREFIX_PATH={}", prefix.path("").display()));
    // Warnings count; optimising the glue does not.
    run(configure.args(["-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Wpedantic -Werror"]));
    run(Command::new(&cmake).arg("--build").arg(&build).args(["--parallel", "2"]));
    run(Command::new(&cmake).arg("--install").arg(&build).arg("--prefix").arg(&installed));
    installed.join("backends")
}

/// A library that is loaded before the server and makes frames of one width fail.
fn fault(prefix: &Prefix) -> std::path::PathBuf {
    let library = prefix.0.path().join("libfault.so");
    let mut command = Command::new("cc");
    command.args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-o"]).arg(&library);
    command.arg(root().join("integrations/triton/tests/fault.c"));
    run(command.arg("-I").arg(prefix.path("include")).arg("-ldl"));
    library
}

/// A photo's pixels in a file, and its rows and columns.
fn pixels(photo: &Path, file: &Path) -> String {
    let picture = decode(photo, &Limits::default()).unwrap();
    std::fs::write(file, picture.as_raw()).unwrap();
    format!("{}x{}", picture.height(), picture.width())
}

#[test]
fn a_server_gives_what_the_library_gives() {
    let triton = root().join("target/triton");
    assert!(triton.join("server").exists(), "{}: run tools/setup-triton", triton.display());
    let prefix = Prefix::new();
    let photo = prefix.0.path().join("photo");
    let size = pixels(&root().join("assets/photos/chelsea.jpg"), &photo);
    let mut command = Command::new("python3");
    command.arg("-B").arg(root().join("integrations/triton/tests/serve.py"));
    command.arg("--triton").arg(triton).arg("--backends").arg(backend(&prefix));
    command.arg("--library").arg(prefix.path("lib/libknet.so.1")).arg("--fault").arg(fault(&prefix));
    command.arg("--weights").arg(root().join("weights/knet_s3_lite0_person.safetensors"));
    assert_eq!(run(command.arg("--photo").arg(photo).arg("--size").arg(size)), "ok\n");
}
