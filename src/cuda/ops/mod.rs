//! One file an operator: what it launches on a GPU. Pure functions of shapes, types and the device's
//! capabilities.

pub(crate) mod activation;
mod adaptive_avg_pool2d;
mod attention;
mod batch_norm;
mod binary;
pub(crate) mod cast;
mod class_conv;
mod concat;
pub mod conv2d;
mod cross_entropy_loss;
mod decode_boxes;
pub mod deform_conv2d;
mod divisor;
mod dropout;
mod focal_loss;
mod fold_batch_norm;
pub mod fused_conv2d;
pub(in crate::cuda) mod fused_linear;
mod global_avg_pool;
mod gradient_norm;
mod group_norm;
mod group_norm_grad;
mod items;
pub(crate) mod launches;
mod layer_norm;
mod linear;
mod mask_conv;
mod mask_loss;
mod mask_pool;
mod matching_cost;
mod matmul;
mod max_pool2d;
mod mean;
mod non_max_suppression;
pub(in crate::cuda) mod norm_sum;
mod optimizer;
mod pack;
pub(in crate::cuda) mod pack_filters;
mod pixel_unshuffle;
mod reduce_sum;
mod resize;
mod roi_align;
mod slice;
mod soft_mask_pool;
mod softmax;
mod sum_parts;
mod sum_rows;
mod top_k;
mod window_attention;

use crate::cuda::gpu::Target;
use crate::cuda::launch::Program;
use crate::ops::{Op, Operator};
use crate::plan::Site;

/// An operator a GPU can run.
pub trait CudaOp: Operator {
    /// What the kernels round besides operands and results, which are rounded as they are stored.
    const ROUNDING: Rounding = Rounding::Nothing;

    /// What runs at this site.
    ///
    /// # Errors
    /// A sentence on what the kernels cannot take.
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String>;

    /// All that could run at this site, what [`CudaOp::program`] gives first; each is called otherwise
    /// ([`Program::kernel`]).
    ///
    /// # Errors
    /// As [`CudaOp::program`].
    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        Ok(vec![self.program(site, target)?])
    }
}

/// What kernels round on the way from operands to results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// Nothing to less than f32.
    Nothing,
    /// Both factors of every product, to TF32, where the precision stores 16 bits.
    Factors,
    /// What goes from one product to the next, to what the precision stores maps as.
    Between,
    /// The same, and what is made of it once more, before it is a factor again.
    BetweenTwice,
    /// A factor of every product, which the kernel makes of operands, to the same.
    Samples,
}

/// All that could run at a site: what [`program`] gives, then the others that the device can run.
///
/// # Errors
/// As [`program`], and if the device cannot run the first.
pub fn candidates(site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
    if site.outputs.iter().all(|output| output.shape.is_empty()) {
        return Ok(vec![program(site, target)?]);
    }
    let mut all = candidates_of(site, target)?;
    all[0].check(&target.caps)?;
    all.retain(|program| program.check(&target.caps).is_ok());
    Ok(all)
}

/// The program of any operator.
///
/// # Errors
/// As [`CudaOp::program`], and of an operator without CUDA kernels: [`has_kernel`].
pub fn program(site: &Site<'_>, target: &Target) -> Result<Program, String> {
    if site.outputs.iter().all(|output| output.shape.is_empty()) {
        return Ok(Program { kernel: "nothing".into(), ..Program::default() });
    }
    program_of(site, target)
}

/// The operators that a GPU can run: every dispatch comes of this list.
macro_rules! dispatch {
    ($($variant:ident)*) => {
        fn program_of(site: &Site<'_>, target: &Target) -> Result<Program, String> {
            match site.op {
                $(Op::$variant(op) => op.program(site, target),)*
                other => Err(no_kernel(other)),
            }
        }

        fn candidates_of(site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
            match site.op {
                $(Op::$variant(op) => op.candidates(site, target),)*
                other => Err(no_kernel(other)),
            }
        }

        /// [`CudaOp::ROUNDING`]; `None` of an operator that a GPU cannot run.
        pub fn rounding(op: &Op) -> Option<Rounding> {
            match op {
                $(Op::$variant(_) => Some(<crate::ops::$variant as CudaOp>::ROUNDING),)*
                _ => None,
            }
        }
    };
}
dispatch! {
    Accumulate
    Activate
    ActivateGrad
    AdamW
    AdaptiveAvgPool2d
    AdaptiveAvgPool2dGrad
    Attention
    AttentionGrad
    BatchNorm
    BatchNormGrad
    BatchNormTrain
    BatchNormTrainGrad
    Binary
    ClassConv
    ClassCost
    ClipScale
    Concat
    Conv2d
    Conv2dFilterGrad
    Conv2dInputGrad
    CrossEntropyLoss
    CrossEntropyLossGrad
    DecodeAnchors
    DecodeBoxes
    DeformConv2d
    DeformConv2dFilterGrad
    DeformConv2dInputGrad
    Dropout
    FocalLoss
    FocalLossGrad
    FoldBatchNorm
    FoldBatchNormGrad
    FusedConv2d
    FusedLinear
    GlobalAvgPool
    GroupNorm
    GroupNormGrad
    LayerNorm
    LayerNormGrad
    Linear
    MaskConv
    MaskCost
    MaskLoss
    MaskLossGrad
    MaskPool
    MaskPoolGrad
    MatMul
    MaxPool2d
    MaxPool2dGrad
    Mean
    MovingAverage
    NonMaxSuppression
    NormSum
    PackFilters
    PixelShuffle
    PixelUnshuffle
    ReduceSum
    Resize
    ResizeGrad
    RoiAlign
    ScaleBoxes
    Slice
    SoftMaskPool
    Softmax
    SoftmaxGrad
    SumSquares
    TopK
    Unslice
    WindowAttention
    WindowAttentionGrad
}

/// Whether a GPU can run the operator; views are never run.
pub fn has_kernel(op: &Op) -> bool {
    rounding(op).is_some()
}

fn no_kernel(op: &Op) -> String {
    format!("operator {} has no CUDA kernel", op.name())
}
