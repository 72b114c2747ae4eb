//! The curves of a run as a picture, drawn from its log: losses above, validation or learning rate below.

use std::collections::BTreeMap;
use std::path::Path;

use image::{Rgb, RgbImage};
use serde_json::Value;

use crate::error::Result;
use crate::image::picture::write_rgb;
use crate::image::text;

const WIDTH: u32 = 1100;
const PANEL: u32 = 380;
/// Space around a panel: left, right, top, bottom.
const MARGIN: [u32; 4] = [80, 190, 34, 40];
const TEXT: f32 = 17.0;
const INK: [u8; 3] = [40, 40, 40];
const GRID: Rgb<u8> = Rgb([225, 225, 225]);
/// Colours that stay apart for most eyes (Okabe and Ito).
const COLOURS: [[u8; 3]; 7] = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [90, 90, 90],
];
/// A curve is shown as means over this share of its points.
const SMOOTHING: usize = 60;

/// A curve: its name, and (iteration, value).
type Series = (String, Vec<(f64, f64)>);

/// Draws the log's lines and writes `path`.
///
/// # Errors
/// As [`write_rgb`].
pub fn write(lines: &[Value], path: &Path) -> Result<()> {
    let of_kind = |kind: &str| lines.iter().filter(move |line| line["kind"] == kind).collect::<Vec<_>>();
    let (train, val) = (of_kind("train"), of_kind("val"));
    let losses = losses(&train);
    let (title, below) = match validation(&val) {
        scores if scores.is_empty() => {
            ("learning rate", vec![series(&train, "lr", |line| line["lr"].as_f64())])
        }
        scores => ("validation", scores),
    };
    let mut canvas = RgbImage::from_pixel(WIDTH, 2 * PANEL, Rgb([255; 3]));
    let end = lines.iter().filter_map(|line| line["iteration"].as_f64()).fold(1.0, f64::max);
    panel(&mut canvas, 0, "loss (means)", &losses, end);
    panel(&mut canvas, PANEL, title, &below, end);
    write_rgb(path, &canvas)
}

fn series(lines: &[&Value], name: &str, value: impl Fn(&Value) -> Option<f64>) -> Series {
    let point = |line: &&Value| Some((line["iteration"].as_f64()?, value(line)?));
    (name.to_string(), lines.iter().filter_map(point).collect())
}

/// The total, and the terms of the last stage and of the semantic maps.
fn losses(train: &[&Value]) -> Vec<Series> {
    let terms = train.first().and_then(|line| line["terms"].as_object());
    let names: Vec<&String> = terms.into_iter().flat_map(|terms| terms.keys()).collect();
    let stage = names.iter().filter(|name| name.starts_with('s')).filter_map(|name| name.split_once('_'));
    let stage = stage.map(|(stage, _)| format!("{stage}_")).max();
    let mut found = vec![series(train, "total", |line| line["loss"].as_f64())];
    for name in names {
        if stage.as_ref().is_some_and(|stage| name.starts_with(stage.as_str())) || name == "loss_rpn_seg" {
            found.push(series(train, name, |line| line["terms"][name].as_f64()));
        }
    }
    found.into_iter().map(|(name, points)| (name, smooth(&points))).collect()
}

fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(SMOOTHING).max(1);
    let mean = |chunk: &[(f64, f64)]| {
        let n = chunk.len() as f64;
        let sum = chunk.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / n, sum.1 / n)
    };
    points.chunks(size).map(mean).collect()
}

/// Every metric of every set.
fn validation(val: &[&Value]) -> Vec<Series> {
    let mut found: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in val {
        let Some(iteration) = line["iteration"].as_f64() else { continue };
        for (set, metrics) in line["sets"].as_object().into_iter().flatten() {
            for (metric, value) in metrics.as_object().into_iter().flatten() {
                let Some(value) = value.as_f64() else { continue };
                found.entry(format!("{metric} {set}")).or_default().push((iteration, value));
            }
        }
    }
    found.into_iter().collect()
}

fn panel(canvas: &mut RgbImage, top: u32, title: &str, curves: &[Series], end: f64) {
    let [left, right, above, below] = MARGIN;
    let (x0, x1) = (left as f32, (WIDTH - right) as f32);
    let (y0, y1) = ((top + above) as f32, (top + PANEL - below) as f32);
    let values = || curves.iter().flat_map(|(_, points)| points).map(|&(_, y)| y).filter(|y| y.is_finite());
    let step = tick(values().fold(0.0, f64::max));
    let most = step * (values().fold(0.0, f64::max) / step).ceil().max(1.0);
    let place = |(x, y): (f64, f64)| {
        (x0 + (x / end) as f32 * (x1 - x0), y1 - (y / most).clamp(0.0, 1.0) as f32 * (y1 - y0))
    };
    text::draw(canvas, title, x0, y0 - 12.0, TEXT * 1.1, INK);
    for n in 0..=(most / step).round() as usize {
        let value = n as f64 * step;
        let y = place((0.0, value)).1;
        (x0 as u32..x1 as u32).for_each(|x| canvas.put_pixel(x, y as u32, GRID));
        let label = number(value);
        text::draw(canvas, &label, x0 - 8.0 - text::width(&label, TEXT), y + 6.0, TEXT, INK);
    }
    let step = tick(end);
    for n in 0..=(end / step) as usize {
        let x = place((n as f64 * step, 0.0)).0;
        (y0 as u32..y1 as u32).for_each(|y| canvas.put_pixel(x as u32, y, GRID));
        let label = number(n as f64 * step);
        text::draw(canvas, &label, x - text::width(&label, TEXT) / 2.0, y1 + 22.0, TEXT, INK);
    }
    for (index, (name, points)) in curves.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let y = y0 + 14.0 + 24.0 * index as f32;
        segment(canvas, (x1 + 14.0, y - 6.0), (x1 + 34.0, y - 6.0), colour);
        let fits = ((right - 48) as f32 / text::width(name, TEXT)).min(1.0);
        text::draw(canvas, name, x1 + 42.0, y, TEXT * fits, INK);
        for pair in points.windows(2) {
            segment(canvas, place(pair[0]), place(pair[1]), colour);
        }
        if let [only] = points[..] {
            let (x, y) = place(only);
            segment(canvas, (x - 3.0, y), (x + 3.0, y), colour);
        }
    }
}

/// A round distance of about a fifth of `most`.
fn tick(most: f64) -> f64 {
    if most.is_nan() || most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((most / 5.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power);
    steps.into_iter().find(|step| most / step <= 6.0).unwrap_or(10.0 * power)
}

fn number(value: f64) -> String {
    match value {
        0.0 => "0".into(),
        v if v >= 10_000.0 => format!("{}k", v / 1000.0),
        v if v < 1e-3 => format!("{v:.0e}"),
        v => {
            let text = format!("{v:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        }
    }
}

/// A line two pixels wide.
fn segment(canvas: &mut RgbImage, from: (f32, f32), to: (f32, f32), colour: [u8; 3]) {
    let length = (to.0 - from.0).hypot(to.1 - from.1);
    let steps = (2.0 * length).ceil().max(1.0) as usize;
    for step in 0..=steps {
        let t = step as f32 / steps as f32;
        let (x, y) = (from.0 + t * (to.0 - from.0), from.1 + t * (to.1 - from.1));
        for (dx, dy) in [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0)] {
            let (x, y) = ((x + dx - 0.5).max(0.0) as u32, (y + dy - 0.5).max(0.0) as u32);
            if x < canvas.width() && y < canvas.height() {
                canvas.put_pixel(x, y, Rgb(colour));
            }
        }
    }
}
