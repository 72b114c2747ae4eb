//! Whole models against the official PyTorch code.
use knet::checkpoint::Checkpoint;
use knet::ops::case::relative_l2;
#[test]
fn quick() {
    let image = knet::image::decode::decode("/work/shared/reference/inputs/a.png", &Default::default()).unwrap();
    let mut e = knet::Engine::builder().size(None).build().unwrap();
    let t = std::time::Instant::now();
    let taps = e.taps(&image).unwrap();
    println!("{:?}", t.elapsed());
    let g = Checkpoint::open("/work/shared/reference/knet_s3_r50_fpn/golden.safetensors").unwrap();
    for (name, t) in &taps {
        let Some(full) = g.shape(name) else { println!("no {name}"); continue };
        let want = g.load_f32(name).unwrap();
        let n = t.data().len();
        let got: Vec<f64> = if want.data().len() == n { t.data().iter().map(|&v| v as f64).collect() } else {
            let m = want.data().len(); let k = (n - 64).div_ceil(m - 64);
            (0..64).chain((64..n).step_by(k)).map(|i| t.data()[i] as f64).collect() };
        let want: Vec<f64> = want.data().iter().map(|&v| v as f64).collect();
        println!("{name} {:?} {:?} {:.2e}", t.shape(), full, relative_l2(&got, &want));
    }
}
