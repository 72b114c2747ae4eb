//! Measured choices on disk: JSON, written whole or not at all.

use crate::cuda::compile::cache::Cache;
use crate::cuda::compile::sources;
use crate::cuda::gpu::Target;
use crate::error::{Error, Result};
use crate::fsio::atomic_write;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// First field of a file: kind and version of the format.
const FORMAT: &str = "knet tuned 1";

/// The fastest programs of the sites that were measured on one device in one precision.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    scope: Scope,
    choices: BTreeMap<String, Measured>,
}

/// What a table holds for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// The device's name, as its driver says.
    pub device: String,
    /// Its compute capability, as in `9.0`.
    pub compute: String,
    /// Storage type of feature maps.
    pub precision: String,
    /// Fingerprint of the kernels' sources.
    pub kernels: String,
}

/// A measured choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// What runs from now on ([`Program::kernel`](crate::cuda::launch::Program)).
    pub kernel: String,
    /// What it takes.
    pub microseconds: f64,
    /// What the cost model chose.
    pub model: String,
    /// What that takes.
    pub model_microseconds: f64,
}

/// A table as it lies on disk.
#[derive(Serialize, Deserialize)]
struct File {
    format: String,
    #[serde(flatten)]
    scope: Scope,
    choices: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    site: String,
    #[serde(flatten)]
    measured: Measured,
}

impl Scope {
    /// For a device under these kernels.
    pub fn new(device: &str, target: &Target) -> Scope {
        let (major, minor) = target.caps.compute;
        Scope {
            device: device.into(),
            compute: format!("{major}.{minor}"),
            precision: target.precision.name().into(),
            kernels: sources::fingerprint(),
        }
    }

    /// Name of the file that a table of this scope has in the user's cache.
    pub fn file_name(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let device: String = self.device.chars().map(plain).collect();
        format!("tuned-{device}-sm{}-{}.json", self.compute.replace('.', ""), self.precision)
    }

    /// The file of the user's table, beside the kernel cache; `None` if there is no cache.
    pub fn user_file(&self) -> Option<PathBuf> {
        Cache::user().folder().map(|folder| folder.join(self.file_name()))
    }
}

impl Table {
    /// An empty table.
    pub fn new(scope: Scope) -> Table {
        Table { scope, choices: BTreeMap::new() }
    }

    /// What the table holds for.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Number of sites.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Whether it knows no site.
    pub fn is_empty(&self) -> bool {
        self.choices.is_empty()
    }

    /// The kernel of a site (its text), if it was measured.
    pub fn kernel(&self, site: &str) -> Option<&str> {
        self.choices.get(site).map(|measured| measured.kernel.as_str())
    }

    /// Notes what was measured at a site; what was known of it is replaced.
    pub fn insert(&mut self, site: String, measured: Measured) {
        self.choices.insert(site, measured);
    }

    /// Whether the table holds in `scope`; if not, why.
    ///
    /// # Errors
    /// A sentence on what differs.
    pub fn check(&self, scope: &Scope) -> std::result::Result<(), String> {
        let Scope { device, compute, precision, kernels } = &self.scope;
        if (device, compute) != (&scope.device, &scope.compute) {
            let (name, capability) = (&scope.device, &scope.compute);
            return Err(format!("it was measured on {device} ({compute}), this is {name} ({capability})"));
        }
        if *precision != scope.precision {
            return Err(format!("it was measured in {precision}, this is {}", scope.precision));
        }
        if *kernels != scope.kernels {
            return Err(
                "it was measured with other kernels than this version has; run `knet tune` again".into()
            );
        }
        Ok(())
    }

