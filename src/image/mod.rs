//! Everything between an image file and the network input, and between mask logits and the user's result.

pub mod decode;
pub mod preprocess;
pub mod resize;
