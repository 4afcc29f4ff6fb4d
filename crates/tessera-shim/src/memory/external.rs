//! Memory of other interfaces (Vulkan, Direct3D, buffers by file descriptor): charged when it is first mapped, once
//! per import.

use core::ffi::c_void;

use super::{allocate, array::Descriptor3d, free};
use crate::{
    address::{Entry, Space},
    argument::given,
    codes::INVALID_VALUE,
    place::{self, current_context},
    process::started,
};

/// `CUDA_EXTERNAL_MEMORY_BUFFER_DESC`, as far as it matters.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct BufferDescriptor {
    offset: u64,
    size: u64,
}

pub(crate) unsafe fn map_buffer(
    real: unsafe extern "C" fn(*mut u64, u64, *const BufferDescriptor) -> i32,
    out: *mut u64,
    memory: u64,
    descriptor: *const BufferDescriptor,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, memory, descriptor) };
    if descriptor.is_null() {
        return call();
    }
    // SAFETY: integers only.
    match unsafe { given(descriptor) } {
        Some(descriptor) => charged_once(memory, descriptor.size, call),
        None => INVALID_VALUE,
    }
}

/// `CUDA_EXTERNAL_MEMORY_MIPMAPPED_ARRAY_DESC`, as far as it matters.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ArrayDescriptor {
    offset: u64,
    array: Descriptor3d,
    levels: u32,
}

pub(crate) unsafe fn map_array(
    real: unsafe extern "C" fn(*mut u64, u64, *const ArrayDescriptor) -> i32,
    out: *mut u64,
    memory: u64,
    descriptor: *const ArrayDescriptor,
) -> i32 {
    // SAFETY: the caller's arguments.
    let call = || unsafe { real(out, memory, descriptor) };
    if descriptor.is_null() {
        return call();
    }
    // SAFETY: integers only.
    let Some(descriptor) = (unsafe { given(descriptor) }) else {
        return INVALID_VALUE;
    };
    let size = descriptor.array.bytes(descriptor.levels);
    charged_once(memory, size.unwrap_or(u64::MAX), call)
}

fn charged_once(memory: u64, size: u64, call: impl FnOnce() -> i32) -> i32 {
    if started().is_some_and(|process| process.table.get(Space::External, memory).is_some()) {
        return call();
    }
    allocate(place::current(), size, call, |entry| {
        (
            Space::External,
            memory,
            Entry {
                context: current_context(),
                ..entry
            },
        )
    })
}

pub(crate) unsafe fn destroy(real: unsafe extern "C" fn(*mut c_void) -> i32, memory: *mut c_void) -> i32 {
    let key = u64::try_from(memory.addr()).unwrap_or_default();
    // SAFETY: the caller's argument.
    free(started(), Space::External, key, || unsafe { real(memory) })
}
