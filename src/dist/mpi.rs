//! MPI through its standard ABI (MPI 5.0, chapter 20), opened at run time: nothing is linked, and any
//! library that has the ABI will do. <https://www.mpi-forum.org/docs/>

use super::{Collective, Launch, Share};
use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{c_int, c_void};
use std::time::{Duration, Instant};

/// Where the library is looked for if `KNET_MPI` names none: the loader's path.
const NAMES: [&str; 2] = ["libmpi_abi.so.1", "libmpi_abi.so"];

/// Handles and numbers that the ABI fixes.
const COMM_WORLD: usize = 0x101;
const ERRORS_RETURN: usize = 0x143;
const FLOAT: usize = 0x210;
const BYTE: usize = 0x247;
const THREAD_SERIALIZED: c_int = 2048;
const SUCCESS: c_int = 0;
/// Longest text of an error.
const MAX_ERROR_STRING: usize = 512;

/// How long a rank asks again and again whether a message has come, before it sleeps in between: partners in
/// a step differ by less, and while one of them validates, the others must not burn its cores.
const PATIENCE: Duration = Duration::from_micros(500);
const NAP: Duration = Duration::from_micros(200);

type Collect =
    unsafe extern "C" fn(*const c_void, i64, usize, *mut c_void, i64, usize, usize, *mut usize) -> c_int;

/// The functions in use.
struct Functions {
    iallgather: Collect,
    ialltoall: Collect,
    test: unsafe extern "C" fn(*mut usize, *mut c_int, *mut c_void) -> c_int,
    abort: unsafe extern "C" fn(usize, c_int) -> c_int,
    finalize: unsafe extern "C" fn() -> c_int,
    error_string: unsafe extern "C" fn(c_int, *mut u8, *mut c_int) -> c_int,
}

/// All processes that `mpiexec` started.
pub(super) struct Mpi {
    functions: Functions,
    share: Share,
    name: String,
    /// Keeps the code loaded.
    _library: Library,
}

/// What is to be done where there is no MPI.
const REMEDY: &str = "install MPICH 5 (`pip install mpich` brings it with its mpiexec; Open MPI has the standard ABI from version 6), start \
                      the ranks by its own mpiexec, and put libmpi_abi.so.1 on the loader's path or name it by KNET_MPI";

