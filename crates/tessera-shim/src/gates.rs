//! Entries that wait at a gate: whatever queues work or moves bytes on a card.
//!
//! There are two gates. Memory that is away keeps everything back that could touch it ([`crate::swap`]); a card whose
//! time is shared keeps launches back ([`crate::turns`]). What a container does not need, its programs are not led to.
//!
//! Their arguments are passed on untouched, so each is declared by their number alone: on the platforms that this
//! library is built for every integer and pointer argument takes one register or one eight-byte place of the stack,
//! whose unused upper part the driver ignores.
//!
//! They stand apart from the main table because only a container that needs them is led to them by lookups; a
//! program that is linked to the driver directly pays a load and a branch in the others. The legacy forms with 32-bit
//! addresses are not here: they cannot name memory that moves.

use core::{
    ffi::{CStr, c_void},
    sync::atomic::{AtomicU32, Ordering},
};

use tessera_region::{CardFlags, CardGrant};

use crate::{
    argument::{is_writable, put},
    codes::{self, SUCCESS},
    memory::Form,
    os::KeepErrno,
    process::{self, started},
    swap::{self, pass},
    symbol::{Library, Symbol},
    table::{Class, Entry, Hook},
    turns::{
        self,
        hooks::{
            capture1, capture2, capture6, cooperative, cooperative_per_thread, destroy_stream, extended,
            extended_per_thread, grid, grid_async, kernel, kernel_per_thread, multi, plain_launch,
        },
    },
};

/// Memory of the container may move.
const SWAP: u32 = 1;
/// The time of a card is shared.
const TURNS: u32 = 1 << 1;
const KNOWN: u32 = 1 << 2;

static WANTED: AtomicU32 = AtomicU32::new(0);

/// Which gates this container needs. Asked when a program looks entries up, so it does not wait for the grant to be
/// sealed.
fn wanted() -> u32 {
    let known = WANTED.load(Ordering::Relaxed);
    if known & KNOWN != 0 {
        return known;
    }
    let _errno = KeepErrno::new();
    let mut found = KNOWN;
    if let Some(grant) = process::peek_grant() {
        let moves =
            |card: &CardGrant| card.flags.contains(CardFlags::SWAP) && !card.flags.contains(CardFlags::UNLIMITED);
        if grant.cards().iter().any(moves) {
            found |= SWAP;
        }
        if grant.cards().iter().any(CardGrant::is_gated) {
            found |= TURNS;
        }
    }
    WANTED.store(found, Ordering::Relaxed);
    found
}

/// Which gate an entry waits at, by what does its work.
macro_rules! need {
    (gated) => {
        SWAP
    };
    (address_range) => {
        SWAP
    };
    (give_handle) => {
        SWAP
    };
    (set_attribute) => {
        SWAP
    };
    (capture1) => {
        TURNS
    };
    (capture2) => {
        TURNS
    };
    (capture6) => {
        TURNS
    };
    (destroy_stream) => {
        TURNS
    };
    ($kernel:ident) => {
        SWAP | TURNS
    };
}

