//! Programs in C and C++, compiled against an installed prefix as users do it, and run.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[path = "programs/triton.rs"]
mod triton;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a command, which must succeed.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}\n{}", text(&output));
    text(&output)
}

/// Where Cargo has put the library.
fn library() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let folder = program.parent().unwrap();
    let found = [folder, folder.parent().unwrap()].into_iter().find(|f| f.join("libknet_c.so").exists());
    found.expect("libknet_c.so beside the tests").to_path_buf()
}

/// A prefix with knet in it, moved after it was installed.
struct Prefix(tempfile::TempDir);

impl Prefix {
    fn new() -> Prefix {
        let folder = tempfile::tempdir().unwrap();
        let first = folder.path().join("first");
        run(Command::new(root().join("tools/install-sdk")).arg(&first).arg("--from").arg(library()));
        std::fs::rename(first, folder.path().join("knet")).unwrap();
        Prefix(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join("knet").join(name)
    }

    fn pkg_config(&self) -> Vec<String> {
        let mut command = Command::new("pkg-config");
        command.env("PKG_CONFIG_PATH", self.path("lib/pkgconfig")).args(["--cflags", "--libs", "knet"]);
        run(&mut command).split_whitespace().map(String::from).collect()
    }

    /// Compiles one of `tests/programs` with every warning an error, and gives a command that runs it.
    fn built(&self, compiler: &str, standard: &str, source: &str) -> Command {
        let program = self.compiled(compiler, standard, source, &self.pkg_config());
        self.command(&program)
    }

    /// Compiles one of `tests/programs` with these arguments.
    fn compiled(&self, compiler: &str, standard: &str, source: &str, arguments: &[String]) -> PathBuf {
        let (source, program) =
            (root().join("src/capi/tests/programs").join(source), self.0.path().join("program"));
        let mut command = Command::new(compiler);
        command.arg(standard).args(["-O1", "-g", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
        run(command.arg(source).args(arguments).args(["-pthread", "-ldl", "-o"]).arg(&program));
        program
    }

    /// Runs a program that is linked with the library.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LD_LIBRARY_PATH", self.path("lib"));
        command
    }
}

/// Whether the example found objects and was told of the file that is not there.
fn check_example(text: &str) {
    let last = text.lines().last().unwrap_or_default();
    let objects: usize = last.split_whitespace().next().and_then(|count| count.parse().ok()).unwrap_or(0);
    assert!(objects > 0 && text.lines().count() == objects + 1, "{text}");
    assert!(last.contains("; 3: no/such.safetensors"), "{last}");
}

const EXAMPLE: [&str; 2] = ["seeded:0", "knet_s3_lite0_fpn"];

#[test]
fn a_program_in_c_reaches_every_function_and_every_error() {
    let prefix = Prefix::new();
    // The library itself says nothing.
    assert_eq!(run(&mut prefix.built("cc", "-std=c11", "api.c")), "ok\n");
}

#[test]
#[cfg(target_os = "linux")]
fn threads_come_and_go_with_sessions_sleep_and_stay_on_their_cpus() {
    let prefix = Prefix::new();
    assert_eq!(run(&mut prefix.built("cc", "-std=c11", "threads.c")), "ok\n");
}

#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn frames_allocate_nothing_nor_does_what_is_read_of_them() {
    let prefix = Prefix::new();
    assert_eq!(run(&mut prefix.built("cc", "-std=c11", "allocate.c")), "ok\n");
}

#[test]
fn programs_end_without_closing_late_and_after_a_fork() {
    let prefix = Prefix::new();
    for (how, said) in [("exit", "ok\n"), ("late", "ok\nclosed late\n"), ("fork", "ok\n")] {
        assert_eq!(run(prefix.built("cc", "-std=c11", "teardown.c").arg(how)), said, "{how}");
    }
}

#[test]
fn the_library_can_be_unloaded_and_loaded_again() {
    let prefix = Prefix::new();
    let include = format!("-I{}", prefix.path("include").display());
    let program = prefix.compiled("cc", "-std=c11", "unload.c", &[include]);
    assert_eq!(run(Command::new(program).arg(prefix.path("lib/libknet.so"))), "ok\n");
}

/// Sizes of the structs that an `old.c` prints.
fn sizes(text: &str) -> Vec<usize> {
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn a_program_built_against_the_first_header_runs_with_this_library() {
    let prefix = Prefix::new();
    let first = format!("-I{}", root().join("src/capi/abi/first").display());
    let arguments = [vec![first], prefix.pkg_config()].concat();
    let old = run(&mut prefix.command(&prefix.compiled("cc", "-std=c11", "old.c", &arguments)));
    assert!(old.ends_with("ok\n"), "{old}");
    let new = run(&mut prefix.built("cc", "-std=c11", "old.c"));
    assert!(sizes(&old).iter().zip(sizes(&new)).all(|(old, new)| *old < new), "{old}{new}");
}

#[test]
#[cfg(feature = "cuda")]
fn frames_in_the_memory_of_a_gpu_are_segmented_on_the_stand_in() {
    let prefix = Prefix::new();
    let program = prefix.compiled("cc", "-std=c11", "gpu.c", &prefix.pkg_config());
    let mut command = prefix.command(&root().join("tools/with-ptxemu"));
    command.arg(program).env("KNET_CACHE", prefix.0.path().join("cache")).env_remove("KNET_TUNED");
    assert_eq!(run(&mut command), "ok\n");
}

#[test]
fn the_examples_in_cpp_find_objects() {
    let prefix = Prefix::new();
    check_example(&run(prefix.built("c++", "-std=c++17", "example.cpp").args(EXAMPLE)));
    let text = run(prefix.built("c++", "-std=c++17", "stream.cpp").args(EXAMPLE));
    let frames = text.lines().filter(|line| line.starts_with("frame "));
    assert_eq!(frames.count(), 4, "{text}");
    assert!(text.contains("3: knet_s3_lite0_fpn on cpu"), "{text}");
}

#[test]
fn without_exceptions_errors_are_kept() {
    let prefix = Prefix::new();
    for flags in [&["-fno-exceptions", "-fno-rtti"][..], &["-DKNET_NO_EXCEPTIONS"]] {
        let flags = [flags.iter().map(|flag| flag.to_string()).collect(), prefix.pkg_config()].concat();
        let program = prefix.compiled("c++", "-std=c++17", "no_exceptions.cpp", &flags);
        assert_eq!(run(&mut prefix.command(&program)), "ok\n", "{flags:?}");
    }
}

/// An opinion that is not ours, where Valgrind is installed: a frame from the first to the last byte.
#[test]
fn valgrind_finds_neither_wrong_memory_nor_lost() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        eprintln!("valgrind is not installed (apt-get install valgrind): its opinion is not asked");
        return;
    }
    let prefix = Prefix::new();
    let program = prefix.compiled("cc", "-std=c11", "frame.c", &prefix.pkg_config());
    let checked = || {
        let mut command = prefix.command(Path::new("valgrind"));
        command.args(["--quiet", "--error-exitcode=9", "--leak-check=full"]).arg(&program);
        command
    };
    assert_eq!(run(&mut checked()), "ok\n");
    let output = checked().arg("lose").output().unwrap();
    let said = text(&output);
    assert!(
        output.status.code() == Some(9) && said.contains("77 bytes in 1 blocks are definitely lost"),
        "{said}"
    );
}

