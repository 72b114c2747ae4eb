//! ResNet (He et al., 2016), "pytorch" style: the stride of a bottleneck sits on its 3x3 convolution.
//!
//! Parameters are named as in mmdet and mmseg: `backbone.conv1`, `backbone.bn1` or, of the deep stem (mmseg's
//! ResNetV1c), `backbone.stem.0` to `.7`; then `backbone.layer1.0.conv1` and so on.

use super::Part;
use crate::error::{Error, Result};
use crate::graph::{Builder, ValueId};
use crate::model::decode_head::{self, Generator};
use crate::model::evidence::Evidence;
use crate::model::layers::{Conv, conv_bn, deform_conv_bn, relu};
use crate::ops::binary::BinaryKind;
use crate::ops::{Binary, MaxPool2d};
use serde::{Deserialize, Serialize};

/// Output channels of a bottleneck per channel of its 3x3 convolution.
const EXPANSION: usize = 4;

/// Strides of the stages where nothing else is said.
const STRIDES: [usize; 4] = [1, 2, 2, 2];

/// Strides and dilations of the semantic models that keep stride 8.
const STRIDE_8: [[usize; 4]; 2] = [[1, 2, 1, 1], [1, 1, 2, 4]];

/// Largest dilation that is taken: beyond it, taps lie outside any map that is left at these strides.
const MOST_DILATION: usize = 32;

/// A ResNet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResNet {
    /// 50 or 101.
    pub depth: usize,
    /// What comes before the pooling.
    #[serde(default, skip_serializing_if = "is_default")]
    pub stem: Stem,
    /// Stride of each stage's first block.
    #[serde(default = "default_strides", skip_serializing_if = "are_default_strides")]
    pub strides: [usize; 4],
    /// Dilation of each stage's 3x3 convolutions. As in mmseg (`contract_dilation`), the first block of a
    /// dilated stage has half of it: its operand is one of the stage before, whose pixels are so far apart.
    #[serde(default = "default_dilations", skip_serializing_if = "are_default_dilations")]
    pub dilations: [usize; 4],
    /// Which stages have deformable 3x3 convolutions, in every block (DCNv1, upstream's `stage_with_dcn`).
    #[serde(default, skip_serializing_if = "are_plain")]
    pub deformable: [bool; 4],
}

/// The first layers, which halve the image before a 3x3 pooling halves it again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stem {
    /// One 7x7 convolution.
    #[default]
    Plain,
    /// Three 3x3 convolutions, of 32, 32 and 64 channels (ResNet-C of He et al., 2019).
    Deep,
}

fn is_default(stem: &Stem) -> bool {
    *stem == Stem::default()
}
fn default_strides() -> [usize; 4] {
    STRIDES
}
fn are_default_strides(strides: &[usize; 4]) -> bool {
    *strides == STRIDES
}
fn default_dilations() -> [usize; 4] {
    [1; 4]
}
fn are_default_dilations(dilations: &[usize; 4]) -> bool {
    *dilations == [1; 4]
}

fn are_plain(deformable: &[bool; 4]) -> bool {
    *deformable == [false; 4]
}

/// Upstream's `stage_with_dcn` of models that are called so.
const DCN: [bool; 4] = [false, true, true, true];

impl ResNet {
    /// The plain one of this depth, at strides 4 to 32.
    pub fn new(depth: usize) -> Self {
        ResNet { depth, stem: Stem::Plain, strides: STRIDES, dilations: [1; 4], deformable: [false; 4] }
    }

    fn blocks(&self) -> Result<[usize; 4], String> {
        match self.depth {
            50 => Ok([3, 4, 6, 3]),
            101 => Ok([3, 4, 23, 3]),
            depth => Err(format!("ResNet depth {depth} is not 50 or 101")),
        }
    }
}

impl Part for ResNet {
    /// `backbone.layer1`: a stage, whose levels are kept anyway.
    const STRETCH: usize = 2;

