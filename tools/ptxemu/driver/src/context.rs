//! Contexts: which one is current on a thread, and when the device is emptied. All contexts share the one
//! device's state.

use std::cell::RefCell;
use std::collections::BTreeMap;

use crate::device::known_device;
use crate::driver::{Driver, fresh_handle};
use crate::error::{CUresult, Outcome};
use crate::ffi::{Handle, Out, entry_points};

/// The live contexts.
#[derive(Default)]
pub struct Contexts {
    primary: Option<Primary>,
    /// Those made by `cuCtxCreate`, with their flags.
    created: BTreeMap<Handle, u32>,
    primary_flags: u32,
}

struct Primary {
    handle: Handle,
    device: i32,
    retained: u32,
}

impl Contexts {
    fn holds(&self, context: Handle) -> bool {
        self.created.contains_key(&context)
            || self.primary.as_ref().is_some_and(|primary| primary.handle == context)
    }

    fn none_left(&self) -> bool {
        self.created.is_empty() && self.primary.is_none()
    }

    fn flags(&self, context: Handle) -> u32 {
        self.created.get(&context).copied().unwrap_or(self.primary_flags)
    }
}

thread_local! {
    /// The thread's stack of contexts, the current one last.
    static STACK: RefCell<Vec<Handle>> = const { RefCell::new(Vec::new()) };
}

/// The thread's current context.
pub fn current(driver: &Driver) -> Outcome<Handle> {
    let context = STACK.with_borrow(|stack| stack.last().copied()).filter(|context| *context != 0);
    context.filter(|context| driver.contexts.holds(*context)).ok_or(CUresult::INVALID_CONTEXT)
}

fn known(driver: &Driver, context: Handle) -> Outcome {
    if driver.contexts.holds(context) { Ok(()) } else { Err(CUresult::INVALID_CONTEXT) }
}

fn create(driver: &mut Driver, place: Out<Handle>, flags: u32, device: i32) -> Outcome {
    known_device(driver, device)?;
    let context = fresh_handle();
    place.set(context)?;
    driver.contexts.created.insert(context, flags);
    STACK.with_borrow_mut(|stack| stack.push(context));
    Ok(())
}

/// Waits for what is queued, as ending a context does, and empties the device with the last context.
fn end(driver: &mut Driver) {
    // A fault among the last work has been printed; there is no context left to fail.
    let _ = driver.run_everything();
    if driver.contexts.none_left() {
        driver.reset();
    }
}

/// Stack, printf buffer, heap and so on: what a device of today answers. The emulator needs none of them.
fn limit(limit: u32) -> Outcome<usize> {
    match limit {
        0 => Ok(1024),
        1 => Ok(1 << 20),
        2 => Ok(8 << 20),
        3 => Ok(2),
        4 => Ok(2048),
        5 => Ok(64),
        6 => Ok(0),
        _ => Err(CUresult::UNSUPPORTED_LIMIT),
    }
}

