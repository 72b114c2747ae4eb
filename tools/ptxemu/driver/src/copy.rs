//! Copies and memsets: what is checked at the call, and what happens when the work runs.

use std::fmt;
use std::sync::Arc;

use crate::driver::Driver;
use crate::emulator;
use crate::error::{CUresult, Outcome};
use crate::ffi::{Call, Handle, HostPtr, In, entry_points};
use crate::queue::{Stream, Work};

/// One end of a copy.
#[derive(Clone)]
pub enum Place {
    /// Host memory, accessed when the copy runs.
    Host(HostPtr),
    /// What pageable host memory held at the call: rows without gaps.
    Snapshot(Arc<[u8]>),
    /// Device memory.
    Device(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Host(memory) => write!(f, "host:{:#x}", memory.address()),
            Place::Snapshot(_) => f.write_str("host:staged"),
            Place::Device(address) => write!(f, "{address:#x}"),
        }
    }
}

/// A copy of `rows` rows of `width` bytes.
#[derive(Clone)]
pub struct Copy {
    /// Destination.
    pub to: Place,
    /// Bytes from a row of the destination to the next.
    pub to_pitch: usize,
    /// Source.
    pub from: Place,
    /// Bytes from a row of the source to the next.
    pub from_pitch: usize,
    /// Bytes of a row.
    pub width: usize,
    /// Number of rows.
    pub rows: usize,
}

impl fmt::Display for Copy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "copy to={} from={} bytes={}", self.to, self.from, self.width)?;
        if self.rows == 1 { Ok(()) } else { write!(f, "x{}", self.rows) }
    }
}

/// A memset of `rows` rows of `width` elements.
#[derive(Clone, Copy)]
pub struct Fill {
    /// First byte.
    pub to: u64,
    /// Bytes from a row to the next.
    pub pitch: usize,
    /// The element; its first `element` bytes count.
    pub value: [u8; 4],
    /// Bytes of an element: 1, 2 or 4.
    pub element: usize,
    /// Elements of a row.
    pub width: usize,
    /// Number of rows.
    pub rows: usize,
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fill to={:#x} bytes={}", self.to, self.width * self.element * self.rows)
    }
}

/// Bytes from the first to the last of `rows` rows.
fn extent(pitch: usize, width: usize, rows: usize) -> u64 {
    match rows.checked_sub(1) {
        None => 0,
        Some(gaps) => (pitch as u64).saturating_mul(gaps as u64).saturating_add(width as u64),
    }
}

impl Copy {
    /// A copy without rows.
    fn flat(to: Place, from: Place, bytes: usize) -> Copy {
        Copy { to, to_pitch: bytes, from, from_pitch: bytes, width: bytes, rows: 1 }
    }

    /// The same copy to the device with what its host memory holds now.
    fn staged(self) -> Copy {
        let (Place::Host(memory), Place::Device(_)) = (&self.from, &self.to) else { return self };
        let mut bytes = vec![0; self.width * self.rows];
        for (row, bytes) in bytes.chunks_exact_mut(self.width).enumerate() {
            // SAFETY: the caller's memory is readable for the copy's extent while the call lasts.
            unsafe { memory.add(row * self.from_pitch).read(bytes) };
        }
        Copy { from: Place::Snapshot(bytes.into()), from_pitch: self.width, ..self }
    }

    fn ends(&self) -> [(&Place, usize); 2] {
        [(&self.to, self.to_pitch), (&self.from, self.from_pitch)]
    }
}

impl Driver {
    /// Whether all of a copy's host memory is page-locked.
    fn all_pinned(&self, copy: &Copy) -> bool {
        copy.ends().iter().all(|(place, pitch)| match place {
            Place::Host(memory) => self.pinned.holds(*memory, extent(*pitch, copy.width, copy.rows) as usize),
            Place::Snapshot(_) | Place::Device(_) => true,
        })
    }

