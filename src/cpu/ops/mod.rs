//! One file an operator: how the CPU runs it.

mod accumulate;
pub(crate) mod activation;
mod adamw;
mod adaptive_avg_pool2d;
mod attention;
mod batch_norm;
mod batch_norm_train;
mod binary;
mod class_conv;
mod concat;
mod conv2d;
mod conv2d_grad;
mod coordinates;
mod cross_entropy_loss;
mod decode_boxes;
mod decode_points;
mod deform_conv2d;
mod deform_conv2d_grad;
mod distinct_boxes;
mod dropout;
mod dynamic_mask_head;
pub(crate) mod epilogue;
mod exp;
mod fill;
mod focal_loss;
mod fold_batch_norm;
mod gather_rows;
mod global_avg_pool;
mod gradient_norm;
mod group_norm;
mod layer_norm;
mod linear;
mod local_maxima;
mod mask_conv;
mod mask_loss;
mod mask_pool;
mod matching_cost;
mod matmul;
mod matrix_nms;
mod max_pool2d;
mod mean;
mod moving_average;
mod non_max_suppression;
pub(crate) mod normalise;
mod normalise_grad;
mod pixel_shuffle;
mod product;
mod quantized_conv2d;
mod reduce_sum;
mod reference;
mod reshape;
mod resize;
mod resize_grad;
mod roi_align;
mod sine_positional_encoding;
mod slice;
mod soft_mask_pool;
mod softmax;
mod tiles;
mod top_k;
mod window_attention;

use super::kernel::{Context, CpuOp, Kernel};
use super::widened::{Widened, in_f32};
use crate::for_each_op;
use crate::isa::Isa;
use crate::ops::Op;
use crate::tensor::DType;

macro_rules! define_kernels {
    ({ $($($variant:ident),+ in $module:ident;)* } lowered { $($rest:tt)* }) => {
        /// The kernel of any operator.
        ///
        /// # Errors
        /// A sentence on an operator that only the rewrites of GPUs make.
        pub(crate) fn kernel(op: &Op, context: &Context<'_>) -> Result<Box<dyn Kernel>, String> {
            match op {
                $($(Op::$variant(op) => Ok(for_types(op, context)),)+)*
                lowered => Err(format!("operator {} is made for GPUs and has no CPU kernel", lowered.name())),
            }
        }
    };
}
for_each_op!(define_kernels);

/// The kernel for types of any kind.
fn for_types(op: &impl CpuOp, context: &Context<'_>) -> Box<dyn Kernel> {
    if context.inputs.iter().chain(context.outputs).all(|ty| ty.dtype != DType::BF16) {
        return op.kernel(context);
    }
    op.bf16_kernel(context).unwrap_or_else(|| {
        let (inputs, outputs) = (in_f32(context.inputs), in_f32(context.outputs));
        let kernel = op.kernel(&Context { inputs: &inputs, outputs: &outputs, ..*context });
        Box::new(Widened::new(kernel, context))
    })
}

/// Fewest elements worth a task of their own for kernels that stream memory. Fixed, so that the split (and
/// with it every bit) is the same for any number of threads.
pub(crate) const ELEMENTS_PER_TASK: usize = 16 * 1024;
