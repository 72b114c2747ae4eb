//! Necks: what joins the levels of a backbone.

pub mod fpn;

pub use fpn::Fpn;
