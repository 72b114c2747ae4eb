//! Linear layers over rows made on the way.

use super::{
    Gradient, Inferred, LayerNorm, Linear, Operator, Role, ValueType, activation::Activation, case::Case,
    case::Filling, epilogue::Epilogue, expect_float, expect_rank, expect_shape,
};
use crate::tensor::{Shape, Tensor};
use serde::{Deserialize, Serialize};

/// How [`FusedLinear`] makes its rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Prologue {
    /// The rows are an operand.
    Rows,
    /// `activation(norm(a))`: a [`LayerNorm`]. Operands: `a`, gamma, beta.
    Norm {
        /// Added to the variance.
        eps: f32,
        /// Applied last.
        activation: Option<Activation>,
    },
    /// `a * b`. Operands: `a`, `b`.
    Product,
    /// `sigmoid(norm(a)) * norm(b) + sigmoid(norm(c)) * norm(d)`, the gates of K-Net's kernel update.
    /// Operands: each of the four with its gamma and beta.
    Gates {
        /// Added to each variance.
        eps: f32,
    },
}

impl Prologue {
    /// Operands, of which all are rows or each third is.
    pub fn operands(&self) -> usize {
        match self {
            Prologue::Rows => 1,
            Prologue::Norm { .. } => 3,
            Prologue::Product => 2,
            Prologue::Gates { .. } => 12,
        }
    }

    /// Whether each operand of rows is followed by its norm's gamma and beta.
    pub fn has_norms(&self) -> bool {
        matches!(self, Prologue::Norm { .. } | Prologue::Gates { .. })
    }

    /// The operands that are rows.
    fn rows(&self, inputs: &[ValueType]) -> Vec<ValueType> {
        let step = if self.has_norms() { 3 } else { 1 };
        inputs[..self.operands()].iter().step_by(step).copied().collect()
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Tensor<f64> {
        let norm = |at: usize, eps, activation| {
            LayerNorm { eps, activation }.reference(&inputs[at..at + 3]).swap_remove(0)
        };
        let zip = |mut a: Tensor<f64>, b: &Tensor<f64>, f: fn(f64, f64) -> f64| {
            a.data_mut().iter_mut().zip(b.data()).for_each(|(a, &b)| *a = f(*a, b));
            a
        };
        let gated = |at: usize, eps| {
            zip(norm(at, eps, Some(Activation::Sigmoid)), &norm(at + 3, eps, None), |gate, value| {
                gate * value
            })
        };
        match *self {
            Prologue::Rows => inputs[0].clone(),
            Prologue::Norm { eps, activation } => norm(0, eps, activation),
            Prologue::Product => zip(inputs[0].clone(), inputs[1], |a, b| a * b),
            Prologue::Gates { eps } => zip(gated(0, eps), &gated(6, eps), |a, b| a + b),
        }
    }
}

/// Linear layers over the same rows, which a [`Prologue`] makes: the steps of K-Net's kernel
/// update are so small that a GPU spends its time between them. `fuse_linears` of the CUDA back end makes
/// these of [`Linear`], [`LayerNorm`] and [`Binary`](super::Binary); where launches cost nothing there is no
/// need of them.
///
/// Inputs: those of the prologue, with rows `[.., K]`, gamma and beta `[K]`; for each layer its weight
/// `[N, K]` and, if it has one, its bias `[N]`. Outputs: `[.., N]` of each layer, then the rows `[.., K]` if
/// `keep`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FusedLinear {
    /// How the rows are made.
    pub prologue: Prologue,
    /// The layers: whether each has a bias.
    pub biases: Vec<bool>,
    /// Applied to the results of all layers.
    pub activation: Option<Activation>,
    /// The rows are a result, too.
    pub keep: bool,
}

impl FusedLinear {
    /// Positions of weight and bias of each layer among the operands.
    pub fn layers(&self) -> impl Iterator<Item = (usize, Option<usize>)> {
        let mut next = self.prologue.operands();
        self.biases.iter().map(move |&bias| {
            let weight = next;
            next += 1 + usize::from(bias);
            (weight, bias.then_some(weight + 1))
        })
    }
}

impl Operator for FusedLinear {
    const NAME: &'static str = "fused_linear";
    const GRADIENT: Gradient = Gradient::None("made of operators that have one, for inference");

