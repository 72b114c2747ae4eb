//! What ROS passes to a node on its command line, and names as ROS resolves them.

use ros2_client::NodeName;

/// What came after `--ros-args`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RosArguments {
    /// `-r FROM:=TO`, in their order.
    pub remaps: Vec<(String, String)>,
    /// Everything else, as options of this program: `-p min_score:=0.4` is `--min-score 0.4`.
    pub options: Vec<String>,
}

/// Takes what stands between `--ros-args` and `--` (or the end) out of a command line.
///
/// # Errors
/// What cannot be understood, and what a node that reads no parameter files cannot do.
pub fn split(arguments: impl IntoIterator<Item = String>) -> Result<(Vec<String>, RosArguments), String> {
    let (mut own, mut ros) = (Vec::new(), RosArguments::default());
    let mut arguments = arguments.into_iter();
    let mut within = false;
    while let Some(argument) = arguments.next() {
        match (within, &*argument) {
            (_, "--ros-args") => within = true,
            (true, "--") => within = false,
            (false, _) => own.push(argument),
            (true, flag @ ("-r" | "--remap" | "-p" | "--param")) => {
                let pair = arguments.next().unwrap_or_default();
                let Some((name, value)) =
                    pair.split_once(":=").filter(|(name, to)| !name.is_empty() && !to.is_empty())
                else {
                    return Err(format!("`{flag} {pair}`: NAME:=VALUE is expected"));
                };
                // `node:name` speaks to one node of a process; here there is one.
                let name = name.rsplit_once(':').map_or(name, |(_, name)| name);
                if matches!(flag, "-r" | "--remap") {
                    ros.remaps.push((name.to_string(), value.to_string()));
                } else if name != "use_sim_time" {
                    // Every launch may set the time's source. Stamps are copied here, never made.
                    ros.options.push(format!("--{}={value}", name.replace('_', "-")));
                }
            }
            (true, "--log-level") => {
                ros.options.push(format!("--log-level={}", arguments.next().unwrap_or_default()))
            }
            (true, flag @ ("--params-file" | "-e" | "--enclave" | "--log-config-file")) => {
                return Err(format!("`{flag}` is not supported: give parameters as `-p NAME:=VALUE`"));
            }
            // How the C++ client logs.
            (true, flag) if flag.starts_with("--enable-") || flag.starts_with("--disable-") => {}
            (true, other) => return Err(format!("`{other}` after --ros-args is not understood")),
        }
    }
    Ok((own, ros))
}

/// A node's name with the remappings that its topics go through.
#[derive(Clone, Debug)]
pub struct Names {
    /// The node's.
    pub node: NodeName,
    remaps: Vec<(String, String)>,
}

impl Names {
    /// A node that is called so unless `__node` and `__ns` say otherwise.
    ///
    /// # Errors
    /// A name that ROS does not allow.
    pub fn new(namespace: &str, name: &str, remaps: &[(String, String)]) -> Result<Names, String> {
        let last = |keys: &[&str], default: &str| {
            let found = remaps.iter().rev().find(|(from, _)| keys.contains(&&**from));
            found.map_or(default, |(_, to)| to).to_string()
        };
        let (namespace, name) = (last(&["__ns"], namespace), last(&["__node", "__name"], name));
        let absolute = if namespace.starts_with('/') { namespace } else { format!("/{namespace}") };
        let node =
            NodeName::new(&absolute, &name).map_err(|error| format!("node {absolute} {name}: {error}"))?;
        Ok(Names { node, remaps: remaps.to_vec() })
    }

    /// The absolute name of a topic, remapped: `image` of `/front/knet` is `/front/image`, `~/image` is
    /// `/front/knet/image`.
    pub fn topic(&self, name: &str) -> String {
        let absolute = self.absolute(name);
        let remap =
            self.remaps.iter().find(|(from, _)| !from.starts_with("__") && self.absolute(from) == absolute);
        remap.map_or(absolute, |(_, to)| self.absolute(to))
    }

    fn absolute(&self, name: &str) -> String {
        let namespace = self.node.namespace().trim_end_matches('/');
        match (name.strip_prefix("~/"), name.starts_with('/')) {
            (Some(private), _) => format!("{}/{private}", self.node.fully_qualified_name()),
            (None, true) => name.to_string(),
            (None, false) => format!("{namespace}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Vec<String>, RosArguments), String> {
        split(line.split(' ').map(String::from))
    }

    #[test]
    fn arguments_of_ros_become_options_and_remappings() {
        let line = "--threads 2 --ros-args -r __node:=eye --remap image:=/camera/image_raw -p min_score:=0.4 \
                    --log-level debug -p use_sim_time:=true --disable-stdout-logs -- --overlay always";
        let (own, ros) = parsed(line).unwrap();
        assert_eq!(own.join(" "), "--threads 2 --overlay always");
        assert_eq!(ros.options, ["--min-score=0.4", "--log-level=debug"]);
        assert_eq!(ros.remaps[1], ("image".to_string(), "/camera/image_raw".to_string()));
        for (line, words) in [
            ("--ros-args -r image", "`-r image`: NAME:=VALUE"),
            ("--ros-args -p :=3", "`-p :=3`: NAME:=VALUE"),
            ("--ros-args -p", "NAME:=VALUE"),
            ("--ros-args --params-file a.yaml", "`--params-file` is not supported"),
            ("--ros-args --overlay", "`--overlay` after --ros-args"),
        ] {
            let reason = parsed(line).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }

    #[test]
    fn topics_are_resolved_and_remapped_as_ros_does() {
        let remaps = [("image", "camera/image_raw"), ("~/info", "/info"), ("/left/classes", "~/classes")];
        let remaps = remaps.map(|(from, to)| (from.to_string(), to.to_string()));
        let names = Names::new("left", "eye", &remaps).unwrap();
        assert_eq!(names.node.fully_qualified_name(), "/left/eye");
        for (name, topic) in [
            ("image", "/left/camera/image_raw"),
            ("/left/image", "/left/camera/image_raw"),
            ("/image", "/image"),
            ("~/info", "/info"),
            ("info", "/left/info"),
            ("classes", "/left/eye/classes"),
        ] {
            assert_eq!(names.topic(name), topic, "{name}");
        }
        let root = Names::new("/", "knet", &[("__ns".into(), "/a/b".into()), ("__node".into(), "c".into())]);
        assert_eq!(root.unwrap().topic("~/x"), "/a/b/c/x");
        assert_eq!(Names::new("/", "knet", &[]).unwrap().topic("image"), "/image");
        assert!(Names::new("/", "2nd", &[]).unwrap_err().starts_with("node / 2nd: "));
    }
}
