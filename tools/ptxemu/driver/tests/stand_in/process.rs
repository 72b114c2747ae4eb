//! A test runs twice: the first time it starts itself again on the stand-in, the second time it is the
//! program.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cudarc::driver::CudaContext;
use std::sync::Arc;

const INSIDE: &str = "PTXEMU_TEST_PROGRAM";

/// What a program left behind.
pub struct Run {
    /// What it wrote to stderr.
    pub stderr: String,
    /// Its call log, line by line.
    pub log: Vec<String>,
}

impl Run {
    /// The calls between `cuProfilerStart` and `cuProfilerStop`, without what ran for them.
    pub fn marked_calls(&self) -> Vec<&str> {
        let inside = self.log.iter().skip_while(|line| !line.starts_with("cuProfilerStart "));
        let inside = inside.skip(1).take_while(|line| !line.starts_with("cuProfilerStop "));
        inside.map(String::as_str).filter(|line| !line.starts_with('#')).collect()
    }

    /// Whether stderr says this.
    pub fn says(&self, text: &str) -> bool {
        self.stderr.contains(text)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..")
}

/// Runs `program`, the body of the test called `name` (with its module), on the stand-in with this
/// environment. The program's own process gets `None`.
///
/// # Panics
/// If the program fails, with all that it wrote.
pub fn run(name: &str, environment: &[(&str, &str)], program: impl FnOnce()) -> Option<Run> {
    if std::env::var_os(INSIDE).is_some() {
        program();
        return None;
    }
    static FOLDER: OnceLock<String> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let output =
            Command::new(root().join("tools/with-ptxemu")).arg("--path").output().expect("with-ptxemu runs");
        assert!(output.status.success(), "with-ptxemu: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("a path in UTF-8").trim_end().to_owned()
    });
    let log = std::env::temp_dir().join(format!("ptxemu-{}-{}", std::process::id(), name.replace("::", "-")));
    let mut command = Command::new(std::env::current_exe().expect("the test's own path"));
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]);
    for (variable, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PTXEMU_"))
    {
        command.env_remove(variable);
    }
    command.env("LD_LIBRARY_PATH", folder).env(INSIDE, "1").env("PTXEMU_LOG", &log);
    let output = command.envs(environment.iter().copied()).output().expect("the test starts itself");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let (stdout, stderr) = (text(output.stdout), text(output.stderr));
    let lines = std::fs::read_to_string(&log).unwrap_or_default();
    // The file is scratch; one that stays does no harm.
    let _ = std::fs::remove_file(&log);
    assert!(output.status.success(), "{name} {environment:?} failed:\n{stdout}\n{stderr}\n{lines}");
    assert!(stdout.contains("1 passed"), "{name} is not this test's name:\n{stdout}");
    Some(Run { stderr, log: lines.lines().map(str::to_owned).collect() })
}

/// The device's context. Programs order their streams themselves.
pub fn context() -> Arc<CudaContext> {
    let context = CudaContext::new(0).expect("the stand-in has device 0");
    // SAFETY: the programs wait for what they depend on, or show what happens if they do not.
    unsafe { context.disable_event_tracking() };
    context
}
