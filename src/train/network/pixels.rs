//! A semantic model's losses: the class maps of the generator, of every stage and of the auxiliary head,
//! compared with the class of each pixel at the size of the image.

use super::{Assembly, Compared, TargetInputs, TermKind};
use crate::error::Result;
use crate::graph::passes::Part;
use crate::graph::{InputId, ValueId};
use crate::ops::{CrossEntropyLoss, Reshape, ValueType};

/// What the names of losses start with, upstream's.
const LOSSES: [&str; 2] = ["decode.loss_ce", "aux.loss_ce"];

/// What a batch fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelTargets {
    /// Class of each pixel, `[B, H * W]`; -1 where there is none.
    pub classes: InputId,
}

/// The losses. Nothing has to be matched.
pub(super) fn compare(a: &mut Assembly<'_>) -> Result<Compared> {
    let (config, weights, [h, w]) = (a.spec.config, a.spec.weights, a.spec.size);
    let backward = a.b.segment("backward");
    let (classes, id) = a.late("classes", ValueType::index([a.spec.batch, h * w]))?;
    let mut terms = Vec::new();
    for (tap, name) in predictions(config.head.stages) {
        let weight = if name.starts_with("aux.") { weights.auxiliary } else { weights.pixel };
        let loss = cross_entropy(a, &tap, &name, classes)?;
        terms.push(a.term(name, (TermKind::Pixel, 0), weight, loss)?);
    }
    Ok(Compared { backward, targets: TargetInputs::Pixels(PixelTargets { classes: id }), terms })
}

/// The stretch that a value of this name belongs to, if it is a loss's: its class maps at the size of the
/// image.
pub(super) fn stretch(name: &str) -> Option<Part<'_>> {
    let is_loss = LOSSES.iter().any(|prefix| name.starts_with(prefix));
    name.rsplit_once('.').filter(|_| is_loss).map(|(loss, _)| Part::Light(loss))
}

/// Taps of the class maps of a model with so many stages, and upstream's names of their losses.
fn predictions(stages: usize) -> Vec<(String, String)> {
    let mut all = match stages {
        0 => vec![("head.logits".to_string(), "decode.loss_ce".to_string())],
        _ => vec![("gen.logits".to_string(), "decode.loss_ce.s0".to_string())],
    };
    all.extend(
        (0..stages).map(|stage| (format!("s{stage}.logits"), format!("decode.loss_ce.s{}", stage + 1))),
    );
    all.push(("aux.logits".to_string(), "aux.loss_ce".to_string()));
    all
}

/// The cross-entropy of a tap's class maps, resized to the image, summed over the labelled pixels.
fn cross_entropy(a: &mut Assembly<'_>, tap: &str, name: &str, classes: ValueId) -> Result<ValueId> {
    let maps = a.tap(tap)?;
    let maps = a.resized(name, maps, a.spec.size)?;
    let [batch, count, h, w] = [0, 1, 2, 3].map(|axis| a.b.shape(maps)[axis]);
    let flat = Reshape { shape: [batch, count, h * w].into() };
    let logits = a.b.node(&format!("{name}.logits"), flat, &[maps])?;
    a.b.node(name, CrossEntropyLoss, &[logits, classes])
}
