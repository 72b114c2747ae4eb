//! The manual pages in `man` and the completions in `completions` are what the programs' options say.

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

#[allow(dead_code, reason = "knet-train reads them, here they are only described")]
#[path = "../knet-train/arguments.rs"]
mod train;

/// Files by name, in a folder that may not be there.
fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap());
    let text = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), entry.path());
    entries.map(text).map(|(name, path)| (name, fs::read_to_string(path).unwrap())).collect()
}

/// Writes the page of a command and of those below it.
fn page(command: &Command, folder: &Path) {
    command.get_subcommands().for_each(|command| page(command, folder));
    let source = concat!("knet ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone()).source(source).manual("User Commands").generate_to(folder).unwrap();
}

#[test]
fn manual_pages_and_completions_are_up_to_date() {
    let (made, root) = (tempfile::tempdir().unwrap(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let [man, completions] = ["man", "completions"].map(|name| made.path().join(name));
    fs::create_dir(&man).unwrap();
    fs::create_dir(&completions).unwrap();
    for mut command in [crate::Cli::command(), train::Arguments::command()] {
        let name = command.get_name().to_string();
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            clap_complete::generate_to(shell, &mut command.clone(), &name, &completions).unwrap();
        }
        command = command.disable_help_subcommand(true);
        command.build();
        page(&command, &man);
    }
    for name in ["man", "completions"] {
        let (made, kept) = (files(&made.path().join(name)), root.join(name));
        if std::env::var_os("KNET_UPDATE").is_some() {
            let _ = fs::remove_dir_all(&kept);
            fs::create_dir(&kept).unwrap();
            made.iter().for_each(|(name, text)| fs::write(kept.join(name), text).unwrap());
        }
        let found = files(&kept);
        let differ: Vec<_> =
            made.keys().chain(found.keys()).filter(|k| made.get(*k) != found.get(*k)).collect();
        let hint = "KNET_UPDATE=1 cargo test --workspace --bin knet pages";
        assert!(differ.is_empty(), "{name} is not what the options say: {hint}\n{differ:?}");
    }
}
