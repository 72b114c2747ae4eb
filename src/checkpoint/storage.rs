//! Element types as stored in files, and their widening to f32.

use std::fmt;

use half::{bf16, f16};

/// Element type of a stored tensor. All files are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StorageType {
    /// 64-bit float.
    F64,
    /// 32-bit float.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of a 32-bit float.
    BF16,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// One byte, 0 or 1.
    Bool,
}

impl StorageType {
    const ALL: [StorageType; 13] = [
        StorageType::F64,
        StorageType::F32,
        StorageType::F16,
        StorageType::BF16,
        StorageType::I64,
        StorageType::I32,
        StorageType::I16,
        StorageType::I8,
        StorageType::U64,
        StorageType::U32,
        StorageType::U16,
        StorageType::U8,
        StorageType::Bool,
    ];

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            StorageType::F64 | StorageType::I64 | StorageType::U64 => 8,
            StorageType::F32 | StorageType::I32 | StorageType::U32 => 4,
            StorageType::F16 | StorageType::BF16 | StorageType::I16 | StorageType::U16 => 2,
            StorageType::I8 | StorageType::U8 | StorageType::Bool => 1,
        }
    }

    /// Name in a safetensors header.
    pub fn name(self) -> &'static str {
        match self {
            StorageType::F64 => "F64",
            StorageType::F32 => "F32",
            StorageType::F16 => "F16",
            StorageType::BF16 => "BF16",
            StorageType::I64 => "I64",
            StorageType::I32 => "I32",
            StorageType::I16 => "I16",
            StorageType::I8 => "I8",
            StorageType::U64 => "U64",
            StorageType::U32 => "U32",
            StorageType::U16 => "U16",
            StorageType::U8 => "U8",
            StorageType::Bool => "BOOL",
        }
    }

    /// The type of a name in a safetensors header, if it is one that can be read here.
    pub fn from_name(name: &str) -> Option<Self> {
        StorageType::ALL.into_iter().find(|t| t.name() == name)
    }

    /// True for the float types.
    pub fn is_float(self) -> bool {
        matches!(self, StorageType::F64 | StorageType::F32 | StorageType::F16 | StorageType::BF16)
    }

    /// Little-endian elements as f32. Exact for f16, bf16 and integers up to 2^24 in magnitude; other
    /// values are rounded to nearest. `bytes` may be unaligned; an incomplete last element is dropped.
    pub(super) fn widen(self, bytes: &[u8]) -> Vec<f32> {
        fn each<const N: usize>(bytes: &[u8], f: impl Fn([u8; N]) -> f32) -> Vec<f32> {
            bytes.as_chunks::<N>().0.iter().map(|&chunk| f(chunk)).collect()
        }
        match self {
            StorageType::F64 => each(bytes, |b| f64::from_le_bytes(b) as f32),
            StorageType::F32 => each(bytes, f32::from_le_bytes),
            StorageType::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f32()),
            StorageType::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f32()),
            StorageType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f32),
            StorageType::I32 => each(bytes, |b| i32::from_le_bytes(b) as f32),
            StorageType::I16 => each(bytes, |b| f32::from(i16::from_le_bytes(b))),
            StorageType::I8 => each(bytes, |b| f32::from(i8::from_le_bytes(b))),
            StorageType::U64 => each(bytes, |b| u64::from_le_bytes(b) as f32),
            StorageType::U32 => each(bytes, |b| u32::from_le_bytes(b) as f32),
            StorageType::U16 => each(bytes, |b| f32::from(u16::from_le_bytes(b))),
            StorageType::U8 => each(bytes, |[b]| f32::from(b)),
            StorageType::Bool => each(bytes, |[b]| f32::from(b != 0)),
        }
    }

    /// Whether an element would be NaN or infinite as f32. The bytes are looked at as they are, and nothing
    /// is decoded; an incomplete last element is passed over.
    pub(super) fn any_non_finite(self, bytes: &[u8]) -> bool {
        // Blocks without early exit let the test vectorise.
        const BLOCK: usize = 1024;
        fn any<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> bool {
            let blocks = bytes.as_chunks::<N>().0.chunks(BLOCK);
            blocks.into_iter().any(|block| block.iter().fold(false, |found, &b| found | bad(b)))
        }
        // An all-ones exponent marks NaN and infinity.
        match self {
            StorageType::F64 => any(bytes, |b| !(f64::from_le_bytes(b) as f32).is_finite()),
            StorageType::F32 => any(bytes, |b| u32::from_le_bytes(b) & 0x7f80_0000 == 0x7f80_0000),
            StorageType::F16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7c00 == 0x7c00),
            StorageType::BF16 => any(bytes, |b| u16::from_le_bytes(b) & 0x7f80 == 0x7f80),
            // No integer leaves the range of f32.
            _ => false,
        }
    }
}

