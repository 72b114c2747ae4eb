use super::*;
use crate::model::{ResNet, Stem};

#[test]
fn json_round_trip() {
    for name in MODEL_NAMES {
        let config = Config::named(name).unwrap();
        assert_eq!(Config::from_json(&config.to_json()).unwrap(), config);
        let mut again = config.clone();
        again.name_by_parts();
        assert_eq!(again.name, *name);
    }
}

#[test]
fn fields_lie_side_by_side() {
    let json = Config::named("knet_s3_lite0_fpn").unwrap().to_json();
    let wanted = concat!(
        r#"{"name":"knet_s3_lite0_fpn","task":"instance","backbone":{"type":"efficientnet_lite","variant":0},"#,
        r#""channels":96,"proposals":16,"stages":3,"feedforward_channels":512,"heads":8,"norm_groups":32,"#,
        r#""size":[320,320],"normalization":{"mean":[127.0,127.0,127.0],"std":[128.0,128.0,128.0]},"#,
        r#""max_per_image":100,"instance_score_threshold":0.3,"overlap_threshold":0.6,"#,
        r#""thing_classes":80,"stuff_classes":0}"#
    );
    assert_eq!(json, wanted);
}

/// As files of the first versions have them: in another order, and without what had its default.
#[test]
fn what_older_versions_wrote_is_read() {
    let text = r#"{"name":"x","task":"panoptic","backbone":{"type":"resnet","depth":101},"thing_classes":2,
        "stuff_classes":1,"proposals":7,"class_names":["a","b","c"],"mask_score":true}"#;
    let config = Config::from_json(text).unwrap();
    let classes = Classes { names: ["a", "b", "c"].map(String::from).to_vec(), ..Classes::new(2, 1) };
    let mut wanted = Config::of(ResNet::new(101).into(), classes);
    wanted.name = "x".into();
    (wanted.head.proposals, wanted.test.mask_score) = (7, true);
    assert_eq!(config, wanted);
}

#[test]
fn options_of_the_defaults_are_not_written() {
    let json = Config::named("knet_s3_r50_fpn").unwrap().to_json();
    assert!(!json.contains("normalization") && !json.contains("mask_score"), "{json}");
    let mut config = Config::named("knet_s3_lite0_fpn").unwrap();
    config.test.mask_score = true;
    let json = config.to_json();
    assert!(json.contains(r#""mask_score":true"#), "{json}");
    assert_eq!(Config::from_json(&json).unwrap(), config);
}

#[test]
fn values_out_of_range_are_named() {
    let mut config = Config::named("knet_s3_lite0_fpn").unwrap();
    config.backbone = EfficientNetLite::new(1).into();
    assert!(config.validate().unwrap_err().to_string().contains("variant 1"));
    config.backbone = EfficientNetLite::new(2).into();
    config.input.normalization.std[1] = 0.0;
    assert!(config.validate().unwrap_err().to_string().contains("std [128.0, 0.0, 128.0]"));
    let mut config = Config::named("knet_s3_r50_fpn").unwrap();
    config.backbone =
        ResNet { stem: Stem::Deep, strides: [1, 2, 1, 1], dilations: [1, 1, 2, 4], ..ResNet::new(50) }.into();
    assert!(config.validate().unwrap_err().to_string().contains("strides 4 to 32"));
}

#[test]
fn errors_name_the_field_or_the_nearest_model() {
    let error = Config::named("knet_s3_r50_fpm").unwrap_err().to_string();
    assert!(error.contains("did you mean `knet_s3_r50_fpn`"), "{error}");
    let mut config = Config::named("knet_s3_r50_fpn").unwrap();
    config.neck.channels = 100;
    assert!(config.validate().unwrap_err().to_string().contains("100 channels"));
    let fault = |text: &str| Config::from_json(text).unwrap_err().to_string();
    let error = fault(r#"{"name": "x", "task": "instance"}"#);
    assert!(error.contains("missing field `backbone`"), "{error}");
    let with = |more: &str| {
        fault(&format!(
            r#"{{"name": "x", "task": "instance", "backbone": {{"type": "resnet", "depth": 50}}{more}}}"#
        ))
    };
    assert!(with("").contains("missing field `thing_classes`"), "{}", with(""));
    let error = with(r#", "thing_classes": 1, "hats": 2"#);
    assert!(error.contains("unknown field `hats`") && error.contains("`channels`"), "{error}");
    let error = with(r#", "thing_classes": 1, "heads": 8, "proposals": "many""#);
    assert!(error.contains("proposals: invalid type: string \"many\""), "{error}");
    let error = with(r#", "thing_classes": -1"#);
    assert!(error.contains("thing_classes: invalid value"), "{error}");
}

#[test]
fn settings_are_all_fields_but_name_task_and_classes() {
    let json = serde_json::to_value(Config {
        test: Test { mask_score: true, ..Test::default() },
        ..Config::named("knet_s3_lite0_fpn").unwrap()
    });
    let written: Vec<String> = json.unwrap().as_object().unwrap().keys().cloned().collect();
    let settings: Vec<&str> = Config::settings().collect();
    let of_detectors: Vec<&str> = settings
        .iter()
        .copied()
        .filter(|name| !["decode_head", "rcnn", "solov2", "condinst"].contains(name))
        .collect();
    assert_eq!(written[2..written.len() - 2], of_detectors, "{written:?}");
    assert!(Config::inference_settings().all(|name| settings.contains(&name)));
    assert!(Config::check_setting("heads", 4.into()).is_ok());
    let error = Config::check_setting("heads", "four".into()).unwrap_err();
    assert!(error.contains("heads: invalid type"), "{error}");
}
