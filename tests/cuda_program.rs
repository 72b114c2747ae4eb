//! The program on the emulator's stand-in driver, through `tools/with-ptxemu` as a person would run it: what its calls to the
//! driver are, and what it says when something is wrong or when there is no driver at all.

#[path = "common/model.rs"]
mod model;

use knet::checkpoint::{Checkpoint, StorageType};
use knet::cuda::sources;
use knet::cuda::tune::{Scope, Table};
use knet::model::{BackboneConfig, Config, Task};
use knet::ops::case::relative_l2;
use model::{photo, seeded_entries, small_config, write_entries};
use std::path::Path;
use std::process::{Command, Output};

struct Emulated {
    folder: tempfile::TempDir,
}

impl Emulated {
    /// A folder with three photos of one size.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            let shift = u32::from(name.as_bytes()[0]);
            let photo = image::RgbImage::from_fn(96, 64, |x, y| {
                image::Rgb([(x * shift) as u8, (y * 3) as u8, (x * y) as u8])
            });
            photo.save(folder.path().join(name)).unwrap();
        }
        Emulated { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/with-ptxemu"));
        command.arg(env!("CARGO_BIN_EXE_knet")).args(arguments).current_dir(self.path());
        command.env("KNET_CACHE", self.path().join("cache")).env_remove("KNET_TUNED");
        command
    }

    #[track_caller]
    fn succeed(&self, command: &mut Command) -> Output {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// A run that must fail with this exit code; what it printed.
    #[track_caller]
    fn fail(&self, command: &mut Command, code: i32) -> String {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
        text
    }
}

const SEGMENT: [&str; 9] =
    ["segment", "a.png", "b.png", "c.png", "--device", "cuda", "--size", "64,96", "--format=json"];

/// Between the second and the third photo of a size: copies into page-locked memory by the host, one graph launch, one wait.
#[test]
fn a_run_launches_one_graph_and_waits_once_and_allocates_nothing() {
    let emulated = Emulated::new();
    let log = emulated.path().join("calls.log");
    emulated.succeed(emulated.command(&SEGMENT).env("PTXEMU_LOG", &log));
    let log = std::fs::read_to_string(log).unwrap();
    // Lines with `#` are work as the stand-in runs it.
    let calls: Vec<&str> = log.lines().filter(|line| !line.starts_with('#')).collect();
    let launches: Vec<usize> = (0..calls.len()).filter(|&i| calls[i].contains("cuGraphLaunch")).collect();
    assert_eq!(launches.len(), 3, "one graph launch a photo");
    for pair in launches.windows(2) {
        let between = &calls[pair[0] + 1..pair[1]];
        let names: Vec<&str> = between
            .iter()
            .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("cu")))
            .collect();
        let count = |name: &str| names.iter().filter(|found| found.starts_with(name)).count();
        assert_eq!(count("cuStreamSynchronize"), 1, "{names:?}");
        // Making the context current is all else that is asked of the driver.
        let other: Vec<&&str> = names
            .iter()
            .filter(|name| {
                !["cuStreamSynchronize", "cuCtxSetCurrent", "cuCtxGetCurrent"]
                    .iter()
                    .any(|known| name.starts_with(known))
            })
            .collect();
        assert!(other.is_empty(), "{other:?}");
    }
}

/// A small model of each kind and each kind of backbone.
fn small_models() -> [Config; 2] {
    let instance = small_config();
    let mut class_names = instance.class_names.clone();
    class_names.extend(["fog", "mud", "sky"].map(String::from));
    let panoptic = Config {
        task: Task::Panoptic,
        stuff_classes: 3,
        backbone: BackboneConfig::EfficientNetLite { variant: 0 },
        class_names,
        ..small_config()
    };
    [instance, panoptic]
}

