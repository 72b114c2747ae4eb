//! Convolution of 8-bit levels.

use super::levels::Levels;
use super::{
    Conv2d, Gradient, Inferred, Operator, ValueType, case::Case, case::Tolerance, epilogue::Epilogue,
};
use crate::tensor::Tensor;
use serde::{Deserialize, Serialize};

/// A [`Conv2d`] without groups, or a depthwise one, whose map is brought to levels first, and whose filters
/// are brought to levels that reach as far as each does. The sums are those of integers. Then, in f32 and one
/// by one: times both steps, the bias, the residual, the activation; and the result is brought to levels, if
/// it has some.
///
/// What it gives is a map of numbers, as any convolution's. That some have levels alone lets a plan store
/// their codes.
///
/// Inputs and output: those of the convolution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedConv2d {
    /// The convolution.
    pub conv: Conv2d,
    /// Levels of the map.
    pub input: Levels,
    /// Levels of the residual, if it is at some: a plan may store their codes.
    pub residual: Option<Levels>,
    /// Levels of the result.
    pub output: Option<Levels>,
}

impl Operator for QuantizedConv2d {
    const NAME: &'static str = "quantized_conv2d";
    const GRADIENT: Gradient = Gradient::None("made of convolutions, for inference");
    const WEIGHTS: bool = true;

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let outputs = self.conv.infer(inputs)?;
        if !self.conv.is_quantizable(inputs[1].shape) {
            let (groups, w) = (self.conv.groups, inputs[1].shape);
            return Err(format!(
                "{groups} groups of filters {w}: one group is quantized, or one a channel without a residual"
            ));
        }
        Ok(outputs)
    }

    /// Numbers that are not integers are in f32, as everywhere: what rounds to which level depends on it.
    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let (x, w) = (inputs[0], inputs[1]);
        let of = |t: &Tensor<f64>, data| Tensor::new(t.shape(), data);
        let at_level = |levels: Levels, v: f64| f64::from(levels.level(v as f32));
        let levels = x.data().iter().map(|&v| at_level(self.input, v)).collect();
        let (mut steps, mut filters) = (Vec::new(), Vec::new());
        for filter in w.data().chunks_exact(w.shape().dims()[1..].iter().product::<usize>().max(1)) {
            let own = Levels::of_filter(&filter.iter().map(|&v| v as f32).collect::<Vec<_>>());
            steps.push(own.step);
            filters.extend(filter.iter().map(|&v| at_level(own, v)));
        }
        let epilogue = self.conv.epilogue;
        let plain = Conv2d { epilogue: Epilogue::default(), ..self.conv };
        let mut y = plain.reference(&[&of(x, levels), &of(w, filters)]).remove(0);
        let channels = w.shape()[0].max(1);
        for (i, y) in y.data_mut().iter_mut().enumerate() {
            let mut value = *y as f32 * (self.input.step * steps[i % channels]);
            if let Some(bias) = epilogue.bias_input() {
                value += inputs[bias].data()[i % channels] as f32;
            }
            if let Some(residual) = epilogue.residual_input() {
                value += inputs[residual].data()[i] as f32;
            }
            if let Some(activation) = epilogue.activation {
                value = activation.apply(f64::from(value)) as f32;
            }
            *y = f64::from(self.output.map_or(value, |levels| levels.level(value) * levels.step));
        }
        vec![y]
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        self.conv.flops(inputs, outputs)
    }

    fn cases() -> Vec<Case> {
        use super::activation::Activation::{Relu, Relu6, Sigmoid};
        /// Integers have one sum.
        const SAME: Tolerance =
            Tolerance { relative_l2: 0.0, reason: "sums of integers, and the reference's own f32 behind" };
        let (signed, unsigned) = (Levels::up_to(1.0, true), Levels::up_to(0.9, false));
        let op = |conv, input, output| QuantizedConv2d { conv, input, residual: None, output };
        let conv = Conv2d::with;
        let tail = |conv: Conv2d, residual, activation| Conv2d {
            epilogue: Epilogue { bias: true, residual, activation },
            ..conv
        };
        let wide = Some(Levels::up_to(4.0, true));
        vec![
            Case::new("k1", op(conv(1, 0), signed, None), &[&[2, 3, 5, 33], &[17, 1, 1, 33]]),
            Case::new("k1_one", op(conv(1, 0), signed, None), &[&[1, 1, 1, 1], &[1, 1, 1, 1]]),
            Case::new("k1_empty", op(conv(1, 0), signed, wide), &[&[0, 4, 4, 3], &[5, 1, 1, 3]]),
            Case::new("k1_s2", op(conv(2, 0), unsigned, wide), &[&[1, 9, 7, 70], &[33, 1, 1, 70]]),
            Case::new("k1_deep", op(conv(1, 0), unsigned, None), &[&[1, 6, 11, 1100], &[35, 1, 1, 1100]]),
            Case::new("k3", op(conv(1, 1), signed, None), &[&[2, 7, 9, 3], &[5, 3, 3, 3]]),
            Case::new("k3_s2", op(conv(2, 1), signed, wide), &[&[1, 9, 13, 64], &[40, 3, 3, 64]]),
            Case::new("k3_few", op(conv(1, 1), unsigned, None), &[&[1, 7, 40, 24], &[33, 3, 3, 24]]),
            Case::new("k7_s2", op(conv(2, 3), signed, None), &[&[1, 22, 31, 3], &[64, 7, 7, 3]]),
            Case::new(
                "k3_dilated",
                op(Conv2d { dilation: [2, 3], ..conv(1, 3) }, unsigned, None),
                &[&[1, 8, 9, 65], &[8, 3, 3, 65]],
            ),
            Case::new(
                "k3_deep",
                op(tail(conv(1, 1), false, Some(Relu)), unsigned, Some(unsigned)),
                &[&[1, 5, 9, 600], &[40, 3, 3, 600], &[40]],
            ),
            Case::new(
                "k1_relu6",
                op(tail(conv(1, 0), false, Some(Relu6)), signed, Some(Levels::up_to(6.0, false))),
                &[&[1, 13, 17, 24], &[70, 1, 1, 24], &[70]],
            ),
            Case::new(
                "k1_all_fused",
                op(tail(conv(1, 0), true, Some(Relu)), unsigned, Some(unsigned)),
                &[&[1, 12, 11, 64], &[256, 1, 1, 64], &[256], &[1, 12, 11, 256]],
            ),
            Case::new(
                "depthwise",
                op(Conv2d { groups: 21, ..conv(1, 1) }, signed, None),
                &[&[2, 7, 9, 21], &[21, 3, 3, 1]],
            ),
            Case::new(
                "depthwise_s2",
                op(
                    tail(Conv2d { groups: 48, ..conv(2, 2) }, false, Some(Relu6)),
                    unsigned,
                    Some(Levels::up_to(6.0, false)),
                ),
                &[&[1, 13, 19, 48], &[48, 5, 5, 1], &[48]],
            ),
            Case::new(
                "layer1_k1",
                op(tail(conv(1, 0), false, Some(Relu)), unsigned, Some(unsigned)),
                &[&[1, 50, 84, 256], &[64, 1, 1, 256], &[64]],
            )
            .bench(),
            Case::new(
                "layer1_k3",
                op(tail(conv(1, 1), false, Some(Relu)), unsigned, Some(unsigned)),
                &[&[1, 50, 84, 64], &[64, 3, 3, 64], &[64]],
            )
            .bench(),
            Case::new(
                "layer4_k3_s2",
                op(conv(2, 1), unsigned, None),
                &[&[1, 16, 16, 512], &[512, 3, 3, 512]],
            )
            .bench(),
        ]
        .into_iter()
        .map(|case| case.tolerance(SAME))
        // An activation that is no clamp has the errors that it has anywhere.
        .chain([Case::new(
            "depthwise_sigmoid",
            op(tail(Conv2d { groups: 16, ..conv(1, 1) }, false, Some(Sigmoid)), signed, None),
            &[&[1, 40, 17, 16], &[16, 3, 3, 1], &[16]],
        )])
        .collect()
    }
}