    const CLASSIFIER: &'static [&'static str] = &["backbone.fc."];

    fn name(&self) -> String {
        format!("resnet{}", self.depth)
    }

    fn short_name(&self) -> String {
        // As mmseg has it: `r50-d8` keeps the levels behind C3 at stride 8.
        let coarsest = self.strides()[3];
        let dilated = if coarsest < 32 { format!("-d{coarsest}") } else { String::new() };
        let deformable = if are_plain(&self.deformable) { "" } else { "_dcn" };
        format!("r{}{dilated}{deformable}", self.depth)
    }

    fn named(short: &str) -> Option<Self> {
        let (plain, deformable) =
            short.strip_suffix("_dcn").map_or((short, [false; 4]), |plain| (plain, DCN));
        let plain = match plain {
            "r50" => ResNet::new(50),
            "r101" => ResNet::new(101),
            // Those of semantic models have the deep stem; detectors, the plain one.
            "r50-d8" => {
                let [strides, dilations] = STRIDE_8;
                ResNet { stem: Stem::Deep, strides, dilations, ..ResNet::new(50) }
            }
            _ => return None,
        };
        Some(ResNet { deformable, ..plain })
    }

    fn validate(&self) -> Result<(), String> {
        self.blocks()?;
        if !self.strides.iter().all(is_stride) {
            return Err(format!("ResNet strides {:?} must be 1 or 2", self.strides));
        }
        if !self.dilations.iter().all(is_dilation) {
            return Err(format!("ResNet dilations {:?} must be 1 to {MOST_DILATION}", self.dilations));
        }
        Ok(())
    }

    fn strides(&self) -> [usize; 4] {
        let mut stride = 4;
        self.strides.map(|stage| {
            stride *= stage;
            stride
        })
    }

    /// 256, 512, 1024 and 2048 channels.
    fn build(&self, b: &mut Builder, image: ValueId) -> Result<Vec<ValueId>> {
        let blocks = self.blocks().map_err(Error::usage)?;
        let x = match self.stem {
            Stem::Plain => {
                let x = conv_bn(b, "backbone.conv1", "backbone.bn1", image, Conv::new(64, 7, 2))?;
                relu(b, "backbone.bn1", x)?
            }
            Stem::Deep => {
                let mut x = image;
                // PyTorch numbers the activations in between, too.
                for (index, conv) in
                    [(0, Conv::new(32, 3, 2)), (3, Conv::new(32, 3, 1)), (6, Conv::new(64, 3, 1))]
                {
                    let norm = format!("backbone.stem.{}", index + 1);
                    x = conv_bn(b, &format!("backbone.stem.{index}"), &norm, x, conv)?;
                    x = relu(b, &norm, x)?;
                }
                x
            }
        };
        let pool = MaxPool2d { kernel: [3, 3], stride: [2, 2], padding: [1, 1] };
        let mut x = b.node("backbone.maxpool", pool, &[x])?;
        let mut levels = Vec::new();
        for (level, &count) in blocks.iter().enumerate() {
            let dilation = self.dilations[level];
            for block in 0..count {
                let (stride, dilation) = match block {
                    0 => (self.strides[level], (dilation / 2).max(1)),
                    _ => (1, dilation),
                };
                let prefix = format!("backbone.layer{}.{block}", level + 1);
                let middle = Conv::new(64 << level, 3, stride).dilated(dilation);
                x = bottleneck(b, &prefix, x, middle, self.deformable[level])?;
            }
            levels.push(x);
        }
        Ok(levels)
    }

    /// Strides and dilations leave no trace in the tensors; the training configuration may name them.
    fn recognise(found: &Evidence<'_>, notes: &mut Vec<String>) -> Result<Option<Self>, String> {
        if !found.has("backbone.layer1.0.conv1.weight") {
            return Ok(None);
        }
        let depth = if found.has("backbone.layer3.22.conv1.weight") { 101 } else { 50 };
        let stem = if found.has("backbone.stem.0.weight") { Stem::Deep } else { Stem::Plain };
        let mut deformable = [false; 4];
        for (stage, deformable) in (1..).zip(&mut deformable) {
            let offsets = format!("backbone.layer{stage}.0.conv2.conv_offset.weight");
            match found.dim(&offsets, 0) {
                None => {}
                Some(18) => *deformable = true,
                Some(channels) => {
                    return Err(format!(
                        "`{offsets}` has {channels} channels: deformable convolutions have 18 here, two for each \
                         of 9 taps (27 are those of modulated ones, DCNv2, which are not known)"
                    ));
                }
            }
        }
        let said = said_geometry(found)?;
        let [strides, dilations] = said.unwrap_or_else(|| assumed_geometry(found));
        if said.is_some() {
            notes.push(format!("read: backbone strides {strides:?}, dilations {dilations:?}"));
        } else if stem == Stem::Deep {
            notes.push(format!(
                "assumed, as the file does not say: backbone strides {strides:?}, dilations {dilations:?} \
                 (--set backbone=..)"
            ));
        }
        Ok(Some(ResNet { depth, stem, strides, dilations, deformable }))
    }
}

