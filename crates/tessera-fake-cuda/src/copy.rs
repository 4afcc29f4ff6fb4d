//! Copies and fills.

use std::ffi::{c_uchar, c_uint, c_ushort};

use crate::abi::{INVALID_HANDLE, INVALID_VALUE, R, Res, get};
use crate::capture;
use crate::graph::NodeKind;
use crate::state::{self, Driver, Inner, Kind};
use crate::stream;

/// Bytes of one call that are really moved.
pub(crate) const COPY_MAX: u64 = 64 << 20;

/// One copy or fill.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Operation {
    /// Bytes in a row.
    Linear { to: u64, from: u64, len: u64 },
    /// A box out of a larger box.
    Block { to: Side, from: Side, size: [u64; 3] },
    /// A pattern of 1, 2 or 4 bytes.
    Fill {
        to: u64,
        pitch: u64,
        value: u32,
        element: u32,
        width: u64,
        height: u64,
    },
}

/// One side of a box copy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Side {
    base: u64,
    /// Bytes of a row.
    pitch: u64,
    /// Rows of a layer.
    rows: u64,
}

/// Fails when an address that looks like device memory is none.
pub(crate) fn check(inner: &Inner, address: u64, len: u64) -> R {
    if address == 0 && len > 0 {
        return Err(INVALID_VALUE);
    }
    let end = address.checked_add(len).ok_or(INVALID_VALUE)?;
    if inner.arena.as_ref().is_some_and(|a| a.contains(address)) {
        let (at, alloc) = inner.find(address).ok_or(INVALID_VALUE)?;
        return if end <= at + alloc.size {
            Ok(())
        } else {
            Err(INVALID_VALUE)
        };
    }
    if let Some((start, size)) = inner.reserved.range(..=address).next_back()
        && address < start + size
    {
        // Every byte must be mapped.
        let mut at = address;
        while at < end {
            let (from, mapping) = inner.mappings.range(..=at).next_back().ok_or(INVALID_VALUE)?;
            if at >= from + mapping.size {
                return Err(INVALID_VALUE);
            }
            at = from + mapping.size;
        }
    }
    Ok(())
}

/// Whether an address is memory of a card.
fn on_card(inner: &Inner, address: u64) -> bool {
    match inner.find(address) {
        Some((_, alloc)) => !matches!(alloc.kind, Kind::Host(_) | Kind::Registered(_)),
        None => inner
            .mappings
            .range(..=address)
            .next_back()
            .is_some_and(|(at, m)| address < at + m.size),
    }
}

fn span(side: &Side, size: [u64; 3]) -> Res<u64> {
    if size.contains(&0) {
        return Ok(0);
    }
    let rows = (size[2] - 1)
        .checked_mul(side.rows)
        .and_then(|r| r.checked_add(size[1] - 1))
        .ok_or(INVALID_VALUE)?;
    rows.checked_mul(side.pitch)
        .and_then(|b| b.checked_add(size[0]))
        .ok_or(INVALID_VALUE)
}

impl Operation {
    /// Bytes that cross the link to the host.
    fn crossing(&self, inner: &Inner) -> u64 {
        let (to, from, bytes) = match self {
            Self::Linear { to, from, len } => (*to, *from, *len),
            Self::Block { to, from, size } => (to.base, from.base, size.iter().product()),
            Self::Fill { .. } => return 0,
        };
        if on_card(inner, to) && on_card(inner, from) {
            0
        } else {
            bytes
        }
    }

    /// Whether all its addresses are good.
    pub(crate) fn check(&self, inner: &Inner) -> R {
        match self {
            Self::Linear { to, from, len } => {
                check(inner, *to, *len)?;
                check(inner, *from, *len)
            }
            Self::Block { to, from, size } => {
                check(inner, to.base, span(to, *size)?)?;
                check(inner, from.base, span(from, *size)?)
            }
            Self::Fill {
                to,
                pitch,
                element,
                width,
                height,
                ..
            } => {
                let row = width.checked_mul(u64::from(*element)).ok_or(INVALID_VALUE)?;
                let side = Side {
                    base: *to,
                    pitch: *pitch,
                    rows: *height,
                };
                if *height > 1 && *pitch < row {
                    return Err(INVALID_VALUE);
                }
                check(inner, *to, span(&side, [row, *height, 1])?)
            }
        }
    }

