//! The program on the emulator's stand-in driver, through `tools/with-ptxemu` as a person would run it: what
//! its calls to the driver are, and what it says when something is wrong or when there is no driver at all.

use knet::checkpoint::{Checkpoint, StorageType};
use knet::cuda::sources;
use knet::cuda::tune::{Scope, Table};
use knet::model::{Classes, Config, DecodeHead, EfficientNetLite, Generator, Swin, Task};
use knet::ops::case::relative_l2;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use testkit::emulate;
use testkit::model::{photo, seeded_entries, small_config, small_detector, write_entries};

struct Emulated {
    folder: tempfile::TempDir,
    /// Of the kernels.
    cache: PathBuf,
}

impl Emulated {
    /// A folder with three photos of one size. Kernels are those of all suites, compiled once.
    fn new() -> Self {
        let shared = emulate::cache(emulate::nvrtc().unwrap());
        Emulated { cache: shared.folder().unwrap().into(), ..Emulated::alone() }
    }

    /// As [`Emulated::new`], for tests of the cache itself: it lies in the folder `cache` and is empty.
    fn alone() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.png", "b.png", "c.png"] {
            let shift = u32::from(name.as_bytes()[0]);
            let photo = image::RgbImage::from_fn(96, 64, |x, y| {
                image::Rgb([(x * shift) as u8, (y * 3) as u8, (x * y) as u8])
            });
            photo.save(folder.path().join(name)).unwrap();
        }
        let cache = folder.path().join("cache");
        Emulated { folder, cache }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/with-ptxemu"));
        command.arg(env!("CARGO_BIN_EXE_knet")).args(arguments).current_dir(self.path());
        command.env("KNET_CACHE", &self.cache).env_remove("KNET_TUNED");
        command
    }

    /// The program without the stand-in, as where there is no GPU.
    fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet"));
        command.args(arguments).current_dir(self.path()).env("KNET_CACHE", &self.cache);
        command
    }

    /// What a command that must end with this exit code prints, as JSON.
    #[track_caller]
    fn json(&self, command: &mut Command, code: i32) -> Value {
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(code), "{text}{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e} in: {text}"))
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

/// What `tools/setup-cuda` installed.
fn installed(nvrtc: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/cuda").join(nvrtc);
    assert!(path.exists(), "{}: run tools/setup-cuda", path.display());
    path
}

const NVRTC_13_0: &str = "nvrtc-13.0/nvidia/cu13/lib/libnvrtc.so.13";
const NVRTC_12_0: &str = "nvrtc-12.0/nvidia/cuda_nvrtc/lib/libnvrtc.so.12";
const NO_NVRTC: &str = "/nowhere/libnvrtc.so.13";

const SEGMENT: [&str; 9] =
    ["segment", "a.png", "b.png", "c.png", "--device", "cuda", "--size", "64,96", "--format=json"];

/// Between the second and the third photo of a size: copies into page-locked memory by the host, one graph
/// launch, one wait.
#[test]
fn a_run_launches_one_graph_and_waits_once_and_allocates_nothing() {
    check_calls(&Emulated::new(), &[]);
}

/// Proposals, what is suppressed and masks are the device's matter.
#[test]
fn a_run_of_a_two_stage_detector_is_one_graph_and_one_wait() {
    let emulated = Emulated::new();
    let config = small_detector(3);
    let weights = emulated.path().join("cascade.safetensors");
    write_entries(&weights, &seeded_entries(&config, 7), Some(&config.to_json()), StorageType::F32);
    check_calls(&emulated, &["--weights", "cascade.safetensors"]);
}

