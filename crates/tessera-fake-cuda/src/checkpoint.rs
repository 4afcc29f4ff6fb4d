//! Checkpoints of a whole process by its pid.

use std::ffi::c_int;
use std::time::Duration;

use tessera_fake_core::{CheckpointError, Machine};

use crate::abi::{ILLEGAL_STATE, INVALID_VALUE, NOT_INITIALIZED, NOT_READY, OUT_OF_MEMORY, R, Res, get, put};
use crate::state;

fn machine() -> Res<&'static Machine> {
    // A program may steer another one without using a card itself.
    state::machine().ok_or(NOT_INITIALIZED)
}

fn code(result: Result<(), CheckpointError>) -> R {
    result.map_err(|e| match e {
        CheckpointError::NoProcess => INVALID_VALUE,
        CheckpointError::State => ILLEGAL_STATE,
        CheckpointError::Timeout => NOT_READY,
        CheckpointError::Full => OUT_OF_MEMORY,
    })
}

fn pid(number: c_int) -> Res<u32> {
    u32::try_from(number).ok().filter(|pid| *pid > 0).ok_or(INVALID_VALUE)
}

unsafe fn plain(args: *const [u64; 8]) -> R {
    // SAFETY: null, or the eight words of the interface. Custom storage is not simulated.
    if !args.is_null() && unsafe { get(args) }?.iter().any(|word| *word != 0) {
        return Err(INVALID_VALUE);
    }
    Ok(())
}

api! {
    fn cuCheckpointProcessGetState(number: c_int, out: *mut c_int) {
        let found = machine()?.checkpoint_state(pid(number)?).map_err(|_| INVALID_VALUE)?;
        put(out, found as c_int)
    }
    fn cuCheckpointProcessGetRestoreThreadId(number: c_int, out: *mut c_int) {
        machine()?.checkpoint_state(pid(number)?).map_err(|_| INVALID_VALUE)?;
        put(out, number)
    }
    fn cuCheckpointProcessLock(number: c_int, args: *const [u64; 8]) {
        let words = if args.is_null() { [0; 8] } else { get(args)? };
        if words[0] >> 32 != 0 || words[1..].iter().any(|word| *word != 0) {
            return Err(INVALID_VALUE);
        }
        let most = (words[0] > 0).then(|| Duration::from_millis(words[0]));
        code(machine()?.checkpoint_lock(pid(number)?, most))
    }
    fn cuCheckpointProcessCheckpoint(number: c_int, args: *const [u64; 8]) {
        plain(args)?;
        code(machine()?.checkpoint(pid(number)?))
    }
    fn cuCheckpointProcessRestore(number: c_int, args: *const [u64; 8]) {
        plain(args)?;
        code(machine()?.checkpoint_restore(pid(number)?))
    }
    fn cuCheckpointProcessUnlock(number: c_int, args: *const [u64; 8]) {
        plain(args)?;
        code(machine()?.checkpoint_unlock(pid(number)?))
    }
}
