//! The node against another implementation of DDS: Cyclone DDS publishes frames and receives what comes of
//! them, over loopback alone. Maps, labels and overlays must be, byte for byte, what the library gives for
//! the same frames.

use knet::engine::{Device, WeightSource};
use knet::image::decode::{Limits, decode};
use knet::image::image_rs::imageops::crop_imm;
use knet::image::overlay::{draw, instance_layers};
use knet::image::view::{ImageView, PixelFormat, Plane, YuvMatrix};
use knet::image::{RgbImage, image_rs::imageops};
use knet::{Engine, Segmentation};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

/// All of it must have happened after so long.
const PATIENCE: Duration = Duration::from_secs(240);

/// A frame that was not answered after so long is sent again: frames go as sensors' data, which may be lost,
/// and those that are sent before both sides have found each other are.
const AGAIN: Duration = Duration::from_secs(5);

const MIN_SCORE: f64 = 0.1;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A program whose lines are read.
struct Program {
    child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
    until: Instant,
}

impl Program {
    fn start(command: &mut Command, until: Instant) -> (Program, ChildStdin) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let (sender, lines) = channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            thread::spawn(move || {
                BufReader::new(stream).lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
            });
        }
        let stdin = child.stdin.take().unwrap();
        (Program { child, lines, seen: Vec::new(), until }, stdin)
    }

    /// The next line; `None` if there is none for `patience`, or at once if the program has ended.
    fn line(&mut self, patience: Duration) -> Option<String> {
        assert!(Instant::now() < self.until, "not done after {PATIENCE:?}; the last lines:\n{}", self.tail());
        match self.lines.recv_timeout(patience) {
            Ok(line) => {
                // Shown by the test if it fails.
                eprintln!("{line}");
                self.seen.push(line.clone());
                Some(line)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                let status = self.child.wait().unwrap();
                panic!("the program has ended ({status}); its last lines:\n{}", self.tail());
            }
        }
    }

    fn tail(&self) -> String {
        self.seen[self.seen.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A frame as it is sent, and what must come back.
struct Frame {
    image: Value,
    file: PathBuf,
    instances: Vec<u8>,
    classes: Vec<u8>,
    overlay: Vec<u8>,
    objects: usize,
}

/// Rows with `gap` bytes of anything behind each.
fn padded(rows: &[u8], row: usize, gap: usize) -> Vec<u8> {
    let one = |row: &[u8]| [row, &vec![0xA5; gap]].concat();
    rows.chunks_exact(row).flat_map(one).collect()
}

/// Luma, then U and V of every second pixel.
fn nv12(photo: &RgbImage) -> Vec<u8> {
    let yuv = |x, y| {
        let [r, g, b] = photo.get_pixel(x, y).0.map(f32::from);
        let luma = 16.0 + 0.257 * r + 0.504 * g + 0.098 * b;
        [luma, 128.0 - 0.148 * r - 0.291 * g + 0.439 * b, 128.0 + 0.439 * r - 0.368 * g - 0.071 * b]
            .map(|v| v as u8)
    };
    let (width, height) = photo.dimensions();
    let luma = (0..height).flat_map(|y| (0..width).map(move |x| yuv(x, y)[0]));
    let chroma =
        (0..height).step_by(2).flat_map(|y| (0..width).step_by(2).flat_map(move |x| yuv(x, y)[1..].to_vec()));
    luma.chain(chroma).collect()
}

/// The photos of the README, in the size and the format of cameras.
fn frames(folder: &Path) -> (Vec<Frame>, Vec<String>) {
    let read = |path: &str| decode(root().join("assets").join(path), &Limits::default()).unwrap();
    let (strip, cat) = (read("readme/person.jpg"), read("photos/chelsea.jpg"));
    let cut = |x, width| crop_imm(&strip, x, 0, width, strip.height()).to_image();
    let sized = |photo: &RgbImage, width, height| {
        imageops::resize(photo, width, height, imageops::FilterType::Triangle)
    };
    let bgr = |photo: &RgbImage| photo.pixels().flat_map(|p| [p[2], p[1], p[0]]).collect::<Vec<u8>>();
    let third = strip.width() / 3;
    let (left, right) = (sized(&cut(0, third), 640, 480), sized(&cut(2 * third, third), 640, 480));
    let middle = sized(&cut(third, third), 642, 480);
    let grey: Vec<u8> = cat.pixels().map(|p| p[1]).collect();
    let mut engine = Engine::builder()
        .weights(WeightSource::File(root().join("weights/knet_s3_lite0_person.safetensors")))
        .device(Device::Cpu)
        .min_score(MIN_SCORE)
        .build()
        .unwrap();
    let all = [
        ("rgb8", PixelFormat::Rgb8, left.dimensions(), 1920, left.as_raw().clone()),
        ("bgr8", PixelFormat::Bgr8, right.dimensions(), 1984, padded(&bgr(&right), 1920, 64)),
        ("mono8", PixelFormat::Gray8, cat.dimensions(), 456, padded(&grey, 451, 5)),
        (
            "nv12",
            PixelFormat::Nv12(YuvMatrix::Bt601),
            middle.dimensions(),
            704,
            padded(&nv12(&middle), 642, 62),
        ),
    ];
    let classes = engine.classes();
    let frames = all.into_iter().enumerate().map(|(n, (encoding, format, (width, height), step, data))| {
        let (width, height) = (width as usize, height as usize);
        let (luma, rest) = data.split_at(step * height);
        let planes = [Plane::host(luma, step), Plane::host(rest, step)];
        let view = ImageView::new(format, (height, width), &planes[..format.planes()]).unwrap();
        let found = engine.segment(view).unwrap();
        let (instances, class_map) = maps(&found, (height, width));
        let mut photo = RgbImage::new(width as u32, height as u32);
        view.to_rgb(&mut photo).unwrap();
        let layers = instance_layers(found.instance_result().unwrap(), &classes, 0.0);
        let file = folder.join(format!("frame{n}"));
        std::fs::write(&file, &data).unwrap();
        Frame {
            image: json!({
                "header": {"stamp": {"sec": 1_700_000_000 + n, "nanosec": 123_456_789}, "frame_id": format!("camera_{n}")},
                "height": height, "width": width, "encoding": encoding, "is_bigendian": 0, "step": step,
            }),
            file,
            instances,
            classes: class_map,
            overlay: draw(&photo, &layers).unwrap().into_raw(),
            objects: found.instances().len(),
        }
    });
    (frames.collect(), classes.iter().map(|class| class.name.to_string()).collect())
}

/// The first instance that has a pixel, and its class.
fn maps(found: &Segmentation, (height, width): (usize, usize)) -> (Vec<u8>, Vec<u8>) {
    let (mut numbers, mut classes) = (Vec::new(), Vec::new());
    for (y, x) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
        let on_top = found.instances().iter().position(|instance| found.mask(instance).get(y, x));
        numbers.extend(on_top.map_or(0, |place| place as u16 + 1).to_le_bytes());
        classes.push(on_top.map_or(255, |place| found.instances()[place].label as u8));
    }
    (numbers, classes)
}

/// Node and peer, in a domain and a namespace of their own.
struct Scene {
    node: Program,
    peer: Program,
    commands: ChildStdin,
    namespace: String,
    /// Frames that were sent, also those that were sent again.
    sent: usize,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(folder: tempfile::TempDir) -> Scene {
        let until = Instant::now() + PATIENCE;
        let cyclone = root().join("target/dds");
        assert!(cyclone.join("cyclonedds").exists(), "{}: run tools/setup-dds", cyclone.display());
        // Ports of domains beyond 100 may be those of outgoing connections.
        let (domain, namespace) = (1 + std::process::id() % 100, format!("/test_{}", std::process::id()));
        // Loopback alone, and no multicast: peers are asked one by one, at the ports that the standard names.
        let configuration = "<CycloneDDS><Domain><General><Interfaces><NetworkInterface name=\"lo\" multicast=\"false\"/>\
            </Interfaces><AllowMulticast>false</AllowMulticast></General><Discovery><ParticipantIndex>auto\
            </ParticipantIndex><MaxAutoParticipantIndex>11</MaxAutoParticipantIndex><Peers><Peer address=\"127.0.0.1\"/>\
            </Peers></Discovery></Domain></CycloneDDS>";
        let mut peer = Command::new("python3");
        peer.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peer.py")).arg(domain.to_string());
        peer.env("PYTHONPATH", cyclone)
            .env("CYCLONEDDS_URI", configuration)
            .env("PEER_FOLDER", folder.path());
        let (peer, commands) = Program::start(&mut peer, until);
        let mut node = Command::new(env!("CARGO_BIN_EXE_knet-ros2"));
        node.args(["--device", "cpu", "--ros-args", "-r", "__node:=eye", "-r", "image:=camera/image_raw"]);
        node.arg("-r").arg(format!("__ns:={namespace}")).arg("-p").arg(format!("min_score:={MIN_SCORE}"));
        node.env("ROS_DOMAIN_ID", domain.to_string()).env("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST");
        let (node, _) = Program::start(&mut node, until);
        Scene { node, peer, commands, namespace, sent: 0, _folder: folder }
    }

    fn topic(&self, name: &str) -> String {
        format!("{}/{name}", self.namespace)
    }

    fn command(&mut self, command: &Value) {
        writeln!(self.commands, "{command}").unwrap();
    }

    fn subscribe(&mut self, name: &str, kind: &str, latched: bool) {
        let topic = self.topic(name);
        self.command(&json!({"do": "subscribe", "topic": topic, "type": kind, "latched": latched}));
    }

    fn publish(&mut self, image: &Value, file: &Path) {
        let topic = self.topic("camera/image_raw");
        self.command(&json!({"do": "publish", "topic": topic, "image": image, "file": file}));
        self.sent += 1;
    }

    /// The next thing that the peer received, if it comes in time.
    fn received(&mut self, patience: Duration) -> Option<Value> {
        // The node must live, whatever the peer hears.
        while self.node.line(Duration::ZERO).is_some() {}
        let line = self.peer.line(patience)?;
        Some(serde_json::from_str(&line).unwrap_or_else(|_| panic!("the peer: {}", self.peer.tail())))
    }

    /// Publishes a frame until each of these topics has answered with its stamp, and gives the answers.
    fn ask(&mut self, frame: &Frame, topics: &[&str]) -> Vec<Value> {
        let sec = &frame.image["header"]["stamp"]["sec"];
        let mut answers: Vec<Option<Value>> = vec![None; topics.len()];
        loop {
            self.publish(&frame.image, &frame.file);
            let again = Instant::now() + AGAIN;
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                let Some(answer) = self.received(left) else { continue };
                let place = topics.iter().position(|name| answer["topic"] == self.topic(name));
                if let Some(place) = place.filter(|_| answer["sec"] == *sec) {
                    answers[place] = Some(answer);
                }
                if answers.iter().all(Option::is_some) {
                    return answers.into_iter().flatten().collect();
                }
            }
        }
    }

    /// Publishes a frame so many times in a row, numbered by the nanoseconds of its stamp, until the last one
    /// is answered; gives the numbers that were answered, and the last.
    fn burst(&mut self, frame: &Frame, count: u64) -> (Vec<u64>, u64) {
        let (mut answered, mut last) = (Vec::new(), 0);
        loop {
            for _ in 0..count {
                last += 1;
                let mut image = frame.image.clone();
                image["header"]["stamp"] = json!({"sec": 1, "nanosec": last});
                self.publish(&image, &frame.file);
            }
            // Busy machines answer late; that the last frame itself is lost is rare.
            let again = Instant::now() + 6 * AGAIN;
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                let Some(answer) = self.received(left) else { continue };
                if answer["topic"] == self.topic("instances") && answer["sec"] == 1 {
                    answered.push(answer["nanosec"].as_u64().unwrap());
                }
                if answered.last() == Some(&last) {
                    return (answered, last);
                }
            }
        }
    }

    /// Publishes what is no frame until the node says so.
    fn refused(&mut self, image: &Value, file: &Path, words: &str) {
        loop {
            self.publish(image, file);
            let again = Instant::now() + Duration::from_secs(1);
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                if self.node.line(left).is_some_and(|line| line.contains("[WARN]") && line.contains(words)) {
                    return;
                }
            }
        }
    }
}

