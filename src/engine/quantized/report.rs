//! How far the layers of a quantized network are off.

use super::calibrate::on_cpu;
use crate::cpu::{self, Executor, Selection};
use crate::engine::network::inform;
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::graph::passes::quantize::{Quantization, quantize};
use crate::image::view::ImageView;
use crate::isa::Int8;
use crate::model::TapMode;
use crate::ops::levels::Levels;
use crate::ops::{Op, QuantizedConv2d};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// How far a layer's result is off what it is in f32, with all that is quantized before it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LayerError {
    /// Sum of squared differences.
    difference: f64,
    /// Sum of squares in f32.
    norm: f64,
}

impl LayerError {
    /// The difference's share of the result, both as Euclidean lengths.
    pub fn relative(&self) -> f64 {
        if self.norm == 0.0 { self.difference.sqrt() } else { (self.difference / self.norm).sqrt() }
    }

    fn add(&mut self, found: impl Iterator<Item = f32>, wanted: &[f32]) {
        for (found, &wanted) in found.zip(wanted) {
            self.difference += f64::from(found - wanted).powi(2);
            self.norm += f64::from(wanted).powi(2);
        }
    }
}

/// Runs one photo through the network of `session`, a model on the CPU that is not quantized, in f32 and with
/// these levels, and adds up how far each of the layers' results is off, by the name of its filters.
///
/// # Errors
/// As [`Session::segment`].
pub fn compare<'a>(
    session: &mut Session,
    levels: &Quantization,
    image: impl Into<ImageView<'a>>,
    errors: &mut BTreeMap<String, LayerError>,
) -> Result<()> {
    let image = image.into();
    let geometry = session.geometry(&image)?;
    let model = session.model().clone();
    let (graph, _) = model.graph(geometry.padded, TapMode::Off, model.config().head.stages)?;
    let mut short = graph.clone();
    quantize(&mut short, levels);
    let keys = layer_keys(&graph, levels);
    let (selection, weights) = on_cpu(&session.backend)?;
    let int8 = Int8::detect().unwrap_or(Int8::Portable);
    let selection = Selection { bf16: None, int8, ..selection };
    let (long, short) = (cpu::plan(&graph, selection)?, cpu::plan(&short, selection)?);
    let pool = super::calibrate::pool(session);
    let mut executors =
        pool.run(|| Ok::<_, Error>([Executor::new(long, weights)?, Executor::new(short, weights)?]))?;
    let Session { pool, preprocessor, .. } = session;
    pool.run(|| {
        for executor in &mut executors {
            preprocessor.run(image, executor.input_mut(0))?;
            inform(executor, &geometry);
        }
        let [long, short] = &mut executors;
        // The rewrite keeps the nodes, and so the steps.
        for step in 0..long.plan().steps.len() {
            long.run_step(step);
            short.run_step(step);
            let of = &short.plan().steps[step];
            let (Op::QuantizedConv2d(op), Some(key)) = (&of.op, keys.get(of.name.as_str())) else { continue };
            let error = errors.entry(key.clone()).or_default();
            let (found, wanted) = (short.result(step, 0), long.result(step, 0));
            match (of.outputs[0].ty.dtype, op) {
                (DType::U8, QuantizedConv2d { output: Some(levels), .. }) => {
                    let codes: &[u8] = bytemuck::cast_slice(found);
                    error.add(values(codes, *levels), wanted);
                }
                _ => error.add(found.iter().copied(), wanted),
            }
        }
        Ok(())
    })
}

fn values(codes: &[u8], levels: Levels) -> impl Iterator<Item = f32> {
    codes.iter().map(move |&code| levels.value(code))
}

/// The filters' name of each layer by that of its result.
fn layer_keys(graph: &crate::graph::Graph, levels: &Quantization) -> BTreeMap<String, String> {
    let layers = crate::graph::passes::quantize::candidates(graph).into_iter();
    let layers = layers.filter(|layer| levels.contains_key(&layer.key));
    layers.map(|layer| (graph.value(graph.nodes()[layer.node].outputs[0]).name.clone(), layer.key)).collect()
}
