//! Image input and output against OpenCV, PyTorch and pycocotools goldens.

mod goldens;
mod paste;
mod postprocess;
mod preprocess;
mod render;
mod resize;
mod rle;