/// Whether an answer has the frame's header and size, and these pixels.
fn check(answer: &Value, frame: &Frame, encoding: &str, bytes: u64, pixels: &[u8]) {
    let (header, image) = (&frame.image["header"], &frame.image);
    let stamp = (&answer["sec"], &answer["nanosec"], &answer["frame_id"]);
    assert_eq!(stamp, (&header["stamp"]["sec"], &header["stamp"]["nanosec"], &header["frame_id"]));
    assert_eq!((&answer["height"], &answer["width"]), (&image["height"], &image["width"]));
    assert_eq!((answer["encoding"].as_str(), answer["is_bigendian"].as_u64()), (Some(encoding), Some(0)));
    assert_eq!(answer["step"].as_u64(), image["width"].as_u64().map(|width| width * bytes));
    let came = std::fs::read(answer["file"].as_str().unwrap()).unwrap();
    assert_eq!(came.len(), pixels.len(), "{encoding} for {image}");
    let differ = came.iter().zip(pixels).filter(|(a, b)| a != b).count();
    assert_eq!(differ, 0, "bytes of {encoding} for {image}");
}

#[test]
#[cfg(target_os = "linux")]
fn frames_of_cyclone_dds_come_back_as_the_librarys_maps() {
    let folder = tempfile::tempdir().unwrap();
    let (frames, classes) = frames(folder.path());
    assert!(frames.iter().filter(|frame| frame.objects > 0).count() > 1, "the photos show nobody");
    let mut scene = Scene::new(folder);
    scene.subscribe("instances", "image", false);
    scene.subscribe("classes", "image", false);
    let start = Instant::now();
    for frame in &frames {
        let answers = scene.ask(frame, &["instances", "classes"]);
        check(&answers[0], frame, "mono16", 2, &frame.instances);
        check(&answers[1], frame, "mono8", 1, &frame.classes);
        eprintln!("{}: answered after {:.2?}", frame.image, start.elapsed());
    }
    eprintln!("{} frames were sent {} times", frames.len(), scene.sent);

    // Whoever comes late is told what the classes are.
    scene.subscribe("label_info", "label_info", true);
    let info = loop {
        let answer = scene.received(AGAIN);
        if let Some(answer) = answer.filter(|answer| answer["topic"] == scene.topic("label_info")) {
            break answer;
        }
    };
    let mut expected: Vec<Value> = classes.iter().enumerate().map(|(id, name)| json!([id, name])).collect();
    expected.push(json!([255, "UNLABELED"]));
    assert_eq!(info["class_map"], json!(expected));
    assert_eq!(info["threshold"].as_f64().map(|threshold| threshold as f32), Some(MIN_SCORE as f32));

    // The overlay is drawn once somebody wants it.
    scene.subscribe("overlay", "image", false);
    for frame in [&frames[1], &frames[3]] {
        let answers = scene.ask(frame, &["overlay"]);
        check(&answers[0], frame, "rgb8", 3, &frame.overlay);
    }

    // What is no frame costs a warning, and the next frame is answered.
    let good = &frames[0];
    let (short, empty) = (scene._folder.path().join("short"), scene._folder.path().join("empty"));
    std::fs::write(&short, &std::fs::read(&good.file).unwrap()[..1000]).unwrap();
    std::fs::write(&empty, []).unwrap();
    let with = |field: &str, value: Value| {
        let mut image = good.image.clone();
        image[field] = value;
        image
    };
    for (image, file, words) in [
        (
            good.image.clone(),
            &short,
            "480 rows of 1920 bytes at a stride of 1920 take 921600 bytes, there are 1000",
        ),
        (
            with("encoding", json!("bayer_rggb8")),
            &good.file,
            "a 480x640 image has the encoding `bayer_rggb8`",
        ),
        (with("step", json!(1919)), &good.file, "rows of 1920 bytes overlap at a stride of 1919"),
        (with("height", json!(0)), &empty, "a 0x640 image has no pixels"),
        (with("encoding", json!("mono16")), &good.file, "the encoding `mono16`, not one of rgb8, bgr8"),
    ] {
        scene.refused(&image, file, words);
    }
    let answers = scene.ask(good, &["instances"]);
    check(&answers[0], good, "mono16", 2, &good.instances);

    // Of frames that come faster than they are segmented, the last is answered.
    let (answered, burst) = scene.burst(good, 8);
    assert!(answered.is_sorted() && answered.last() == Some(&burst), "{answered:?}");
    eprintln!("of a burst up to {burst}, {answered:?} were answered");

    // It ends in order.
    let pid = scene.node.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    while !scene.node.line(AGAIN).is_some_and(|line| line.contains("stopped by a signal after")) {}
    assert!(scene.node.child.wait().unwrap().success());
    scene.command(&json!({"do": "quit"}));
}
