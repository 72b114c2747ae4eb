//! Ranks as threads of one process: sums and agreements. MPI itself is tested by `tests/train/ranks.rs`,
//! NCCL by `tests/train/gpus.rs`.

use super::*;
use std::sync::{Arc, Barrier, Mutex};

/// What all threads see.
struct Hall {
    barrier: Barrier,
    messages: Mutex<Vec<Vec<u8>>>,
}

struct Thread {
    hall: Arc<Hall>,
    share: Share,
}

impl Thread {
    /// Everyone's bytes.
    fn all(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.hall.messages.lock().unwrap()[self.share.rank] = own.to_vec();
        self.hall.barrier.wait();
        let all = self.hall.messages.lock().unwrap().clone();
        self.hall.barrier.wait();
        all
    }
}

impl Collective for Thread {
    fn share(&self) -> Share {
        self.share
    }

    fn name(&self) -> String {
        "threads".into()
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        all.copy_from_slice(&self.all(own).concat());
        Ok(())
    }

    fn abort(&self, code: u8) -> ! {
        panic!("rank {} ends all with {code}", self.share.rank)
    }
}

/// What each of `ranks` threads makes of its rank, in order.
fn each<T: Send>(ranks: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let hall = Arc::new(Hall { barrier: Barrier::new(ranks), messages: Mutex::new(vec![Vec::new(); ranks]) });
    std::thread::scope(|scope| {
        let start = |rank| {
            let thread = Thread { hall: Arc::clone(&hall), share: Share { rank, ranks } };
            let work = &work;
            scope.spawn(move || work(Ranks::new(Box::new(thread))))
        };
        let threads: Vec<_> = (0..ranks).map(start).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Numbers whose sums depend on the order.
fn term(rank: usize, turn: usize, len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 + rank * 101 + turn * 57) % 997) as f32 * 1.7e-3f32.powi(rank as i32 % 3))
        .collect()
}

#[test]
fn sums_are_those_of_one_process_to_the_bit() {
    for (ranks, len) in [(2, 1), (2, 1000), (3, 7), (3, 1001), (4, 3)] {
        let mut wanted = term(0, 0, len);
        for turn in 0..2 {
            for rank in usize::from(turn == 0)..ranks {
                wanted.iter_mut().zip(term(rank, turn, len)).for_each(|(sum, value)| *sum += value);
            }
        }
        let found = each(ranks, |all| {
            // What is there before a sum begins is of no account.
            let mut total = vec![5.0; len];
            for turn in 0..2 {
                all.add(&mut total, &term(all.share().rank, turn, len), turn == 0).unwrap();
            }
            total
        });
        for total in found {
            assert!(
                total.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{ranks} ranks, {len}"
            );
        }
    }
}

#[test]
fn a_failure_is_everyones_with_the_rank_and_the_words() {
    let found = each(3, |all| {
        let own =
            if all.share().rank == 1 { Err(Error::usage("no such file")) } else { Ok(all.share().rank) };
        let error = all.agree(own).unwrap_err().to_string();
        // All know of it: none is aborted.
        all.end(2);
        error
    });
    assert_eq!(found[1], "no such file");
    for rank in [0, 2] {
        assert!(found[rank].contains("rank 1 failed: no such file"), "{}", found[rank]);
    }
    let found = each(3, |all| all.agree(Ok(all.share().rank * 2)).unwrap());
    assert_eq!(found, vec![vec![0, 2, 4]; 3]);
}

#[test]
fn flags_settings_and_floats_go_around() {
    let found = each(3, |all| (all.any(all.share().rank == 2).unwrap(), all.any(false).unwrap()));
    assert_eq!(found, [(true, false); 3]);
    let found = each(2, |all| all.gather(&[all.share().rank as f32, 7.0]).unwrap());
    assert_eq!(found, [[0.0, 7.0, 1.0, 7.0]; 2]);
    let settings = |rate: &str| BTreeMap::from([("optimizer.lr".to_string(), rate.to_string())]);
    each(2, |all| all.check_same(&all.agree(Ok(settings("0.1"))).unwrap()).unwrap());
    let found = each(3, |all| {
        let own = settings(if all.share().rank == 2 { "0.2" } else { "0.1" });
        all.check_same(&all.agree(Ok(own)).unwrap()).unwrap_err().to_string()
    });
    for error in found {
        assert!(error.contains("optimizer.lr is 0.1 on rank 0 and 0.2 on rank 2"), "{error}");
    }
}
