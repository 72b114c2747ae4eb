//! Fewer stages than a model has, told beforehand or left out for want of time.

use knet::engine::{Device, InputSize, ModelOptions, SessionOptions};
use knet::image::RgbImage;
use knet::{Model, Segmentation, Session};
use std::sync::Arc;
use std::time::Duration;
use testkit::model::photo;

/// A model of each task on the CPU, with three stages.
fn models() -> Vec<Arc<Model>> {
    ["knet_s3_lite0_fpn", "knet_s3_r50_fpn_panoptic", "knet_s3_upernet_r50"].map(model).to_vec()
}

fn model(name: &str) -> Arc<Model> {
    let options = ModelOptions { name: Some(name.into()), device: Device::Cpu, ..ModelOptions::default() };
    Model::load(&options).unwrap()
}

fn options() -> SessionOptions {
    SessionOptions { threads: 2, size: InputSize::Within(64, 96), ..SessionOptions::default() }
}

fn segment(session: &mut Session, photo: &RgbImage) -> Segmentation {
    session.segment(photo).unwrap()
}

#[test]
fn a_run_that_ends_early_is_a_run_of_fewer_stages() {
    let photo = photo(64, 96);
    for model in models() {
        let told = |stages| Session::new(model.clone(), &SessionOptions { stages, ..options() }).unwrap();
        let whole = segment(&mut told(None), &photo);
        let first = segment(&mut told(Some(1)), &photo);
        assert_eq!((whole.stages(), first.stages()), (3, 1), "{}", model.config().name);
        assert_ne!(whole.found(), first.found(), "{}: stages change nothing", model.config().name);
        assert_eq!(segment(&mut told(Some(3)), &photo), whole);

        let mut session = told(None);
        session.set_deadline(Some(Duration::ZERO));
        assert_eq!(segment(&mut session, &photo), first, "{}: no time", model.config().name);
        session.set_deadline(Some(Duration::from_secs(3600)));
        assert_eq!(segment(&mut session, &photo), whole, "{}: enough time", model.config().name);
        session.set_deadline(None);
        assert_eq!(segment(&mut session, &photo), whole, "{}: no deadline", model.config().name);
        // Never more than it was told.
        let two = segment(&mut told(Some(2)), &photo);
        let mut session = told(Some(2));
        session.set_deadline(Some(Duration::from_secs(3600)));
        assert_eq!(segment(&mut session, &photo), two);
        assert_eq!(two.stages(), 2);
    }
}

#[test]
fn stages_that_are_not_there_are_refused() {
    for (name, stages, reason) in [
        ("knet_s3_lite0_fpn", 0, "stages is 0, and knet_s3_lite0_fpn has 3"),
        ("knet_s3_lite0_fpn", 4, "stages is 4"),
        ("fcn_r50-d8", 1, "fcn_r50-d8 has 0"),
    ] {
        let error =
            Session::new(model(name), &SessionOptions { stages: Some(stages), ..options() }).err().unwrap();
        assert!(error.to_string().contains(reason), "{error}");
    }
    // A plain head has nothing to leave out.
    let deadline = Some(Duration::ZERO);
    let mut session = Session::new(model("fcn_r50-d8"), &SessionOptions { deadline, ..options() }).unwrap();
    assert_eq!(segment(&mut session, &photo(64, 96)).stages(), 0);
}