/// Whole models in every precision: the same bits in whatever order the emulator runs warps and a graph's nodes, and what the
/// CPU computes. In 16 bits this holds up to the first masks: with random weights, the hard threshold on them then turns
/// rounding errors into pixels (`tests/cuda_half.rs` compares the parts that follow, each by itself).
#[test]
fn results_depend_on_the_photo_alone() {
    let emulated = Emulated::new();
    photo(64, 96).save(emulated.path().join("photo.png")).unwrap();
    // Relative errors allowed up to the first masks, in unit roundoffs: there are some 150 roundings on the way, whose squares
    // add. The bottlenecks of the other backbone end in sums without an activation, which amplify; f32 is as far off.
    for ((number, config), roundoffs) in small_models().iter().enumerate().zip([12.0, 80.0]) {
        let weights = format!("{number}.safetensors");
        let entries = seeded_entries(config, 7);
        write_entries(&emulated.path().join(&weights), &entries, Some(&config.to_json()), StorageType::F32);
        let dump = |device: &str, precision: &str, seed: &str| {
            let out = format!("{number}-{device}-{precision}-{seed}.safetensors");
            let fixed = ["dump", "--no-resize", "--image", "photo.png", "--weights", &weights, "--out", &out];
            let mut command = emulated.command(&fixed);
            command.args(["--device", device, "--precision", precision]).env("PTXEMU_SEED", seed);
            emulated.succeed(&mut command);
            emulated.path().join(out)
        };
        let cpu = Checkpoint::open(dump("cpu", "f32", "0")).unwrap();
        // In f32 as in tests/model.rs.
        let (f16, bf16) = (roundoffs * 2f64.powi(-11), roundoffs * 2f64.powi(-8));
        for (precision, tolerance, seeds) in
            [("f32", 1e-5, &["1"][..]), ("f16", f16, &["1", "7"]), ("bf16", bf16, &[])]
        {
            let first = dump("cuda", precision, "0");
            for seed in seeds {
                let other = std::fs::read(dump("cuda", precision, seed)).unwrap();
                assert!(std::fs::read(&first).unwrap() == other, "{}: {precision}, seed {seed}", config.name);
            }
            let gpu = Checkpoint::open(first).unwrap();
            let compared = |name: &&str| {
                let before = ["backbone.", "fpn.", "rpn."].iter().any(|part| name.starts_with(part));
                before || precision == "f32" && !name.starts_with("final.")
            };
            let mut worst = 0.0f64;
            for name in cpu.names().filter(compared) {
                let values = |file: &Checkpoint| file.load_f32(name).unwrap().to_f64().into_data();
                let error = relative_l2(&values(&gpu), &values(&cpu));
                println!("model {number} {precision} {name:<22} {error:.2e} of {tolerance:.1e}");
                worst = worst.max(error);
            }
            assert!(worst > 0.0 && worst <= tolerance, "model {number} in {precision}: {worst:.2e}");
        }
    }
}

