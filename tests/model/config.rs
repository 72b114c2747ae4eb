//! Configurations of the files that lie in the repository: read, written and read again.

use knet::checkpoint::Checkpoint;
use knet::engine::source::{CONFIG_KEY, file_config, open};
use knet::model::Config;

/// The files were written by earlier versions, with their fields in another order.
#[test]
fn shipped_weights_are_of_what_they_say() {
    let mut count = 0;
    for entry in std::fs::read_dir(testkit::root().join("weights")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "safetensors") {
            continue;
        }
        let file = Checkpoint::open(&path).unwrap();
        let config = file_config(&file, None).unwrap();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        // What was written then and what is written now say the same, field by field.
        let [then, now] = [file.metadata()[CONFIG_KEY].as_str(), &config.to_json()]
            .map(|text| serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(text).unwrap());
        let fields = |map: &serde_json::Map<String, serde_json::Value>| {
            map.iter()
                .map(|(name, value)| (name.clone(), value.to_string()))
                .collect::<std::collections::BTreeMap<_, _>>()
        };
        assert_eq!(fields(&then), fields(&now), "{}", path.display());
        let opened = open(&path.as_path().into(), None).unwrap();
        assert_eq!(opened.config, config);
        count += 1;
    }
    assert!(count > 0, "no weights");
}
