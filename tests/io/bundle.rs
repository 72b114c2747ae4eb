//! Bundles: the bits of the checkpoint that they are made of, and no bundle that is damaged, hostile or for
//! something else.

use knet::checkpoint::{Checkpoint, StorageType, TensorData, TensorOut, write_sealed};
use knet::engine::bundle::{self, For, MANIFEST_KEY};
use knet::engine::{Device, InputSize, Model, ModelOptions, Session, SessionOptions};
use knet::error::ErrorKind;
use knet::image::RgbImage;
use knet::{Error, Segmentation};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const MODEL: &str = "knet_s3_lite0_fpn";
const SIZE: (usize, usize) = (64, 96);

fn options(path: Option<&Path>) -> ModelOptions {
    match path {
        Some(path) => ModelOptions { weights: path.into(), device: Device::Cpu, ..ModelOptions::default() },
        None => ModelOptions { name: Some(MODEL.into()), device: Device::Cpu, ..ModelOptions::default() },
    }
}

/// A folder with a bundle in it.
struct Scene {
    folder: tempfile::TempDir,
    model: Arc<Model>,
}

impl Scene {
    fn new() -> Scene {
        let scene =
            Scene { folder: tempfile::tempdir().unwrap(), model: Model::load(&options(None)).unwrap() };
        bundle::compile(&scene.model, &[SIZE], &[For::Cpu], scene.path()).unwrap();
        scene
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.knet")
    }

    /// The bundle with other metadata and tensors, sealed as if nothing had happened.
    fn forged(&self, change: impl FnOnce(&mut Forged)) -> PathBuf {
        let file = Checkpoint::open(self.path()).unwrap();
        let seal = file.names().last().unwrap();
        let tensor = |info: &knet::checkpoint::TensorInfo| {
            (info.name.clone(), info.dtype, file.bytes(&info.name).unwrap().to_vec())
        };
        let tensors = file.tensors().iter().filter(|info| info.name != seal).map(tensor);
        let mut forged = Forged { metadata: file.metadata().clone(), tensors: tensors.collect() };
        change(&mut forged);
        let path = self.folder.path().join("forged.knet");
        let shapes: Vec<[usize; 1]> =
            forged.tensors.iter().map(|(_, dtype, bytes)| [bytes.len() / dtype.size()]).collect();
        let tensors = forged.tensors.iter().zip(&shapes).map(|((name, dtype, bytes), shape)| TensorOut {
            name,
            shape,
            data: TensorData::Raw(*dtype, bytes),
        });
        write_sealed(&path, tensors, &forged.metadata).unwrap();
        path
    }
}

struct Forged {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, StorageType, Vec<u8>)>,
}

type Forgery = fn(&mut Forged);

fn photo() -> RgbImage {
    let pixel = |x: u32, y: u32| image::Rgb([(x * 5) as u8, (y * 3) as u8, (x ^ y) as u8]);
    RgbImage::from_fn(SIZE.1 as u32, SIZE.0 as u32, pixel)
}

fn segment(model: &Arc<Model>, options: SessionOptions) -> Result<Segmentation, Error> {
    let options = SessionOptions { size: InputSize::AsTheyAre, threads: 2, ..options };
    Session::new(model.clone(), &options)?.segment(&photo())
}

/// The error of opening a bundle, or else of its first photo.
fn fault(path: &Path) -> Error {
    let opened = Model::load(&options(Some(path)));
    opened.and_then(|model| segment(&model, SessionOptions::default())).expect_err("a refusal")
}

#[test]
fn a_bundle_gives_the_bits_of_its_checkpoint() {
    let scene = Scene::new();
    let bundled = Model::load(&options(Some(&scene.path()))).unwrap();
    assert_eq!(bundled.config(), scene.model.config());
    for kind in [
        SessionOptions::default(),
        SessionOptions { stages: Some(1), ..SessionOptions::default() },
        SessionOptions { deadline: Some(Duration::from_secs(3600)), ..SessionOptions::default() },
    ] {
        let wanted = segment(&scene.model, kind.clone()).unwrap();
        assert_eq!(segment(&bundled, kind).unwrap(), wanted);
    }
    let again = scene.folder.path().join("again.knet");
    bundle::compile(&Model::load(&options(None)).unwrap(), &[SIZE], &[For::Cpu], &again).unwrap();
    let (first, second) = (std::fs::read(scene.path()).unwrap(), std::fs::read(again).unwrap());
    assert!(first == second, "equal models make other bytes");
    assert!(bundle::is_bundle(&scene.path()));
    let error = bundle::compile(&bundled, &[SIZE], &[For::Cpu], scene.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");
    let error = bundle::compile(&scene.model, &[(64, 64), (63, 64)], &[For::Cpu], scene.path());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Usage);
    assert!(std::fs::read(scene.path()).unwrap() == first, "a failure leaves what was there");
}

