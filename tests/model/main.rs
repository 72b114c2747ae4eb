//! Models, from a stage to the engine, and what plans and operators promise for any shape.

mod bf16;
mod config;
mod deadline;
mod deformable;
mod efficientnet_lite;
mod engine;
mod goldens;
mod one_stage;
mod plan;
mod properties;
mod rcnn;
mod rcnn_golden;
mod stages;