const fn c_string(bytes: &'static str) -> &'static CStr {
    match CStr::from_bytes_with_nul(bytes.as_bytes()) {
        Ok(name) => name,
        Err(_) => c"",
    }
}

/// Waits at the gate and calls the driver, or leaves that to a function of this module.
macro_rules! work {
    (gated, $call:expr; $($arg:expr,)*) => {{
        let _pass = pass();
        $call
    }};
    ($work:ident, $call:expr; $($arg:expr,)*) => {
        $work($($arg,)* || $call)
    };
}

/// The entry of a program: waits at its gate, calls the driver.
macro_rules! export {
    ($name:ident($($arg:ident: $type:ty),*) kernel) => {
        quick! { $name($($arg: $type),*) kernel Legacy }
    };
    ($name:ident($($arg:ident: $type:ty),*) kernel_per_thread) => {
        quick! { $name($($arg: $type),*) kernel_per_thread PerThread }
    };
    ($name:ident($($arg:ident: $type:ty),*) $work:ident) => {
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> i32 {
            whole! { $name($($arg: $type),*) $work }
        }
    };
}

macro_rules! whole {
    ($name:ident($($arg:ident: $type:ty),*) $work:ident) => {
        type Real = unsafe extern "C" fn($($type),*) -> i32;
        let Some(address) = symbols::$name.get() else { return codes::NOT_FOUND };
        // SAFETY: the vendor's function of this name takes as many arguments; see the module.
        let real = unsafe { core::mem::transmute::<*mut c_void, Real>(address) };
        // SAFETY: the caller keeps the vendor's conditions, for the arguments of this very function.
        work!($work, unsafe { real($($arg),*) }; $($arg,)*)
    };
}

/// A launch of eleven arguments, or ten. Passing them on costs more than all that is done for the usual launch, so that
/// one is counted and the driver then finds them where the caller left them. On other processors than this one they are
/// passed on.
macro_rules! quick {
    ($name:ident($function:ident: $type:ty, $($arg:ident: $types:ty),*) $work:ident $form:ident) => {
        #[cfg(not(target_arch = "x86_64"))]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        pub unsafe extern "C" fn $name($function: $type, $($arg: $types),*) -> i32 {
            whole! { $name($function: $type, $($arg: $types),*) $work }
        }

        #[cfg(target_arch = "x86_64")]
        mod $name {
            use super::*;

            /// The unusual launch.
            pub(super) unsafe extern "C" fn whole($function: $type, $($arg: $types),*) -> i32 {
                whole! { $name($function: $type, $($arg: $types),*) $work }
            }

            /// Where a launch goes on: at the driver's function, or at `whole`.
            pub(super) extern "C" fn next(function: u64, stream: u64) -> *const c_void {
                match symbols::$name.known() {
                    Some(real) if turns::count(function, stream, Form::$form) => real,
                    _ => whole as *const c_void,
                }
            }
        }

        // Seven words are pushed: the address to return to, six arguments in registers, one for alignment. The stream is the
        // ninth argument, so the third on the stack. No argument is in a vector register.
        #[cfg(target_arch = "x86_64")]
        #[cfg_attr(not(test), unsafe(no_mangle))]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name($function: $type, $($arg: $types),*) -> i32 {
            core::arch::naked_asm!(
                "push rdi",
                "push rsi",
                "push rdx",
                "push rcx",
                "push r8",
                "push r9",
                "sub rsp, 8",
                "mov rsi, [rsp + 80]",
                "call {next}",
                "add rsp, 8",
                "pop r9",
                "pop r8",
                "pop rcx",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "jmp rax",
                next = sym $name::next,
            )
        }
    };
}

macro_rules! gates {
    ($($base:literal $since:literal $name:ident($($arg:ident: $type:ty),*) => $work:ident;)*) => {
        mod symbols {
            use super::*;
            $(
                #[expect(non_upper_case_globals, reason = "the vendor's name")]
                pub(super) static $name: Symbol = Symbol::new(Library::Cuda, c_string(concat!(stringify!($name), "\0")));
            )*
        }

        #[allow(non_snake_case, clippy::too_many_arguments, clippy::fn_to_numeric_cast_any, reason = "the vendor's signatures")]
        mod exported {
            use super::*;
            $(
                export! { $name($($arg: $type),*) $work }
            )*
        }

        /// For each of [`GATES`] who needs it.
        static NEEDS: &[u32] = &[$(need!($work),)*];

        /// All gates, by exported name in byte order.
        pub(crate) static GATES: &[Entry] = &[$(
            Entry {
                symbol: &symbols::$name,
                class: Class::Gates,
                base: c_string(concat!($base, "\0")),
                since: $since,
                hook: Hook::new(exported::$name as unsafe extern "C" fn($($type),*) -> i32 as *const c_void),
            },
        )*];
    };
}

/// Size of an allocation: one that moves is made of pieces, and the driver would tell of a piece.
fn address_range(base: *mut u64, size: *mut usize, address: u64, real: impl FnOnce() -> i32) -> i32 {
    let found = started().and_then(|process| swap::space()?.range(process, address));
    let Some((start, bytes)) = found else { return real() };
    let good =
        |address: usize, size| address == 0 || is_writable(core::ptr::without_provenance_mut::<u8>(address), size);
    if !good(base.addr(), size_of::<u64>()) || !good(size.addr(), size_of::<usize>()) {
        return codes::INVALID_VALUE;
    }
    // SAFETY: null or writable, by the kernel's word.
    unsafe {
        if !base.is_null() {
            put(base, start);
        }
        if !size.is_null() {
            put(size, usize::try_from(bytes).unwrap_or(usize::MAX));
        }
    }
    SUCCESS
}

