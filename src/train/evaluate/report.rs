//! Results of an evaluation: JSON with all digits through serde, a table for people through
//! [`Display`](fmt::Display).

use super::coco_ap::ApReport;
use super::panoptic_quality::{PqMean, PqReport};
use super::semantic_iou::IouReport;
use crate::error::ErrorKind;
use serde::Serialize;
use std::fmt;

/// What a model reached on a data set. Values lie between 0 and 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the model.
    pub model: String,
    /// Number of images.
    pub images: usize,
    /// Average precision of instances.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<ApReport>,
    /// Panoptic quality.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub panoptic: Option<PqReport>,
    /// IoU of classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub semantic: Option<IouReport>,
    /// Classes of the model that were not evaluated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_in_model: Vec<String>,
    /// Classes of the data set that were not evaluated.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub only_in_data: Vec<String>,
    /// Where the evaluation ended, if that was before the last image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partial: Option<Partial>,
}

/// An evaluation that ended early: all numbers are of the images that were done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partial {
    /// Images done.
    pub images: usize,
    /// Images of the set.
    pub of: usize,
    /// What ended it.
    pub reason: String,
    /// The class of the error that ended it; `None` if it was asked to stop.
    #[serde(skip)]
    pub kind: Option<ErrorKind>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} on {} images", self.model, self.images)?;
        if let Some(Partial { images, of, reason, .. }) = &self.partial {
            writeln!(f, "PARTIAL, {images} of {of} images: {reason}")?;
        }
        for (side, names) in [("model", &self.only_in_model), ("data set", &self.only_in_data)] {
            if !names.is_empty() {
                writeln!(f, "left out, only in the {side}: {} classes", names.len())?;
            }
        }
        if let Some(report) = &self.instances {
            instances(f, report)?;
        }
        if let Some(report) = &self.panoptic {
            panoptic(f, report)?;
        }
        if let Some(report) = &self.semantic {
            semantic(f, report)?;
        }
        Ok(())
    }
}

/// A value, or a dash where there is nothing to compare.
fn cell(value: Option<f64>) -> String {
    value.map_or_else(|| "-".into(), |v| format!("{v:.4}"))
}

fn instances(f: &mut fmt::Formatter<'_>, report: &ApReport) -> fmt::Result {
    writeln!(
        f,
        "\nInstance masks: {} objects (COCO: IoU 0.50 to 0.95, 100 detections an image)",
        report.objects
    )?;
    writeln!(
        f,
        "{:<6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "", "all", "IoU .50", "IoU .75", "small", "medium", "large"
    )?;
    let row = [
        Some(report.ap),
        Some(report.ap50),
        Some(report.ap75),
        report.ap_small,
        report.ap_medium,
        report.ap_large,
    ];
    write!(f, "{:<6}", "AP")?;
    row.iter().try_for_each(|&value| write!(f, "{:>9}", cell(value)))?;
    writeln!(
        f,
        "\n{:<6}{:>9}{:>9}{:>9}{:>9}{:>9}{:>9}",
        "", "1 det.", "10 det.", "100 det.", "small", "medium", "large"
    )?;
    let row = [
        Some(report.ar1),
        Some(report.ar10),
        Some(report.ar100),
        report.ar_small,
        report.ar_medium,
        report.ar_large,
    ];
    write!(f, "{:<6}", "AR")?;
    row.iter().try_for_each(|&value| write!(f, "{:>9}", cell(value)))?;
    writeln!(f, "\n\n{:<24}{:>9}{:>9}{:>9}", "class", "AP", "AP50", "objects")?;
    for class in report.per_class.iter().filter(|class| class.objects > 0) {
        writeln!(f, "{:<24}{:>9}{:>9}{:>9}", class.name, cell(class.ap), cell(class.ap50), class.objects)?;
    }
    Ok(())
}

fn panoptic(f: &mut fmt::Formatter<'_>, report: &PqReport) -> fmt::Result {
    writeln!(f, "\nPanoptic quality\n{:<24}{:>9}{:>9}{:>9}{:>9}", "", "PQ", "SQ", "RQ", "classes")?;
    let rows = [("all", Some(report.all)), ("things", report.things), ("stuff", report.stuff)];
    for (name, mean) in rows {
        let value = |field: fn(&PqMean) -> f64| cell(mean.as_ref().map(field));
        let classes = mean.map_or(0, |m| m.classes);
        let (pq, sq, rq) = (value(|m| m.pq), value(|m| m.sq), value(|m| m.rq));
        writeln!(f, "{name:<24}{pq:>9}{sq:>9}{rq:>9}{classes:>9}")?;
    }
    writeln!(f, "\n{:<24}{:>9}{:>9}{:>9}{:>7}{:>7}{:>7}", "class", "PQ", "SQ", "RQ", "TP", "FP", "FN")?;
    for class in report.per_class.iter().filter(|class| class.pq.is_some()) {
        let (pq, sq, rq) = (cell(class.pq), cell(class.sq), cell(class.rq));
        let (tp, fp, missed) = (class.true_positives, class.false_positives, class.false_negatives);
        writeln!(f, "{:<24}{pq:>9}{sq:>9}{rq:>9}{tp:>7}{fp:>7}{missed:>7}", class.name)?;
    }
    Ok(())
}

fn semantic(f: &mut fmt::Formatter<'_>, report: &IouReport) -> fmt::Result {
    writeln!(f, "\nSemantic classes: {} pixels", report.pixels)?;
    let rows = [
        ("mIoU", report.miou),
        ("mIoU, classes in truth", report.miou_in_truth),
        ("mean accuracy", report.mean_accuracy),
        ("pixel accuracy", report.pixel_accuracy),
    ];
    rows.iter().try_for_each(|&(name, value)| writeln!(f, "{name:<24}{:>9}", cell(Some(value))))?;
    writeln!(f, "\n{:<24}{:>9}{:>9}{:>12}", "class", "IoU", "accuracy", "pixels")?;
    for class in report.per_class.iter().filter(|class| class.iou.is_some()) {
        let (iou, accuracy) = (cell(class.iou), cell(class.accuracy));
        writeln!(f, "{:<24}{iou:>9}{accuracy:>9}{:>12}", class.name, class.pixels)?;
    }
    Ok(())
}