    fn infer(&self, inputs: &[ValueType]) -> Inferred {
        let wanted =
            self.prologue.operands() + self.biases.iter().map(|&bias| 1 + usize::from(bias)).sum::<usize>();
        super::expect_inputs(inputs, wanted)?;
        if self.biases.is_empty() {
            return Err("takes at least 1 layer, was given 0".into());
        }
        let x = expect_float(inputs, 0)?;
        if x.rank() == 0 || x.last() == 0 {
            return Err(format!("rows of {x} have no terms"));
        }
        let terms = x.last();
        for index in 0..self.prologue.operands() {
            match index % 3 {
                1 | 2 if self.prologue.has_norms() => expect_shape(inputs, index, [terms], "norm")?,
                _ => expect_shape(inputs, index, x, "rows")?,
            }
        }
        let rows = ValueType { role: Role::of(&self.prologue.rows(inputs)), ..inputs[0] };
        let mut outputs = Vec::new();
        for (weight, bias) in self.layers() {
            let w = expect_rank(inputs, weight, 2, "[N, K]")?;
            if w[1] != terms {
                return Err(format!("weight {w} does not fit rows of {x}"));
            }
            if let Some(bias) = bias {
                expect_shape(inputs, bias, [w[0]], "bias")?;
            }
            let mut dims = x.dims().to_vec();
            dims[x.rank() - 1] = w[0];
            outputs.push(rows.with_shape(Shape::new(&dims)));
        }
        if self.keep {
            outputs.push(rows);
        }
        Ok(outputs)
    }

    fn reference(&self, inputs: &[&Tensor<f64>]) -> Vec<Tensor<f64>> {
        let rows = self.prologue.reference(inputs);
        let mut outputs = Vec::new();
        for (weight, bias) in self.layers() {
            let epilogue = Epilogue { bias: bias.is_some(), residual: false, activation: self.activation };
            let mut operands = vec![&rows, inputs[weight]];
            operands.extend(bias.map(|bias| inputs[bias]));
            outputs.extend(Linear { epilogue }.reference(&operands));
        }
        outputs.extend(self.keep.then_some(rows));
        outputs
    }

    fn flops(&self, inputs: &[ValueType], outputs: &[ValueType]) -> u64 {
        let rows = inputs[0].shape.len() as u64;
        let prologue = match self.prologue {
            Prologue::Rows => 0,
            Prologue::Norm { .. } => 6 * rows,
            Prologue::Product => rows,
            Prologue::Gates { .. } => 23 * rows,
        };
        let layers = outputs[..self.biases.len()].iter();
        prologue + layers.map(|y| 2 * y.shape.len() as u64 * inputs[0].shape.last() as u64).sum::<u64>()
    }

    fn cases() -> Vec<Case> {
        let eps = 1e-5;
        let norm = |activation| Prologue::Norm { eps, activation };
        // Rows of `x` make layers of `columns`, every second one with a bias.
        let case = |name: &str, prologue: Prologue, x: &[usize], columns: &[usize], activation, keep| {
            let k = x[x.len() - 1];
            let biases: Vec<bool> = (0..columns.len()).map(|i| i % 2 == 0).collect();
            let mut shapes: Vec<Vec<usize>> = (0..prologue.operands())
                .map(|i| if prologue.has_norms() && i % 3 > 0 { vec![k] } else { x.to_vec() })
                .collect();
            for (&n, &bias) in columns.iter().zip(&biases) {
                shapes.push(vec![n, k]);
                shapes.extend(bias.then(|| vec![n]));
            }
            let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
            Case::new(name, FusedLinear { prologue, biases, activation, keep }, &shapes)
        };
        let (relu, sigmoid) = (Some(Activation::Relu), Some(Activation::Sigmoid));
        vec![
            // Of one sign: a sum of four terms that cancel has no bound relative to itself.
            case("one", Prologue::Product, &[1, 4], &[1], None, false)
                .fill(0, Filling::Uniform(0.5, 1.0))
                .fill(1, Filling::Uniform(0.5, 1.0))
                .fill(2, Filling::Uniform(0.5, 1.0)),
            case("rows", Prologue::Rows, &[2, 9, 36], &[17, 5], relu, false),
            case("norm", norm(relu), &[2, 13, 68], &[33], None, true),
            case("norm_sigmoid", norm(sigmoid), &[19, 132], &[16, 7, 50], sigmoid, true),
            case("product", Prologue::Product, &[21, 100], &[40, 24], None, false),
            case("product_kept", Prologue::Product, &[5, 8], &[3], None, true),
            case("gates", Prologue::Gates { eps }, &[1, 18, 96], &[96], None, false),
            case("gates_kept", Prologue::Gates { eps }, &[35, 260], &[20, 12], relu, true),
            case("offset", norm(None), &[5, 96], &[20], None, true).fill(0, Filling::Uniform(999.0, 1001.0)),
            case("longest", norm(None), &[3, 512], &[24], None, false),
            case("no_rows", norm(None), &[0, 8], &[3], None, true),
            case("knet_gates", Prologue::Product, &[1, 100, 256], &[256, 256], None, false).bench(),
            case("knet_ffn", norm(None), &[1, 153, 256], &[2048], relu, true).bench(),
            case("knet_fc", Prologue::Gates { eps }, &[1, 153, 256], &[256], None, false).bench(),
        ]
    }
}
