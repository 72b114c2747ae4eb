//! The transforms against their definition, and the precision that is left at the network's depth.

use crate::cpu::conv::{Conv, ConvKernel, ConvShape};
use crate::cpu::gemm::tests::{noise, relative_l2};
use crate::cpu::gemm::{Arch, Epilogue, Job, Vector, on};
use crate::isa::Isa;

use super::{F2, F4, Scheme};

/// Applies `A^T ((G g) . (B^T d))` to one-dimensional data.
struct OneDimension<'a, S, const IN: usize, const OUT: usize> {
    d: [f32; IN],
    g: [f32; 3],
    y: &'a mut [f32; OUT],
    scheme: std::marker::PhantomData<S>,
}

impl<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize> Job for OneDimension<'_, S, IN, OUT> {
    #[inline(always)]
    fn run<A: Arch>(self) {
        // SAFETY: `on` chose an available A; `out` has a vector's room.
        unsafe {
            let mut products = S::input(self.d.map(|x| A::V::splat(x)));
            for (v, g) in products.iter_mut().zip(S::filter()) {
                let u: f64 = (0..3).map(|i| g[i] * self.g[i] as f64).sum();
                *v = v.mul(A::V::splat(u as f32));
            }
            for (y, v) in self.y.iter_mut().zip(S::output(products)) {
                let mut out = [0.0; 16];
                v.store(out.as_mut_ptr());
                *y = out[0];
            }
        }
    }
}

fn correlates<S: Scheme<IN, OUT>, const IN: usize, const OUT: usize>() {
    for seed in 1..50 {
        let (d, g) = (noise(IN, seed), noise(3, seed + 100));
        let want: Vec<f64> = (0..OUT).map(|i| (0..3).map(|j| d[i + j] as f64 * g[j] as f64).sum()).collect();
        for isa in Isa::available() {
            let mut y = [0.0; OUT];
            let (d, g) = (d.clone().try_into().unwrap(), g.clone().try_into().unwrap());
            on(isa, OneDimension::<S, IN, OUT> { d, g, y: &mut y, scheme: std::marker::PhantomData });
            let error = relative_l2(&y, &want);
            assert!(error < 5e-6, "{isa}: {error:e}");
        }
    }
}

#[test]
fn transforms_correlate() {
    correlates::<F2, 4, 2>();
    correlates::<F4, 6, 4>();
}

/// N(0, 1)-like data through 256 -> 32 channels: what one layer of the network may lose.
#[test]
fn precision_at_256_channels() {
    let shape = ConvShape {
        batch: 1,
        height: 24,
        width: 24,
        c_in: 256,
        c_out: 32,
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
        padding_end: [1, 1],
        dilation: [1, 1],
        groups: 1,
    };
    let (x, filter) = (noise(shape.input_len(), 1), noise(shape.filter_len(), 2));
    let exact = crate::cpu::conv::tests::reference(&shape, &x, &filter);
    for isa in Isa::available() {
        for (kernel, limit) in
            [(ConvKernel::ImplicitGemm, 3e-7), (ConvKernel::Winograd2, 4e-7), (ConvKernel::Winograd4, 1e-6)]
        {
            let conv = Conv { shape, kernel, isa };
            let error =
                relative_l2(&crate::cpu::conv::tests::run(&conv, &x, &filter, &Epilogue::default()), &exact);
            println!("{kernel} on {isa}: relative L2 error {error:.2e}");
            assert!(error < limit, "{kernel} on {isa}: {error:e}");
        }
    }
}