/// Strides and dilations that the training configuration names; `None` if it names neither. Lists that no
/// ResNet can have are another part's: the dilations of DeepLabV3's head, the strides of anchors.
fn said_geometry(found: &Evidence<'_>) -> Result<Option<[[usize; 4]; 2]>, String> {
    let one = |field: &str, may_be: fn(&usize) -> bool| {
        let mut lists = found.values::<[usize; 4]>(&[field]);
        lists.retain(|list| list.iter().all(may_be));
        match lists.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            several => {
                Err(format!("its configuration says {field} {several:?}: which of them is the backbone's?"))
            }
        }
    };
    Ok(match (one("strides", is_stride)?, one("dilations", is_dilation)?) {
        (None, None) => None,
        (strides, dilations) => Some([strides.unwrap_or(STRIDES), dilations.unwrap_or([1; 4])]),
    })
}

/// Strides and dilations where nothing is said: as of mmseg's models with this head, whose backbones keep
/// stride 8 but for UPerNet's, and else plain.
fn assumed_geometry(found: &Evidence<'_>) -> [[usize; 4]; 2] {
    match decode_head::generator(found) {
        Some(generator) if generator != Generator::Uper => STRIDE_8,
        _ => [STRIDES, [1; 4]],
    }
}

fn is_stride(stride: &usize) -> bool {
    matches!(stride, 1 | 2)
}

fn is_dilation(dilation: &usize) -> bool {
    (1..=MOST_DILATION).contains(dilation)
}

