//! Inert values that a pickle can describe, and the only globals it may name.

use super::super::StorageType;

/// Index of a value in the arena of an [`Unpickled`](super::pickle::Unpickled). Values refer to each other by
/// index, so that cycles and deep nesting cost neither leaks nor recursion.
pub(super) type Id = u32;

/// A decoded value.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    /// Wide enough for the magic number of the legacy format (77 bits).
    Int(i128),
    Float(f64),
    Str(Box<str>),
    Bytes(Box<[u8]>),
    Tuple(Box<[Id]>),
    List(Vec<Id>),
    Set(Vec<Id>),
    /// Pairs in insertion order, repetitions included.
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Storage(Storage),
    Tensor(TensorArgs),
    /// A NumPy dtype by its code (`f8`); `big` if it is big-endian.
    NumpyDtype {
        code: Box<str>,
        big: bool,
    },
    /// A value of an allowed kind that nothing here needs (integers over 128 bits, rare NumPy scalars).
    Opaque,
}

/// A storage by reference: the data lies elsewhere in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Storage {
    pub dtype: StorageType,
    /// A `Str`.
    pub key: Id,
    /// Elements of the whole storage.
    pub numel: u64,
    /// First element and number of elements, if only a window of the storage is meant (legacy format).
    pub view: Option<(u64, u64)>,
}

/// Arguments of `_rebuild_tensor_v2`, checked when the tensor is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct TensorArgs {
    /// A `Storage`.
    pub storage: Id,
    pub offset: Id,
    pub size: Id,
    pub stride: Id,
    /// Where in the pickle the tensor was rebuilt.
    pub at: u64,
}

/// Everything a pickle may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(StorageType),
    Size,
    Int,
    Float,
    Bool,
    Tuple,
    List,
    Dict,
    Set,
    NumpyScalar,
    NumpyDtype,
    Encode,
}

impl Global {
    /// The allow-list. `None` means that the pickle must be refused.
    pub fn resolve(module: &str, name: &str) -> Option<Self> {
        use StorageType as S;
        Some(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("torch", "Size") => Global::Size,
            ("torch", "DoubleStorage") => Global::Storage(S::F64),
            ("torch", "FloatStorage") => Global::Storage(S::F32),
            ("torch", "HalfStorage") => Global::Storage(S::F16),
            ("torch", "BFloat16Storage") => Global::Storage(S::BF16),
            ("torch", "LongStorage") => Global::Storage(S::I64),
            ("torch", "IntStorage") => Global::Storage(S::I32),
            ("torch", "ShortStorage") => Global::Storage(S::I16),
            ("torch", "CharStorage") => Global::Storage(S::I8),
            ("torch", "ByteStorage") => Global::Storage(S::U8),
            ("torch", "BoolStorage") => Global::Storage(S::Bool),
            // PyTorch reads tensors over untyped storages as bytes.
            ("torch.storage", "UntypedStorage" | "_UntypedStorage") | ("torch", "UntypedStorage") => {
                Global::Storage(S::U8)
            }
            ("builtins" | "__builtin__", "int" | "long") => Global::Int,
            ("builtins" | "__builtin__", "float") => Global::Float,
            ("builtins" | "__builtin__", "bool") => Global::Bool,
            ("builtins" | "__builtin__", "tuple") => Global::Tuple,
            ("builtins" | "__builtin__", "list") => Global::List,
            ("builtins" | "__builtin__", "dict") => Global::Dict,
            ("builtins" | "__builtin__", "set" | "frozenset") => Global::Set,
            ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
            ("numpy", "dtype") => Global::NumpyDtype,
            ("_codecs", "encode") => Global::Encode,
            _ => return None,
        })
    }
}
