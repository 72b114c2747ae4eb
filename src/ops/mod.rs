//! Operators: what the graph is made of.
//!
//! One file holds all there is to know of one operator that does not depend on a device: its attributes
//! (one struct), shape inference, cost, a naive **reference** that is the truth for every faster path,
//! and **cases** (shapes, attributes, tolerances) that drive tests and benches.
//!
//! # Adding an operator in four places
//!
//! 1. *A kernel*: `src/cpu/ops/<name>.rs` implements [`CpuOp`](crate::cpu::kernel::CpuOp) for the attributes.
//! 2. *An op file*: `src/ops/<name>.rs` implements [`Operator`] (attributes, [`infer`](Operator::infer),
//!    [`reference`](Operator::reference), [`cases`](Operator::cases)).
//! 3. *A line in the registry*: `Name in name;` in [`for_each_op!`](crate::for_each_op) below. It makes the
//!    [`Op`] variant and every dispatch. Beside it `mod name;`, here and in `src/cpu/ops/mod.rs`, where
//!    `cargo fmt` finds them.
//! 4. *A golden*: tensors made by PyTorch in `tests/goldens/ops/<name>.safetensors`, read by
//!    `tests/ops/goldens.rs`.
//!
//! Tests (`tests/ops`) and benches (`benches/ops.rs`) walk [`all_cases`]; they are not edited for a new
//! op.
//!
//! # Gradients
//!
//! [`Operator::backward`] emits gradient nodes on the same graph; it never runs anything. Gradient operators
//! (`Conv2dInputGrad`, ...) are operators like all others: reference, cases, a CPU kernel.
//! `tests/ops/gradients.rs` holds every `backward` against finite differences over the operator's own cases.
//!
//! What an operator launches on a GPU is said in `src/cuda/ops/<name>.rs`, by a pure function of shapes,
//! types and the device's capabilities.

pub mod accumulate;
pub mod activation;
pub mod adamw;
pub mod adaptive_avg_pool2d;
pub mod attention;
pub mod batch_norm;
pub mod batch_norm_train;
pub mod binary;
pub mod case;
pub mod class_conv;
pub mod concat;
pub mod conv2d;
pub mod conv2d_grad;
pub mod coordinates;
pub mod cross_entropy_loss;
pub mod decode_boxes;
pub mod decode_points;
pub mod deform_conv2d;
pub mod deform_conv2d_grad;
pub mod distinct_boxes;
pub mod dropout;
pub mod dynamic_mask_head;
pub mod epilogue;
pub mod fill;
pub mod focal_loss;
pub mod fold_batch_norm;
pub mod fused_conv2d;
pub mod fused_linear;
pub mod gather_rows;
pub mod global_avg_pool;
pub mod gradient_norm;
pub mod group_norm;
pub mod layer_norm;
pub mod levels;
pub mod linear;
pub mod local_maxima;
pub mod mask_conv;
pub mod mask_loss;
pub mod mask_pool;
pub mod matching_cost;
pub mod matmul;
pub mod matrix_nms;
pub mod max_pool2d;
pub mod mean;
pub mod moving_average;
pub mod non_max_suppression;
pub mod norm_sum;
pub mod pack_filters;
mod pairs;
pub mod pixel_shuffle;
pub mod quantized_conv2d;
pub mod reduce_sum;
pub mod reshape;
pub mod resize;
pub mod roi_align;
pub mod sine_positional_encoding;
pub mod slice;
pub mod soft_mask_pool;
pub mod softmax;
pub mod top_k;
mod value;
pub mod window_attention;

pub(crate) use pairs::Pairs;
pub use value::{Role, ValueType};

use crate::error::{Error, Result};
use crate::graph::{Builder, ValueId};
use crate::tensor::{DType, Shape, Tensor};
use case::Case;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Result of shape inference: the output types, or what does not fit (naming both shapes).
pub type Inferred = std::result::Result<Vec<ValueType>, String>;

/// One operator: attributes plus everything that holds on any device.
///
/// Implemented by the attribute struct in each `src/ops/<name>.rs`.
pub trait Operator: Clone + PartialEq + fmt::Debug + Into<Op> {
    /// Name in dumps and errors, `snake_case`.
    const NAME: &'static str;

