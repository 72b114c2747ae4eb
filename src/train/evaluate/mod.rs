//! How good a model is: COCO mask AP, panoptic quality, mean IoU.

pub mod class_match;
pub mod coco_ap;
pub mod coco_json;
pub mod index_png;
pub mod panoptic_quality;
pub mod semantic_iou;