/// A bottleneck around its 3x3 convolution.
fn bottleneck(b: &mut Builder, p: &str, x: ValueId, middle: Conv, deformable: bool) -> Result<ValueId> {
    let (width, stride) = (middle.c_out, middle.stride);
    let c_out = width * EXPANSION;
    let convs = [Conv::new(width, 1, 1), middle, Conv::new(c_out, 1, 1)];
    let mut y = x;
    for (i, geometry) in (1..).zip(convs) {
        let (conv, norm) = (format!("{p}.conv{i}"), format!("{p}.bn{i}"));
        y = match i == 2 && deformable {
            true => deform_conv_bn(b, &conv, &norm, y, geometry)?,
            false => conv_bn(b, &conv, &norm, y, geometry)?,
        };
        if i < convs.len() {
            y = relu(b, &norm, y)?;
        }
    }
    let identity = if b.shape(x).last() == c_out && stride == 1 {
        x
    } else {
        let geometry = Conv::new(c_out, 1, stride);
        conv_bn(b, &format!("{p}.downsample.0"), &format!("{p}.downsample.1"), x, geometry)?
    };
    let sum = b.node(&format!("{p}.add"), Binary { kind: BinaryKind::Add }, &[y, identity])?;
    relu(b, p, sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Backbone;
    use crate::ops::{Op, ValueType};
    use serde_json::{Value, json};

    /// mmseg's R-50-D8 V1c.
    const D8: ResNet = ResNet {
        depth: 50,
        stem: Stem::Deep,
        strides: [1, 2, 1, 1],
        dilations: [1, 1, 2, 4],
        deformable: [false; 4],
    };

    fn built(resnet: ResNet, size: [usize; 2]) -> (crate::graph::Graph, Vec<[usize; 4]>) {
        let mut b = Builder::new();
        let image = b.input("image", ValueType::map([1, size[0], size[1], 3]));
        let levels = resnet.build(&mut b, image).unwrap();
        let shapes = levels.iter().map(|&level| b.shape(level).dims().try_into().unwrap()).collect();
        b.output("C5", levels[3]);
        (b.finish().unwrap(), shapes)
    }

    #[test]
    fn semantic_models_keep_stride_8_and_widen_their_taps() {
        let (graph, shapes) = built(D8, [64, 96]);
        assert_eq!(shapes, [[1, 16, 24, 256], [1, 8, 12, 512], [1, 8, 12, 1024], [1, 8, 12, 2048]]);
        assert_eq!(D8.strides(), [4, 8, 8, 8]);
        let dilations = |stage: usize| -> Vec<usize> {
            let of = |node: &crate::graph::Node| {
                let name = &graph.value(node.outputs[0]).name;
                let inside = name.starts_with(&format!("backbone.layer{stage}.")) && name.ends_with(".conv2");
                match &node.op {
                    Op::Conv2d(conv) if inside => {
                        assert_eq!(
                            (conv.padding, conv.dilation[0]),
                            (conv.dilation, conv.dilation[1]),
                            "{name}"
                        );
                        Some(conv.dilation[0])
                    }
                    _ => None,
                }
            };
            graph.nodes().iter().filter_map(of).collect()
        };
        // As measured in mmseg's own model.
        assert_eq!((dilations(3), dilations(4)), (vec![1, 2, 2, 2, 2, 2], vec![2, 4, 4]));
        assert_eq!((dilations(1), dilations(2)), (vec![1; 3], vec![1; 4]));
    }

    #[test]
    fn offsets_have_the_geometry_of_what_they_move() {
        let (graph, shapes) = built(ResNet { deformable: [false, false, true, true], ..D8 }, [64, 96]);
        assert_eq!(shapes, built(D8, [64, 96]).1);
        let deformable: Vec<_> = graph
            .nodes()
            .iter()
            .filter_map(|node| match &node.op {
                Op::DeformConv2d(op) => Some((node, op.conv)),
                _ => None,
            })
            .collect();
        assert_eq!(deformable.len(), 6 + 3);
        for (node, conv) in deformable {
            let name = &graph.value(node.outputs[0]).name;
            let offsets = graph.nodes().iter().find(|other| other.outputs[0] == node.inputs[2]).unwrap();
            let Op::Conv2d(of) = &offsets.op else { panic!("{name}: offsets by {}", offsets.op.name()) };
            let geometry = |conv: &crate::ops::Conv2d| (conv.stride, conv.padding, conv.dilation);
            assert_eq!(geometry(of), geometry(&conv), "{name}");
            assert_eq!(graph.value(offsets.outputs[0]).name, format!("{name}.conv_offset"));
            assert_eq!(graph.value(node.inputs[2]).ty.shape.last(), 18);
        }
    }

    #[test]
    fn the_deep_stem_has_the_names_of_mmseg() {
        let (graph, _) = built(D8, [32, 32]);
        let stem: Vec<(String, Vec<usize>)> = graph
            .params()
            .filter(|param| param.key.starts_with("backbone.stem.") && param.key.ends_with("weight"))
            .map(|param| (param.key.replace("backbone.stem.", ""), param.upstream_shape.clone()))
            .collect();
        let wanted: [(&str, &[usize]); 6] = [
            ("0.weight", &[32, 3, 3, 3]),
            ("1.weight", &[32]),
            ("3.weight", &[32, 32, 3, 3]),
            ("4.weight", &[32]),
            ("6.weight", &[64, 32, 3, 3]),
            ("7.weight", &[64]),
        ];
        assert_eq!(stem, wanted.map(|(name, shape)| (name.to_string(), shape.to_vec())));
        assert!(graph.params().all(|param| !param.key.starts_with("backbone.conv1")));
    }

    #[test]
    fn files_say_what_differs_from_the_plain_one() {
        let text = |resnet: ResNet| Backbone::from(resnet).to_json();
        assert_eq!(text(ResNet::new(101)), r#"{"type":"resnet","depth":101}"#);
        let d8 = r#"{"type":"resnet","depth":50,"stem":"deep","strides":[1,2,1,1],"dilations":[1,1,2,4]}"#;
        assert_eq!(text(D8), d8);
        for resnet in [ResNet::new(50), D8] {
            assert_eq!(serde_json::from_str::<Backbone>(&text(resnet)).unwrap(), resnet.into());
        }
        let error = serde_json::from_str::<Backbone>(r#"{"type":"resnet","depth":50,"stam":1}"#).unwrap_err();
        assert!(error.to_string().contains("unknown field `stam`"), "{error}");
        let fault = |resnet: ResNet| resnet.validate().unwrap_err();
        assert!(fault(ResNet::new(34)).contains("depth 34"));
        assert!(fault(ResNet { strides: [1, 2, 3, 2], ..D8 }).contains("[1, 2, 3, 2]"));
        assert!(fault(ResNet { dilations: [0, 1, 1, 1], ..D8 }).contains("[0, 1, 1, 1]"));
        assert_eq!((D8.short_name(), ResNet::new(101).short_name()), ("r50-d8".into(), "r101".into()));
        let dcn = ResNet::named("r101_dcn").unwrap();
        assert_eq!(text(dcn), r#"{"type":"resnet","depth":101,"deformable":[false,true,true,true]}"#);
        assert_eq!((dcn.short_name(), ResNet::named("r34_dcn")), ("r101_dcn".into(), None));
    }

    #[test]
    fn a_checkpoint_shows_depth_and_stem_and_its_configuration_the_rest() {
        let recognised = |names: &[&str], said: &[(&str, Value)]| {
            let shape = |name: &str| names.contains(&name).then_some(&[64, 64, 1, 1][..]);
            let values = |asked: &[&str]| {
                said.iter().filter(|(name, _)| asked.contains(name)).map(|(_, value)| value.clone()).collect()
            };
            let mut notes = Vec::new();
            (ResNet::recognise(&Evidence::new(&shape, &values), &mut notes), notes.join("\n"))
        };
        let (first, last) = ("backbone.layer1.0.conv1.weight", "backbone.layer3.22.conv1.weight");
        assert_eq!(recognised(&["backbone._conv_stem.weight"], &[]).0, Ok(None));
        assert_eq!(recognised(&[first], &[]), (Ok(Some(ResNet::new(50))), String::new()));
        assert_eq!(recognised(&[first, last], &[]).0, Ok(Some(ResNet::new(101))));
        let deep = [first, "backbone.stem.0.weight"];
        // Strides and dilations of something else are no list of four numbers that a ResNet can have.
        let said = [
            ("strides", json!([1, 2, 1, 1])),
            ("dilations", json!([1, 1, 2, 4])),
            ("strides", json!([8, 16])),
            ("strides", json!([4, 8, 16, 32])),
            ("dilations", json!([1, 12, 24, 36])),
        ];
        let (found, notes) = recognised(&deep, &said);
        assert_eq!(found, Ok(Some(D8)));
        assert!(notes.contains("read: backbone strides [1, 2, 1, 1], dilations [1, 1, 2, 4]"), "{notes}");
        let (found, notes) = recognised(&deep, &[]);
        assert_eq!(found, Ok(Some(ResNet { stem: Stem::Deep, ..ResNet::new(50) })));
        assert!(notes.starts_with("assumed") && notes.contains("[1, 2, 2, 2]"), "{notes}");
        let offsets = |stage: usize| format!("backbone.layer{stage}.0.conv2.conv_offset.weight");
        let files: Vec<String> = (2..5).map(offsets).collect();
        let all: Vec<&str> = files.iter().map(String::as_str).chain([first, last]).collect();
        let with_channels = |channels: usize| {
            let sizes = [[channels, 64, 3, 3], [64, 64, 1, 1]];
            let shape = |name: &str| {
                let size = &sizes[usize::from(!name.contains("offset"))];
                all.contains(&name).then_some(&size[..])
            };
            ResNet::recognise(&Evidence::new(&shape, &|_| Vec::new()), &mut Vec::new())
        };
        assert_eq!(with_channels(18), Ok(ResNet::named("r101_dcn")));
        let modulated = with_channels(27).unwrap_err();
        assert!(modulated.contains("layer2.0.conv2.conv_offset.weight` has 27"), "{modulated}");
        let twice = [("dilations", json!([1, 1, 2, 4])), ("dilations", json!([1, 1, 1, 2]))];
        assert!(recognised(&deep, &twice).0.unwrap_err().contains("dilations"));
    }
}