#[track_caller]
fn check_calls(emulated: &Emulated, more: &[&str]) {
    let log = emulated.path().join("calls.log");
    emulated.succeed(emulated.command(&SEGMENT).args(more).env("PTXEMU_LOG", &log));
    let log = fs::read_to_string(log).unwrap();
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
fn small_models() -> [Config; 3] {
    let instance = small_config();
    let mut names = instance.classes.names.clone();
    names.extend(["fog", "mud", "sky"].map(String::from));
    let panoptic = Config {
        task: Task::Panoptic,
        backbone: EfficientNetLite::new(0).into(),
        classes: Classes { names, ..Classes::new(5, 3) },
        ..small_config()
    };
    let swin = Swin { channels: 32, depths: [2, 1, 1, 1], heads: [1, 2, 4, 8], window: 7 };
    let mut semantic = Config::semantic(swin.into(), Generator::Uper, 5);
    // A kernel goes through the updator in two pieces.
    semantic.decode_head =
        Some(DecodeHead { updator_channels: 16, auxiliary_channels: 16, generator: Generator::Uper });
    semantic.neck.channels = 32;
    (semantic.head.stages, semantic.head.feedforward_channels) = (1, 48);
    [instance, panoptic, semantic]
}

/// Whole models in every precision: the same bits in whatever order the emulator runs warps and a graph's
/// nodes, and what the CPU computes. In 16 bits this holds up to the first masks: with random weights, the
/// hard threshold on them then turns rounding errors into pixels (`tests/device/half.rs` compares the parts
/// that follow, each by itself). A semantic model gathers softly, and is compared to its end.
#[test]
fn results_depend_on_the_photo_alone() {
    let emulated = Emulated::new();
    photo(64, 96).save(emulated.path().join("photo.png")).unwrap();
    // Relative errors allowed up to the first masks, in unit roundoffs: there are some 150 roundings on the
    // way, whose squares add. The bottlenecks of the other backbone end in sums without an activation, which
    // amplify; f32 is as far off.
    for ((number, config), roundoffs) in small_models().iter().enumerate().zip([12.0, 80.0, 40.0]) {
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
        // In f32 as in tests/model/goldens.rs.
        let (f16, bf16) = (roundoffs * 2f64.powi(-11), roundoffs * 2f64.powi(-8));
        for (precision, tolerance, seeds) in
            [("f32", 1e-5, &["1"][..]), ("f16", f16, &["1", "7"]), ("bf16", bf16, &[])]
        {
            let first = dump("cuda", precision, "0");
            for seed in seeds {
                let other = fs::read(dump("cuda", precision, seed)).unwrap();
                assert!(fs::read(&first).unwrap() == other, "{}: {precision}, seed {seed}", config.name);
            }
            let gpu = Checkpoint::open(first).unwrap();
            let compared = |name: &&str| {
                let before = ["backbone.", "fpn.", "rpn."].iter().any(|part| name.starts_with(part));
                let soft = config.decode_head.is_some() || precision == "f32";
                before || soft && !name.starts_with("final.")
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
    let emulated = Emulated::alone();
    let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96", "--format=json"];
    let mut first = emulated.command(&one).args(["--out", "first"]).spawn().unwrap();
    let mut second = emulated.command(&one).args(["--out", "second"]).spawn().unwrap();
    assert!(first.wait().unwrap().success() && second.wait().unwrap().success());
    let entries: Vec<_> =
        fs::read_dir(emulated.path().join("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(entries.len() > 10);
    for (i, entry) in entries.iter().enumerate() {
        let mut bytes = fs::read(entry).unwrap();
        if i % 2 == 0 {
            bytes.truncate(bytes.len() / 2);
        } else {
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        }
        fs::write(entry, bytes).unwrap();
    }
    emulated.succeed(emulated.command(&one).args(["--out", "third"]));
    let result = |folder: &str| fs::read(emulated.path().join(folder).join("a.json")).unwrap();
    assert!(result("first") == result("second") && result("first") == result("third"));
}

#[test]
fn what_a_gpu_cannot_do_is_said() {
    let emulated = Emulated::new();
    let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96"];
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_FREE_MEMORY", "3000000"), 11);
    assert!(text.contains("out of device memory: ") && text.contains("MiB are available"), "{text}");
    // The arena is compared with the device before kernels are compiled.
    let large = ["segment", "a.png", "--device", "cuda", "--size", "640,960"];
    let text = emulated.fail(emulated.command(&large).env("PTXEMU_FREE_MEMORY", "3000000"), 11);
    assert!(text.contains("out of device memory: the arena needs"), "{text}");
    let text = emulated.fail(&mut emulated.command(&["segment", "a.png", "--device", "cuda:7"]), 10);
    assert!(text.contains("cannot open device 7"), "{text}");
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_CC", "7.5"), 10);
    assert!(text.contains("compute capability 7.5") && text.contains("8.0"), "{text}");
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_DRIVER_VERSION", "11030"), 10);
    assert!(text.contains("driver is for CUDA 11.3; update it to one for CUDA 11.4"), "{text}");
    let text = emulated.fail(emulated.command(&one).env("PTXEMU_DRIVER_VERSION", "12000"), 10);
    let fragments =
        ["for CUDA 12.0, does not load kernels/", "by NVRTC 13.", "update the driver", "KNET_NVRTC"];
    assert!(fragments.iter().all(|fragment| text.contains(fragment)), "{text}");
    let text = emulated.fail(&mut emulated.command(&["bench", "--device", "cuda", "--size", "64x96"]), 2);
    assert!(text.contains("emulator"), "{text}");
}

/// Each is named with what is wrong with it and what to do; nothing is loaded from a relative path.
#[test]
fn what_is_no_nvrtc_is_said() {
    let emulated = Emulated::alone();
    let at = |name: &str| emulated.path().join(name).to_str().unwrap().to_string();
    fs::write(at("text.so"), "libnvrtc.so.13, as a text file\n".repeat(4)).unwrap();
    // The first bytes of a 32-bit library for x86.
    let mut header = vec![0; 128];
    header[..20].copy_from_slice(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0\x03\0\x03\0");
    fs::write(at("narrow.so"), header).unwrap();
    assert!(Command::new("mkfifo").arg(at("pipe.so")).status().unwrap().success());
    let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96"];
    for (named, wanted) in [
        (NO_NVRTC.to_string(), "No such file"),
        (at("text.so"), "invalid ELF header"),
        (at("narrow.so"), "wrong ELF class: ELFCLASS32"),
        (at("pipe.so"), "no regular file"),
        (at("cache"), "No such file"),
        ("narrow.so".into(), "no absolute path"),
    ] {
        let text = emulated.fail(emulated.command(&one).env("KNET_NVRTC", &named), 10);
        assert!([&named, wanted, "no NVRTC", "KNET_NVRTC"].iter().all(|part| text.contains(*part)), "{text}");
    }
}

/// Every kernel of a run is in the cache that `knet cache fill` makes, of this device and of a named one that
/// is not here: no compiler is needed any more. The first is filled by the NVRTC of PyTorch's CUDA 13.0
/// wheels.
#[test]
fn a_filled_cache_needs_no_compiler() {
    let emulated = Emulated::alone();
    let json = |folder: &str| fs::read(emulated.path().join(folder).join("a.json")).unwrap();
    let segment = |gpu: &str, cache: &str, nvrtc: &Path, out: &str| {
        let one = ["segment", "a.png", "--device", "cuda", "--size", "64,96", "--format=json", "--out", out];
        let mut command = emulated.command(&one);
        command
            .env("KNET_CACHE", emulated.path().join(cache))
            .env("KNET_NVRTC", nvrtc)
            .env("PTXEMU_GPU", gpu);
        command
    };
    let fill = ["cache", "fill", "--size", "60x90", "--json"];
    let here = emulated.json(emulated.command(&fill).env("KNET_NVRTC", installed(NVRTC_13_0)), 0);
    assert!(here["compiled"].as_u64().unwrap() > 20 && here["there"] == 0, "{here}");
    emulated.succeed(&mut segment("", "cache", NO_NVRTC.as_ref(), "filled"));
    // A run with a compiler adds nothing, and gives what the filled cache gives.
    emulated.succeed(&mut segment("", "cache", &installed(NVRTC_13_0), "compiled"));
    assert!(json("filled") == json("compiled"));
    let shown = emulated.json(&mut emulated.bare(&["cache", "--json"]), 0);
    assert_eq!(shown["entries"], here["compiled"]);
    let group = &shown["usable"][0];
    let described = ["architecture", "compiler", "entries"].map(|key| group[key].to_string());
    assert_eq!(described, ["\"compute_80\"".into(), "\"13.0\"".into(), shown["entries"].to_string()]);

    // The cost models have another device to choose for, by the numbers that its driver would report.
    let other = emulated.path().join("h100");
    let mut there = emulated.bare(&fill);
    there.args(["--gpu", "h100"]).env("KNET_CACHE", &other).env("KNET_CUDA_CODE", "ptx");
    let filled = emulated.json(there.env("KNET_NVRTC", installed("nvidia/cu13/lib/libnvrtc.so.13")), 0);
    assert!(filled["compiled"].as_u64().unwrap() > 20, "{filled}");
    emulated.succeed(&mut segment("h100", "h100", NO_NVRTC.as_ref(), "h100-out"));
    let mut doctor = emulated.command(&["doctor", "--json"]);
    doctor.env("KNET_CACHE", &other).env("KNET_NVRTC", NO_NVRTC).env("PTXEMU_GPU", "h100");
    assert_eq!(emulated.json(&mut doctor, 0)["works"], true);

    // What is missing or damaged is named where nothing can compile it.
    let text = |path: &PathBuf| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    let entries = fs::read_dir(&other).unwrap().map(|entry| entry.unwrap().path());
    let ranks = |path: &PathBuf| text(path).contains(r#""source":"instance_rank.cu""#);
    let entry = entries.into_iter().find(ranks).unwrap();
    let whole = fs::read(&entry).unwrap();
    let faults: [(&dyn Fn(), &str); 3] = [
        (&|| fs::write(&entry, &whole[..whole.len() - 9]).unwrap(), "is damaged (its hash"),
        (&|| fs::remove_file(&entry).unwrap(), "is not there, and there is no NVRTC"),
        (&|| assert!(Command::new("mkfifo").arg(&entry).status().unwrap().success()), "no regular file"),
    ];
    for (spoil, wanted) in faults {
        spoil();
        let text = emulated.fail(&mut segment("h100", "h100", NO_NVRTC.as_ref(), "none"), 10);
        assert!(text.contains(entry.to_str().unwrap()) && text.contains(wanted), "{text}");
    }

    let text = String::from_utf8(emulated.succeed(&mut emulated.bare(&["cache", "clear"])).stdout).unwrap();
    assert!(text.contains(&format!("{} files removed", shown["entries"])), "{text}");
    assert_eq!(fs::read_dir(emulated.path().join("cache")).unwrap().count(), 0);
}

/// Nobody else's code is loaded: the folder and the file are named, and the CPU is taken where any device
/// will do.
#[test]
#[cfg(unix)]
fn a_cache_that_others_can_write_to_is_refused() {
    use std::os::unix::fs::PermissionsExt;
    let emulated = Emulated::alone();
    let doctor = |code| emulated.json(&mut emulated.command(&["doctor", "--json"]), code);
    assert_eq!(doctor(0)["works"], true);
    let folder = emulated.path().join("cache");
    let entry = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().path();
    for path in [&folder, &entry] {
        let before = fs::metadata(path).unwrap().permissions();
        assert_eq!(before.mode() & 0o077, 0, "{}", path.display());
        fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        let refusal = format!("{}: others can write to it (mode 777)", path.display());
        let one = ["segment", "a.png", "--size", "64,96", "--device"];
        let text = emulated.fail(&mut emulated.command(&[&one[..], &["cuda"]].concat()), 10);
        assert!(text.contains(&refusal) && text.contains("chmod go-w"), "{text}");
        let auto = emulated.succeed(&mut emulated.command(&[&one[..], &["auto"]].concat()));
        let text = String::from_utf8_lossy(&auto.stderr);
        assert!(text.contains("computing on the CPU") && text.contains(&refusal), "{text}");
        assert!(doctor(10).to_string().contains(&refusal));
        assert!(emulated.fail(&mut emulated.bare(&["cache"]), 10).contains(&refusal));
        if *path == folder {
            assert!(emulated.fail(&mut emulated.bare(&["cache", "clear"]), 10).contains(&refusal));
        }
        fs::set_permissions(path, before).unwrap();
    }
    assert_eq!(doctor(0)["works"], true);
}

/// One line a check, and the exit code of what `--device` asks for.
#[test]
fn the_doctor_finds_what_would_stop_a_run() {
    let emulated = Emulated::alone();
    let doctor = |settings: &[(&str, &Path)], code: i32| {
        let mut command = emulated.command(&["doctor", "--json"]);
        command.envs(settings.iter().copied());
        emulated.json(&mut command, code)
    };
    let state = |report: &Value, name: &str| {
        let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name);
        check.map_or((String::new(), String::new()), |check| {
            (check["state"].as_str().unwrap().into(), check["found"].as_str().unwrap().into())
        })
    };
    let sound = doctor(&[], 0);
    let names: Vec<&str> =
        sound["checks"].as_array().unwrap().iter().map(|check| check["name"].as_str().unwrap()).collect();
    let cpu = ["instructions", "threads"];
    let gpu = [
        "driver",
        "devices",
        "gpu",
        "memory",
        "kernel cache",
        "nvrtc",
        "compile",
        "launch",
        "pinned memory",
        "graph",
    ];
    assert_eq!(names, [&cpu[..], &gpu[..]].concat());
    assert!(gpu.iter().all(|name| state(&sound, name).0 == "ok"), "{sound:#}");
    assert!(state(&sound, "nvrtc").1.contains(", /"), "version and path: {sound:#}");

    // Its kernel is in the cache now: the compiler is missed, and not needed.
    let cached = doctor(&[("KNET_NVRTC", NO_NVRTC.as_ref())], 0);
    assert_eq!((state(&cached, "nvrtc").0.as_str(), state(&cached, "launch").0.as_str()), ("note", "ok"));
    let empty = emulated.path().join("empty");
    let missing = doctor(&[("KNET_NVRTC", NO_NVRTC.as_ref()), ("KNET_CACHE", &empty)], 10);
    assert_eq!(state(&missing, "nvrtc").0, "fault");
    assert!(state(&missing, "nvrtc").1.contains(NO_NVRTC), "{missing:#}");

    // The driver is too old for what the cache holds: it is named, or an older compiler's takes its place.
    let old: (&str, &Path) = ("PTXEMU_DRIVER_VERSION", "12000".as_ref());
    let refused = state(&doctor(&[old, ("KNET_NVRTC", NO_NVRTC.as_ref())], 10), "launch");
    assert!(refused.1.contains(emulated.path().join("cache").to_str().unwrap()), "{refused:?}");
    assert!(refused.0 == "fault" && refused.1.contains("update the driver"), "{refused:?}");
    if cfg!(target_arch = "x86_64") {
        let renewed = doctor(&[old, ("KNET_NVRTC", &installed(NVRTC_12_0))], 0);
        assert_eq!(state(&renewed, "graph").0, "ok");
        let shown = emulated.json(&mut emulated.bare(&["cache", "--json"]), 0);
        assert_eq!(shown["usable"][0]["compiler"], "12.0");
    }

    for (variable, value, wanted) in
        [("PTXEMU_CC", "7.5", "capability 7.5"), ("PTXEMU_DRIVER_VERSION", "11000", "CUDA 11.0")]
    {
        let found = state(&doctor(&[(variable, value.as_ref())], 10), "gpu");
        assert!(found.0 == "fault" && found.1.contains(wanted), "{found:?}");
    }
    assert_eq!(
        emulated.json(&mut emulated.command(&["doctor", "--device", "cpu", "--json"]), 0)["works"],
        true
    );
}

/// A table that was named must be sound; one that does not hold is not followed, and a line says why.
#[test]
fn tuning_tables_that_do_not_hold_are_not_followed() {
    let emulated = Emulated::alone();
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
    fs::write(emulated.path().join("cut.json"), "{\"format\": \"knet tuned 1\"").unwrap();

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
    fs::write(emulated.path().join(&user), "junk").unwrap();
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
    let bare = |arguments: &[&str]| photos.bare(arguments);
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
    let report = String::from_utf8(photos.succeed(&mut bare(&["doctor"])).stdout).unwrap();
    let lines: Vec<&str> = report.lines().collect();
    assert_eq!(lines.len(), 4, "{report}");
    assert!(lines[2].starts_with("note  gpu") && lines[2].contains("on the CPU"), "{report}");
    assert_eq!(lines[3], "--device auto works");
    let asked = photos.json(&mut bare(&["doctor", "--device", "cuda", "--json"]), 10);
    assert!(asked.to_string().contains("no NVIDIA driver"), "{asked}");
}