entry_points! {
    /// Makes the primary context, or counts one more user of it.
    initialised fn cuDevicePrimaryCtxRetain(context: Out<Handle>, device: i32) |call, driver| {
        known_device(driver, device)?;
        let new = || Primary { handle: fresh_handle(), device, retained: 0 };
        let primary = driver.contexts.primary.get_or_insert_with(new);
        if primary.device != device {
            let used = primary.device;
            return Err(call.refuse(CUresult::NOT_SUPPORTED, format_args!("the process uses device {used} already")));
        }
        primary.retained += 1;
        context.set(primary.handle)
    }

    /// Counts one user less of the primary context; the last one empties the device.
    initialised fn cuDevicePrimaryCtxRelease_v2(device: i32) |_, driver| {
        known_device(driver, device)?;
        let primary = driver.contexts.primary.as_mut().ok_or(CUresult::INVALID_CONTEXT)?;
        primary.retained -= 1;
        if primary.retained == 0 {
            driver.contexts.primary = None;
            end(driver);
        }
        Ok(())
    }

    /// Empties the device; the users of the primary context keep their handle to it.
    initialised fn cuDevicePrimaryCtxReset_v2(_device: i32) |_, driver| {
        let _ = driver.run_everything();
        driver.reset();
        Ok(())
    }

    /// Flags of the primary context, and whether anybody uses it.
    initialised fn cuDevicePrimaryCtxGetState(_device: i32, flags: Out<u32>, active: Out<i32>) |_, driver| {
        flags.set(driver.contexts.primary_flags)?;
        active.set(driver.contexts.primary.is_some() as i32)
    }

    /// Flags of the primary context.
    initialised fn cuDevicePrimaryCtxSetFlags_v2(_device: i32, flags: u32) |_, driver| {
        driver.contexts.primary_flags = flags;
        Ok(())
    }

    /// Makes a context and puts it on the thread's stack.
    initialised fn cuCtxCreate_v2(context: Out<Handle>, flags: u32, device: i32) |_, driver| {
        create(driver, context, flags, device)
    }

    /// Makes a context; execution affinity is not supported.
    initialised fn cuCtxCreate_v3(
        context: Out<Handle>, _affinity: Handle, count: i32, flags: u32, device: i32,
    ) |_, driver| {
        if count != 0 {
            return Err(CUresult::NOT_SUPPORTED);
        }
        create(driver, context, flags, device)
    }

    /// Makes a context; creation parameters are not supported.
    initialised fn cuCtxCreate_v4(context: Out<Handle>, parameters: Handle, flags: u32, device: i32) |_, driver| {
        if parameters != 0 {
            return Err(CUresult::NOT_SUPPORTED);
        }
        create(driver, context, flags, device)
    }

    /// Ends a context that `cuCtxCreate` made.
    initialised fn cuCtxDestroy_v2(context: Handle) |_, driver| {
        driver.contexts.created.remove(&context).ok_or(CUresult::INVALID_CONTEXT)?;
        STACK.with_borrow_mut(|stack| {
            if stack.last() == Some(&context) {
                stack.pop();
            }
        });
        end(driver);
        Ok(())
    }

    /// Replaces the thread's current context; null takes it off the stack.
    initialised fn cuCtxSetCurrent(context: Handle) |_, driver| {
        if context != 0 {
            known(driver, context)?;
        }
        STACK.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        Ok(())
    }

    /// The thread's current context, null if it has none.
    initialised fn cuCtxGetCurrent(context: Out<Handle>) |_, driver| {
        context.set(current(driver).unwrap_or(0))
    }

    /// Puts a context on the thread's stack.
    initialised fn cuCtxPushCurrent_v2(context: Handle) |_, driver| {
        known(driver, context)?;
        STACK.with_borrow_mut(|stack| stack.push(context));
        Ok(())
    }

    /// Takes the current context off the thread's stack.
    initialised fn cuCtxPopCurrent_v2(context: Out<Handle>) |_, _| {
        let popped = STACK.with_borrow_mut(|stack| stack.pop()).ok_or(CUresult::INVALID_CONTEXT)?;
        context.offer(popped);
        Ok(())
    }

    /// The device of the primary context, which all share.
    bound fn cuCtxGetDevice(device: Out<i32>) |_, driver| {
        device.set(driver.contexts.primary.as_ref().map_or(0, |primary| primary.device))
    }

    /// Runs everything that is queued, on every stream.
    healthy fn cuCtxSynchronize() |_, driver| {
        driver.refuse_while_capturing()?;
        driver.run_everything()
    }

    /// The flags that the context was made with.
    bound fn cuCtxGetFlags(flags: Out<u32>) |_, driver| {
        let context = current(driver)?;
        flags.set(driver.contexts.flags(context))
    }

    /// Scheduling flags: kept, without effect.
    bound fn cuCtxSetFlags(flags: u32) |_, driver| {
        let context = current(driver)?;
        match driver.contexts.created.get_mut(&context) {
            Some(own) => *own = flags,
            None => driver.contexts.primary_flags = flags,
        }
        Ok(())
    }

    /// The API version of a context.
    bound fn cuCtxGetApiVersion(_context: Handle, version: Out<u32>) |_, _| {
        version.set(3020)
    }

    /// A limit of the context.
    healthy fn cuCtxGetLimit(value: Out<usize>, which: u32) |_, _| {
        value.set(limit(which)?)
    }

    /// Accepted without effect: the emulator has none of these limits.
    healthy fn cuCtxSetLimit(which: u32, _value: usize) |_, _| {
        limit(which).map(|_| ())
    }

    /// No preference.
    healthy fn cuCtxGetCacheConfig(config: Out<u32>) |_, _| {
        config.set(0)
    }

    /// Accepted without effect.
    healthy fn cuCtxSetCacheConfig(config: u32) |_, _| {
        if config > 3 { Err(CUresult::INVALID_VALUE) } else { Ok(()) }
    }

    /// From 0 down to -5, as on a device of today; priorities have no effect here.
    healthy fn cuCtxGetStreamPriorityRange(least: Out<i32>, greatest: Out<i32>) |_, _| {
        least.offer(0);
        greatest.offer(crate::stream::GREATEST_PRIORITY);
        Ok(())
    }

    /// Marks the log.
    bound fn cuProfilerStart() |_, _| {
        Ok(())
    }

    /// Marks the log.
    bound fn cuProfilerStop() |_, _| {
        Ok(())
    }
}