    /// Moves the bytes.
    ///
    /// # Safety
    /// [`Operation::check`] passed and no allocation went since; host addresses are the client's word.
    pub(crate) unsafe fn run(&self) {
        // SAFETY: see above; ranges may overlap, so all copies are moves.
        unsafe {
            match *self {
                Self::Linear { to, from, len } => {
                    std::ptr::copy(from as *const u8, to as *mut u8, len.min(COPY_MAX) as usize)
                }
                Self::Block { to, from, size } => {
                    if size.contains(&0) {
                        return;
                    }
                    let mut left = COPY_MAX;
                    for z in 0..size[2] {
                        for y in 0..size[1] {
                            if left < size[0] {
                                return;
                            }
                            left -= size[0];
                            std::ptr::copy(
                                (from.base + (z * from.rows + y) * from.pitch) as *const u8,
                                (to.base + (z * to.rows + y) * to.pitch) as *mut u8,
                                size[0] as usize,
                            );
                        }
                    }
                }
                Self::Fill {
                    to,
                    pitch,
                    value,
                    element,
                    width,
                    height,
                } => {
                    let mut left = COPY_MAX / u64::from(element.max(1));
                    for y in 0..height {
                        let count = width.min(left) as usize;
                        if count == 0 {
                            return;
                        }
                        left -= count as u64;
                        let row = to + y * pitch;
                        match element {
                            1 => std::ptr::write_bytes(row as *mut u8, value as u8, count),
                            2 => {
                                for i in 0..count {
                                    (row as *mut u16).add(i).write_unaligned(value as u16);
                                }
                            }
                            _ => {
                                for i in 0..count {
                                    (row as *mut u32).add(i).write_unaligned(value);
                                }
                            }
                        }
                        if left == 0 {
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// Does an operation in a stream; without a stream it first waits for the default stream.
fn submit(operation: Operation, stream: Option<u64>, pt: bool) -> R {
    let driver = state::driver()?;
    let here = {
        let inner = &mut *driver.lock();
        driver.current(inner)?;
        let handle = stream::resolve(driver, inner, stream.unwrap_or(0), pt)?;
        operation.check(inner)?;
        if capture::active(inner, handle)? {
            return capture::record(inner, handle, NodeKind::Copy { operation }).map(|_| ());
        }
        let time = driver.machine.link_ns(operation.crossing(inner));
        let mut here = stream::mark(inner, handle);
        if time > 0 {
            // The link is not the card's SMs: a copy takes its stream's time and nothing of theirs.
            here.time = here.time.max(driver.machine.now_ns()) + time;
            stream::advance(inner, handle, here.time);
        }
        here
    };
    if stream.is_none() {
        here.wait(driver);
    }
    perform(driver, &operation)
}

/// Moves the bytes with the addresses held.
pub(crate) fn perform(driver: &Driver, operation: &Operation) -> R {
    let inner = driver.lock();
    operation.check(&inner)?;
    // SAFETY: just checked, and the lock keeps the allocations.
    unsafe { operation.run() };
    Ok(())
}

fn linear(to: u64, from: u64, len: usize, stream: Option<u64>, pt: bool) -> R {
    let len = len as u64;
    submit(Operation::Linear { to, from, len }, stream, pt)
}

fn fill(
    to: u64,
    pitch: usize,
    value: u32,
    element: u32,
    width: usize,
    height: usize,
    stream: Option<u64>,
    pt: bool,
) -> R {
    if !to.is_multiple_of(u64::from(element)) {
        return Err(INVALID_VALUE);
    }
    let operation = Operation::Fill {
        to,
        pitch: pitch as u64,
        value,
        element,
        width: width as u64,
        height: height as u64,
    };
    submit(operation, stream, pt)
}

/// Address of a byte of an array.
fn in_array(array: u64, offset: usize, len: usize) -> Res<u64> {
    let driver = state::driver()?;
    let inner = driver.lock();
    let entry = inner.arrays.get(&array).ok_or(INVALID_HANDLE)?;
    let end = offset.checked_add(len).ok_or(INVALID_VALUE)?;
    if entry.address == 0 || end as u64 > entry.bytes {
        return Err(INVALID_VALUE);
    }
    Ok(entry.address + offset as u64)
}

/// One side of a described copy: memory type, host address, device address, array, pitch, rows, start.
fn side(
    inner: &Inner,
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    pitch: u64,
    rows: u64,
    at: [u64; 3],
    width: u64,
) -> Res<Side> {
    let (base, pitch, rows) = match kind {
        1 => (host, pitch, rows),
        2 | 4 => (device, pitch, rows),
        3 => {
            let entry = inner.arrays.get(&array).ok_or(INVALID_HANDLE)?;
            (entry.address, entry.row, entry.height.max(1))
        }
        _ => return Err(INVALID_VALUE),
    };
    // A missing pitch means that rows follow each other.
    let pitch = if pitch == 0 { width } else { pitch };
    let start = at[2]
        .checked_mul(rows)
        .and_then(|r| r.checked_add(at[1]))
        .and_then(|r| r.checked_mul(pitch))
        .and_then(|b| b.checked_add(at[0]))
        .and_then(|b| b.checked_add(base))
        .ok_or(INVALID_VALUE)?;
    Ok(Side {
        base: start,
        pitch,
        rows,
    })
}

/// The three-dimensional description (also its form between contexts) as an operation.
pub(crate) fn block(inner: &Inner, w: &[u64; 25]) -> Res<Operation> {
    let from = side(
        inner,
        w[4] as u32,
        w[5],
        w[6],
        w[7],
        w[9],
        w[10].max(1),
        [w[0], w[1], w[2]],
        w[22],
    )?;
    let to = side(
        inner,
        w[15] as u32,
        w[16],
        w[17],
        w[18],
        w[20],
        w[21].max(1),
        [w[11], w[12], w[13]],
        w[22],
    )?;
    Ok(Operation::Block {
        to,
        from,
        size: [w[22], w[23], w[24]],
    })
}

unsafe fn flat(copy: *const [u64; 16], stream: Option<u64>, pt: bool) -> R {
    let driver = state::driver()?;
    // SAFETY: the caller of the entry point gives a description.
    let w = unsafe { get(copy) }?;
    let operation = {
        let inner = driver.lock();
        let from = side(&inner, w[2] as u32, w[3], w[4], w[5], w[6], 1, [w[0], w[1], 0], w[14])?;
        let to = side(
            &inner,
            w[9] as u32,
            w[10],
            w[11],
            w[12],
            w[13],
            1,
            [w[7], w[8], 0],
            w[14],
        )?;
        Operation::Block {
            to,
            from,
            size: [w[14], w[15], 1],
        }
    };
    submit(operation, stream, pt)
}

unsafe fn deep(copy: *const [u64; 25], stream: Option<u64>, pt: bool) -> R {
    let driver = state::driver()?;
    // SAFETY: the caller of the entry point gives a description.
    let words = unsafe { get(copy) }?;
    let operation = block(&driver.lock(), &words)?;
    submit(operation, stream, pt)
}

api! {
    fn cuMemcpy(to: u64, from: u64, len: usize) also cuMemcpy_ptds { linear(to, from, len, None, PT) }
    fn cuMemcpyAsync(to: u64, from: u64, len: usize, stream: u64) also cuMemcpyAsync_ptsz { linear(to, from, len, Some(stream), PT) }
    fn cuMemcpyPeer(to: u64, a: u64, from: u64, b: u64, len: usize) also cuMemcpyPeer_ptds { let _ = (a, b); linear(to, from, len, None, PT) }
    fn cuMemcpyPeerAsync(to: u64, a: u64, from: u64, b: u64, len: usize, stream: u64) also cuMemcpyPeerAsync_ptsz { let _ = (a, b); linear(to, from, len, Some(stream), PT) }
    fn cuMemcpyHtoD_v2(to: u64, from: u64, len: usize) also cuMemcpyHtoD_v2_ptds { linear(to, from, len, None, PT) }
    fn cuMemcpyDtoH_v2(to: u64, from: u64, len: usize) also cuMemcpyDtoH_v2_ptds { linear(to, from, len, None, PT) }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, len: usize) also cuMemcpyDtoD_v2_ptds { linear(to, from, len, None, PT) }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) also cuMemcpyHtoDAsync_v2_ptsz { linear(to, from, len, Some(stream), PT) }
    fn cuMemcpyDtoHAsync_v2(to: u64, from: u64, len: usize, stream: u64) also cuMemcpyDtoHAsync_v2_ptsz { linear(to, from, len, Some(stream), PT) }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, len: usize, stream: u64) also cuMemcpyDtoDAsync_v2_ptsz { linear(to, from, len, Some(stream), PT) }
    fn cuMemcpyDtoA_v2(array: u64, at: usize, from: u64, len: usize) also cuMemcpyDtoA_v2_ptds { linear(in_array(array, at, len)?, from, len, None, PT) }
    fn cuMemcpyAtoD_v2(to: u64, array: u64, at: usize, len: usize) also cuMemcpyAtoD_v2_ptds { linear(to, in_array(array, at, len)?, len, None, PT) }
    fn cuMemcpyHtoA_v2(array: u64, at: usize, from: u64, len: usize) also cuMemcpyHtoA_v2_ptds { linear(in_array(array, at, len)?, from, len, None, PT) }
    fn cuMemcpyAtoH_v2(to: u64, array: u64, at: usize, len: usize) also cuMemcpyAtoH_v2_ptds { linear(to, in_array(array, at, len)?, len, None, PT) }
    fn cuMemcpyAtoA_v2(to: u64, at: usize, from: u64, start: usize, len: usize) also cuMemcpyAtoA_v2_ptds { linear(in_array(to, at, len)?, in_array(from, start, len)?, len, None, PT) }
    fn cuMemcpyHtoAAsync_v2(array: u64, at: usize, from: u64, len: usize, stream: u64) also cuMemcpyHtoAAsync_v2_ptsz { linear(in_array(array, at, len)?, from, len, Some(stream), PT) }
    fn cuMemcpyAtoHAsync_v2(to: u64, array: u64, at: usize, len: usize, stream: u64) also cuMemcpyAtoHAsync_v2_ptsz { linear(to, in_array(array, at, len)?, len, Some(stream), PT) }
    fn cuMemcpy2D_v2(copy: *const [u64; 16]) also cuMemcpy2D_v2_ptds { flat(copy, None, PT) }
    fn cuMemcpy2DUnaligned_v2(copy: *const [u64; 16]) also cuMemcpy2DUnaligned_v2_ptds { flat(copy, None, PT) }
    fn cuMemcpy2DAsync_v2(copy: *const [u64; 16], stream: u64) also cuMemcpy2DAsync_v2_ptsz { flat(copy, Some(stream), PT) }
    fn cuMemcpy3D_v2(copy: *const [u64; 25]) also cuMemcpy3D_v2_ptds { deep(copy, None, PT) }
    fn cuMemcpy3DAsync_v2(copy: *const [u64; 25], stream: u64) also cuMemcpy3DAsync_v2_ptsz { deep(copy, Some(stream), PT) }
    fn cuMemcpy3DPeer(copy: *const [u64; 25]) also cuMemcpy3DPeer_ptds { deep(copy, None, PT) }
    fn cuMemcpy3DPeerAsync(copy: *const [u64; 25], stream: u64) also cuMemcpy3DPeerAsync_ptsz { deep(copy, Some(stream), PT) }
    fn cuMemsetD8_v2(to: u64, value: c_uchar, count: usize) also cuMemsetD8_v2_ptds { fill(to, 0, u32::from(value), 1, count, 1, None, PT) }
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) also cuMemsetD16_v2_ptds { fill(to, 0, u32::from(value), 2, count, 1, None, PT) }
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) also cuMemsetD32_v2_ptds { fill(to, 0, value, 4, count, 1, None, PT) }
    fn cuMemsetD8Async(to: u64, value: c_uchar, count: usize, stream: u64) also cuMemsetD8Async_ptsz { fill(to, 0, u32::from(value), 1, count, 1, Some(stream), PT) }
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: u64) also cuMemsetD16Async_ptsz { fill(to, 0, u32::from(value), 2, count, 1, Some(stream), PT) }
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: u64) also cuMemsetD32Async_ptsz { fill(to, 0, value, 4, count, 1, Some(stream), PT) }
    fn cuMemsetD2D8_v2(to: u64, pitch: usize, value: c_uchar, width: usize, height: usize) also cuMemsetD2D8_v2_ptds { fill(to, pitch, u32::from(value), 1, width, height, None, PT) }
    fn cuMemsetD2D16_v2(to: u64, pitch: usize, value: c_ushort, width: usize, height: usize) also cuMemsetD2D16_v2_ptds { fill(to, pitch, u32::from(value), 2, width, height, None, PT) }
    fn cuMemsetD2D32_v2(to: u64, pitch: usize, value: c_uint, width: usize, height: usize) also cuMemsetD2D32_v2_ptds { fill(to, pitch, value, 4, width, height, None, PT) }
    fn cuMemsetD2D8Async(to: u64, pitch: usize, value: c_uchar, width: usize, height: usize, stream: u64) also cuMemsetD2D8Async_ptsz { fill(to, pitch, u32::from(value), 1, width, height, Some(stream), PT) }
    fn cuMemsetD2D16Async(to: u64, pitch: usize, value: c_ushort, width: usize, height: usize, stream: u64) also cuMemsetD2D16Async_ptsz { fill(to, pitch, u32::from(value), 2, width, height, Some(stream), PT) }
    fn cuMemsetD2D32Async(to: u64, pitch: usize, value: c_uint, width: usize, height: usize, stream: u64) also cuMemsetD2D32Async_ptsz { fill(to, pitch, value, 4, width, height, Some(stream), PT) }
}
