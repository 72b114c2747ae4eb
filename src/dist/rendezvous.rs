//! Where ranks meet that no MPI connects: rank 0 listens at an address that all know and hands out what NCCL
//! needs. The connections stay open and idle after that: a rank whose connection ends is gone, which NCCL
//! itself does not see between GPUs of one machine.

use super::Share;
use crate::error::{Error, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long ranks wait for each other: launchers start them within seconds, batch systems within a minute.
const PATIENCE: Duration = Duration::from_secs(180);
const NAP: Duration = Duration::from_millis(20);

/// How long a rank that has connected may take to say who it is.
const GREETING: Duration = Duration::from_secs(5);

/// What a rank says first, before its number and that of all: whoever says something else is none.
const MAGIC: [u8; 8] = *b"knet-1\r\n";

/// The connections of a rank: of rank 0 those to the others by rank, of any other one that to rank 0.
#[derive(Debug)]
pub(super) struct Lifelines {
    share: Share,
    streams: Mutex<Vec<Option<TcpStream>>>,
    lost: Mutex<Option<usize>>,
}

/// Meets the others at `address` (host and port). Rank 0 makes the message that all get.
///
/// # Errors
/// [`Error::Ranks`] if the address is no good or in use, if not all come in time, or what `make` says.
pub(super) fn meet<const N: usize>(
    address: &str,
    share: Share,
    make: impl FnOnce() -> Result<[u8; N]>,
) -> Result<([u8; N], Lifelines)> {
    meet_within(PATIENCE, address, share, make)
}

fn meet_within<const N: usize>(
    patience: Duration,
    address: &str,
    share: Share,
    make: impl FnOnce() -> Result<[u8; N]>,
) -> Result<([u8; N], Lifelines)> {
    let (message, streams) = match share.rank {
        0 => {
            let message = make()?;
            (message, hand_out(patience, address, share.ranks, &message)?)
        }
        _ => {
            let (message, stream) = ask(patience, address, share)?;
            (message, vec![Some(stream)])
        }
    };
    // From now on they are only looked at.
    for stream in streams.iter().flatten() {
        stream.set_nonblocking(true).map_err(|e| Error::Ranks(format!("{address}: {e}")))?;
    }
    Ok((message, Lifelines { share, streams: Mutex::new(streams), lost: Mutex::new(None) }))
}

/// Rank 0's side.
fn hand_out(
    patience: Duration,
    address: &str,
    ranks: usize,
    message: &[u8],
) -> Result<Vec<Option<TcpStream>>> {
    let fault = |e: std::io::Error| {
        Error::Ranks(format!(
            "rank 0 cannot listen at {address}, where ranks meet ({e}); KNET_RENDEZVOUS=HOST:PORT names another place, the same on all ranks"
        ))
    };
    // On all interfaces: the name of this machine may be that of one alone.
    let (_, port) = address.rsplit_once(':').unwrap_or(("", address));
    let port: u16 = port.parse().map_err(|_| Error::Ranks(format!("{address}: no port to meet at")))?;
    let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
    let listener = listener.map_err(fault)?;
    listener.set_nonblocking(true).map_err(fault)?;
    let mut found: Vec<Option<TcpStream>> = (0..ranks).map(|_| None).collect();
    let begun = Instant::now();
    let missing = |found: &[Option<TcpStream>]| -> Vec<usize> {
        (1..ranks).filter(|&rank| found[rank].is_none()).collect()
    };
    while !missing(&found).is_empty() {
        match listener.accept() {
            Ok((stream, _)) => {
                // Whoever is no rank is let go.
                if let Some((rank, stream)) =
                    greeted(stream, ranks).filter(|(rank, _)| found[*rank].is_none())
                {
                    found[rank] = Some(stream);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                if begun.elapsed() > patience {
                    return Err(Error::Ranks(format!(
                        "of {ranks} ranks these did not come to {address} in {} s: {:?}",
                        patience.as_secs(),
                        missing(&found)
                    )));
                }
                std::thread::sleep(NAP);
            }
            Err(error) => return Err(fault(error)),
        }
    }
    for (rank, stream) in found.iter_mut().enumerate() {
        let Some(stream) = stream else { continue };
        let told = stream.write_all(&MAGIC).and_then(|()| stream.write_all(message));
        told.map_err(|e| Error::Ranks(format!("rank {rank} is gone: {e}")))?;
    }
    Ok(found)
}

/// The rank that has connected, if it is one of these.
fn greeted(mut stream: TcpStream, ranks: usize) -> Option<(usize, TcpStream)> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(GREETING)).ok()?;
    let (mut magic, mut numbers) = ([0; MAGIC.len()], [0; 16]);
    stream.read_exact(&mut magic).ok()?;
    stream.read_exact(&mut numbers).ok()?;
    let (rank, count) = numbers.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes) as usize;
    let (rank, count) = (number(rank), number(count));
    (magic == MAGIC && count == ranks && (1..ranks).contains(&rank)).then_some((rank, stream))
}

