//! `knet-ros2`: images of a ROS 2 topic in, instance maps, class maps and overlays out. See `docs/ros2.md`.

mod bus;
mod frame;
mod logging;
mod maps;
mod messages;
mod names;
mod segmenter;

use bus::{Bus, Place};
use clap::{ArgAction, Parser, ValueEnum};
use futures::channel::mpsc::unbounded;
use knet::engine::{Device, InputSize, Model, ModelOptions, SessionOptions, WeightSource};
use log::LevelFilter;
use names::Names;
use segmenter::Segmenter;
use std::env::var;
use std::net::{IpAddr, Ipv4Addr};
use std::process::ExitCode;
use std::time::Duration;

/// What segments when no other weights are named: persons; see `weights/README.md`.
static PERSON: &[u8] = include_bytes!("../../../weights/knet_s3_lite0_person.safetensors");

const AFTER_HELP: &str = "\
Topics, relative to the namespace: image (in, sensor_msgs/Image: rgb8, bgr8, rgba8, bgra8, mono8, nv12); out:
instances (mono16, 0 for none), classes (mono8, 255 for none), label_info (vision_msgs/LabelInfo, latched), overlay
(rgb8).

As every node: --ros-args -r image:=/camera/image_raw -r __ns:=/left -r __node:=eye -p min_score:=0.4
--log-level debug. A parameter is the option of its name.

ROS_DOMAIN_ID is followed, and so is ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST (or ROS_LOCALHOST_ONLY=1).";

/// K-Net segmentation as a node of ROS 2, without an installation of ROS
#[derive(Parser)]
#[command(name = "knet-ros2", version, after_help = AFTER_HELP, max_term_width = 100)]
struct Arguments {
    /// Checkpoint (.safetensors) [default: the person model that comes with the program]
    #[arg(long, value_name = "FILE")]
    weights: Option<WeightSource>,

    /// Model, for weights that do not say which
    #[arg(long, value_name = "NAME")]
    model: Option<String>,

    /// Where to compute: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: Device,

    /// Topic of the frames
    #[arg(long, value_name = "TOPIC", default_value = "image")]
    image_topic: String,

    /// Resize frames to fit into SHORT,LONG pixels [default: the model's own size]
    #[arg(long, value_name = "SHORT,LONG", value_parser = parse_size)]
    size: Option<(usize, usize)>,

    /// Drop objects that score lower
    #[arg(long, value_name = "SCORE", default_value_t = 0.3, value_parser = parse_share)]
    min_score: f64,

    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Give the best masks that there are after so many milliseconds of a frame
    #[arg(long, value_name = "MS", value_parser = parse_ms)]
    deadline_ms: Option<Duration>,

    /// When the overlay is drawn
    #[arg(long, value_name = "WHEN", value_enum, default_value = "auto", default_missing_value = "always", num_args = 0..=1)]
    overlay: When,

    /// Publish maps and overlays as sensors' data: what is lost on the way is not sent again, and late. Only
    /// subscribers that ask for no more than that receive them
    #[arg(long, value_name = "BOOL", action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    best_effort: bool,

    /// Name of the node
    #[arg(long, value_name = "NAME", default_value = "knet")]
    name: String,

    /// Namespace of the node and of its topics
    #[arg(long, value_name = "NAMESPACE", default_value = "/")]
    namespace: String,

    /// DDS domain, 0 to 232 [default: ROS_DOMAIN_ID, or 0]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..=232))]
    domain_id: Option<u16>,

    /// Be found at this address of this machine alone; may be given several times [default: all]
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<IpAddr>,

    /// What is logged: debug (the bus speaks, too), info, warn, error
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = parse_level)]
    log_level: LevelFilter,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum When {
    /// If somebody subscribes
    Auto,
    /// For every frame
    Always,
    /// There is no such topic
    Never,
}

fn parse_size(text: &str) -> Result<(usize, usize), String> {
    let side = |s: &str| s.trim().parse().ok().filter(|side| (1..=16384).contains(side));
    let sides = text.split_once([',', 'x']).and_then(|(a, b)| Some((side(a)?, side(b)?)));
    let sorted = sides.map(|(a, b): (usize, usize)| (a.min(b), a.max(b)));
    sorted.ok_or_else(|| format!("`{text}` is no SHORT,LONG with sides from 1 to 16384, such as 384,512"))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("`{text}` is no number from 0 to 1"))
}

fn parse_ms(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|ms| (0.0..=1e9).contains(ms)).map(|ms: f64| ms / 1e3);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("`{text}` is no number of milliseconds"))
}

fn parse_level(text: &str) -> Result<LevelFilter, String> {
    match text.to_ascii_lowercase().as_str() {
        "debug" => Ok(LevelFilter::Debug),
        "info" => Ok(LevelFilter::Info),
        "warn" => Ok(LevelFilter::Warn),
        "error" | "fatal" => Ok(LevelFilter::Error),
        _ => Err(format!("`{text}` is none of debug, info, warn, error")),
    }
}

