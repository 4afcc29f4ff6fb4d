//! Waiting for the command, and passing signals on to it.

#![expect(unsafe_code, reason = "signal masks and process state by system calls")]

use std::{
    fs, io,
    mem::MaybeUninit,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitCode, ExitStatus},
    ptr,
};

use anyhow::{Context as _, Result};

/// Signals that are passed on.
const PASSED: [libc::c_int; 8] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGCONT,
    libc::SIGWINCH,
];

/// The signals that this process now waits for, and what its mask was before.
#[derive(Clone, Copy)]
pub(super) struct Signals {
    awaited: libc::sigset_t,
    before: libc::sigset_t,
}

impl Signals {
    /// Keeps the signals back until they are waited for, so that none comes between the start and the wait.
    pub(super) fn block() -> Result<Self> {
        let mut awaited = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: places for two sets; the first is filled before it is read.
        let (awaited, code, before) = unsafe {
            libc::sigemptyset(awaited.as_mut_ptr());
            for signal in PASSED.into_iter().chain([libc::SIGCHLD]) {
                libc::sigaddset(awaited.as_mut_ptr(), signal);
            }
            let awaited = awaited.assume_init();
            let code = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const awaited, before.as_mut_ptr());
            (awaited, code, before)
        };
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code)).context("blocking signals");
        }
        // SAFETY: filled by the successful call.
        let before = unsafe { before.assume_init() };
        Ok(Self { awaited, before })
    }

    /// Lets the command start with the mask that this process had.
    pub(super) fn restore_in(&self, command: &mut Command) {
        let before = self.before;
        let restore = move || {
            // SAFETY: a set that was filled by the system.
            match unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // SAFETY: one system call.
        unsafe { command.pre_exec(restore) };
    }
}

/// Waits for the end of the command.
pub(super) fn until_ended(mut child: Child, signals: &Signals) -> Result<ExitCode> {
    let pid = libc::pid_t::try_from(child.id()).context("the command's pid")?;
    loop {
        if let Some(status) = child.try_wait().context("waiting for the command")? {
            return Ok(exit_code(status));
        }
        let mut info = MaybeUninit::<libc::siginfo_t>::uninit();
        // SAFETY: a filled set and a place for the answer.
        let signal = unsafe { libc::sigwaitinfo(&raw const signals.awaited, info.as_mut_ptr()) };
        // SAFETY: filled when a signal came, and read only then.
        let by_terminal = signal > 0 && unsafe { info.assume_init() }.si_code > 0;
        // What the terminal sends, it sends to the command as well.
        if signal > 0 && signal != libc::SIGCHLD && !by_terminal {
            // SAFETY: the command has not been collected, so the pid is still its own.
            unsafe { libc::kill(pid, signal) };
        }
    }
}

fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| signal.saturating_add(128)));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

/// What marks this process in its grant: pid and start time.
pub(super) fn own_mark() -> String {
    let pid = std::process::id();
    format!("{pid}.{}", start_ticks(pid).unwrap_or_default())
}

/// Whether the process of a mark still runs; a mark that is none counts as gone.
pub(super) fn is_alive(mark: &str) -> bool {
    let Some((pid, start)) = mark.split_once('.') else {
        return false;
    };
    pid.parse()
        .ok()
        .and_then(start_ticks)
        .is_some_and(|ticks| ticks.to_string() == start)
}

fn start_ticks(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may contain anything; the start is the 20th field after it.
    text.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}