#[test]
fn cmake_finds_the_package() {
    let cmake = root().join("target/cmake/cmake/data/bin/cmake");
    assert!(cmake.exists(), "{}: run tools/setup-cmake", cmake.display());
    let prefix = Prefix::new();
    let project = prefix.0.path().join("project");
    std::fs::create_dir(&project).unwrap();
    let lists = "cmake_minimum_required(VERSION 3.16)\nproject(example CXX)\nset(CMAKE_CXX_STANDARD 17)\n\
                 find_package(knet 0.1 REQUIRED)\nadd_executable(example example.cpp)\n\
                 target_link_libraries(example knet::knet)\n";
    std::fs::write(project.join("CMakeLists.txt"), lists).unwrap();
    std::fs::copy(prefix.path("share/doc/knet/examples/example.cpp"), project.join("example.cpp")).unwrap();
    let mut configure = Command::new(&cmake);
    configure.arg("-DCMAKE_PREFIX_PATH=".to_string() + &prefix.path("").display().to_string());
    run(configure.arg("-S").arg(&project).arg("-B").arg(project.join("build")));
    run(Command::new(&cmake).arg("--build").arg(project.join("build")));
    // CMake has written the library's place into the program.
    check_example(&run(Command::new(project.join("build/example")).args(EXAMPLE)));
}

#[test]
fn the_library_shows_its_functions_alone_and_needs_the_system_alone() {
    let prefix = Prefix::new();
    let library = prefix.path("lib/libknet.so");
    let header = std::fs::read_to_string(prefix.path("include/knet.h")).unwrap();
    let shown =
        run(Command::new("nm").args(["--dynamic", "--defined-only", "--format=just-symbols"]).arg(&library));
    let mut functions: Vec<&str> = shown.lines().collect();
    functions.sort_unstable();
    for function in &functions {
        assert!(header.contains(&format!("{function}(")), "{function} is not in the header");
    }
    assert!(functions.len() >= 20, "{functions:?}");
    let dynamic = run(Command::new("readelf").arg("--dynamic").arg(&library));
    let soname = format!("[libknet.so.{}]", knet_abi(&header));
    assert!(dynamic.contains(&soname), "{soname}: {dynamic}");
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let known = ["libc.so", "libm.so", "libgcc_s.so", "ld-linux"];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
}

fn knet_abi(header: &str) -> &str {
    let line = header.lines().find_map(|line| line.strip_prefix("#define KNET_ABI_VERSION "));
    line.unwrap_or_default()
}
