use super::CudaOp;
use super::divisor::divisor;
use super::launches::{elements, expect_f32, per_element, storage};
use crate::cuda::gpu::Target;
use crate::cuda::launch::{Arg, Launch, Packing, Program};
use crate::ops::decode_boxes::{DecodeAnchors, DecodeBoxes, MOST_GROWTH, ScaleBoxes};
use crate::plan::Site;
use crate::tensor::DType;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct AnchorParams {
    boxes: u32,
    by_count: [u32; 2],
    by_width: [u32; 2],
    width: u32,
    anchors: u32,
    stride: u32,
    half_sides: [[f32; 2]; 3],
    most_growth: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct MovedParams {
    boxes: u32,
    by_classes: [u32; 2],
    by_count: [u32; 2],
    stds: [f32; 4],
    most_growth: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct ScaleParams {
    boxes: u32,
    by_count: [u32; 2],
    to_photo: u32,
}

/// One thread a box of the result, of deltas of this type.
fn program(site: &Site<'_>, entry: &'static str, deltas: DType, params: Arg) -> Result<Program, String> {
    let boxes = elements(site.outputs[0])? as usize / 4;
    let operands = (0..site.inputs.len()).map(Arg::Input);
    let launch = Launch {
        source: "boxes/decode.cu",
        entry,
        defines: vec![storage(deltas)],
        args: operands.chain([Arg::Output(0), params]).collect(),
        ..per_element(boxes)
    };
    Ok(Program { kernel: "boxes".into(), launches: vec![launch], ..Program::default() })
}

impl CudaOp for DecodeAnchors {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let (map, y) = (site.inputs[0].shape, site.outputs[0].shape);
        elements(site.inputs[0])?;
        expect_f32(site, [2])?;
        let params = AnchorParams {
            boxes: (y[0] * y[1]) as u32,
            by_count: divisor(y[1]),
            by_width: divisor(map[2]),
            width: map[2] as u32,
            anchors: (map[1] * map[2] * self.ratios.len()) as u32,
            stride: self.stride as u32,
            half_sides: self.half_sides(),
            most_growth: MOST_GROWTH.ln() as f32,
        };
        program(site, "decode_anchors", site.inputs[0].dtype, Arg::of(&params))
    }
}

impl CudaOp for DecodeBoxes {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let deltas = site.inputs[1].shape;
        expect_f32(site, [0, 2])?;
        let params = MovedParams {
            boxes: (deltas.len() / 4) as u32,
            by_classes: divisor(deltas[2] / 4),
            by_count: divisor(deltas[1]),
            stds: self.stds,
            most_growth: MOST_GROWTH.ln() as f32,
        };
        let dtype = site.dtype(1, Packing::plain(DType::F32));
        program(site, "decode_boxes", dtype, Arg::of(&params))
    }
}

impl CudaOp for ScaleBoxes {
    fn program(&self, site: &Site<'_>, _: &Target) -> Result<Program, String> {
        let boxes = site.inputs[0].shape;
        expect_f32(site, [0, 1])?;
        let params = ScaleParams {
            boxes: (boxes[0] * boxes[1]) as u32,
            by_count: divisor(boxes[1]),
            to_photo: u32::from(self.to_photo),
        };
        program(site, "scale_boxes", DType::F32, Arg::of(&params))
    }
}
