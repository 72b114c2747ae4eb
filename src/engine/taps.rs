//! Every intermediate value of a run, for comparison with reference data.

use super::backend::Backend;
#[cfg(feature = "cuda")]
use super::network::info_input;
use super::network::inform;
use super::session::Session;
use crate::cpu;
#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::Result;
use crate::image::view::ImageView;
use crate::model::{Tap, TapLayout, TapMode};
use crate::tensor::{Shape, Tensor};

impl Session {
    /// Every intermediate value of one image, by the names, shapes and layouts of the reference data.
    ///
    /// # Errors
    /// As [`Session::plan`], and whatever the weights say.
    pub fn taps<'a>(&mut self, image: impl Into<ImageView<'a>>) -> Result<Vec<(String, Tensor)>> {
        let image = image.into();
        let geometry = self.geometry(&image)?;
        let (graph, taps) =
            self.model().graph(geometry.padded, TapMode::All, self.model().config().head.stages)?;
        let Session { backend, pool, preprocessor, .. } = self;
        pool.run(|| match backend {
            Backend::Cpu { selection, weights } => {
                let mut executor = cpu::Executor::new(cpu::plan(&graph, *selection)?, weights)?;
                preprocessor.run(image, executor.input_mut(0))?;
                inform(&mut executor, &geometry);
                executor.run();
                Ok(upstream(&taps, |name| {
                    let index = executor.output_index(name)?;
                    Some((executor.output_type(index).shape, executor.output(index)))
                }))
            }
            #[cfg(feature = "cuda")]
            Backend::Cuda(runtime) => {
                let plan = cuda::plan(&graph, runtime.selection().clone())?;
                let mut executor = cuda::Executor::with_floats(plan, runtime)?;
                preprocessor.run(image, executor.input_mut(0))?;
                if let Some(input) = info_input(executor.plan()) {
                    executor.input_mut(input).copy_from_slice(&geometry.info());
                }
                executor.run()?;
                Ok(upstream(&taps, |name| {
                    let index = executor.output_index(name)?;
                    Some((executor.output_type(index).shape, executor.output(index)))
                }))
            }
        })
    }
}

/// The taps that `output` gives, as PyTorch lays them out.
fn upstream<'a>(taps: &[Tap], output: impl Fn(&str) -> Option<(Shape, &'a [f32])>) -> Vec<(String, Tensor)> {
    let found = taps.iter().filter_map(|tap| {
        let (shape, data) = output(&tap.name)?;
        Some((tap.name.clone(), upstream_layout(Tensor::new(shape, data.to_vec()), tap.layout)))
    });
    found.collect()
}

/// A tap as PyTorch lays it out.
fn upstream_layout(tensor: Tensor, layout: TapLayout) -> Tensor {
    let shape = tensor.shape();
    match (layout, shape.dims()) {
        (TapLayout::Features, _) => tensor.permute(&[0, 3, 1, 2]),
        (TapLayout::Objects, &[b, n, c]) => tensor.reshape(Shape::new(&[b, n, c, 1, 1])),
        (TapLayout::Kernels, &[b, n, c]) => tensor.reshape(Shape::new(&[b, n, 1, c])),
        (TapLayout::ObjectRows, &[b, n, c]) => tensor.reshape(Shape::new(&[b * n, 1, c])),
        (TapLayout::Rows, &[b, n, c]) => tensor.reshape(Shape::new(&[b * n, c])),
        (TapLayout::Regions, &[b, n, sides]) => Tensor::from_fn([b * n, 1 + sides], |index| {
            let image = index[0] / n;
            if index[1] == 0 { image as f32 } else { tensor.at(&[image, index[0] % n, index[1] - 1]) }
        }),
        _ => tensor,
    }
}
