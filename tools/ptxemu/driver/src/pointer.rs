//! Questions about an address: whose it is, and how much belongs to it.

use crate::context;
use crate::driver::Driver;
use crate::error::{CUresult, Outcome};
use crate::ffi::{HostPtr, In, Out, entry_points};

const HOST: u32 = 1;
const DEVICE: u32 = 2;

/// Whose memory an address is.
enum Owner {
    Device { start: u64, bytes: u64 },
    Pinned { start: u64, bytes: u64 },
}

impl Driver {
    fn owner(&self, address: u64) -> Option<Owner> {
        let on_device = self
            .memory
            .allocation(address)
            .map(|found| Owner::Device { start: found.address, bytes: found.bytes });
        on_device.or_else(|| {
            let (start, bytes) = self.pinned.range(address)?;
            Some(Owner::Pinned { start: start as u64, bytes: bytes as u64 })
        })
    }

    fn pointer_attribute(&self, place: Out<u64>, attribute: u32, address: u64) -> Outcome {
        let owner = self.owner(address).ok_or(CUresult::INVALID_VALUE)?;
        let (kind, start, bytes) = match owner {
            Owner::Device { start, bytes } => (DEVICE, start, bytes),
            Owner::Pinned { start, bytes } => (HOST, start, bytes),
        };
        match attribute {
            1 => place.set(context::current(self)? as u64),
            2 => place.cast::<u32>().set(kind),
            3 if kind == DEVICE => place.set(address),
            4 if kind == HOST => place.set(address),
            7 | 11 => place.set(start),
            8 => place.cast::<u8>().set(0),
            9 => place.cast::<i32>().set(0),
            12 => place.set(bytes),
            13 => place.cast::<u8>().set(1),
            _ => Err(CUresult::INVALID_VALUE),
        }
    }
}

entry_points! {
    /// One fact about an address of device or page-locked memory.
    healthy fn cuPointerGetAttribute(value: Out<u64>, attribute: u32, address: u64) |call, driver| {
        call.note(format_args!("attribute={attribute} address={address:#x}"));
        driver.pointer_attribute(value, attribute, address)
    }

    /// Several facts about any address; those that do not apply are left at 0.
    healthy fn cuPointerGetAttributes(
        count: u32, attributes: In<u32>, values: In<HostPtr>, address: u64,
    ) |_, driver| {
        for index in 0..count as usize {
            let (attribute, value) = (attributes.at(index)?, values.at(index)?);
            let place = Out::at(value);
            // What does not apply to the address is null or 0, and no error, in this form of the question.
            if driver.pointer_attribute(place, attribute, address).is_err() {
                match attribute {
                    2 | 9 => place.cast::<u32>().set(0)?,
                    8 | 13 => place.cast::<u8>().set(0)?,
                    _ => place.set(0)?,
                }
            }
        }
        Ok(())
    }
}