impl Mpi {
    /// Joins the others.
    ///
    /// # Errors
    /// [`Error::Ranks`] if there is no library with the standard ABI, or if it knows nothing of the launcher.
    pub(super) fn start(launch: &Launch) -> Result<Mpi> {
        let (library, name) = open(launch)?;
        let missing =
            |e: libloading::Error| Error::Ranks(format!("{name} has not all of MPI 5: {e}; {REMEDY}"));
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the type is that of the standard.
                *unsafe { library.get($name) }.map_err(missing)?
            };
        }
        let functions = Functions {
            iallgather: function!(b"MPI_Iallgather_c\0"),
            ialltoall: function!(b"MPI_Ialltoall_c\0"),
            test: function!(b"MPI_Test\0"),
            abort: function!(b"MPI_Abort\0"),
            finalize: function!(b"MPI_Finalize\0"),
            error_string: function!(b"MPI_Error_string\0"),
        };
        type Init = unsafe extern "C" fn(*mut c_int, *mut c_void, c_int, *mut c_int) -> c_int;
        type Ask = unsafe extern "C" fn(usize, *mut c_int) -> c_int;
        type Handler = unsafe extern "C" fn(usize, usize) -> c_int;
        let init: Init = function!(b"MPI_Init_thread\0");
        let (rank_of, size_of): (Ask, Ask) = (function!(b"MPI_Comm_rank\0"), function!(b"MPI_Comm_size\0"));
        let set_handler: Handler = function!(b"MPI_Comm_set_errhandler\0");
        let (mut provided, mut rank, mut ranks) = (0, 0, 0);
        // SAFETY: initialised once, as this is called once; the standard allows null arguments.
        let code =
            unsafe { init(std::ptr::null_mut(), std::ptr::null_mut(), THREAD_SERIALIZED, &mut provided) };
        if code != SUCCESS {
            return Err(Error::Ranks(format!("{name} does not start (error {code}); {REMEDY}")));
        }
        // SAFETY: MPI is initialised; the numbers live as long as the calls.
        let code = unsafe {
            set_handler(COMM_WORLD, ERRORS_RETURN)
                | rank_of(COMM_WORLD, &mut rank)
                | size_of(COMM_WORLD, &mut ranks)
        };
        let share = Share { rank: rank.max(0) as usize, ranks: ranks.max(0) as usize };
        let mpi = Mpi { functions, share, name, _library: library };
        if code != SUCCESS || provided < THREAD_SERIALIZED {
            return Err(Error::Ranks(format!(
                "{}: MPI gives neither ranks nor threads (error {code})",
                mpi.name
            )));
        }
        if share != launch.share {
            return Err(Error::Ranks(format!(
                "{} counts {ranks} ranks, {} started {}: they belong to different MPIs; {REMEDY}",
                mpi.name, launch.launcher, launch.share.ranks
            )));
        }
        Ok(mpi)
    }

    fn check(&self, code: c_int) -> Result<()> {
        if code == SUCCESS {
            return Ok(());
        }
        let (mut text, mut length) = ([0; MAX_ERROR_STRING], 0);
        // SAFETY: the buffer has the length that the ABI asks for.
        unsafe { (self.functions.error_string)(code, text.as_mut_ptr(), &mut length) };
        let text = String::from_utf8_lossy(&text[..length.clamp(0, MAX_ERROR_STRING as c_int) as usize])
            .into_owned();
        Err(Error::Ranks(format!("MPI: {text}")))
    }

    /// Waits for a message without burning a core for long.
    fn wait(&self, mut request: usize) -> Result<()> {
        let begun = Instant::now();
        loop {
            let mut done = 0;
            // SAFETY: a live request; no status is asked for.
            self.check(unsafe { (self.functions.test)(&mut request, &mut done, std::ptr::null_mut()) })?;
            if done != 0 {
                return Ok(());
            }
            if begun.elapsed() < PATIENCE {
                std::hint::spin_loop();
            } else {
                std::thread::sleep(NAP);
            }
        }
    }

    /// Runs a collective over `count` elements of a type for each rank.
    fn collect(
        &self,
        collect: Collect,
        own: *const c_void,
        all: *mut c_void,
        count: usize,
        ty: usize,
    ) -> Result<()> {
        let (count, mut request) = (count as i64, 0);
        // SAFETY: the callers give as many elements as they say, which outlive the wait below.
        self.check(unsafe { collect(own, count, ty, all, count, ty, COMM_WORLD, &mut request) })?;
        self.wait(request)
    }
}

/// The library, and its name.
fn open(launch: &Launch) -> Result<(Library, String)> {
    let named = std::env::var("KNET_MPI").ok().filter(|named| !named.is_empty());
    let candidates: Vec<&str> = named.as_deref().map_or(NAMES.to_vec(), |named| vec![named]);
    let mut tried = String::new();
    for name in candidates {
        // SAFETY: what MPI runs when it is loaded is as sound as the MPI that the user chose.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok((library, name.to_string())),
            Err(error) => tried += &format!("\n  {name}: {error}"),
        }
    }
    let Launch { launcher, share, .. } = launch;
    Err(Error::Ranks(format!(
        "{launcher} started {} ranks, and no MPI connects them: {REMEDY}; tried:{tried}",
        share.ranks
    )))
}

impl Collective for Mpi {
    fn share(&self) -> Share {
        self.share
    }

    fn name(&self) -> String {
        format!("MPI ({})", self.name)
    }

    fn gather(&self, own: &[u8], all: &mut [u8]) -> Result<()> {
        assert_eq!(all.len(), own.len() * self.share.ranks, "as much of each rank");
        let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        self.collect(self.functions.iallgather, from, to, own.len(), BYTE)
    }

    fn exchange(&self, own: &[f32], all: &mut [f32]) -> Result<()> {
        assert_eq!(all.len(), own.len(), "as much as is given");
        let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
        self.collect(self.functions.ialltoall, from, to, own.len() / self.share.ranks, FLOAT)
    }

    fn abort(&self, code: u8) -> ! {
        // SAFETY: MPI is initialised.
        unsafe { (self.functions.abort)(COMM_WORLD, c_int::from(code)) };
        std::process::exit(i32::from(code))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort(101);
        }
        // SAFETY: MPI is initialised; nothing calls it after.
        unsafe { (self.functions.finalize)() };
    }
}
