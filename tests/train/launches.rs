//! What a step on a GPU asks of the driver, by the log of the stand-in of `tools/ptxemu`: launches of graphs,
//! waits, bytes that come back, and where the next batch is loaded; nothing is allocated.

use crate::gpus::{ON_GPU, on_gpus};
use crate::{Scene, semantic, stderr};

/// The calls of a step whose graphs were captured before, and the bytes that it copies to the host.
struct Step {
    calls: Vec<String>,
    to_host: usize,
    /// Where each of the four steps had its images on the host.
    images: Vec<String>,
}

/// What the log says of a copy of a step's images; nothing else is as large.
const IMAGES: &str = "bytes=98304 ";

impl Step {
    /// The third step of a run, from its first graph to the fourth step's, each of so many graphs.
    fn third(scene: &Scene, settings: &[&str], graphs: usize) -> Step {
        let log = scene.path("calls.log");
        let length = ["--set", "schedule.iterations=4", "--set", "run.save_iterations=0"];
        let mut command = scene.command("run", &[&ON_GPU[..], &length, settings].concat());
        let output = on_gpus(&mut command, 1).env("PTXEMU_LOG", &log).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let log = std::fs::read_to_string(log).unwrap();
        let lines: Vec<&str> = log.lines().collect();
        let launches: Vec<usize> = (0..lines.len()).filter(|&i| lines[i].contains("cuGraphLaunch")).collect();
        assert_eq!(launches.len(), 4 * graphs, "graphs of four steps");
        let of_step = &lines[launches[2 * graphs]..launches[3 * graphs]];
        let bytes = |line: &&str| {
            let (_, copied) = line.split_once("# run copy to=host:")?.1.split_once("bytes=")?;
            copied.split([' ', 'x']).next()?.parse::<usize>().ok()
        };
        let place = |line: &&str| {
            let copy = line.strip_prefix("# run copy to=")?;
            let (place, rest) = copy.split_once(" from=host:")?.1.split_once(' ')?;
            rest.starts_with(IMAGES).then(|| place.to_string())
        };
        Step {
            images: lines.iter().filter_map(place).collect(),
            calls: of_step
                .iter()
                .filter(|line| !line.starts_with('#'))
                .map(|line| line.to_string())
                .collect(),
            to_host: of_step.iter().filter_map(bytes).sum(),
        }
    }

    /// Launches so many graphs and waits once for each batch, and does nothing but making the context current
    /// besides.
    #[track_caller]
    fn check(&self, graphs: usize, batches: usize) {
        let count = |name: &str| self.calls.iter().filter(|call| call.starts_with(name)).count();
        let context = count("cuCtxSetCurrent") + count("cuCtxGetCurrent");
        let (launches, waits) = (count("cuGraphLaunch"), count("cuStreamSynchronize"));
        assert_eq!((launches, waits), (graphs, batches), "{:#?}", self.calls);
        assert_eq!(self.calls.len(), launches + waits + context, "{:#?}", self.calls);
    }
}

/// The one break is for the assignment: the host waits for the costs of a batch and, by the same call, for the
/// losses of the one before. Costs and losses come back, and of 30 parameters one number each; no gradients.
#[test]
fn a_step_of_a_detector_is_two_graphs_and_one_wait() {
    let step = Step::third(&Scene::new(&["red", "blue"]), &[], 2);
    step.check(2, 1);
    // Images are loaded while the second graph is at work, which does not read them.
    assert_eq!(step.images, [(); 4].map(|()| step.images[0].as_str()));
    // Costs of three rounds are 3 x 2 images x 4 proposals x 4 objects.
    assert!(step.to_host < 4 * (3 * 2 * 4 * 4 + 300), "{} bytes to the host", step.to_host);
}

/// In these models nothing depends on what the host makes of predictions. Batch norms in training follow their
/// batch without the host, too.
#[test]
fn a_step_of_a_semantic_model_is_one_graph() {
    // Validation at the end would launch graphs of its own.
    let step = Step::third(&semantic::scene("fcn", 1), &["--set", "data.val=[]"], 1);
    step.check(1, 1);
    assert!(step.to_host < 4 * 1000, "{} bytes to the host", step.to_host);
    // While a graph reads one place, the next images are loaded into the other.
    let [first, second, ..] = &step.images[..] else { panic!("{:?}", step.images) };
    assert_ne!(first, second);
    assert_eq!(step.images, [first, second, first, second].map(String::as_str));
}

/// A sum of gradients goes on, and ends with the update, in the graph of its batch.
#[test]
fn a_batch_of_several_is_two_graphs_and_one_wait() {
    let step = Step::third(&Scene::new(&["red", "blue"]), &["--set", "data.accumulate=2"], 4);
    step.check(4, 2);
}
