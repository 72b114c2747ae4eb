//! Convolutions without groups by tiles of products: of maps stored as bf16, and of codes of levels.

use crate::cpu::dot::{DotConv, Factor, Finish, Layout, Read, Residual, Store};
use crate::cpu::element::stored;
use crate::cpu::kernel::{Args, Context, Kernel, PackedLayout, PackedOperand};
use crate::isa::Isa;
use crate::ops::epilogue::Epilogue;
use crate::ops::levels::{Levels, Rule};
use crate::ops::{Conv2d, QuantizedConv2d};
use crate::tensor::DType;
use half::bf16;
use std::marker::PhantomData;

/// What follows the products.
struct Tail {
    epilogue: Epilogue,
    /// How the residual is stored, and the levels of its codes.
    residual: Option<(DType, Option<Levels>)>,
    /// Levels that results are brought to.
    output: Option<Rule>,
    isa: Isa,
}

/// Maps stored as `X` become one stored as `Y` by products of `F`.
struct Tiles<F: Factor, X, Y> {
    conv: DotConv<F>,
    tail: Tail,
    name: String,
    layout: PackedLayout,
    workspace: usize,
    elements: PhantomData<fn(X) -> Y>,
}

/// A convolution of maps some of which are bf16.
pub(super) fn of_bf16(conv: DotConv<bf16>, epilogue: Epilogue, context: &Context<'_>) -> Box<dyn Kernel> {
    let residual = epilogue.residual_input().map(|index| (context.inputs[index].dtype, None));
    let tail = Tail { epilogue, residual, output: None, isa: context.isa };
    let name = format!("tiles {}", conv.dot);
    let layout = PackedLayout::DotPanels;
    match (context.inputs[0].dtype, context.outputs[0].dtype) {
        (DType::BF16, DType::BF16) => Tiles::<_, bf16, bf16>::boxed(conv, tail, name, layout, context),
        (DType::BF16, _) => Tiles::<_, bf16, f32>::boxed(conv, tail, name, layout, context),
        (_, DType::BF16) => Tiles::<_, f32, bf16>::boxed(conv, tail, name, layout, context),
        _ => Tiles::<_, f32, f32>::boxed(conv, tail, name, layout, context),
    }
}

/// `$make`, where `$X` and `$Y` are how the map and the result of a quantized convolution are stored.
macro_rules! by_storage {
    ($context:ident, $X:ident, $Y:ident, $make:expr) => {{
        use crate::tensor::DType::{BF16, U8};
        by_storage! { ($context.inputs[0].dtype, $context.outputs[0].dtype), $X, $Y, $make;
            (U8, U8) => u8, u8;
            (U8, BF16) => u8, half::bf16;
            (U8, _) => u8, f32;
            (BF16, U8) => half::bf16, u8;
            (BF16, BF16) => half::bf16, half::bf16;
            (BF16, _) => half::bf16, f32;
            (_, U8) => f32, u8;
            (_, BF16) => f32, half::bf16;
            (_, _) => f32, f32;
        }
    }};
    ($types:expr, $X:ident, $Y:ident, $make:expr; $($stored:pat_param => $x:ty, $y:ty;)+) => {
        match $types {
            $($stored => {
                type $X = $x;
                type $Y = $y;
                $make
            })+
        }
    };
}
pub(super) use by_storage;

/// A quantized convolution of maps stored in any way.
pub(super) fn of_levels(op: &QuantizedConv2d, conv: DotConv<u8>, context: &Context<'_>) -> Box<dyn Kernel> {
    let QuantizedConv2d { conv: Conv2d { epilogue, .. }, residual, output, .. } = *op;
    let residual = epilogue.residual_input().map(|index| (context.inputs[index].dtype, residual));
    let tail = Tail { epilogue, residual, output: output.map(|levels| levels.rule()), isa: context.isa };
    let name = format!("tiles int8 {}", conv.dot);
    let layout = PackedLayout::LevelPanels;
    by_storage!(context, X, Y, Tiles::<_, X, Y>::boxed(conv, tail, name, layout, context))
}

impl<F: Factor, X: Read<F>, Y: Store> Tiles<F, X, Y> {
    fn boxed(
        conv: DotConv<F>,
        tail: Tail,
        name: String,
        layout: PackedLayout,
        context: &Context<'_>,
    ) -> Box<dyn Kernel> {
        let workspace = conv.workspace_len(context.threads);
        Box::new(Tiles::<F, X, Y> { conv, tail, name, layout, workspace, elements: PhantomData })
    }
}

impl<F: Factor, X: Read<F>, Y: Store> Kernel for Tiles<F, X, Y> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn workspace(&self) -> usize {
        self.workspace
    }

    fn packing(&self) -> Option<PackedOperand> {
        // One layout for all processors.
        let (len, layout) = (self.conv.packed_len(), self.layout);
        Some(PackedOperand { input: 1, len, layout, isa: Isa::Portable })
    }

    fn pack(&self, source: &[f32], packed: &mut [f32]) {
        self.conv.pack(source, packed);
    }

    fn run(&self, args: &mut Args<'_>) {
        let (inputs, shape) = (args.inputs, &self.conv.shape);
        let Tail { epilogue, residual, output, isa } = &self.tail;
        let memory = epilogue.residual_input().map_or(&[][..], |index| inputs[index]);
        let packed = args.packed;
        let finish = Finish {
            sums: self.conv.sums(packed),
            bias: epilogue.bias_input().map(|index| inputs[index]),
            residual: match *residual {
                None => Residual::None,
                Some((DType::BF16, _)) => Residual::Bf16(stored(memory, shape.output_len())),
                Some((DType::U8, Some(levels))) => {
                    Residual::Codes(stored(memory, shape.output_len()), levels)
                }
                Some(_) => Residual::F32(memory),
            },
            activation: epilogue.activation,
            output: *output,
            layout: Layout::Channels(shape.c_out),
            isa: *isa,
        };
        let x = args.map::<X>(0, shape.input_len());
        let workspace = std::mem::take(&mut args.workspace);
        let y = args.map_mut::<Y>(0, shape.output_len());
        self.conv.run(x, packed, &finish, y, workspace);
    }
}