    /// What [`Operator::backward`] covers.
    const GRADIENT: Gradient = Gradient::ALL;

    /// Whether all operands but the first are weights in a model: known before the first run, so that back
    /// ends prepare them once.
    const WEIGHTS: bool = false;

    /// Results that are an operand's new value, as (operand, result) of equal type, given so many operands:
    /// the plan may give both the same memory, so a kernel reads no element of the operand after it wrote
    /// that of the result.
    fn replaces(_operands: usize) -> Vec<(usize, usize)> {
        Vec::new()
    }

    /// Output types for these input types, each with its [`Role`], or a sentence on what does not fit.
    fn infer(&self, inputs: &[ValueType]) -> Inferred;

    /// The operator by plain loops in double precision: slow, readable, and the truth for every other
    /// path. Indices, among inputs and outputs, are floats of the same value: a double holds every i32.
    ///
    /// Inputs have passed [`Operator::infer`].
    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>>;

    /// Emits the nodes that carry the gradient of the results to the operands, and gives the gradient of each
    /// operand. It computes nothing: what it emits is planned and run like any other node.
    ///
    /// An operand that needs no gradient, or that has none (the logits of a hard mask), gives `None`.
    ///
    /// # Errors
    /// [`Error::Graph`] if the operator has no gradient ([`Gradient::None`]); as [`Builder::node`].
    fn backward(&self, _b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
        let why = if let Gradient::None(why) = Self::GRADIENT { why } else { "`backward` is missing" };
        Err(Error::Graph(format!("`{}`: operator {} has no gradient: {why}", site.name, Self::NAME)))
    }

    /// Floating-point operations (a multiply-add counts two) of the direct algorithm.
    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64;

    /// Shapes that tests and benches run: 1, odd, non-multiples of a tile, empty, and real layers.
    fn cases() -> Vec<Case>;
}

/// What of an operator is differentiated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// Nothing, and why.
    None(&'static str),
    /// Every float result by every operand, but for these.
    Of {
        /// Operands that count as constants: targets, running statistics.
        constants: &'static [usize],
        /// Results that are read and not differentiated: statistics of a batch.
        detached: &'static [usize],
    },
}

impl Gradient {
    /// Every float result by every operand.
    pub const ALL: Gradient = Gradient::Of { constants: &[], detached: &[] };
    /// Of operators that are gradients themselves.
    pub const SECOND: Gradient = Gradient::None("gradients are not differentiated again");
}

/// What [`Operator::backward`] sees of the node it differentiates.
#[derive(Clone, Copy, Debug)]
pub struct Backward<'a> {
    /// Name of the node's first result.
    pub name: &'a str,
    /// Operands of the node.
    pub inputs: &'a [ValueId],
    /// Results of the node.
    pub outputs: &'a [ValueId],
    /// Gradient of each result; `None` where nothing that is differentiated depends on it. At least one is
    /// there.
    pub grads: &'a [Option<ValueId>],
    /// Which operands need a gradient. At least one does.
    pub needs: &'a [bool],
}

impl Backward<'_> {
    /// The gradient of the only result.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is none.
    pub fn grad(&self) -> Result<ValueId> {
        let missing = || Error::Graph(format!("`{}` is differentiated without a gradient", self.name));
        self.grads.first().copied().flatten().ok_or_else(missing)
    }

    /// The gradient of result `index`, zeros if nothing depends on it.
    ///
    /// # Errors
    /// As [`Builder::node`].
    pub fn grad_or_zeros(&self, b: &mut Builder, index: usize) -> Result<ValueId> {
        match self.grads[index] {
            Some(grad) => Ok(grad),
            None => {
                let shape = b.shape(self.outputs[index]);
                b.node(&self.named("zeros"), Fill { shape, value: 0.0 }, &[])
            }
        }
    }

    /// Name for a gradient node of this site.
    pub fn named(&self, what: &str) -> String {
        format!("{}.{what}", self.name)
    }
}

