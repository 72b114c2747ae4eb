//! Small pictures to train on, and how the program trains on them. `tests/device` includes this file too.

use image::{Rgb, RgbImage};
use knet::checkpoint::Checkpoint;
use knet::train::run::log::read;
use serde_json::json;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Height and width of the pictures.
pub const SIDE: u32 = 64;

/// A picture's shapes, their edges on multiples of 8, where the bilinear masks of stride 8 can change sign:
/// class, left, top, right, bottom.
type Shape = (usize, u32, u32, u32, u32);

/// Everything of one test: pictures, annotations, configuration, the folder of the run.
pub struct Scene {
    pub folder: tempfile::TempDir,
}

impl Scene {
    /// Pictures of red (class 0) and blue (class 1) boxes on grey, `classes` of which are annotated.
    pub fn new(classes: &[&str]) -> Self {
        Scene::numbered(&classes.iter().zip(1..).map(|(name, id)| (id, *name)).collect::<Vec<_>>())
    }

    /// As [`Scene::new`], with these category ids.
    pub fn numbered(classes: &[(u32, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pictures: [&[Shape]; 3] = [
            &[(0, 8, 8, 32, 40), (1, 40, 32, 64, 56)],
            &[(1, 8, 32, 32, 56), (0, 40, 8, 56, 32)],
            &[(0, 8, 16, 48, 40)],
        ];
        let (mut images, mut annotations) = (Vec::new(), Vec::new());
        for (id, shapes) in (1..).zip(pictures) {
            let colour = |x: u32, y: u32| {
                let hit = shapes.iter().find(|s| (s.1..s.3).contains(&x) && (s.2..s.4).contains(&y));
                match hit {
                    Some((0, ..)) => Rgb([220, 40, 30]),
                    Some(_) => Rgb([30, 60, 230]),
                    None => Rgb([110 + (x % 16) as u8, 120, 110 + (y % 16) as u8]),
                }
            };
            let name = format!("{id}.png");
            RgbImage::from_fn(SIDE, SIDE, colour).save(folder.path().join(&name)).unwrap();
            images.push(json!({"id": id, "file_name": name, "width": SIDE, "height": SIDE}));
            for &(class, l, t, r, b) in shapes.iter().filter(|shape| shape.0 < classes.len()) {
                annotations.push(json!({
                    "id": annotations.len() + 1, "image_id": id, "category_id": classes[class].0, "iscrowd": 0,
                    "bbox": [l, t, r - l, b - t], "area": (r - l) * (b - t),
                    "segmentation": [[l, t, r, t, r, b, l, b]],
                }));
            }
        }
        let categories: Vec<_> = classes.iter().map(|(id, name)| json!({"id": id, "name": name})).collect();
        let document = json!({"images": images, "annotations": annotations, "categories": categories});
        std::fs::write(folder.path().join("data.json"), document.to_string()).unwrap();
        let scene = Scene { folder };
        std::fs::write(scene.config(), scene.text()).unwrap();
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("run.toml")
    }

    pub fn text(&self) -> String {
        let (data, images) = (self.path("data.json"), self.folder.path());
        format!(
            r#"
frozen = ["backbone"]
[model]
name = "tiny"
base = "knet_s3_lite0_fpn"
channels = 16
heads = 4
norm_groups = 4
feedforward_channels = 32
proposals = 4
stages = 2
size = [{SIDE}, {SIDE}]
[data]
batch = 2
max_objects = 4
[[data.train]]
format = "coco_instance"
annotations = {data:?}
images = {images:?}
[augment]
size = [{SIDE}, {SIDE}]
copy_paste = 0.5
[optimizer]
lr = 1e-3
ema = 0.9
[schedule]
iterations = 6
warmup = 3
[run]
save_iterations = 1
log_iterations = 1
overlay_minutes = 0
"#
        )
    }

    pub fn command(&self, out: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_knet-train"));
        command.arg(self.config()).arg("--out").arg(self.path(out)).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self, out: &str, arguments: &[&str]) -> Output {
        self.command(out, arguments).output().unwrap()
    }

    /// As [`Scene::run`], which must succeed.
    pub fn train(&self, out: &str, arguments: &[&str]) -> Output {
        let output = self.run(out, arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        output
    }

    pub fn state(&self, out: &str) -> Checkpoint {
        Checkpoint::open(self.path(out).join("last.state")).unwrap()
    }

    /// Total losses by iteration.
    pub fn losses(&self, out: &str) -> Vec<(u64, f64)> {
        let lines = read(&self.path(out).join("log.jsonl")).unwrap();
        let train = lines.iter().filter(|line| line["kind"] == "train");
        train.map(|l| (l["iteration"].as_u64().unwrap(), l["loss"].as_f64().unwrap())).collect()
    }
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// All tensors of two states are the same to the bit, and there are some.
pub fn assert_same(a: &Checkpoint, b: &Checkpoint) {
    let names = |c: &Checkpoint| c.names().map(str::to_string).collect::<Vec<_>>();
    assert_eq!(names(a), names(b));
    assert!(names(a).iter().any(|name| name.starts_with("average.roi_head")));
    for name in names(a) {
        assert_eq!(a.bytes(&name), b.bytes(&name), "{name}");
    }
}
