//! A bundle on the device: the bits of its checkpoint without a compiler and without a cache, and few calls of
//! the driver until the first masks.

use crate::beside;
use knet::engine::bundle::{self, For};
use knet::engine::{Device, Model, ModelOptions};
use libtest_mimic::{Failed, Trial};
use std::path::Path;
use std::process::Command;

const MODEL: &str = "knet_s3_lite0_fpn";

/// What `knet segment` writes of a photo with these weights, and its standard error.
fn segment(
    weights: &[&str],
    device: Device,
    photo: &Path,
    out: &Path,
    change: impl FnOnce(&mut Command),
) -> Result<(Vec<u8>, String), Failed> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
    command.args(["segment", "--size", "64x96", "--score", "0", "--format", "json"]).args(weights);
    command.args(["--device", &device.to_string(), "--out"]).arg(out).arg(photo);
    change(&mut command);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(said.into());
    }
    let json =
        std::fs::read_dir(out)?.flatten().find(|entry| entry.path().extension() == Some("json".as_ref()));
    Ok((std::fs::read(json.ok_or("no result")?.path())?, said))
}

fn check(ordinal: usize) -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name);
    let options = |device| ModelOptions { name: Some(MODEL.into()), device, ..ModelOptions::default() };
    let device = Device::Cuda(ordinal);
    let on_device = Model::load(&options(device))?;
    let selection = on_device.selection().ok_or("no GPU")?.clone();
    let devices = [For::Cuda { name: on_device.device(), selection }];
    bundle::compile(&*Model::load(&options(Device::Cpu))?, &[(64, 96)], &devices, at("model.knet"))?;
    let pixel = |x: u32, y: u32| image::Rgb([(x * 5) as u8, (y * 3) as u8, (x ^ y) as u8]);
    image::RgbImage::from_fn(96, 64, pixel).save(at("photo.png"))?;

    let run = |name: &str, weights: &[&str], change: &dyn Fn(&mut Command)| {
        let log = at(&format!("{name}.log"));
        let found = segment(weights, device, &at("photo.png"), &at(name), |command| {
            command.env("PTXEMU_LOG", &log);
            change(command);
        })?;
        let calls = std::fs::read_to_string(log).unwrap_or_default().lines().count();
        Ok::<_, Failed>((found, calls))
    };
    let (whole, calls_of_weights) = run("whole", &["--model", MODEL], &|_| {})?;
    let path = at("model.knet");
    let bundled = ["--weights", path.to_str().ok_or("a path")?];
    let (found, calls) = run("bundled", &bundled, &|command| {
        command.env("KNET_CACHE", "").env("KNET_NVRTC", "/nowhere/libnvrtc.so");
    })?;
    assert_eq!(whole.0, found.0, "a bundle gives other results");
    println!("calls of the driver: {calls_of_weights} with weights, {calls} with a bundle");
    assert!(calls <= calls_of_weights, "{calls} calls, {calls_of_weights} without a bundle");

    // Another device has another capability, and is refused by it.
    let error = Model::load(&ModelOptions { weights: path.as_path().into(), ..options(Device::Cpu) });
    let error = error.err().ok_or("a bundle for a GPU serves the CPU")?.to_string();
    assert!(error.contains("the bundle is for sm_"), "{error}");
    Ok(())
}

pub fn trials(ordinal: usize) -> Vec<Trial> {
    vec![beside("bundle/gives_the_bits_of_its_checkpoint_without_a_compiler", move || check(ordinal))]
}