/// The side of any other rank.
fn ask<const N: usize>(patience: Duration, address: &str, share: Share) -> Result<([u8; N], TcpStream)> {
    let begun = Instant::now();
    let late = |reason: String| {
        let seconds = patience.as_secs();
        Error::Ranks(format!("rank 0 did not answer at {address} in {seconds} s: {reason}"))
    };
    let mut stream = loop {
        // Its name may not be known yet, nor its port open.
        let connected = address.to_socket_addrs().and_then(|found| {
            let mut last = std::io::Error::other("the name has no address");
            for place in found {
                match TcpStream::connect_timeout(&place, GREETING) {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        match connected {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > patience => return Err(late(error.to_string())),
            Err(_) => std::thread::sleep(NAP),
        }
    };
    let mut magic = [0; MAGIC.len()];
    let mut message = [0; N];
    let mut talk = || {
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(&MAGIC)?;
        stream.write_all(&(share.rank as u64).to_le_bytes())?;
        stream.write_all(&(share.ranks as u64).to_le_bytes())?;
        stream.read_exact(&mut magic)?;
        stream.read_exact(&mut message)
    };
    talk().map_err(|e| late(e.to_string()))?;
    if magic != MAGIC {
        return Err(Error::Ranks(format!(
            "what answers at {address} is not rank 0 of knet-train; KNET_RENDEZVOUS=HOST:PORT names another place, the same on all ranks"
        )));
    }
    Ok((message, stream))
}

impl Lifelines {
    /// The rank that is gone, if one is. Rank 0 tells the others.
    pub(super) fn lost(&self) -> Option<usize> {
        let mut lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        if lost.is_none() {
            let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
            *lost = match self.share.rank {
                0 => look_after(&mut streams),
                _ => streams.iter_mut().flatten().find_map(heard),
            };
        }
        *lost
    }
}

/// Rank 0's look at the others.
fn look_after(streams: &mut [Option<TcpStream>]) -> Option<usize> {
    // Nobody has anything to say but by ending.
    let ended = |stream: &mut TcpStream| match stream.read(&mut [0; 1]) {
        Ok(_) => true,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    };
    let gone = streams.iter_mut().position(|stream| stream.as_mut().is_some_and(ended))?;
    for stream in streams.iter_mut().flatten() {
        // Of those that cannot be told, one is the rank itself; the others see the connection end.
        let _ = stream.write_all(&(gone as u64).to_le_bytes());
    }
    Some(gone)
}

/// What rank 0 has said, or that it is gone itself.
fn heard(stream: &mut TcpStream) -> Option<usize> {
    let mut number = [0; 8];
    match stream.read(&mut number) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Ok(8) => Some(u64::from_le_bytes(number) as usize),
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address that nobody has.
    fn free() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        format!("127.0.0.1:{}", listener.local_addr().unwrap().port())
    }

    fn until<T>(look: impl Fn() -> Option<T>) -> T {
        let begun = Instant::now();
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(begun.elapsed() < Duration::from_secs(10));
            std::thread::sleep(NAP);
        }
    }

    #[test]
    fn all_get_the_message_and_see_who_is_gone() {
        let address = free();
        let met: Vec<([u8; 3], Lifelines)> = std::thread::scope(|scope| {
            let start = |rank| {
                let address = &address;
                let share = Share { rank, ranks: 3 };
                scope.spawn(move || meet(address, share, || Ok([7, 8, 9])).unwrap())
            };
            let first = start(0);
            // A stranger who says something else is let go. Rank 0 waits for the others meanwhile.
            let stranger = until(|| TcpStream::connect(address.as_str()).ok());
            (&stranger).write_all(b"GET / HTTP/1.1\r\nHost: knet\r\n\r\n").unwrap();
            let ranks = [first, start(1), start(2)];
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        assert!(met.iter().all(|(message, _)| *message == [7, 8, 9]));
        let mut lines: Vec<Option<Lifelines>> = met.into_iter().map(|(_, lines)| Some(lines)).collect();
        assert!(lines.iter().flatten().all(|lines| lines.lost().is_none()));
        lines[2] = None;
        for rank in 0..2 {
            assert_eq!(until(|| lines[rank].as_ref().unwrap().lost()), 2);
        }
        lines[0] = None;
        // What was seen first stays.
        assert_eq!(lines[1].as_ref().unwrap().lost(), Some(2));
    }

    #[test]
    fn who_does_not_come_is_named() {
        let soon = Duration::from_millis(100);
        let meet = |rank, address: &str| {
            let share = Share { rank, ranks: 3 };
            meet_within(soon, address, share, || Ok([0; 1])).unwrap_err().to_string()
        };
        let error = meet(0, &free());
        assert!(error.contains("of 3 ranks these did not come") && error.contains("[1, 2]"), "{error}");
        let error = meet(1, &free());
        assert!(error.contains("rank 0 did not answer at 127.0.0.1:"), "{error}");
        let taken = TcpListener::bind("[::]:0").unwrap();
        let error = meet(0, &format!("127.0.0.1:{}", taken.local_addr().unwrap().port()));
        assert!(error.contains("cannot listen at") && error.contains("KNET_RENDEZVOUS"), "{error}");
        // Another program's answer.
        let address = taken.local_addr().unwrap().port();
        std::thread::scope(|scope| {
            scope.spawn(|| taken.accept().unwrap().0.write_all(&[b'x'; 100]).unwrap());
            let error = meet(2, &format!("127.0.0.1:{address}"));
            assert!(error.contains("is not rank 0 of knet-train"), "{error}");
        });
    }
}
