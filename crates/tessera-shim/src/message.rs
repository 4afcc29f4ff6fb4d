//! What a person reads: one line on standard error, by `write`, without formatting.

use core::sync::atomic::{AtomicBool, Ordering};

static SAID: AtomicBool = AtomicBool::new(false);

/// Writes one line, the parts joined, unless one was written before in this process.
pub(crate) fn say_once(parts: &[&str]) {
    if SAID.swap(true, Ordering::Relaxed) {
        return;
    }
    let mut line = [0_u8; 512];
    let prefix = ["tessera: "];
    let bytes = prefix.iter().chain(parts).flat_map(|part| part.bytes());
    let mut length = 0_usize;
    // The last place is kept for the end of the line.
    for (place, byte) in line.iter_mut().take(511).zip(bytes) {
        *place = byte;
        length = length.saturating_add(1);
    }
    if let Some(place) = line.get_mut(length) {
        *place = b'\n';
    }
    // SAFETY: the filled part of the buffer. Standard error may be closed; then nobody reads it.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length.saturating_add(1)) };
}
