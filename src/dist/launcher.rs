//! What launchers tell the processes that they start.

use super::Share;
use crate::error::{Error, Result};

/// A process among those that a launcher started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The launcher, for messages.
    pub launcher: &'static str,
    /// Which process this is.
    pub share: Share,
    /// Processes on this machine, if the launcher says.
    pub local_ranks: Option<usize>,
}

/// Launchers with their variables: rank, number of ranks, ranks on this machine. The first that is there
/// counts: within a job of Slurm, `mpiexec` says more than Slurm does.
const LAUNCHERS: [(&str, [&str; 3]); 4] = [
    ("mpirun of Open MPI", ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"]),
    ("mpiexec", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"]),
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"]),
    ("srun", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"]),
];

impl Launch {
    /// What the environment says; `None` if no launcher started this process.
    ///
    /// # Errors
    /// [`Error::Usage`] for variables that contradict each other.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        for (launcher, [rank, ranks, local]) in LAUNCHERS {
            // The script of a batch job has Slurm's variables too, and is no step of it; programs other than
            // torchrun use such short names for other things.
            let needed = match launcher {
                "srun" => variable("SLURM_STEP_ID").is_some(),
                "torchrun" => variable("MASTER_ADDR").is_some(),
                _ => true,
            };
            let (Some(rank_text), Some(ranks_text), true) = (variable(rank), variable(ranks), needed) else {
                continue;
            };
            let number = |name: &str, text: &str| {
                text.trim()
                    .parse::<usize>()
                    .map_err(|_| Error::usage(format!("{name}={text}, set by {launcher}, is no number")))
            };
            let share = Share { rank: number(rank, &rank_text)?, ranks: number(ranks, &ranks_text)? };
            if share.rank >= share.ranks {
                return Err(Error::usage(format!(
                    "{rank}={rank_text} and {ranks}={ranks_text}, set by {launcher}, contradict each other"
                )));
            }
            let local_ranks = variable(local).map(|text| number(local, &text)).transpose()?;
            return Ok(Some(Launch { launcher, share, local_ranks }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>> {
        Launch::read(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn every_launcher_is_known_by_its_variables() {
        let of = |variables: &[(&str, &str)]| {
            let launch = read(variables).unwrap().unwrap();
            (launch.launcher, launch.share.rank, launch.share.ranks, launch.local_ranks)
        };
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "8"),
            ("SLURM_NTASKS_PER_NODE", "4"),
            ("SLURM_STEP_ID", "0"),
        ];
        assert_eq!(of(&slurm), ("srun", 5, 8, Some(4)));
        let hydra = [("PMI_RANK", "2"), ("PMI_SIZE", "4"), ("MPI_LOCALNRANKS", "2")];
        assert_eq!(of(&hydra), ("mpiexec", 2, 4, Some(2)));
        assert_eq!(of(&[&slurm[..], &hydra[..]].concat()), ("mpiexec", 2, 4, Some(2)));
        let open = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        assert_eq!(of(&open), ("mpirun of Open MPI", 1, 2, None));
        let torch =
            [("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1"), ("MASTER_ADDR", "localhost")];
        assert_eq!(of(&torch), ("torchrun", 0, 2, Some(1)));

        assert_eq!(read(&[]).unwrap(), None);
        // A batch script, and a variable that another program uses.
        assert_eq!(read(&slurm[..3]).unwrap(), None);
        assert_eq!(read(&[("RANK", "colonel"), ("WORLD_SIZE", "9")]).unwrap(), None);
    }

    #[test]
    fn variables_that_make_no_sense_are_named() {
        for (variables, part) in [
            ([("PMI_RANK", "4"), ("PMI_SIZE", "4")], "PMI_RANK=4 and PMI_SIZE=4, set by mpiexec, contradict"),
            ([("PMI_RANK", "x"), ("PMI_SIZE", "4")], "PMI_RANK=x, set by mpiexec, is no number"),
        ] {
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
