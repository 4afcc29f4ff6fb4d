//! A program that uses the driver the way any program does: it opens the libraries by soname and
//! looks functions up. Commands on standard input, one answer a line on standard output.
//!
//! `lib64` of a driver root must be in `LD_LIBRARY_PATH`, and the root in `TESSERA_SIM_ROOT`.
#![allow(unsafe_code, reason = "calls into C libraries")]
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "an example")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "widths of the interface"
)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io::{BufRead, Write};

use libloading::{Library, Symbol};

struct Client {
    cuda: Option<Library>,
    nvml: Option<Library>,
    blocks: Vec<u64>,
}

macro_rules! call {
    ($lib:expr, $name:literal, ($($type:ty),*), $($arg:expr),*) => {{
        // SAFETY: the type is that of the public header.
        unsafe {
            let f: Symbol<'_, unsafe extern "C" fn($($type),*) -> c_int> = $lib.get($name).unwrap();
            f($($arg),*)
        }
    }};
}

impl Client {
    fn cuda(&mut self) -> &Library {
        // SAFETY: the library's initialisers do nothing.
        self.cuda
            .get_or_insert_with(|| unsafe { Library::new("libcuda.so.1").unwrap() })
    }

    fn nvml(&mut self) -> &Library {
        if self.nvml.is_none() {
            // SAFETY: as above.
            let lib = unsafe { Library::new("libnvidia-ml.so.1").unwrap() };
            call!(lib, b"nvmlInit_v2", (),);
            self.nvml = Some(lib);
        }
        self.nvml.as_ref().unwrap()
    }

    fn alloc(&mut self, bytes: usize) -> c_int {
        let mut address = 0u64;
        let code = call!(
            self.cuda(),
            b"cuMemAlloc_v2",
            (*mut u64, usize),
            &raw mut address,
            bytes
        );
        if code == 0 {
            self.blocks.push(address);
        }
        code
    }

    fn free(&mut self) -> c_int {
        match self.blocks.pop() {
            Some(address) => call!(self.cuda(), b"cuMemFree_v2", (u64), address),
            None => 0,
        }
    }

    /// Launches a kernel of `micros` on the whole card `times` times.
    fn launch(&mut self, times: u64, micros: u64) -> c_int {
        let image = CString::new(format!("kernel k {micros} 0\n")).unwrap();
        let (mut module, mut function) = (0u64, 0u64);
        call!(
            self.cuda(),
            b"cuModuleLoadData",
            (*mut u64, *const c_char),
            &raw mut module,
            image.as_ptr()
        );
        call!(
            self.cuda(),
            b"cuModuleGetFunction",
            (*mut u64, u64, *const c_char),
            &raw mut function,
            module,
            c"k".as_ptr()
        );
        let mut code = 0;
        for _ in 0..times {
            code |= call!(
                self.cuda(),
                b"cuLaunchKernel",
                (
                    u64, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, u64, usize, usize
                ),
                function,
                4096,
                1,
                1,
                128,
                1,
                1,
                0,
                0,
                0,
                0
            );
        }
        code
    }

