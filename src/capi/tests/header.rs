//! `include/knet.h` is what the crate's types and comments say.

use std::path::Path;

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // With the modules that it names.
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("lib.rs"));
    let mut made = Vec::new();
    builder.generate().unwrap().write(&mut made);
    let (path, made) = (root.join("include/knet.h"), String::from_utf8(made).unwrap());
    if std::env::var_os("KNET_UPDATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == made, "{}: KNET_UPDATE=1 cargo test -p knet-capi --test header", path.display());
}
