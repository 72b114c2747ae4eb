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
    /// Which of these this is, if the launcher says.
    pub local_rank: Option<usize>,
}

/// Launchers with their variables: rank, number of ranks, ranks on this machine, which of these. The first
/// that is there counts: within a job of Slurm, `mpiexec` says more than Slurm does.
const LAUNCHERS: [(&str, [&str; 4]); 4] = [
    (
        "mpirun of Open MPI",
        [
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "OMPI_COMM_WORLD_LOCAL_RANK",
        ],
    ),
    ("mpiexec", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS", "MPI_LOCALRANKID"]),
    ("torchrun", ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK"]),
    ("srun", ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_LOCALID"]),
];

impl Launch {
    /// What the environment says; `None` if no launcher started this process.
    ///
    /// # Errors
    /// [`Error::Usage`] for variables that contradict each other.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Launch>> {
        for (launcher, [rank, ranks, local_ranks, local_rank]) in LAUNCHERS {
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
            let known = |name: &str| variable(name).map(|text| number(name, &text)).transpose();
            // Slurm's own number holds too where it starts ranks for an MPI.
            let in_step = variable("SLURM_STEP_ID").is_some();
            let of_slurm = if in_step { known("SLURM_LOCALID")? } else { None };
            return Ok(Some(Launch {
                launcher,
                share,
                local_ranks: known(local_ranks)?,
                local_rank: known(local_rank)?.or(known("LOCAL_RANK")?).or(of_slurm),
            }));
        }
        Ok(None)
    }
}

/// Host and port of rank 0 where ranks on GPUs meet without MPI: `KNET_RENDEZVOUS`, else `MASTER_ADDR` and
/// the port after `MASTER_PORT`, at which `torchrun` itself may listen. `None` if neither is set.
///
/// # Errors
/// [`Error::Usage`] for what is no port.
#[cfg(feature = "cuda")]
pub(super) fn meeting(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<String>> {
    let set = |name: &str| variable(name).filter(|text| !text.is_empty());
    if let Some(named) = set("KNET_RENDEZVOUS") {
        let port = named
            .rsplit_once(':')
            .and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
        return match port {
            Some(_) => Ok(Some(named)),
            None => Err(Error::usage(format!("KNET_RENDEZVOUS={named}: takes HOST:PORT"))),
        };
    }
    let (Some(host), Some(port)) = (set("MASTER_ADDR"), set("MASTER_PORT")) else { return Ok(None) };
    let next = port.parse::<u16>().ok().and_then(|port| port.checked_add(1));
    match next {
        // An IPv6 address has colons of its own.
        Some(next) if host.contains(':') && !host.starts_with('[') => Ok(Some(format!("[{host}]:{next}"))),
        Some(next) => Ok(Some(format!("{host}:{next}"))),
        None => Err(Error::usage(format!("MASTER_PORT={port} is no port with one after it"))),
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
    fn a_rank_of_a_machine_is_known_by_whoever_says_it() {
        let local = |variables: &[(&str, &str)]| read(variables).unwrap().unwrap().local_rank;
        let slurm =
            [("SLURM_PROCID", "5"), ("SLURM_NTASKS", "8"), ("SLURM_STEP_ID", "0"), ("SLURM_LOCALID", "1")];
        let hydra = [("PMI_RANK", "5"), ("PMI_SIZE", "8")];
        let open = [("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "8")];
        assert_eq!(local(&slurm), Some(1));
        assert_eq!(local(&[&hydra[..], &slurm].concat()), Some(1));
        assert_eq!(local(&[&hydra[..], &slurm, &[("MPI_LOCALRANKID", "2")]].concat()), Some(2));
        assert_eq!(local(&[&open[..], &[("OMPI_COMM_WORLD_LOCAL_RANK", "3")]].concat()), Some(3));
        assert_eq!(local(&[&hydra[..], &[("LOCAL_RANK", "0")]].concat()), Some(0));
        assert_eq!(local(&hydra), None);
    }

    #[test]
    #[cfg(feature = "cuda")]
    fn ranks_meet_beside_the_port_of_the_launcher() {
        let meeting = |variables: &[(&str, &str)]| {
            super::meeting(&|name| {
                variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
            })
        };
        let master = |host, port| [("MASTER_ADDR", host), ("MASTER_PORT", port)];
        assert_eq!(meeting(&[]).unwrap(), None);
        assert_eq!(meeting(&master("node1", "29500")).unwrap(), Some("node1:29501".into()));
        assert_eq!(meeting(&master("::1", "29500")).unwrap(), Some("[::1]:29501".into()));
        let named = [("KNET_RENDEZVOUS", "node2:7000")];
        assert_eq!(
            meeting(&[&master("node1", "1")[..], &named].concat()).unwrap(),
            Some("node2:7000".into())
        );
        for (variables, part) in [
            (&master("node1", "65535")[..], "MASTER_PORT=65535"),
            (&[("KNET_RENDEZVOUS", "node2")], "KNET_RENDEZVOUS=node2: takes HOST:PORT"),
        ] {
            let error = meeting(variables).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
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