    /// Checks a copy as the call does: device memory must be there, host memory must have an address.
    fn check_copy(&self, call: &mut Call, copy: &Copy) -> Outcome {
        call.note(format_args!("to={} from={} bytes={}", copy.to, copy.from, copy.width * copy.rows));
        for (place, pitch) in copy.ends() {
            if copy.rows > 1 && pitch < copy.width {
                return Err(call.refuse(
                    CUresult::INVALID_VALUE,
                    format_args!("a pitch of {pitch} below {} bytes", copy.width),
                ));
            }
            match place {
                Place::Device(address) => {
                    let checked = self.memory.check(*address, extent(pitch, copy.width, copy.rows));
                    checked.map_err(|why| call.refuse(CUresult::INVALID_VALUE, format_args!("{why}")))?;
                }
                Place::Host(memory) if memory.address() == 0 && copy.width != 0 => {
                    return Err(CUresult::INVALID_VALUE);
                }
                Place::Host(_) | Place::Snapshot(_) => {}
            }
        }
        Ok(())
    }

    /// A copy on the legacy default stream. When it returns, the host's memory has been read or written; from
    /// pageable memory it need not have arrived on the device ("API synchronization behavior"), and here it
    /// has not.
    fn copy_now(&mut self, call: &mut Call, copy: Copy) -> Outcome {
        self.refuse_unsafe_while_capturing()?;
        self.check_copy(call, &copy)?;
        if copy.width * copy.rows == 0 {
            return Ok(());
        }
        let pinned = self.all_pinned(&copy);
        let on_device = copy.ends().iter().all(|(place, _)| matches!(place, Place::Device(_)));
        let copy = if pinned { copy } else { copy.staged() };
        let wait = !on_device && !matches!(copy.from, Place::Snapshot(_));
        self.enqueue(Stream::LEGACY, Work::Copy(copy))?;
        if wait { self.synchronise(Stream::LEGACY) } else { Ok(()) }
    }

    /// A copy on a stream. Pageable memory is read at the call; it has been written when the call returns.
    fn copy_async(&mut self, call: &mut Call, mut copy: Copy, stream: Handle) -> Outcome {
        call.note(format_args!("stream={stream:#x}"));
        self.check_copy(call, &copy)?;
        if copy.width * copy.rows == 0 {
            return Ok(());
        }
        let pinned = self.all_pinned(&copy);
        if !pinned {
            call.note(format_args!("pageable"));
            self.refuse_in_capture(call, stream, "a copy from or to pageable host memory")?;
            copy = copy.staged();
        }
        let to_host = matches!(copy.to, Place::Host(_));
        self.enqueue(stream, Work::Copy(copy))?;
        if pinned || !to_host {
            return Ok(());
        }
        let stream = self.resolve(stream)?;
        self.synchronise(stream)
    }

    /// Does what a copy says.
    pub fn run_copy(&self, copy: &Copy) -> Outcome {
        let memory = &self.memory.emulated;
        let mut row_bytes = match (&copy.from, &copy.to) {
            (Place::Device(_), Place::Device(_)) => Vec::new(),
            _ => vec![0; copy.width],
        };
        for row in 0..copy.rows {
            let (from, to) = (row * copy.from_pitch, row * copy.to_pitch);
            match (&copy.from, &copy.to) {
                (Place::Device(source), Place::Device(target)) => {
                    memory
                        .copy(target + to as u64, source + from as u64, copy.width as u64)
                        .map_err(emulator::report_fault)?;
                    continue;
                }
                (Place::Device(source), _) => {
                    memory.read_raw(source + from as u64, &mut row_bytes).map_err(emulator::report_fault)?;
                }
                // SAFETY: page-locked memory stays until nothing is queued; other memory is only named by
                // calls that wait.
                (Place::Host(source), _) => unsafe { source.add(from).read(&mut row_bytes) },
                (Place::Snapshot(bytes), _) => row_bytes.copy_from_slice(&bytes[from..from + copy.width]),
            }
            match &copy.to {
                Place::Device(target) => {
                    memory.write(target + to as u64, &row_bytes).map_err(emulator::report_fault)?
                }
                // SAFETY: as for the source.
                Place::Host(target) => unsafe { target.add(to).write(&row_bytes) },
                Place::Snapshot(_) => return Err(CUresult::INVALID_VALUE),
            }
        }
        Ok(())
    }