/// Damaged entries of the kernel cache are compiled again, and two programs may fill one cache at once.
#[test]
fn the_kernel_cache_survives_damage_and_company() {
    let emulated = Emulated::new();
    let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96", "--format=json"];
    let mut first = emulated.command(&one).args(["--out", "first"]).spawn().unwrap();
    let mut second = emulated.command(&one).args(["--out", "second"]).spawn().unwrap();
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let entries: Vec<_> = std::fs::read_dir(emulated.path().join("cache"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(entries.len() > 10);
    for (i, entry) in entries.iter().enumerate() {
        let mut bytes = std::fs::read(entry).unwrap();
        if i % 2 == 0 {
            bytes.truncate(bytes.len() / 2);
        } else {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        std::fs::write(entry, bytes).unwrap();
    }
    emulated.succeed(emulated.command(&one).args(["--out", "third"]));
    let result = |folder: &str| std::fs::read(emulated.path().join(folder).join("a.json")).unwrap();
    assert!(result("first") == result("second") && result("first") == result("third"));
}

#[test]
fn what_a_gpu_cannot_do_is_said() {
    let emulated = Emulated::new();
    let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96"];
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_FREE_MEMORY", "3000000"), 10);
    assert!(text.contains("out of device memory") && text.contains("MiB, free:"), "{text}");
    let text = emulated.fail(&mut emulated.command(&["segment", "a.png", "--device", "cuda:7"]), 10);
    assert!(text.contains("cannot open device 7"), "{text}");
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_CC", "7.5"), 10);
    assert!(text.contains("compute capability 7.5") && text.contains("8.0"), "{text}");
    let text = emulated.fail(emulated.command(&one).env("KNET_NVRTC", "/nowhere/libnvrtc.so"), 10);
    assert!(
        text.contains("NVRTC") && text.contains("/nowhere/libnvrtc.so") && text.contains("tools/setup-cuda"),
        "{text}"
    );
    let text = emulated.fail(&mut emulated.command(&["bench", "--device", "cuda", "--size", "64x96"]), 2);
    assert!(text.contains("emulator"), "{text}");
}

/// A table that was named must be sound; one that does not hold is not followed, and a line says why.
#[test]
fn tuning_tables_that_do_not_hold_are_not_followed() {
    let emulated = Emulated::new();
    let refused = emulated.fail(&mut emulated.command(&["tune", "--device", "cuda", "--size", "64x96"]), 2);
    assert!(refused.contains("is an emulator: no time it takes means anything"), "{refused}");
    let scope = Scope {
        device: "ptxemu (PTX emulator, no GPU)".into(),
        compute: "8.0".into(),
        precision: "f16".into(),
        kernels: sources::fingerprint(),
    };
    let stale = Scope { kernels: "0123".into(), ..scope.clone() };
    let other = Scope { device: "NVIDIA L4".into(), ..scope.clone() };
    let write =
        |name: &str, scope: &Scope| Table::new(scope.clone()).write(&emulated.path().join(name)).unwrap();
    write("other.json", &other);
    std::fs::write(emulated.path().join("cut.json"), "{\"format\": \"knet tuned 1\"").unwrap();

    // The photo is missing: engines are made before photos are read.
    let segment = ["segment", "none.png", "--device", "cuda"];
    let run = |table: Option<&str>, code: i32| {
        let mut command = emulated.command(&segment);
        command.envs(table.map(|name| ("KNET_TUNED", name)));
        emulated.fail(&mut command, code)
    };
    let text = run(Some("cut.json"), 2);
    assert!(text.contains("error: cut.json: no tuning table: "), "{text}");
    let text = run(Some("missing.json"), 3);
    assert!(text.contains("missing.json"), "{text}");
    let note = "note: tuning table not followed: ";
    let text = run(Some("other.json"), 3);
    assert!(text.contains(note) && text.contains("other.json: it was measured on NVIDIA L4"), "{text}");

    let user = format!("cache/{}", scope.file_name());
    assert!(!run(None, 3).contains("note: tuning"), "no table, no note");
    write(&user, &stale);
    let text = run(None, 3);
    assert!(text.contains(note) && text.contains("other kernels") && text.contains("knet tune"), "{text}");
    assert!(!run(Some(""), 3).contains(note), "none was asked for");
    std::fs::write(emulated.path().join(&user), "junk").unwrap();
    let text = run(None, 3);
    assert!(text.contains(note) && text.contains("no tuning table"), "{text}");
    write(&user, &scope);
    assert!(!run(None, 3).contains(note));
}

/// Holds where there is no GPU, and has nothing to say where there is one.
#[test]
fn without_a_gpu_a_named_one_is_an_error_and_auto_takes_the_cpu() {
    if knet::cuda::Device::open(0).is_ok() {
        return;
    }
    let photos = Emulated::new();
    let bare = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
        command.args(arguments).current_dir(photos.path());
        command
    };
    let refused = photos.fail(&mut bare(&["segment", "a.png", "--device", "cuda"]), 10);
    assert!(refused.contains("error: cuda: "), "{refused}");
    let said = |arguments: &[&str]| {
        String::from_utf8_lossy(&photos.succeed(&mut bare(arguments)).stderr).into_owned()
    };
    let auto = said(&["segment", "a.png", "--device", "auto", "--size", "64,96"]);
    let notes: Vec<&str> = auto.lines().filter(|line| line.contains("CPU")).collect();
    assert_eq!(notes.len(), 1, "{auto}");
    assert!(notes[0].starts_with("note: computing on the CPU: cuda: "), "{auto}");
    let default = said(&["segment", "a.png", "--size", "64,96"]);
    assert!(!default.contains("CPU"), "{default}");
}
