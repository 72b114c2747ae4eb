use super::CudaOp;
use super::launches::storage;
use super::linear::Rows;
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::cuda::tiles::masks::{ConvTile, Extents, conv_candidates};
use crate::cuda::tiles::rows::Product;
use crate::ops::MaskConv;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::tensor::DType;

/// Threads of a block: `THREADS` of `kernels/mask/conv.cu`.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    channels: u32,
    pixels: u32,
    kernel_stride: u32,
}

/// A mask convolution to launch.
enum Variant {
    /// f32: masks are planar, so that they are the product of the kernels' rows with the pixels' rows.
    Rows(Rows),
    /// 16-bit maps, on tensor cores.
    Tensor { extents: Extents, shared: bool, bias: bool, dtype: DType },
}

fn variant(op: &MaskConv, site: &Site<'_>, target: &Target) -> Variant {
    let [kernels, x] = [site.inputs[0].shape, site.inputs[1].shape];
    let extents = Extents { batch: x[0], objects: kernels[1], channels: x[3], pixels: x[1] * x[2] };
    let shared = kernels[0] != extents.batch;
    if target.precision.is_half() {
        return Variant::Tensor { extents, shared, bias: op.bias, dtype: site.outputs[0].dtype };
    }
    let product = Product {
        m: extents.objects,
        n: extents.pixels,
        k: extents.channels,
        batch: extents.batch,
        tensor_cores: false,
        may_split: false,
    };
    let epilogue = Epilogue { bias: op.bias, ..Epilogue::default() };
    Variant::Rows(Rows { product, shared_x: shared, row_bias: true, epilogue })
}

impl CudaOp for MaskConv {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        Ok(self.candidates(site, target)?.remove(0))
    }

    fn candidates(&self, site: &Site<'_>, target: &Target) -> Result<Vec<Program>, String> {
        Ok(match variant(self, site, target) {
            Variant::Rows(rows) => rows.candidates(target),
            Variant::Tensor { extents, shared, bias, dtype } => {
                let tiles = conv_candidates(&extents, &target.caps);
                tiles.iter().map(|tile| tiled(&extents, [shared, bias], dtype, tile)).collect()
            }
        })
    }
}

/// The program of one layout; whether all images share the kernels, and whether objects have a bias.
fn tiled(extents: &Extents, [shared, bias]: [bool; 2], dtype: DType, tile: &ConvTile) -> Program {
    let &Extents { batch, objects, channels, pixels } = extents;
    let params = Params {
        objects: objects as u32,
        channels: channels as u32,
        pixels: pixels as u32,
        kernel_stride: if shared { 0 } else { (objects * channels) as u32 },
    };
    let launch = Launch {
        source: "mask/conv.cu",
        entry: "mask_conv",
        defines: vec![
            storage(dtype),
            ("BANDS", tile.objects.bands as i64),
            ("KEPT", tile.kept as i64),
            ("STAGES", tile.stages as i64),
            ("X_WIDE", i64::from(channels.is_multiple_of(8))),
            ("Y_WIDE", i64::from(pixels.is_multiple_of(8))),
        ],
        grid: [pixels.div_ceil(ConvTile::PIXELS) as u32, tile.objects.count as u32, batch as u32],
        block: [THREADS, 1, 1],
        shared: tile.shared() as u32,
        args: vec![
            Arg::Input(0),
            Arg::Input(1),
            if bias { Arg::Input(2) } else { Arg::Null },
            Arg::Output(0),
            Arg::of(&params),
        ],
    };
    let (rows, columns) = (32 * tile.objects.bands, ConvTile::PIXELS);
    Program {
        kernel: format!("mma {rows}x{columns} kept {} x{}", tile.kept, tile.stages),
        launches: vec![launch],
        packing: vec![Packing::plain(DType::F32), Packing::plain(dtype)],
        ..Program::default()
    }
}