    /// Does what a memset says.
    pub fn run_fill(&self, fill: &Fill) -> Outcome {
        (0..fill.rows).try_for_each(|row| {
            let to = fill.to + (row * fill.pitch) as u64;
            let filled = self.memory.emulated.fill(to, &fill.value[..fill.element], fill.width as u64);
            filled.map_err(emulator::report_fault)
        })
    }

    fn fill(&mut self, call: &mut Call, fill: Fill, stream: Handle) -> Outcome {
        call.note(format_args!("{fill} stream={stream:#x}"));
        let width = fill.width * fill.element;
        let gap = if fill.rows > 1 { fill.pitch } else { width };
        if !(fill.to as usize | gap).is_multiple_of(fill.element) || gap < width {
            return Err(call.refuse(CUresult::INVALID_VALUE, format_args!("misaligned address or pitch")));
        }
        let checked = self.memory.check(fill.to, extent(fill.pitch, width, fill.rows));
        checked.map_err(|why| call.refuse(CUresult::INVALID_VALUE, format_args!("{why}")))?;
        if width * fill.rows == 0 { Ok(()) } else { self.enqueue(stream, Work::Fill(fill)) }
    }

    /// Where a unified address points to.
    fn unified(&self, address: u64) -> Place {
        match self.memory.emulated.allocation(address) {
            Some(_) => Place::Device(address),
            None => Place::Host(HostPtr(address as usize as *mut _)),
        }
    }

    fn copy_2d(&self, description: &Copy2d) -> Outcome<Copy> {
        let place = |kind: u32, host: HostPtr, device: u64, offset: usize| match kind {
            1 => Ok(Place::Host(host.add(offset))),
            2 => Ok(Place::Device(device + offset as u64)),
            4 => Ok(self.unified(device + offset as u64)),
            _ => Err(CUresult::NOT_SUPPORTED),
        };
        let d = description;
        // A pitch of 0 means rows without gaps.
        let from_pitch = if d.from_pitch == 0 { d.width } else { d.from_pitch };
        let to_pitch = if d.to_pitch == 0 { d.width } else { d.to_pitch };
        Ok(Copy {
            to: place(d.to_kind, d.to_host, d.to_device, d.to_y * to_pitch + d.to_x)?,
            to_pitch,
            from: place(d.from_kind, d.from_host, d.from_device, d.from_y * from_pitch + d.from_x)?,
            from_pitch,
            width: d.width,
            rows: d.height,
        })
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Copy2d {
    from_x: usize,
    from_y: usize,
    from_kind: u32,
    from_host: HostPtr,
    from_device: u64,
    from_array: Handle,
    from_pitch: usize,
    to_x: usize,
    to_y: usize,
    to_kind: u32,
    to_host: HostPtr,
    to_device: u64,
    to_array: Handle,
    to_pitch: usize,
    width: usize,
    height: usize,
}

fn fill_of(to: u64, value: u32, element: usize, width: usize) -> Fill {
    Fill { to, pitch: width * element, value: value.to_le_bytes(), element, width, rows: 1 }
}

entry_points! {
    /// Copies from host to device; done when it returns.
    healthy fn cuMemcpyHtoD_v2(to: u64, from: HostPtr, bytes: usize) |call, driver| {
        driver.copy_now(call, Copy::flat(Place::Device(to), Place::Host(from), bytes))
    }

    /// Copies from device to host; done when it returns.
    healthy fn cuMemcpyDtoH_v2(to: HostPtr, from: u64, bytes: usize) |call, driver| {
        driver.copy_now(call, Copy::flat(Place::Host(to), Place::Device(from), bytes))
    }

    /// Copies on the device, on the legacy default stream; nobody waits.
    healthy fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) |call, driver| {
        driver.copy_now(call, Copy::flat(Place::Device(to), Place::Device(from), bytes))
    }

    /// Copies between any two places; done when it returns if the host takes part.
    healthy fn cuMemcpy(to: u64, from: u64, bytes: usize) |call, driver| {
        let copy = Copy::flat(driver.unified(to), driver.unified(from), bytes);
        driver.copy_now(call, copy)
    }

    /// Copies rows; done when it returns if the host takes part.
    healthy fn cuMemcpy2D_v2(description: In<Copy2d>) |call, driver| {
        let copy = driver.copy_2d(&description.get()?)?;
        driver.copy_now(call, copy)
    }

    /// Copies rows; done when it returns if the host takes part.
    healthy fn cuMemcpy2DUnaligned_v2(description: In<Copy2d>) |call, driver| {
        let copy = driver.copy_2d(&description.get()?)?;
        driver.copy_now(call, copy)
    }

    /// Queues a copy from host to device.
    healthy fn cuMemcpyHtoDAsync_v2(to: u64, from: HostPtr, bytes: usize, stream: Handle) |call, driver| {
        driver.copy_async(call, Copy::flat(Place::Device(to), Place::Host(from), bytes), stream)
    }

    /// Queues a copy from device to host.
    healthy fn cuMemcpyDtoHAsync_v2(to: HostPtr, from: u64, bytes: usize, stream: Handle) |call, driver| {
        driver.copy_async(call, Copy::flat(Place::Host(to), Place::Device(from), bytes), stream)
    }

    /// Queues a copy on the device.
    healthy fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: Handle) |call, driver| {
        driver.copy_async(call, Copy::flat(Place::Device(to), Place::Device(from), bytes), stream)
    }

