//! Gives the library its name for the loader, which Cargo does not: programs find `libknet.so.1` whatever the
//! file was called when they were linked.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // The number is KNET_ABI_VERSION, as tests/sdk.rs checks.
        println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libknet.so.1");
    }
}
