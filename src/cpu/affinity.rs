//! Which CPUs a thread may run on.

use std::io;

/// Lets the calling thread run on these CPUs alone, by their numbers as the system counts them.
///
/// # Errors
/// As the system says; [`io::ErrorKind::InvalidInput`] if one of them is not there or not for this process,
/// [`io::ErrorKind::Unsupported`] where threads cannot be told.
#[cfg(target_os = "linux")]
pub fn pin(cpus: &[usize]) -> io::Result<()> {
    let most = 8 * size_of::<libc::cpu_set_t>();
    if let Some(cpu) = cpus.iter().find(|&&cpu| cpu >= most) {
        let reason = format!("CPU {cpu}: numbers end at {}", most - 1);
        return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    }
    let checked = |code: i32| if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: a set is plain bits, none of them set.
    let (mut wanted, mut given): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    // SAFETY: every number lies within the set.
    cpus.iter().for_each(|&cpu| unsafe { libc::CPU_SET(cpu, &mut wanted) });
    // SAFETY: sets of the size that is said; 0 is the calling thread.
    unsafe {
        checked(libc::sched_setaffinity(0, size_of_val(&wanted), &wanted))?;
        checked(libc::sched_getaffinity(0, size_of_val(&given), &mut given))?;
    }
    // The system leaves out what it has not, as long as something is left.
    // SAFETY: sets.
    if unsafe { libc::CPU_EQUAL(&wanted, &given) } {
        return Ok(());
    }
    let reason = format!("of the CPUs {cpus:?} not all can be used");
    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
}

/// Not on this system.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`].
#[cfg(not(target_os = "linux"))]
pub fn pin(_: &[usize]) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system does not tell threads which CPU to run on"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_that_is_not_there_is_refused() {
        std::thread::spawn(|| {
            // SAFETY: asks for a number.
            let here = unsafe { libc::sched_getcpu() } as usize;
            pin(&[here]).unwrap();
            assert_eq!(pin(&[here, 1000]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(pin(&[5000]).unwrap_err().to_string().contains("CPU 5000: numbers end at 1023"));
            assert!(pin(&[]).is_err());
        })
        .join()
        .unwrap();
    }
}
