//! Runs an operator by its reference: for operators that only ever see constants, where accuracy counts
//! and speed does not.

use super::super::kernel::{Args, Context, Kernel};
use crate::ops::{Op, ValueType};
use crate::tensor::{DType, Tensor};

/// The kernel that calls [`Op::reference`]. It allocates.
pub(crate) struct Reference {
    op: Op,
    inputs: Vec<ValueType>,
    outputs: Vec<ValueType>,
}

impl Reference {
    /// The reference of `op` at these types, as the kernel every [`CpuOp`](super::super::kernel::CpuOp)
    /// gives.
    #[allow(clippy::new_ret_no_self)]
    pub(crate) fn new(op: impl Into<Op>, context: &Context<'_>) -> Box<dyn Kernel> {
        let (inputs, outputs) = (context.inputs.to_vec(), context.outputs.to_vec());
        Box::new(Reference { op: op.into(), inputs, outputs })
    }
}

impl Kernel for Reference {
    fn name(&self) -> String {
        "reference".to_string()
    }

    fn run(&self, args: &mut Args<'_>) {
        let read = |(index, ty): (usize, &ValueType)| {
            let data = match ty.dtype {
                DType::I32 => args.input_i32(index).iter().map(|&v| f64::from(v)).collect(),
                _ => args.inputs[index].iter().map(|&v| f64::from(v)).collect(),
            };
            Tensor::new(ty.shape, data)
        };
        let inputs: Vec<Tensor<f64>> = self.inputs.iter().enumerate().map(read).collect();
        let inputs: Vec<&Tensor<f64>> = inputs.iter().collect();
        for (i, result) in self.op.reference(&inputs).iter().enumerate() {
            match self.outputs[i].dtype {
                DType::F16 | DType::BF16 | DType::U8 => unreachable!("floats are f32 in this kernel"),
                DType::F32 => args.outputs[i].iter_mut().zip(result.data()).for_each(|(y, &v)| *y = v as f32),
                DType::I32 => {
                    args.output_i32(i).iter_mut().zip(result.data()).for_each(|(y, &v)| *y = v as i32)
                }
            }
        }
    }
}