/// Calls `$callback!` with the list of operators, `Variant, .. in module;` each: the registry. Those of the
/// second list are made by the rewrites of GPUs ([`cuda::lower`](crate::cuda::lower)): no model names them,
/// and the CPU has no kernel for them.
#[macro_export]
#[doc(hidden)]
macro_rules! for_each_op {
    ($callback:ident) => {
        $callback! {
            {
                Accumulate in accumulate;
                Activate, ActivateGrad in activation;
                AdamW in adamw;
                AdaptiveAvgPool2d, AdaptiveAvgPool2dGrad in adaptive_avg_pool2d;
                Attention, AttentionGrad in attention;
                BatchNorm, BatchNormGrad in batch_norm;
                BatchNormTrain, BatchNormTrainGrad in batch_norm_train;
                Binary in binary;
                ClassConv in class_conv;
                Concat in concat;
                Conv2d in conv2d;
                Conv2dFilterGrad, Conv2dInputGrad in conv2d_grad;
                Coordinates in coordinates;
                CrossEntropyLoss, CrossEntropyLossGrad in cross_entropy_loss;
                DecodeAnchors, DecodeBoxes, ScaleBoxes in decode_boxes;
                DecodePoints in decode_points;
                DeformConv2d in deform_conv2d;
                DeformConv2dFilterGrad, DeformConv2dInputGrad in deform_conv2d_grad;
                DistinctBoxes in distinct_boxes;
                Dropout in dropout;
                DynamicMaskHead in dynamic_mask_head;
                Fill in fill;
                FocalLoss, FocalLossGrad in focal_loss;
                FoldBatchNorm, FoldBatchNormGrad in fold_batch_norm;
                GatherRows in gather_rows;
                GlobalAvgPool in global_avg_pool;
                SumSquares, ClipScale in gradient_norm;
                GroupNorm, GroupNormGrad in group_norm;
                LayerNorm, LayerNormGrad in layer_norm;
                Linear in linear;
                LocalMaxima in local_maxima;
                MaskConv in mask_conv;
                MaskLoss, MaskLossGrad in mask_loss;
                MaskPool, MaskPoolGrad in mask_pool;
                MaskCost, ClassCost in matching_cost;
                MatMul in matmul;
                MatrixNms in matrix_nms;
                MaxPool2d, MaxPool2dGrad in max_pool2d;
                Mean in mean;
                MovingAverage in moving_average;
                NonMaxSuppression in non_max_suppression;
                PixelShuffle, PixelUnshuffle in pixel_shuffle;
                QuantizedConv2d in quantized_conv2d;
                ReduceSum in reduce_sum;
                Reshape in reshape;
                Resize, ResizeGrad in resize;
                RoiAlign in roi_align;
                SinePositionalEncoding in sine_positional_encoding;
                Slice, Unslice in slice;
                SoftMaskPool in soft_mask_pool;
                Softmax, SoftmaxGrad in softmax;
                TopK in top_k;
                WindowAttention, WindowAttentionGrad in window_attention;
            }
            lowered {
                FusedConv2d in fused_conv2d;
                FusedLinear in fused_linear;
                NormSum in norm_sum;
                PackFilters in pack_filters;
            }
        }
    };
}