/// The domain that ROS's variable names, if none was given.
fn domain(given: Option<u16>) -> Result<u16, String> {
    match (given, var("ROS_DOMAIN_ID")) {
        (Some(domain), _) => Ok(domain),
        (None, Ok(text)) if !text.is_empty() => {
            let domain = text.parse().ok().filter(|domain| *domain <= 232);
            domain.ok_or_else(|| format!("ROS_DOMAIN_ID is `{text}`: a number from 0 to 232 is expected"))
        }
        (None, _) => Ok(0),
    }
}

/// The addresses at which the node is found, where ROS's variables limit them.
fn addresses(given: Vec<IpAddr>) -> Result<Vec<IpAddr>, String> {
    let localhost = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    match (
        given.is_empty(),
        var("ROS_AUTOMATIC_DISCOVERY_RANGE").as_deref(),
        var("ROS_LOCALHOST_ONLY").as_deref(),
    ) {
        (false, ..) => Ok(given),
        (_, Ok("LOCALHOST"), _) | (_, Err(_), Ok("1")) => Ok(localhost),
        (_, Ok("OFF"), _) => {
            Err("ROS_AUTOMATIC_DISCOVERY_RANGE=OFF: this node has no other way to be found".into())
        }
        _ => Ok(given),
    }
}

fn run() -> Result<(), String> {
    let (own, ros) = names::split(std::env::args())?;
    let arguments = Arguments::parse_from(own.iter().chain(&ros.options));
    let names = Names::new(&arguments.namespace, &arguments.name, &ros.remaps)?;
    logging::start(
        &names.node.fully_qualified_name().trim_start_matches('/').replace('/', "."),
        arguments.log_level,
    );
    let weights = arguments
        .weights
        .unwrap_or(WeightSource::Embedded { name: "knet_s3_lite0_person (built in)", bytes: PERSON });
    let options =
        ModelOptions { weights, name: arguments.model, device: arguments.device, ..ModelOptions::default() };
    let model = Model::load(&options).map_err(|error| error.to_string())?;
    let mut options = SessionOptions {
        threads: arguments.threads.unwrap_or(0).into(),
        size: arguments.size.map_or(InputSize::OfModel, |(short, long)| InputSize::Within(short, long)),
        deadline: arguments.deadline_ms,
        ..SessionOptions::default()
    };
    options.results.min_score = Some(arguments.min_score);
    let mut segmenter = Segmenter::new(model, &options, arguments.overlay == When::Always)
        .map_err(|error| error.to_string())?;

    // Without an end in order, others would wait for this node until its lease has run out.
    let (stop, stopped) = unbounded();
    ctrlc::set_handler(move || drop(stop.unbounded_send(()))).map_err(|error| format!("signals: {error}"))?;
    let (domain, addresses) = (domain(arguments.domain_id)?, addresses(arguments.address)?);
    let mut bus = Bus::open(&Place {
        domain,
        addresses: &addresses,
        names: &names,
        images: &arguments.image_topic,
        overlay: arguments.overlay != When::Never,
        best_effort: arguments.best_effort,
    })?;
    segmenter.announce(arguments.min_score as f32, &mut bus.outputs);
    log::info!("domain {domain}: waiting for images on {}", names.topic(&arguments.image_topic));
    bus.serve(stopped, |image, info, outputs| segmenter.handle(&image, info, outputs));
    log::info!("stopped by a signal after {} frames", segmenter.frames());
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            eprintln!("knet-ros2: {reason}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parsed(line: &str) -> Result<Arguments, String> {
        let (own, ros) = names::split(format!("knet-ros2 {line}").split(' ').map(String::from))?;
        Arguments::try_parse_from(own.iter().chain(&ros.options)).map_err(|error| error.to_string())
    }

    #[test]
    fn parameters_are_options() {
        Arguments::command().debug_assert();
        let line =
            "--overlay --ros-args -p size:=512,384 -p best_effort:=true -p deadline_ms:=2.5 -p threads:=3";
        let arguments = parsed(line).unwrap();
        assert_eq!((arguments.size, arguments.overlay), (Some((384, 512)), When::Always));
        assert_eq!((arguments.best_effort, arguments.threads), (true, Some(3)));
        assert_eq!(arguments.deadline_ms, Some(Duration::from_micros(2500)));
        assert!(parsed("--best-effort --domain-id 232").unwrap().best_effort);
        assert!(!parsed("--ros-args -p best_effort:=false").unwrap().best_effort);
        for (line, words) in [
            ("--size 0,3", "no SHORT,LONG"),
            ("--min-score 1.5", "no number from 0 to 1"),
            ("--deadline-ms=-1", "no number of milliseconds"),
            ("--domain-id 233", "233"),
            ("--ros-args --log-level loud", "none of debug, info, warn, error"),
            ("--ros-args -p no_such:=1", "--no-such"),
        ] {
            let reason = parsed(line).err().unwrap();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
