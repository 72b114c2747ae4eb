//! Connections between ranks: rank 0 has one to each.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long rank 0 waits for the others.
const PATIENCE: Duration = Duration::from_secs(60);

/// A poisoned lock only means that another thread panicked between two whole changes.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections of one rank.
pub enum Peers {
    /// Of rank 0: those to ranks 1 and up, in order.
    All(Vec<TcpStream>),
    /// Of any other rank: that to rank 0.
    First(TcpStream),
}

impl Peers {
    /// Waits, as rank 0, for the others.
    pub fn gather(listener: &TcpListener, ranks: usize) -> io::Result<Peers> {
        let begun = Instant::now();
        listener.set_nonblocking(true)?;
        let mut found: Vec<Option<TcpStream>> = (1..ranks).map(|_| None).collect();
        while found.iter().any(Option::is_none) {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false)?;
                    stream.set_nodelay(true)?;
                    let mut rank = [0; 8];
                    stream.read_exact(&mut rank)?;
                    let rank = u64::from_le_bytes(rank) as usize;
                    let place = found.get_mut(rank.wrapping_sub(1));
                    *place.ok_or_else(|| io::Error::other(format!("there is no rank {rank}")))? =
                        Some(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if begun.elapsed() > PATIENCE {
                        return Err(io::Error::other("not all ranks came"));
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Peers::All(found.into_iter().flatten().collect()))
    }

    /// Connects to rank 0.
    pub fn join(address: &str, rank: usize) -> io::Result<Peers> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.write_all(&(rank as u64).to_le_bytes())?;
        Ok(Peers::First(stream))
    }

    /// Adds up floats in the order of ranks, in place.
    pub fn sum(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        match self {
            Peers::All(others) => {
                let mut term = vec![0; bytes.len()];
                for other in others.iter_mut() {
                    other.read_exact(&mut term)?;
                    for (sum, term) in bytes.chunks_exact_mut(4).zip(term.chunks_exact(4)) {
                        let float =
                            |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                        sum.copy_from_slice(&(float(sum) + float(term)).to_le_bytes());
                    }
                }
                others.iter_mut().try_for_each(|other| other.write_all(bytes))
            }
            Peers::First(first) => {
                first.write_all(bytes)?;
                first.read_exact(bytes)
            }
        }
    }

    /// Fills `all` with the bytes of each rank, in order.
    pub fn gather_bytes(&mut self, own: &[u8], all: &mut [u8]) -> io::Result<()> {
        match self {
            Peers::All(others) => {
                all[..own.len()].copy_from_slice(own);
                for (part, other) in all[own.len()..].chunks_exact_mut(own.len()).zip(others.iter_mut()) {
                    other.read_exact(part)?;
                }
                others.iter_mut().try_for_each(|other| other.write_all(all))
            }
            Peers::First(first) => {
                first.write_all(own)?;
                first.read_exact(all)
            }
        }
    }
}
