//! What the benches share.

/// Worker threads: `KNET_THREADS`, else 2.
pub fn threads() -> usize {
    match std::env::var("KNET_THREADS") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KNET_THREADS is `{text}`, not a number")),
        Err(_) => 2,
    }
}