#[test]
fn what_a_bundle_is_not_for_is_refused_by_name() {
    let scene = Scene::new();
    let bundled = Model::load(&options(Some(&scene.path()))).unwrap();
    let other = SessionOptions { size: InputSize::Within(128, 256), ..SessionOptions::default() };
    let mut session = Session::new(bundled, &other).unwrap();
    let error = session.segment(&photo()).unwrap_err().to_string();
    assert!(error.contains("is for 64x96, and this image is 128x192"), "{error}");

    let device = Device::Cuda(0);
    let error = Model::load(&ModelOptions { device, ..options(Some(&scene.path())) }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::NoDevice, "{error}");
    assert!(error.to_string().contains("the bundle is for CPUs with"), "{error}");
    let name = Some("knet_s3_r50_fpn".into());
    let error = Model::load(&ModelOptions { name, ..options(Some(&scene.path())) }).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Usage, "{error}");

    let here = std::env::consts::ARCH;
    let manifest = |from: &str, to: &str| {
        scene.forged(|forged| {
            let text = forged.metadata.get_mut(MANIFEST_KEY).unwrap();
            assert!(text.contains(from), "{text}");
            *text = text.replace(from, to);
        })
    };
    let error = fault(&manifest(here, "z80"));
    assert_eq!(error.kind(), ErrorKind::NoDevice, "{error}");
    assert!(error.to_string().contains("is for CPUs with z80"), "{error}");
    for (from, to, words) in [
        (env!("CARGO_PKG_VERSION"), "0.0.1", "made by knet 0.0.1"),
        ("\"format\":1", "\"format\":2", "(format 2)"),
        ("\"sizes\"", "\"dimensions\"", "dimensions"),
        ("[[64,96]]", "[]", "names no size"),
    ] {
        let error = fault(&manifest(from, to));
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn every_accident_is_noticed_before_anything_is_used() {
    let scene = Scene::new();
    let whole = std::fs::read(scene.path()).unwrap();
    let path = scene.folder.path().join("damaged.knet");
    let refused = |bytes: &[u8], what: &str| {
        std::fs::write(&path, bytes).unwrap();
        let error = bundle::read(&path, None).err().unwrap_or_else(|| panic!("{what} goes unnoticed"));
        assert_eq!(error.kind(), ErrorKind::Checkpoint, "{what}: {error}");
    };
    for at in 0..40 {
        let at = whole.len() * at / 40;
        refused(&whole[..at], &format!("an end at {at}"));
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        refused(&flipped, &format!("a bit at {at}"));
    }
    refused(&whole[..whole.len() - 1], "an end one byte early");
    refused(&[&whole[..], b"\0"].concat(), "a byte too many");
    // A file of weights that is called like a bundle.
    let unsealed = std::fs::read(scene.forged(|forged| drop(forged.metadata.remove(MANIFEST_KEY)))).unwrap();
    refused(&unsealed, "a file without a manifest");
}

#[test]
fn a_forged_bundle_is_an_error_and_no_more() {
    let scene = Scene::new();
    let forgeries: [(&str, Forgery); 6] = [
        ("a constant is gone", |forged| drop(forged.tensors.pop())),
        ("one is shorter", |forged| {
            let (_, _, bytes) = &mut forged.tensors[3];
            bytes.truncate(bytes.len() - 64);
        }),
        ("one is longer", |forged| forged.tensors[3].2.extend([0; 64])),
        ("one is of bytes", |forged| forged.tensors[3].1 = StorageType::U8),
        ("there are none", |forged| forged.tensors.clear()),
        ("the model is another", |forged| {
            let config = forged.metadata.get_mut("knet.config").unwrap();
            *config = config.replace("\"proposals\":16", "\"proposals\":1000000");
        }),
    ];
    for (what, forge) in forgeries {
        let error = fault(&scene.forged(forge));
        assert!(
            matches!(error.kind(), ErrorKind::Checkpoint | ErrorKind::Usage | ErrorKind::Memory),
            "{what}: {error}"
        );
    }
}