/// A handle for a range of addresses lets somebody else reach the memory: it stays where it is from now on.
fn give_handle(_handle: u64, address: u64, size: u64, _kind: u64, _flags: u64, real: impl FnOnce() -> i32) -> i32 {
    let _pass = pass();
    let code = real();
    if code == SUCCESS {
        pin(address, size);
    }
    code
}

/// `CU_POINTER_ATTRIBUTE_SYNC_MEMOPS`, which libraries set on memory before a network card is given it.
const SYNC_MEMOPS: u64 = 6;

fn set_attribute(_value: u64, attribute: u64, address: u64, real: impl FnOnce() -> i32) -> i32 {
    let _pass = pass();
    let code = real();
    if code == SUCCESS && attribute & 0xffff_ffff == SYNC_MEMOPS {
        pin(address, 1);
    }
    code
}

#[cold]
fn pin(address: u64, bytes: u64) {
    if let (Some(process), Some(space)) = (started(), swap::space()) {
        space.pin(process, address, bytes);
    }
}

gates! {
    "cuLaunch" 2000 cuLaunch(a: u64) => plain_launch;
    "cuLaunchCooperativeKernel" 9000 cuLaunchCooperativeKernel(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, j: u64) => cooperative;
    "cuLaunchCooperativeKernelMultiDevice" 9000 cuLaunchCooperativeKernelMultiDevice(a: u64, b: u64, c: u64) => multi;
    "cuLaunchCooperativeKernel" 9000 cuLaunchCooperativeKernel_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, j: u64) => cooperative_per_thread;
    "cuLaunchGrid" 2000 cuLaunchGrid(a: u64, b: u64, c: u64) => grid;
    "cuLaunchGridAsync" 2000 cuLaunchGridAsync(a: u64, b: u64, c: u64, d: u64) => grid_async;
    "cuLaunchKernel" 4000 cuLaunchKernel(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, j: u64, k: u64) => kernel;
    "cuLaunchKernelEx" 11060 cuLaunchKernelEx(a: u64, b: u64, c: u64, d: u64) => extended;
    "cuLaunchKernelEx" 11060 cuLaunchKernelEx_ptsz(a: u64, b: u64, c: u64, d: u64) => extended_per_thread;
    "cuLaunchKernel" 7000 cuLaunchKernel_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64, j: u64, k: u64) => kernel_per_thread;
    "cuMemGetAddressRange" 3020 cuMemGetAddressRange_v2(base: *mut u64, size: *mut usize, address: u64) => address_range;
    "cuMemGetHandleForAddressRange" 11070 cuMemGetHandleForAddressRange(handle: u64, address: u64, size: u64, kind: u64, flags: u64) => give_handle;
    "cuMemcpy" 4000 cuMemcpy(a: u64, b: u64, c: u64) => gated;
    "cuMemcpy2DAsync" 3020 cuMemcpy2DAsync_v2(a: u64, b: u64) => gated;
    "cuMemcpy2DAsync" 7000 cuMemcpy2DAsync_v2_ptsz(a: u64, b: u64) => gated;
    "cuMemcpy2DUnaligned" 3020 cuMemcpy2DUnaligned_v2(a: u64) => gated;
    "cuMemcpy2DUnaligned" 7000 cuMemcpy2DUnaligned_v2_ptds(a: u64) => gated;
    "cuMemcpy2D" 3020 cuMemcpy2D_v2(a: u64) => gated;
    "cuMemcpy2D" 7000 cuMemcpy2D_v2_ptds(a: u64) => gated;
    "cuMemcpy3DAsync" 3020 cuMemcpy3DAsync_v2(a: u64, b: u64) => gated;
    "cuMemcpy3DAsync" 7000 cuMemcpy3DAsync_v2_ptsz(a: u64, b: u64) => gated;
    "cuMemcpy3DBatchAsync" 12080 cuMemcpy3DBatchAsync(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpy3DBatchAsync" 12080 cuMemcpy3DBatchAsync_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpy3DBatchAsync" 13000 cuMemcpy3DBatchAsync_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpy3DBatchAsync" 13000 cuMemcpy3DBatchAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpy3DPeer" 4000 cuMemcpy3DPeer(a: u64) => gated;
    "cuMemcpy3DPeerAsync" 4000 cuMemcpy3DPeerAsync(a: u64, b: u64) => gated;
    "cuMemcpy3DPeerAsync" 7000 cuMemcpy3DPeerAsync_ptsz(a: u64, b: u64) => gated;
    "cuMemcpy3DPeer" 7000 cuMemcpy3DPeer_ptds(a: u64) => gated;
    "cuMemcpy3DWithAttributesAsync" 13020 cuMemcpy3DWithAttributesAsync(a: u64, b: u64, c: u64) => gated;
    "cuMemcpy3DWithAttributesAsync" 13020 cuMemcpy3DWithAttributesAsync_ptsz(a: u64, b: u64, c: u64) => gated;
    "cuMemcpy3D" 3020 cuMemcpy3D_v2(a: u64) => gated;
    "cuMemcpy3D" 7000 cuMemcpy3D_v2_ptds(a: u64) => gated;
    "cuMemcpyAsync" 4000 cuMemcpyAsync(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyAsync" 7000 cuMemcpyAsync_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyAtoA" 3020 cuMemcpyAtoA_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyAtoA" 7000 cuMemcpyAtoA_v2_ptds(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyAtoD" 3020 cuMemcpyAtoD_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyAtoD" 7000 cuMemcpyAtoD_v2_ptds(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyAtoHAsync" 3020 cuMemcpyAtoHAsync_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyAtoHAsync" 7000 cuMemcpyAtoHAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyAtoH" 3020 cuMemcpyAtoH_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyAtoH" 7000 cuMemcpyAtoH_v2_ptds(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyBatchAsync" 12080 cuMemcpyBatchAsync(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64) => gated;
    "cuMemcpyBatchAsync" 12080 cuMemcpyBatchAsync_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64, i: u64) => gated;
    "cuMemcpyBatchAsync" 13000 cuMemcpyBatchAsync_v2(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64) => gated;
    "cuMemcpyBatchAsync" 13000 cuMemcpyBatchAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64, g: u64, h: u64) => gated;
    "cuMemcpyDtoA" 3020 cuMemcpyDtoA_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoA" 7000 cuMemcpyDtoA_v2_ptds(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoDAsync" 3020 cuMemcpyDtoDAsync_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoDAsync" 7000 cuMemcpyDtoDAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoD" 3020 cuMemcpyDtoD_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyDtoD" 7000 cuMemcpyDtoD_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyDtoHAsync" 3020 cuMemcpyDtoHAsync_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoHAsync" 7000 cuMemcpyDtoHAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyDtoH" 3020 cuMemcpyDtoH_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyDtoH" 7000 cuMemcpyDtoH_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyHtoAAsync" 3020 cuMemcpyHtoAAsync_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyHtoAAsync" 7000 cuMemcpyHtoAAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyHtoA" 3020 cuMemcpyHtoA_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyHtoA" 7000 cuMemcpyHtoA_v2_ptds(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyHtoDAsync" 3020 cuMemcpyHtoDAsync_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyHtoDAsync" 7000 cuMemcpyHtoDAsync_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemcpyHtoD" 3020 cuMemcpyHtoD_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyHtoD" 7000 cuMemcpyHtoD_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemcpyPeer" 4000 cuMemcpyPeer(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyPeerAsync" 4000 cuMemcpyPeerAsync(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemcpyPeerAsync" 7000 cuMemcpyPeerAsync_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemcpyPeer" 7000 cuMemcpyPeer_ptds(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyWithAttributesAsync" 13020 cuMemcpyWithAttributesAsync(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpyWithAttributesAsync" 13020 cuMemcpyWithAttributesAsync_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemcpy" 7000 cuMemcpy_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD16Async" 3020 cuMemsetD16Async(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD16Async" 7000 cuMemsetD16Async_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD16" 3020 cuMemsetD16_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD16" 7000 cuMemsetD16_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD2D16Async" 3020 cuMemsetD2D16Async(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D16Async" 7000 cuMemsetD2D16Async_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D16" 3020 cuMemsetD2D16_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD2D16" 7000 cuMemsetD2D16_v2_ptds(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD2D32Async" 3020 cuMemsetD2D32Async(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D32Async" 7000 cuMemsetD2D32Async_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D32" 3020 cuMemsetD2D32_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD2D32" 7000 cuMemsetD2D32_v2_ptds(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD2D8Async" 3020 cuMemsetD2D8Async(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D8Async" 7000 cuMemsetD2D8Async_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => gated;
    "cuMemsetD2D8" 3020 cuMemsetD2D8_v2(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD2D8" 7000 cuMemsetD2D8_v2_ptds(a: u64, b: u64, c: u64, d: u64, e: u64) => gated;
    "cuMemsetD32Async" 3020 cuMemsetD32Async(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD32Async" 7000 cuMemsetD32Async_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD32" 3020 cuMemsetD32_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD32" 7000 cuMemsetD32_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD8Async" 3020 cuMemsetD8Async(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD8Async" 7000 cuMemsetD8Async_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuMemsetD8" 3020 cuMemsetD8_v2(a: u64, b: u64, c: u64) => gated;
    "cuMemsetD8" 7000 cuMemsetD8_v2_ptds(a: u64, b: u64, c: u64) => gated;
    "cuPointerSetAttribute" 6000 cuPointerSetAttribute(value: u64, attribute: u64, address: u64) => set_attribute;
    "cuStreamBatchMemOp" 8000 cuStreamBatchMemOp(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamBatchMemOp" 8000 cuStreamBatchMemOp_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamBatchMemOp" 11070 cuStreamBatchMemOp_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamBatchMemOp" 11070 cuStreamBatchMemOp_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamBeginCapture" 10000 cuStreamBeginCapture(a: u64) => capture1;
    "cuStreamBeginCaptureToGraph" 12030 cuStreamBeginCaptureToGraph(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => capture6;
    "cuStreamBeginCaptureToGraph" 12030 cuStreamBeginCaptureToGraph_ptsz(a: u64, b: u64, c: u64, d: u64, e: u64, f: u64) => capture6;
    "cuStreamBeginCapture" 10000 cuStreamBeginCapture_ptsz(a: u64) => capture1;
    "cuStreamBeginCapture" 10010 cuStreamBeginCapture_v2(a: u64, b: u64) => capture2;
    "cuStreamBeginCapture" 10010 cuStreamBeginCapture_v2_ptsz(a: u64, b: u64) => capture2;
    "cuStreamDestroy" 2000 cuStreamDestroy(a: u64) => destroy_stream;
    "cuStreamDestroy" 4000 cuStreamDestroy_v2(a: u64) => destroy_stream;
    "cuStreamWaitValue32" 8000 cuStreamWaitValue32(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue32" 8000 cuStreamWaitValue32_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue32" 11070 cuStreamWaitValue32_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue32" 11070 cuStreamWaitValue32_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue64" 9000 cuStreamWaitValue64(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue64" 9000 cuStreamWaitValue64_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue64" 11070 cuStreamWaitValue64_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWaitValue64" 11070 cuStreamWaitValue64_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue32" 8000 cuStreamWriteValue32(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue32" 8000 cuStreamWriteValue32_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue32" 11070 cuStreamWriteValue32_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue32" 11070 cuStreamWriteValue32_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue64" 9000 cuStreamWriteValue64(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue64" 9000 cuStreamWriteValue64_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue64" 11070 cuStreamWriteValue64_v2(a: u64, b: u64, c: u64, d: u64) => gated;
    "cuStreamWriteValue64" 11070 cuStreamWriteValue64_v2_ptsz(a: u64, b: u64, c: u64, d: u64) => gated;
}

/// The gate with this exported name, in a container that needs it.
pub(crate) fn find(name: &CStr) -> Option<&'static Entry> {
    let index = GATES.binary_search_by(|entry| entry.symbol.name.cmp(name)).ok()?;
    let need = NEEDS.get(index).copied().unwrap_or_default();
    GATES.get(index).filter(|_| wanted() & need != 0)
}

/// The gates that this container needs, for a name that `cuGetProcAddress` may be asked for.
pub(crate) fn forms(base: &CStr) -> impl Iterator<Item = &'static Entry> {
    let wanted = wanted();
    GATES
        .iter()
        .zip(NEEDS)
        .filter(move |(entry, need)| **need & wanted != 0 && entry.base == base)
        .map(|(entry, _)| entry)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use crate::table::TABLE;

    #[test]
    fn gates_are_in_order_and_in_no_other_table() {
        for pair in GATES.windows(2) {
            assert!(pair[0].symbol.name < pair[1].symbol.name, "{:?}", pair[1].symbol.name);
        }
        for gate in GATES {
            assert!(
                TABLE.iter().all(|entry| entry.symbol.name != gate.symbol.name),
                "{:?} is in the main table too: pass the gate there and take it out here",
                gate.symbol.name
            );
        }
    }

    #[test]
    fn without_a_grant_that_needs_one_no_lookup_finds_a_gate() {
        assert!(find(c"cuMemcpyDtoH_v2").is_none());
        assert!(find(c"cuLaunchKernel").is_none());
    }
}