macro_rules! define_ops {
    ({ $($($graph:ident),+ in $graph_module:ident;)* }
     lowered { $($($lowered:ident),+ in $lowered_module:ident;)* }) => {
        define_ops! { $($($graph),+ in $graph_module;)* $($($lowered),+ in $lowered_module;)* }

        impl Op {
            /// Whether only the rewrites of GPUs make it.
            pub fn is_lowered(&self) -> bool {
                matches!(self, $($(Op::$lowered(_))|+)|*)
            }
        }
    };
    ($($($variant:ident),+ in $module:ident;)*) => {
        $(pub use $module::{$($variant),+};)*

        /// Any operator with its attributes.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Op {
            $($(#[doc = concat!("See [`", stringify!($variant), "`].")] $variant($variant),)+)*
        }

        $($(impl From<$variant> for Op {
            fn from(op: $variant) -> Op {
                Op::$variant(op)
            }
        })+)*

        impl Op {
            /// Name in dumps and errors.
            pub fn name(&self) -> &'static str {
                match self { $($(Op::$variant(_) => <$variant as Operator>::NAME,)+)* }
            }

            /// See [`Operator::GRADIENT`].
            pub fn gradient(&self) -> Gradient {
                match self { $($(Op::$variant(_) => <$variant as Operator>::GRADIENT,)+)* }
            }

            /// See [`Operator::WEIGHTS`].
            pub fn has_weights(&self) -> bool {
                match self { $($(Op::$variant(_) => <$variant as Operator>::WEIGHTS,)+)* }
            }

            /// See [`Operator::replaces`].
            pub fn replaces(&self, operands: usize) -> Vec<(usize, usize)> {
                match self { $($(Op::$variant(_) => <$variant as Operator>::replaces(operands),)+)* }
            }

            /// See [`Operator::infer`].
            pub fn infer(&self, inputs: &[ValueType]) -> Inferred {
                match self { $($(Op::$variant(op) => op.infer(inputs),)+)* }
            }

            /// See [`Operator::reference`].
            pub fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
                match self { $($(Op::$variant(op) => op.reference(inputs),)+)* }
            }

            /// See [`Operator::backward`].
            pub fn backward(&self, b: &mut Builder, site: &Backward<'_>) -> Result<Vec<Option<ValueId>>> {
                match self { $($(Op::$variant(op) => op.backward(b, site),)+)* }
            }

            /// See [`Operator::flops`].
            pub fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
                match self { $($(Op::$variant(op) => op.flops(inputs, outputs),)+)* }
            }

            /// Attributes as text, for dumps and for the keys of prepared weights.
            pub fn attributes(&self) -> String {
                let text = match self { $($(Op::$variant(op) => format!("{op:?}"),)+)* };
                text.split_once(' ').map(|(_, rest)| rest.to_string()).unwrap_or_default()
            }
        }

        /// The cases of every operator in the registry.
        pub fn all_cases() -> Vec<Case> {
            let mut cases = Vec::new();
            $($(cases.extend(<$variant as Operator>::cases());)+)*
            cases
        }
    };
}
for_each_op!(define_ops);

/// Fails with a sentence unless there are `wanted` inputs.
pub(crate) fn expect_inputs(inputs: &[ValueType], wanted: usize) -> std::result::Result<(), String> {
    if inputs.len() == wanted {
        Ok(())
    } else {
        Err(format!("takes {wanted} inputs, was given {}", inputs.len()))
    }
}

/// Fails with a sentence unless input `index` is a float value; gives its shape.
pub(crate) fn expect_float(inputs: &[ValueType], index: usize) -> std::result::Result<Shape, String> {
    let ty = inputs[index];
    if ty.dtype == DType::F32 { Ok(ty.shape) } else { Err(format!("input {index} must be f32, is {ty}")) }
}

/// Fails with a sentence unless input `index` is a float value of rank `rank`.
pub(crate) fn expect_rank(
    inputs: &[ValueType],
    index: usize,
    rank: usize,
    layout: &str,
) -> std::result::Result<Shape, String> {
    let ty = inputs[index];
    if ty.dtype == DType::F32 && ty.shape.rank() == rank {
        Ok(ty.shape)
    } else {
        Err(format!("input {index} must be f32 {layout}, is {ty}"))
    }
}

/// Fails with a sentence unless input `index` has exactly the float shape `wanted`.
pub(crate) fn expect_shape(
    inputs: &[ValueType],
    index: usize,
    wanted: impl Into<Shape>,
    what: &str,
) -> std::result::Result<(), String> {
    expect_like(inputs, index, ValueType::exact(wanted), what)
}

/// Fails with a sentence unless input `index` holds indices in exactly the shape `wanted`.
pub(crate) fn expect_indices(
    inputs: &[ValueType],
    index: usize,
    wanted: impl Into<Shape>,
    what: &str,
) -> std::result::Result<(), String> {
    expect_like(inputs, index, ValueType::index(wanted), what)
}

fn expect_like(
    inputs: &[ValueType],
    index: usize,
    wanted: ValueType,
    what: &str,
) -> std::result::Result<(), String> {
    if inputs[index].is_like(&wanted) {
        Ok(())
    } else {
        Err(format!("{what} (input {index}) must be {wanted}, is {}", inputs[index]))
    }
}