    /// Queues a copy between any two places.
    healthy fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: Handle) |call, driver| {
        let copy = Copy::flat(driver.unified(to), driver.unified(from), bytes);
        driver.copy_async(call, copy, stream)
    }

    /// Queues a copy of rows.
    healthy fn cuMemcpy2DAsync_v2(description: In<Copy2d>, stream: Handle) |call, driver| {
        let copy = driver.copy_2d(&description.get()?)?;
        driver.copy_async(call, copy, stream)
    }

    /// Queues a memset of bytes on the legacy default stream.
    healthy fn cuMemsetD8_v2(to: u64, value: u8, count: usize) |call, driver| {
        driver.fill(call, fill_of(to, value.into(), 1, count), Stream::LEGACY)
    }

    /// Queues a memset of 16-bit values on the legacy default stream.
    healthy fn cuMemsetD16_v2(to: u64, value: u16, count: usize) |call, driver| {
        driver.fill(call, fill_of(to, value.into(), 2, count), Stream::LEGACY)
    }

    /// Queues a memset of 32-bit values on the legacy default stream.
    healthy fn cuMemsetD32_v2(to: u64, value: u32, count: usize) |call, driver| {
        driver.fill(call, fill_of(to, value, 4, count), Stream::LEGACY)
    }

    /// Queues a memset of bytes.
    healthy fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: Handle) |call, driver| {
        driver.fill(call, fill_of(to, value.into(), 1, count), stream)
    }

    /// Queues a memset of 16-bit values.
    healthy fn cuMemsetD16Async(to: u64, value: u16, count: usize, stream: Handle) |call, driver| {
        driver.fill(call, fill_of(to, value.into(), 2, count), stream)
    }

    /// Queues a memset of 32-bit values.
    healthy fn cuMemsetD32Async(to: u64, value: u32, count: usize, stream: Handle) |call, driver| {
        driver.fill(call, fill_of(to, value, 4, count), stream)
    }

    /// Queues a memset of rows of bytes on the legacy default stream.
    healthy fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: u8, width: usize, rows: usize) |call, driver| {
        driver.fill(call, Fill { pitch, rows, ..fill_of(to, value.into(), 1, width) }, Stream::LEGACY)
    }

    /// Queues a memset of rows of bytes.
    healthy fn cuMemsetD2D8Async(
        to: u64, pitch: usize, value: u8, width: usize, rows: usize, stream: Handle,
    ) |call, driver| {
        driver.fill(call, Fill { pitch, rows, ..fill_of(to, value.into(), 1, width) }, stream)
    }

    /// Queues a memset of rows of 32-bit values.
    healthy fn cuMemsetD2D32Async(
        to: u64, pitch: usize, value: u32, width: usize, rows: usize, stream: Handle,
    ) |call, driver| {
        driver.fill(call, Fill { pitch, rows, ..fill_of(to, value, 4, width) }, stream)
    }
}