    fn answer(&mut self, words: &[&str]) -> String {
        let number = |i: usize| words.get(i).and_then(|w| w.parse::<u64>().ok()).unwrap_or(0);
        match words[0] {
            "init" => call!(self.cuda(), b"cuInit", (c_uint), 0).to_string(),
            "count" => {
                let mut n = 0;
                let code = call!(self.cuda(), b"cuDeviceGetCount", (*mut c_int), &raw mut n);
                format!("{code} {n}")
            }
            "context" => {
                let mut handle = 0u64;
                let code = call!(
                    self.cuda(),
                    b"cuDevicePrimaryCtxRetain",
                    (*mut u64, c_int),
                    &raw mut handle,
                    number(1) as c_int
                );
                if code == 0 {
                    call!(self.cuda(), b"cuCtxSetCurrent", (u64), handle);
                }
                code.to_string()
            }
            "alloc" => self.alloc(number(1) as usize).to_string(),
            "free" => self.free().to_string(),
            "free-twice" => {
                let address = *self.blocks.last().unwrap();
                let first = self.free();
                let second = call!(self.cuda(), b"cuMemFree_v2", (u64), address);
                format!("{first} {second}")
            }
            // Takes blocks until the answer is no.
            "fill" => {
                let mut n = 0;
                loop {
                    match self.alloc(number(1) as usize) {
                        0 => n += 1,
                        code => return format!("{n} {code}"),
                    }
                }
            }
            // Takes and frees for ever; ends with the process.
            "churn" => {
                println!("churning");
                std::io::stdout().flush().unwrap();
                let mut step = 0u64;
                loop {
                    step = step.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(number(1) | 1);
                    if step >> 62 == 0 || self.blocks.len() > 8 {
                        self.free();
                    } else {
                        self.alloc(((step >> 33) % (8 << 20)) as usize + 1);
                    }
                }
            }
            "info" => {
                let (mut free, mut total) = (0usize, 0usize);
                let code = call!(
                    self.cuda(),
                    b"cuMemGetInfo_v2",
                    (*mut usize, *mut usize),
                    &raw mut free,
                    &raw mut total
                );
                format!("{code} {free} {total}")
            }
            // What a forked child gets, and whether the parent still works afterwards.
            "fork" => {
                self.cuda();
                // SAFETY: the child only calls the driver and leaves without running destructors.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    let init = call!(self.cuda(), b"cuInit", (c_uint), 0);
                    let mut n = 0;
                    let count = call!(self.cuda(), b"cuDeviceGetCount", (*mut c_int), &raw mut n);
                    // SAFETY: see above.
                    unsafe { libc::_exit(if (init, count) == (3, 3) { 0 } else { 1 }) };
                }
                let mut status = 0;
                // SAFETY: our own child.
                unsafe { libc::waitpid(child, &raw mut status, 0) };
                format!("{}", libc::WEXITSTATUS(status))
            }
            // cuGetProcAddress: code, status, name of what was found.
            "lookup" => {
                let name = CString::new(words[1]).unwrap();
                let mut found: *mut c_void = std::ptr::null_mut();
                let mut status = -1;
                let code = call!(
                    self.cuda(),
                    b"cuGetProcAddress_v2",
                    (*const c_char, *mut *mut c_void, c_int, u64, *mut c_int),
                    name.as_ptr(),
                    &raw mut found,
                    number(2) as c_int,
                    number(3),
                    &raw mut status
                );
                // SAFETY: `Dl_info` is plain data that the call fills in.
                let text = unsafe {
                    let mut info: libc::Dl_info = std::mem::zeroed();
                    if found.is_null() || libc::dladdr(found, &raw mut info) == 0 || info.dli_sname.is_null() {
                        "null".to_owned()
                    } else {
                        CStr::from_ptr(info.dli_sname).to_string_lossy().into_owned()
                    }
                };
                format!("{code} {status} {text}")
            }
            // The managing library's view of a card: v1, v2, and this process's own entry.
            "watch" => {
                let index = number(1) as c_uint;
                let mut device = 0u64;
                let code = call!(
                    self.nvml(),
                    b"nvmlDeviceGetHandleByIndex_v2",
                    (c_uint, *mut u64),
                    index,
                    &raw mut device
                );
                let mut first = [0u64; 3];
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetMemoryInfo",
                    (u64, *mut u64),
                    device,
                    first.as_mut_ptr()
                );
                let mut second = [0x0200_0028u64, 0, 0, 0, 0];
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetMemoryInfo_v2",
                    (u64, *mut u64),
                    device,
                    second.as_mut_ptr()
                );
                let mut list = [[0u64; 3]; 64];
                let mut n: c_uint = 64;
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetComputeRunningProcesses_v3",
                    (u64, *mut c_uint, *mut [u64; 3]),
                    device,
                    &raw mut n,
                    list.as_mut_ptr()
                );
                let own = list[..n as usize]
                    .iter()
                    .find(|e| e[0] & 0xffff_ffff == u64::from(std::process::id()))
                    .map_or(0, |e| e[1]);
                format!("{code} {} {} {} {} {n} {own}", first[0], first[2], second[2], second[4])
            }
            "cards" => {
                let mut n = 0;
                let code = call!(self.nvml(), b"nvmlDeviceGetCount_v2", (*mut c_uint), &raw mut n);
                format!("{code} {n}")
            }
            // Waits for an XID event of card 0; says first that it is ready.
            "xid" => {
                let (mut device, mut set) = (0u64, 0u64);
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetHandleByIndex_v2",
                    (c_uint, *mut u64),
                    0,
                    &raw mut device
                );
                call!(self.nvml(), b"nvmlEventSetCreate", (*mut u64), &raw mut set);
                call!(
                    self.nvml(),
                    b"nvmlDeviceRegisterEvents",
                    (u64, u64, u64),
                    device,
                    8,
                    set
                );
                println!("ready");
                std::io::stdout().flush().unwrap();
                let mut data = [0u64; 4];
                let code = call!(
                    self.nvml(),
                    b"nvmlEventSetWait_v2",
                    (u64, *mut u64, c_uint),
                    set,
                    data.as_mut_ptr(),
                    number(1) as c_uint
                );
                format!("{code} {} {}", data[1], data[2])
            }
            // Runs one kernel n times and waits: code and milliseconds by the card's own clock.
            "kernel" => {
                let (mut a, mut b) = (0u64, 0u64);
                call!(self.cuda(), b"cuEventCreate", (*mut u64, c_uint), &raw mut a, 0);
                call!(self.cuda(), b"cuEventCreate", (*mut u64, c_uint), &raw mut b, 0);
                call!(self.cuda(), b"cuEventRecord", (u64, u64), a, 0);
                let code = self.launch(number(1), number(2));
                call!(self.cuda(), b"cuEventRecord", (u64, u64), b, 0);
                call!(self.cuda(), b"cuEventSynchronize", (u64), b);
                let mut millis = 0f32;
                call!(
                    self.cuda(),
                    b"cuEventElapsedTime",
                    (*mut f32, u64, u64),
                    &raw mut millis,
                    a,
                    b
                );
                format!("{code} {millis}")
            }
            // Asks a running kernel again and again whether it is done; answers how often it was not.
            "poll" => {
                let mut event = 0u64;
                self.answer(&["kernel", "0", "1"]);
                call!(self.cuda(), b"cuEventCreate", (*mut u64, c_uint), &raw mut event, 0);
                self.launch(number(1), number(2));
                call!(self.cuda(), b"cuEventRecord", (u64, u64), event, 0);
                let mut not_yet = 0u64;
                while call!(self.cuda(), b"cuEventQuery", (u64), event) == 600 {
                    not_yet += 1;
                }
                not_yet.to_string()
            }
            // Computes without the driver until a line comes.
            "spin" => {
                println!("spinning");
                std::io::stdout().flush().unwrap();
                let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
                let flag = std::sync::Arc::clone(&done);
                std::thread::spawn(move || {
                    while !flag.load(std::sync::atomic::Ordering::SeqCst) {
                        std::hint::spin_loop();
                    }
                });
                std::io::stdin().read_line(&mut String::new()).unwrap();
                done.store(true, std::sync::atomic::Ordering::SeqCst);
                "stopped".to_owned()
            }
            // Limits of a control group on card 0: code, soft, hard, used.
            "limits" => {
                let name = CString::new(words[1]).unwrap();
                let mut device = 0u64;
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetHandleByIndex_v2",
                    (c_uint, *mut u64),
                    0,
                    &raw mut device
                );
                let mut args = [name.as_ptr() as u64, number(2), number(3), 0];
                let code = if words.len() > 2 {
                    call!(
                        self.nvml(),
                        b"nvmlDeviceSetMemoryLimits_v1",
                        (u64, *mut u64),
                        device,
                        args.as_mut_ptr()
                    )
                } else {
                    call!(
                        self.nvml(),
                        b"nvmlDeviceGetMemoryLimits_v1",
                        (u64, *mut u64),
                        device,
                        args.as_mut_ptr()
                    )
                };
                format!("{code} {} {} {}", args[1], args[2], args[3])
            }
            // One step of a checkpoint of a process by pid.
            "checkpoint" => {
                let pid = number(2) as c_int;
                let step: &[u8] = match words[1] {
                    "lock" => b"cuCheckpointProcessLock",
                    "take" => b"cuCheckpointProcessCheckpoint",
                    "restore" => b"cuCheckpointProcessRestore",
                    "unlock" => b"cuCheckpointProcessUnlock",
                    _ => {
                        let mut state = -1;
                        let code = call!(
                            self.cuda(),
                            b"cuCheckpointProcessGetState",
                            (c_int, *mut c_int),
                            pid,
                            &raw mut state
                        );
                        return format!("{code} {state}");
                    }
                };
                let mut args = [0u64; 8];
                // SAFETY: all four have this signature.
                unsafe {
                    let f: Symbol<'_, unsafe extern "C" fn(c_int, *mut u64) -> c_int> = self.cuda().get(step).unwrap();
                    f(pid, args.as_mut_ptr()).to_string()
                }
            }
            // Writes a pattern to the last block, or reads the first word of it.
            "write" => {
                let address = *self.blocks.last().unwrap();
                call!(
                    self.cuda(),
                    b"cuMemsetD32_v2",
                    (u64, c_uint, usize),
                    address,
                    number(1) as c_uint,
                    1024
                )
                .to_string()
            }
            "read" => {
                let address = *self.blocks.last().unwrap();
                let mut word = 0u32;
                let code = call!(
                    self.cuda(),
                    b"cuMemcpyDtoH_v2",
                    (*mut u32, u64, usize),
                    &raw mut word,
                    address,
                    4
                );
                format!("{code} {word}")
            }
            // Multiprocessors of device 0.
            "sms" => {
                let mut n = 0;
                call!(
                    self.cuda(),
                    b"cuDeviceGetAttribute",
                    (*mut c_int, c_int, c_int),
                    &raw mut n,
                    16,
                    0
                );
                n.to_string()
            }
            // Processes of card 0 in the lists of computing and of multi-process clients.
            "lists" => {
                let mut device = 0u64;
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetHandleByIndex_v2",
                    (c_uint, *mut u64),
                    0,
                    &raw mut device
                );
                let mut list = [[0u64; 3]; 64];
                let (mut a, mut b): (c_uint, c_uint) = (64, 64);
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetMPSComputeRunningProcesses_v3",
                    (u64, *mut c_uint, *mut [u64; 3]),
                    device,
                    &raw mut b,
                    list.as_mut_ptr()
                );
                call!(
                    self.nvml(),
                    b"nvmlDeviceGetComputeRunningProcesses_v3",
                    (u64, *mut c_uint, *mut [u64; 3]),
                    device,
                    &raw mut a,
                    list.as_mut_ptr()
                );
                format!("{a} {b} {}", list[0][0] & 0xffff_ffff)
            }
            // Whether a name is exported.
            "has" => {
                let name = format!("{}\0", words[1]);
                let lib = if words[1].starts_with("cu") {
                    self.cuda()
                } else {
                    self.nvml()
                };
                // SAFETY: only looked up, not called.
                let found = unsafe { lib.get::<unsafe extern "C" fn()>(name.as_bytes()).is_ok() };
                found.to_string()
            }
            _ => "what?".to_owned(),
        }
    }
}

fn main() {
    let mut client = Client {
        cuda: None,
        nvml: None,
        blocks: Vec::new(),
    };
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        let answer = client.answer(&words);
        println!("{answer}");
        std::io::stdout().flush().unwrap();
    }
}