    /// Reads a table.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Usage`] for what is no table, naming the file and what is wrong.
    pub fn read(path: &Path) -> Result<Table> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, e))?;
        let table = serde_json::from_slice(&bytes).map_err(|e| e.to_string()).and_then(Table::of);
        table.map_err(|reason| Error::usage(format!("{}: no tuning table: {reason}", path.display())))
    }

    /// The table in JSON.
    ///
    /// # Errors
    /// A sentence on what is wrong.
    pub fn from_json(json: serde_json::Value) -> std::result::Result<Table, String> {
        serde_json::from_value(json).map_err(|e| e.to_string()).and_then(Table::of)
    }

    /// The table as JSON.
    ///
    /// # Errors
    /// What the writer of JSON says.
    pub fn to_json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(self.file())
    }

    fn of(file: File) -> std::result::Result<Table, String> {
        if file.format != FORMAT {
            return Err(format!("format `{}`, this version reads `{FORMAT}`", file.format));
        }
        let mut table = Table::new(file.scope);
        for Entry { site, measured } in file.choices {
            let sound = |time: f64| time.is_finite() && time > 0.0;
            if !sound(measured.microseconds) || !sound(measured.model_microseconds) {
                return Err(format!("`{site}`: a time is not positive"));
            }
            if table.choices.insert(site.clone(), measured).is_some() {
                return Err(format!("`{site}` comes twice"));
            }
        }
        Ok(table)
    }

    fn file(&self) -> File {
        let entry =
            |(site, measured): (&String, &Measured)| Entry { site: site.clone(), measured: measured.clone() };
        File {
            format: FORMAT.into(),
            scope: self.scope.clone(),
            choices: self.choices.iter().map(entry).collect(),
        }
    }

    /// Writes the table; its folder is made if it is not there.
    ///
    /// # Errors
    /// As [`atomic_write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
        }
        let file = self.file();
        atomic_write(path, |out| {
            serde_json::to_writer_pretty(&mut *out, &file)?;
            out.write_all(b"\n")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::gpu::{Caps, Precision};
    use crate::error::ErrorKind;

    fn scope() -> Scope {
        Scope::new("NVIDIA H100 80GB HBM3", &Target { caps: Caps::H100, precision: Precision::F16 })
    }

    fn table() -> Table {
        let mut table = Table::new(scope());
        for (site, microseconds) in [("b", 2.5), ("a", 0.1 + 0.2)] {
            let measured = Measured {
                kernel: "gemm".into(),
                microseconds,
                model: "direct".into(),
                model_microseconds: 3.0,
            };
            table.insert(site.into(), measured);
        }
        table
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/tuned.json");
        table().write(&path).unwrap();
        assert_eq!(Table::read(&path).unwrap(), table());
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert_eq!(table().kernel("a"), Some("gemm"));
        assert_eq!(table().kernel("c"), None);
    }

    #[test]
    fn damage_is_named_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        table().write(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let cases = [
            (String::new(), "EOF"),
            (text[..text.len() / 2].into(), "EOF"),
            ("[1, 2]".into(), "expected"),
            (text.replace("knet tuned 1", "knet tuned 9"), "knet tuned 9"),
            (text.replace("\"kernels\"", "\"kernel_hash\""), "kernel"),
            (text.replace("2.5", "-2.5"), "`b`: a time is not positive"),
            (text.replace("2.5", "\"fast\""), "fast"),
            (text.replace("\"site\": \"b\"", "\"site\": \"a\""), "`a` comes twice"),
        ];
        for (damaged, wanted) in cases {
            std::fs::write(&path, &damaged).unwrap();
            let error = Table::read(&path).unwrap_err();
            let said = error.to_string();
            assert_eq!(error.kind(), ErrorKind::Usage, "{said}");
            assert!(said.contains("tuned.json: no tuning table") && said.contains(wanted), "{said}");
        }
        let missing = Table::read(&folder.path().join("none.json")).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Io);
    }

    #[test]
    fn a_table_holds_for_its_own_scope_alone() {
        assert_eq!(table().check(&scope()), Ok(()));
        let others = [
            (Scope { device: "NVIDIA L4".into(), ..scope() }, "NVIDIA L4"),
            (Scope { compute: "8.9".into(), ..scope() }, "8.9"),
            (Scope { precision: "bf16".into(), ..scope() }, "measured in f16, this is bf16"),
            (Scope { kernels: "0".into(), ..scope() }, "other kernels"),
        ];
        for (other, wanted) in others {
            let reason = table().check(&other).unwrap_err();
            assert!(reason.contains(wanted), "{reason}");
        }
        assert_eq!(scope().file_name(), "tuned-nvidia-h100-80gb-hbm3-sm90-f16.json");
    }
}
