use super::CudaOp;
use super::launches::storage;
use super::linear::Rows;
use crate::ops::MaskConv;
use crate::ops::epilogue::Epilogue;
use crate::plan::Site;
use crate::plan::launch::{Arg, Launch, Packing, Precision, Program, Target};
use crate::plan::select::masks::{ConvTile, Extents, conv};
use crate::plan::select::rows::Product;
use crate::tensor::DType;

/// Threads of a block.
const THREADS: u32 = 256;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct Params {
    objects: u32,
    channels: u32,
    pixels: u32,
    kernel_stride: u32,
}

impl CudaOp for MaskConv {
    fn program(&self, site: &Site<'_>, target: &Target) -> Result<Program, String> {
        let [kernels, x] = [site.inputs[0].shape, site.inputs[1].shape];
        let extents = Extents { batch: x[0], objects: kernels[1], channels: x[3], pixels: x[1] * x[2] };
        let Extents { batch, objects, channels, pixels } = extents;
        let shared = kernels[0] != batch;
        if target.precision == Precision::F32 {
            // Masks are planar, so that they are the product of the kernels' rows with the pixels' rows.
            let product = Product {
                rows: objects,
                columns: pixels,
                terms: channels,
                batch,
                tensor_cores: false,
                may_split: false,
            };
            let epilogue = Epilogue { bias: self.bias, ..Epilogue::default() };
            return Ok(Rows { product, shared_x: shared, row_bias: true, epilogue }.program(target));
        }
        let dtype = site.outputs[0].dtype;
        let tile = conv(&extents, &target.caps);
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
                if self.bias { Arg::Input(2) } else { Arg::Null },
                Arg::Output(0),
                Arg::of(&params),
            ],
        };
        Ok(Program {
            kernel: format!("mma {}x{}", 32 * tile.objects.bands, ConvTile::PIXELS),
            launches: vec![launch],
            packing: vec![Packing::plain(DType::F32), Packing::plain(dtype)],
            ..Program::default()
        })
    }
}
