//! `knet cache`

use crate::size::{self, Size};
use crate::{ModelArguments, print};
use clap::{Args, Subcommand};
use knet::cpu::Pool;
use knet::cuda::cache::{Cache, Item};
use knet::cuda::gpu::{Gpu, Target, find};
use knet::cuda::launch::Launch;
use knet::cuda::nvrtc::{Code, Job, Nvrtc};
use knet::cuda::probe;
use knet::engine::Device;
use knet::tensor::Precision;
use knet::{Error, Result};
use rayon::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Show, fill or clear the cache of compiled CUDA kernels
///
/// With every kernel of a model in the cache, no kernel compiler (NVRTC) is needed, and the first image does
/// not wait for one. KNET_CACHE names the folder (empty: no cache) in place of `knet/kernels` in
/// XDG_CACHE_HOME or `~/.cache`. Code is loaded from it only if nobody but the user and root can write there.
/// An entry serves whichever NVRTC made it; `knet cache clear` makes a new one count.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,

    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    Fill(Box<Fill>),
    /// Remove all compiled kernels, and nothing else: tables of `knet tune` stay
    Clear,
}

/// Compile all that a model runs on a GPU, which need not be here
///
/// Those are the kernels of `knet segment`, `eval`, `bench` and `doctor` at the given sizes of the network
/// input. Photos of all sizes and formats share the kernels of pre- and post-processing. What a table of
/// `knet tune` chooses is compiled where it is measured. KNET_CUDA_CODE=ptx fills the cache with PTX, for
/// GPUs that this NVRTC does not know.
#[derive(Args)]
struct Fill {
    #[command(flatten)]
    model: ModelArguments,

    /// Compile for this GPU: h100, h200, a100, a10, l4, l40s, rtx4090 or orin, at the clocks that drivers
    /// report [default: the GPU of this machine that --device names]
    #[arg(long, value_name = "NAME", value_parser = find, conflicts_with = "device")]
    gpu: Option<&'static Gpu>,

    /// Size of the resized photo, which the network sees rounded up to multiples of 32. May be given several
    /// times [default: the model's own, lying and standing]
    #[arg(long, value_name = "HxW|SHORT,LONG", value_parser = size::parse)]
    size: Vec<Size>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let cache = Cache::user();
    let Some(folder) = cache.folder() else {
        return Err(Error::usage(
            "there is no kernel cache: KNET_CACHE is empty, or neither XDG_CACHE_HOME nor HOME is an absolute path",
        ));
    };
    let name = folder.display().to_string();
    let (json, text) = match &arguments.action {
        None => {
            let items = cache.items()?;
            (report(folder, &items), table(folder, &items))
        }
        Some(Action::Clear) => {
            let (files, bytes) = cache.clear()?;
            let text = format!("{name}: {files} files removed, {}\n", size(bytes));
            (json!({"folder": name, "removed": files, "bytes": bytes}), text)
        }
        Some(Action::Fill(fill)) => {
            let (there, compiled) = fill.run(&cache)?;
            let text = format!("{name}: {} kernels, {compiled} of them compiled now\n", there + compiled);
            (json!({"folder": name, "there": there, "compiled": compiled}), text)
        }
    };
    print(&if arguments.json { format!("{json:#}\n") } else { text })
}

impl Fill {
    /// How many kernels were there, and how many were compiled.
    fn run(&self, cache: &Cache) -> Result<(usize, usize)> {
        let precision = self.model.precision()?;
        let device = match (self.gpu, self.model.device.unwrap_or_default()) {
            (Some(_), _) => Device::Cpu,
            (None, Device::Auto) => Device::Cuda(0),
            (None, device) => device,
        };
        let mut builder = self.model.engine().device(device);
        if self.gpu.is_some() {
            // The CPU computes nothing here, and need not have the GPU's precision.
            builder = builder.precision(Precision::F32);
        }
        let engine = self.model.build(builder)?;
        let selections = match (self.gpu, engine.model().selection()) {
            (Some(gpu), _) => {
                gpu.reported().into_iter().map(|caps| Target { caps, precision }.into()).collect()
            }
            (None, Some(selection)) => vec![selection.clone()],
            (None, None) => return Err(Error::usage("--device cpu runs no CUDA kernels; --gpu names a GPU")),
        };
        let (compute, code) = (selections[0].target().caps.compute, Code::wanted()?);
        // What `knet doctor` runs, so that it can say that all is well.
        let mut launches = vec![probe::launch(&selections[0].target())?];
        for size in size::inputs(&self.size, engine.config()) {
            launches.extend(engine.model().launches(size, &selections)?);
        }
        let job = |launch: Launch| Job { source: launch.source, defines: launch.defines, compute, code };
        let jobs: Vec<Job> = launches.into_iter().map(job).collect::<HashSet<_>>().into_iter().collect();
        let fill = || jobs.par_iter().map(|job| cache.fill(job, Nvrtc::get)).collect::<Result<Vec<_>>>();
        let compiled =
            Pool::new(engine.threads())?.run(fill)?.into_iter().filter(|&compiled| compiled).count();
        Ok((jobs.len() - compiled, compiled))
    }
}

/// Architecture and compiler of entries, or what is wrong with them.
type Group<'a> = std::result::Result<(&'a str, (u32, u32)), &'a str>;

/// Number and bytes of entries.
fn groups(items: &[Item]) -> BTreeMap<Group<'_>, (usize, u64)> {
    let mut groups = BTreeMap::new();
    for item in items {
        let key =
            item.about.as_ref().map(|about| (about.architecture(), about.compiler)).map_err(String::as_str);
        let group: &mut (usize, u64) = groups.entry(key).or_default();
        *group = (group.0 + 1, group.1 + item.bytes);
    }
    groups
}

fn table(folder: &Path, items: &[Item]) -> String {
    let bytes = items.iter().map(|item| item.bytes).sum();
    let mut text = format!(
        "{:<12} {}\n{:<12} {}, {}\n",
        "folder",
        folder.display(),
        "entries",
        items.len(),
        size(bytes)
    );
    for (key, (count, bytes)) in groups(items) {
        let bytes = size(bytes);
        text += &match key {
            Ok((architecture, (major, minor))) => {
                format!("{architecture:<12} {count} by NVRTC {major}.{minor}, {bytes}\n")
            }
            Err(reason) => format!("{:<12} {count}, {bytes}: {reason}\n", "not usable"),
        };
    }
    text
}

fn report(folder: &Path, items: &[Item]) -> Value {
    let (mut usable, mut damaged) = (Vec::new(), Vec::new());
    for (key, (entries, bytes)) in groups(items) {
        match key {
            Ok((architecture, (major, minor))) => usable.push(json!({
                "architecture": architecture,
                "compiler": format!("{major}.{minor}"),
                "entries": entries,
                "bytes": bytes,
            })),
            Err(reason) => damaged.push(json!({"reason": reason, "entries": entries, "bytes": bytes})),
        }
    }
    json!({
        "folder": folder.display().to_string(),
        "entries": items.len(),
        "bytes": items.iter().map(|item| item.bytes).sum::<u64>(),
        "usable": usable,
        "damaged": damaged,
    })
}

fn size(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
