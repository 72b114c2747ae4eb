//! Constants as they lie in device memory.

use crate::cuda::launch::Packing;
use crate::tensor::{DType, Shape, Tensor};
use half::{bf16, f16};

/// Rows and columns of the matrix that a packing sees in a tensor, before it is transposed.
fn matrix(shape: Shape, packing: Packing) -> (usize, usize) {
    let row_dims = packing.row_dims.min(shape.rank());
    let columns: usize = shape.dims()[shape.rank() - row_dims..].iter().product();
    (shape.len().checked_div(columns).unwrap_or(0), columns)
}

/// The name in a bundle of a constant, by its key in plans, in this packing.
pub fn name(key: &str, packing: Packing) -> String {
    format!("cuda {packing:?} {key}")
}

/// How many bytes [`pack`] gives of a tensor of this shape.
pub fn packed_bytes(shape: Shape, packing: Packing) -> usize {
    let (rows, columns) = matrix(shape, packing);
    let (rows, columns) = if packing.transposed { (columns, rows) } else { (rows, columns) };
    rows * columns.next_multiple_of(packing.row_multiple.max(1)) * packing.dtype.size()
}

/// The bytes of `tensor` in this packing: rows padded with zeros, elements rounded to nearest even.
pub fn pack(tensor: &Tensor, packing: Packing) -> Vec<u8> {
    let data = tensor.data();
    let (rows, columns) = matrix(tensor.shape(), packing);
    // Element `j` of row `i` of the result is element `i * row_step + j * step` of the tensor.
    let (rows, columns, row_step, step) =
        if packing.transposed { (columns, rows, 1, columns) } else { (rows, columns, columns, 1) };
    let padded = columns.next_multiple_of(packing.row_multiple.max(1));
    let mut bytes = Vec::with_capacity(packed_bytes(tensor.shape(), packing));
    for row in 0..rows {
        (0..columns).for_each(|column| push(&mut bytes, packing.dtype, data[row * row_step + column * step]));
        (columns..padded).for_each(|_| push(&mut bytes, packing.dtype, 0.0));
    }
    bytes
}

fn push(bytes: &mut Vec<u8>, dtype: DType, value: f32) {
    match dtype {
        DType::F32 => bytes.extend(value.to_le_bytes()),
        DType::I32 => bytes.extend((value as i32).to_le_bytes()),
        DType::F16 => bytes.extend(f16::from_f32(value).to_le_bytes()),
        DType::BF16 => bytes.extend(bf16::from_f32(value).to_le_bytes()),
        DType::U8 => bytes.push(value as u8),
    }
}

/// The floats that `bytes` of this type stand for; indices become floats of the same value.
pub fn unpack(bytes: &[u8], dtype: DType) -> Vec<f32> {
    let words = |size: usize| bytes.chunks_exact(size);
    match dtype {
        DType::F32 => words(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        DType::I32 => words(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
        DType::F16 => words(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::BF16 => words(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
        DType::U8 => bytes.iter().map(|&byte| f32::from(byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_and_values_come_back() {
        let tensor = Tensor::new([2, 3], vec![1.0, -2.5, 0.25, 3.0, 1e-3, 65504.0]);
        let packed = pack(&tensor, Packing { row_multiple: 8, ..Packing::plain(DType::F16) });
        assert_eq!(packed.len(), 2 * 8 * 2);
        let values = unpack(&packed, DType::F16);
        assert_eq!(values[..4], [1.0, -2.5, 0.25, 0.0]);
        assert_eq!(values[8 + 2], 65504.0);
        assert!(values[3..8].iter().all(|&v| v == 0.0));
        let plain = pack(&tensor, Packing::plain(DType::F32));
        assert_eq!(unpack(&plain, DType::F32), tensor.data());
    }

    #[test]
    fn rows_of_several_dimensions_are_padded_as_one_and_transposed() {
        let tensor = Tensor::new([3, 1, 2, 2], (0..12).map(|i| i as f32).collect());
        let rows = Packing { row_dims: 3, row_multiple: 3, ..Packing::plain(DType::F32) };
        let packed = unpack(&pack(&tensor, rows), DType::F32);
        assert_eq!(packed[..9], [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 4.0, 5.0, 6.0]);
        assert_eq!(packed.len(), 18);
        let columns = Packing { transposed: true, row_multiple: 2, ..rows };
        let packed = unpack(&pack(&tensor, columns), DType::F32);
        assert_eq!(packed[..8], [0.0, 4.0, 8.0, 0.0, 1.0, 5.0, 9.0, 0.0]);
        assert_eq!(packed.len(), 16);
        let empty = Tensor::new([0, 3], vec![]);
        assert!(pack(&empty, columns).is_empty() && pack(&empty, rows).is_empty());
    }
}