impl fmt::Display for StorageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Index of the first NaN or infinity in `values`, if there is one. Runs at memory speed on clean data.
pub fn first_non_finite(values: &[f32]) -> Option<usize> {
    // An all-ones exponent marks NaN and infinity. Blocks without early exit let the test vectorise.
    const EXPONENT: u32 = 0x7f80_0000;
    const BLOCK: usize = 1024;
    values.chunks(BLOCK).enumerate().find_map(|(block, chunk)| {
        let suspect = chunk.iter().fold(0u32, |acc, v| acc | u32::from(v.to_bits() & EXPONENT == EXPONENT));
        if suspect == 0 {
            return None;
        }
        chunk.iter().position(|v| !v.is_finite()).map(|i| block * BLOCK + i)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_first_non_finite_value() {
        let mut values = vec![1.0f32; 5000];
        values[0] = f32::MAX;
        values[1] = f32::MIN_POSITIVE / 2.0;
        assert_eq!(first_non_finite(&values), None);
        assert_eq!(first_non_finite(&[]), None);
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 1023, 1024, 4999] {
                let mut values = values.clone();
                values[at] = bad;
                values[4999] = bad;
                assert_eq!(first_non_finite(&values), Some(at));
            }
        }
    }

    #[test]
    fn stored_bytes_are_finite_where_their_values_are() {
        let values = [0.0, -1.5, 65504.0, 1e-8, f64::MAX, f64::NAN, f64::NEG_INFINITY];
        for value in values {
            let stored: [(StorageType, Vec<u8>); 4] = [
                (StorageType::F64, value.to_le_bytes().to_vec()),
                (StorageType::F32, (value as f32).to_le_bytes().to_vec()),
                (StorageType::F16, f16::from_f64(value).to_le_bytes().to_vec()),
                (StorageType::BF16, bf16::from_f64(value).to_le_bytes().to_vec()),
            ];
            for (dtype, bytes) in stored {
                let finite = dtype.widen(&bytes)[0].is_finite();
                let many = [vec![0; 3000 * dtype.size()], bytes].concat();
                assert_eq!(dtype.any_non_finite(&many), !finite, "{dtype} {value}");
            }
        }
        assert!(!StorageType::U64.any_non_finite(&[0xff; 8]));
    }

    #[test]
    fn widens_every_type() {
        use StorageType as S;
        let cases: [(S, Vec<u8>, f32); 13] = [
            (S::F64, 0.1f64.to_le_bytes().to_vec(), 0.1),
            (S::F32, (-1.5f32).to_le_bytes().to_vec(), -1.5),
            (S::F16, 0x3555u16.to_le_bytes().to_vec(), 0.333_251_95),
            (S::BF16, 0xbf80u16.to_le_bytes().to_vec(), -1.0),
            (S::I64, (-7i64).to_le_bytes().to_vec(), -7.0),
            (S::I32, (1i32 << 24).to_le_bytes().to_vec(), 16_777_216.0),
            (S::I16, (-300i16).to_le_bytes().to_vec(), -300.0),
            (S::I8, vec![0xff], -1.0),
            (S::U64, u64::MAX.to_le_bytes().to_vec(), 18_446_744_073_709_551_615.0),
            (S::U32, u32::MAX.to_le_bytes().to_vec(), 4_294_967_295.0),
            (S::U16, vec![0xff, 0xff], 65535.0),
            (S::U8, vec![0xff], 255.0),
            (S::Bool, vec![1], 1.0),
        ];
        for (dtype, bytes, expected) in cases {
            assert_eq!(bytes.len(), dtype.size());
            assert_eq!(StorageType::from_name(dtype.name()), Some(dtype));
            let twice = [bytes.clone(), bytes].concat();
            assert_eq!(dtype.widen(&twice), [expected, expected], "{dtype}");
        }
        assert_eq!(StorageType::from_name("F8_E4M3"), None);
    }
}
