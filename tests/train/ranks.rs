//! Several ranks under a real `mpiexec`: the same bits as one process, and an end that all see.

use crate::{Scene, stderr};
use knet::checkpoint::Checkpoint;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn mpi(file: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/mpi").join(file);
    assert!(path.exists(), "{}: run tools/setup-mpi", path.display());
    path
}

/// `mpiexec` before a program, to be given more.
pub fn mpiexec() -> Command {
    let mut command = Command::new(mpi("bin/mpiexec"));
    command.env("KNET_MPI", mpi("lib/libmpi_abi.so.1")).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Scene {
    /// Adds what trains into the folder `out`.
    pub fn program(&self, command: &mut Command, out: &str, arguments: &[&str]) {
        command.arg(env!("CARGO_BIN_EXE_knet-train")).arg(self.config());
        command.arg("--out").arg(self.path(out)).args(["--threads", "1"]).args(arguments);
    }

    /// Trains with so many ranks.
    fn ranks(&self, count: usize, out: &str, arguments: &[&str]) -> Output {
        let mut command = mpiexec();
        command.args(["-n", &count.to_string()]);
        self.program(&mut command, out, arguments);
        command.output().unwrap()
    }

    /// Trains two ranks without end, by `mpiexec`, and kills the second one when there is a state. The end comes
    /// within 30 seconds and names what was killed.
    pub fn kill_one_of_two(&self, mut mpiexec: Command, arguments: &[&str]) {
        let endless = [&["--set", "schedule.iterations=100000"][..], arguments].concat();
        mpiexec.args(["-n", "1"]);
        self.program(&mut mpiexec, "run", &endless);
        let pid_file = self.path("pid");
        mpiexec.args([":", "-n", "1", "sh", "-c", r#"echo $$ > "$0"; exec "$@""#]).arg(&pid_file);
        self.program(&mut mpiexec, "run", &endless);
        let child = mpiexec.spawn().unwrap();
        let begun = Instant::now();
        while !self.path("run/last.state").exists() {
            assert!(begun.elapsed() < Duration::from_secs(240), "no state");
            std::thread::sleep(Duration::from_millis(50));
        }
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let killed = Instant::now();
        assert!(Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), stderr(&output));
        assert!(said.contains(&format!("PID {} ", pid.trim())), "{said}");
    }

    /// The bits of all that a run knows: weights, moments, averages and running statistics.
    fn learnt(&self, out: &str) -> BTreeMap<String, Vec<u32>> {
        let state = Checkpoint::open(self.path(out).join("last.state")).unwrap();
        let bits = |name: &str| -> Vec<u32> {
            state.load_f32(name).unwrap().data().iter().map(|value| value.to_bits()).collect()
        };
        state.names().map(|name| (name.to_string(), bits(name))).collect()
    }

    pub fn check_same(&self, one: &str, other: &str) {
        let (one_bits, bits) = (self.learnt(one), self.learnt(other));
        assert_eq!(one_bits.keys().collect::<Vec<_>>(), bits.keys().collect::<Vec<_>>());
        for (name, one) in &one_bits {
            assert!(*one == bits[name], "`{name}` differs");
        }
        assert_eq!(self.losses(one), self.losses(other));
    }
}

#[test]
fn ranks_learn_what_one_process_learns_from_as_many_batches() {
    let scene = Scene::new(&["red", "blue"]);
    let accumulate = |count: usize| format!("data.accumulate={count}");
    for (ranks, each) in [(2, 1), (3, 1), (2, 2)] {
        let (one, several) = (format!("one-{ranks}-{each}"), format!("ranks-{ranks}-{each}"));
        scene.train(&one, &["--set", &accumulate(ranks * each), "--set", "schedule.iterations=3"]);
        let settings = ["--set", &accumulate(each), "--set", "schedule.iterations=3"];
        let output = scene.ranks(ranks, &several, &settings);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains(&format!("{ranks} ranks, connected by MPI")), "{}", stderr(&output));
        scene.check_same(&one, &several);
    }
}

#[test]
fn running_statistics_of_ranks_are_those_of_one_process() {
    let scene = crate::semantic::scene("fcn", 1);
    scene.train("one", &["--set", "data.accumulate=2", "--set", "schedule.iterations=2"]);
    let output = scene.ranks(2, "ranks", &["--set", "schedule.iterations=2"]);
    assert!(output.status.success(), "{}", stderr(&output));
    scene.check_same("one", "ranks");
}

#[test]
fn a_run_goes_on_with_another_number_of_ranks() {
    let scene = Scene::new(&["red", "blue"]);
    scene.train("one", &["--set", "data.accumulate=2", "--set", "schedule.iterations=4"]);
    scene.train(
        "started",
        &["--set", "data.accumulate=2", "--set", "schedule.iterations=4", "--time-limit", "0.0001"],
    );
    let output = scene.ranks(
        2,
        "started",
        &["--resume", "--set", "data.accumulate=1", "--set", "schedule.iterations=4"],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(scene.learnt("one") == scene.learnt("started"));
}

#[test]
fn ranks_that_differ_are_refused_by_the_first_difference() {
    let scene = Scene::new(&["red", "blue"]);
    let mut command = mpiexec();
    command.args(["-n", "1"]);
    scene.program(&mut command, "run", &[]);
    command.args([":", "-n", "1"]);
    scene.program(&mut command, "run", &["--set", "optimizer.lr=0.5"]);
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert!(
        !output.status.success() && text.contains("optimizer.lr is 0.001 on rank 0 and 0.5 on rank 1"),
        "{text}"
    );
}

#[test]
fn a_fault_of_one_rank_stops_all_with_its_number() {
    let scene = Scene::new(&["red", "blue"]);
    let output = scene.ranks(2, "run", &["--set", "optimizer.lr=1e30", "--set", "optimizer.clip_norm=0"]);
    let text = stderr(&output);
    for rank in 0..2 {
        assert!(text.contains(&format!("rank {rank}: error: ")), "{text}");
    }

    // A photo that is gone when it is needed: only the rank whose turn it is meets it.
    std::fs::remove_file(scene.path("3.png")).unwrap();
    let output = scene.ranks(2, "other", &["--set", "data.verify=false"]);
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("3.png"), "{text}");
    assert!(text.contains("failed: ") || text.matches("3.png").count() > 1, "{text}");
}

/// Of two photos one has an object, whose class loss overflows: its rank alone cannot go on. Costs or losses,
/// that rank names it with its photo, the other one repeats it with the rank, and the state is saved.
#[test]
fn a_loss_that_is_not_finite_on_one_rank_stops_all_with_its_photo() {
    let scene = Scene::new(&["red", "blue"]);
    let text = std::fs::read_to_string(scene.path("data.json")).unwrap();
    let mut document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let of = |entry: &serde_json::Value, key: &str, ids: &[u64]| ids.contains(&entry[key].as_u64().unwrap());
    document["images"].as_array_mut().unwrap().retain(|image| of(image, "id", &[2, 3]));
    document["annotations"].as_array_mut().unwrap().retain(|object| of(object, "image_id", &[3]));
    std::fs::write(scene.path("data.json"), document.to_string()).unwrap();
    let settings = ["data.batch=1", "augment.copy_paste=0", "loss.class=3.4e38"];
    let output = scene.ranks(2, "run", &settings.map(|setting| ["--set", setting]).concat());
    let text = stderr(&output);
    assert!(!output.status.success(), "{text}");
    let line = |rank: usize| {
        let start = format!("rank {rank}: error: ");
        text.lines().find_map(|line| line.strip_prefix(&start)).unwrap_or_else(|| panic!("{text}"))
    };
    let (failed, other) = if line(0).starts_with("rank 1 failed: ") { (1, 0) } else { (0, 1) };
    assert_eq!(line(other), format!("rank {failed} failed: {}", line(failed)), "{text}");
    assert!(line(failed).contains("[3]"), "{text}");
    let saved = if failed == 0 { "diverged.state" } else { "last.state" };
    assert!(Checkpoint::open(scene.path("run").join(saved)).is_ok(), "{text}");
}

#[test]
fn no_mpi_is_told_with_the_remedy() {
    let scene = Scene::new(&["red", "blue"]);
    let mut command = scene.command("run", &[]);
    command.env("PMI_RANK", "0").env("PMI_SIZE", "2").env("KNET_MPI", "/nowhere/libmpi_abi.so");
    let output = command.output().unwrap();
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(12), "{text}");
    for part in ["mpiexec started 2 ranks", "/nowhere/libmpi_abi.so", "pip install mpich", "KNET_MPI"] {
        assert!(text.contains(part), "{text}");
    }
}

/// What is there when a rank is killed stays whole, and the others do not wait for it.
#[test]
fn a_killed_rank_ends_the_run_and_the_last_state_is_whole() {
    let scene = Scene::new(&["red", "blue"]);
    scene.kill_one_of_two(mpiexec(), &[]);
    let done = scene.losses("run").len();
    let more = (done + 2).to_string();
    let resumed = scene.run("run", &["--resume", "--set", &format!("schedule.iterations={more}")]);
    assert!(resumed.status.success(), "{}", stderr(&resumed));
}
