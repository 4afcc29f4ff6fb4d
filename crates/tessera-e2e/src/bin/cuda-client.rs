//! A program that uses the driver as real ones do: opens the libraries by soname, looks entries up, calls them.
//!
//! One command a line on standard input, one answer a line on standard output. An answer to a call is its return code
//! and the variables that it was given by reference: `0 p=140737353875456`.
//!
//! | command | |
//! | --- | --- |
//! | `NAME ARG...` | looks the name up with `dlsym` in the library it belongs to and calls it |
//! | `$f ARG...` | calls the function at the address in a variable |
//! | `@gpa SYMBOL VERSION FLAGS VAR` | `cuGetProcAddress_v2`; `@gpa1` the first form |
//! | `@dlsym HANDLE NAME` | file and symbol that the lookup leads to; `libcuda`, `nvml`, `default`, `next`, `self` |
//! | `@dlvsym NAME VERSION` | the same by `dlvsym` in libcuda |
//! | `@new VAR SIZE` | a zeroed block; `@set VAR AT SIZE VALUE`, `@get VAR AT SIZE` |
//! | `@repeat N NAME ARG...` | how many of n calls returned 0 |
//! | `@ns NAME ARG...` | the code of a call, and how long it took |
//! | `@threads T N NAME ARG...` | the same from so many threads at once, together |
//! | `@var VAR VALUE` | sets a variable |
//! | `@open VAR PATH` | opens a file; its number |
//! | `@handle NAME OUT BLOCK FLAGS` | a call whose second argument is a block of 64 bytes, passed by value |
//! | `@fork COMMAND` | the answer that a forked child gives |
//! | `@child IN OUT` | forks a child that goes on with these two pipes as its input and output; its pid |
//! | `@exit HOW` | ends the program by `exit` or `_exit` |
//! | `@exec` | starts this program anew in the same process |
//! | `@umask`, `@handler SIGNAL`, `@pid` | what the process looks like |
//!
//! Arguments: numbers, with `KiB`, `MiB`, `GiB`; `null`; `&x` a reference to an eight-byte variable; `$x` its value, `$x+n` more;
//! `*x` the address of a block; `@x` the address of a variable; `"text` a string.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "calls C functions by name with whatever the test says; nothing here can be checked"
)]
#![allow(clippy::print_stdout, reason = "answers go to standard output")]

use std::{
    collections::BTreeMap,
    ffi::{CStr, CString, c_char, c_void},
    fmt::Write as _,
    io::{Read as _, Write as _},
    ptr,
};

type Function = unsafe extern "C" fn(u64, u64, u64, u64, u64, u64, u64, u64, u64, u64, u64) -> i32;

#[derive(Default)]
struct Client {
    variables: BTreeMap<String, Box<u64>>,
    blocks: BTreeMap<String, Box<[u64]>>,
    strings: Vec<CString>,
}

/// The arguments of a call, and the variables that it may write.
struct Arguments {
    words: [u64; 11],
    written: Vec<String>,
}

fn main() {
    let mut client = Client::default();
    // Byte by byte, so that nothing is lost when the program is replaced.
    let mut line = Vec::new();
    let mut byte = [0];
    while std::io::stdin().read_exact(&mut byte).is_ok() {
        if byte[0] != b'\n' {
            line.push(byte[0]);
            continue;
        }
        let text = String::from_utf8_lossy(&std::mem::take(&mut line)).into_owned();
        let answer = client.run(&text).unwrap_or_else(|problem| format!("! {problem}"));
        println!("{answer}");
    }
}

fn library(name: &str) -> Result<*mut c_void, String> {
    let soname = if name.starts_with("nvml") {
        c"libnvidia-ml.so.1"
    } else {
        c"libcuda.so.1"
    };
    let handle = unsafe { libc::dlopen(soname.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        Err(format!("no {soname:?}"))
    } else {
        Ok(handle)
    }
}

fn function(name: &str) -> Result<Function, String> {
    let c_name = CString::new(name).map_err(|e| e.to_string())?;
    let address = unsafe { libc::dlsym(library(name)?, c_name.as_ptr()) };
    as_function(address).ok_or_else(|| format!("no {name}"))
}

fn as_function(address: *mut c_void) -> Option<Function> {
    (!address.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Function>(address) })
}

fn describe(address: *mut c_void) -> String {
    if address.is_null() {
        return "null".into();
    }
    let mut info: libc::Dl_info = unsafe { std::mem::zeroed() };
    unsafe { libc::dladdr(address, &raw mut info) };
    let text = |p: *const c_char| match p.is_null() {
        true => "?".into(),
        false => unsafe { CStr::from_ptr(p) }.to_string_lossy().into_owned(),
    };
    let file = text(info.dli_fname);
    let file = file.rsplit('/').next().unwrap_or_default().to_owned();
    format!("{file}:{}", text(info.dli_sname))
}

impl Client {
    fn run(&mut self, line: &str) -> Result<String, String> {
        let (command, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        match (command, words.as_slice()) {
            ("@gpa" | "@gpa1", [symbol, version, flags, variable]) => {
                self.proc_address(command == "@gpa", symbol, version, flags, variable)
            }
            ("@dlsym", [handle, name]) => {
                let c_name = CString::new(*name).map_err(|e| e.to_string())?;
                let handle = match *handle {
                    "default" => libc::RTLD_DEFAULT,
                    "next" => libc::RTLD_NEXT,
                    "self" => unsafe { libc::dlopen(ptr::null(), libc::RTLD_NOW) },
                    "nvml" => library("nvml")?,
                    _ => library("cuda")?,
                };
                Ok(describe(unsafe { libc::dlsym(handle, c_name.as_ptr()) }))
            }
            ("@dlvsym", [name, version]) => {
                let (name, version) = (CString::new(*name), CString::new(*version));
                let (name, version) = (name.map_err(|e| e.to_string())?, version.map_err(|e| e.to_string())?);
                Ok(describe(unsafe {
                    libc::dlvsym(library("cuda")?, name.as_ptr(), version.as_ptr())
                }))
            }
            ("@new", [variable, size]) => {
                let words = usize::try_from(number(size)?.div_ceil(8)).map_err(|e| e.to_string())?;
                self.blocks
                    .insert((*variable).to_owned(), vec![0; words].into_boxed_slice());
                Ok("ok".into())
            }
            ("@set", [variable, at, size, value]) => {
                let value = self.value(value)?.to_le_bytes();
                self.bytes(variable, at, size)?
                    .iter_mut()
                    .zip(value)
                    .for_each(|(place, byte)| *place = byte);
                Ok("ok".into())
            }
            ("@get", [variable, at, size]) => {
                let mut value = [0; 8];
                value
                    .iter_mut()
                    .zip(self.bytes(variable, at, size)?)
                    .for_each(|(place, byte)| *place = *byte);
                Ok(u64::from_le_bytes(value).to_string())
            }
            ("@repeat", [times, name, arguments @ ..]) => {
                let (call, arguments) = (function(name)?, self.arguments(arguments)?);
                let times = number(times)?;
                Ok((0..times)
                    .filter(|_| invoke(call, &arguments.words) == 0)
                    .count()
                    .to_string())
            }
            ("@ns", [name, arguments @ ..]) => {
                let (call, arguments) = (function(name)?, self.arguments(arguments)?);
                let begun = std::time::Instant::now();
                let code = invoke(call, &arguments.words);
                Ok(format!("{code} {}", begun.elapsed().as_nanos()))
            }
            ("@threads", [threads, times, name, arguments @ ..]) => self.threads(threads, times, name, arguments),
            ("@var", [variable, value]) => {
                let value = self.value(value)?;
                **self.variables.entry((*variable).to_owned()).or_default() = value;
                Ok("ok".into())
            }
            ("@open", [variable, path]) => {
                let path = CString::new(*path).map_err(|e| e.to_string())?;
                let fd = unsafe { libc::open(path.as_ptr(), libc::O_RDWR) };
                let fd = u64::try_from(fd).map_err(|_| std::io::Error::last_os_error().to_string())?;
                **self.variables.entry((*variable).to_owned()).or_default() = fd;
                Ok("ok".into())
            }
            ("@handle", [name, out, block, flags]) => self.with_handle(name, out, block, flags),
            ("@child", [input, output]) => child(input, output),
            ("@exit", ["exit"]) => unsafe { libc::exit(0) },
            ("@exit", _) => unsafe { libc::_exit(0) },
            ("@fork", _) => self.fork(rest),
            ("@exec", _) => {
                let path = c"/proc/self/exe";
                let arguments = [path.as_ptr(), ptr::null()];
                println!("ok");
                std::io::stdout().flush().map_err(|e| e.to_string())?;
                unsafe { libc::execv(path.as_ptr(), arguments.as_ptr()) };
                Err("exec".into())
            }
            ("@umask", _) => {
                let mask = unsafe { libc::umask(0) };
                unsafe { libc::umask(mask) };
                Ok(format!("{mask:04o}"))
            }
            ("@handler", [signal]) => {
                let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
                let signal = i32::try_from(number(signal)?).map_err(|e| e.to_string())?;
                unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) };
                Ok(if action.sa_sigaction == libc::SIG_DFL {
                    "default"
                } else {
                    "own"
                }
                .into())
            }
            ("@pid", _) => Ok(std::process::id().to_string()),
            (name, arguments) => {
                let call = match name.strip_prefix('$') {
                    Some(variable) => {
                        let address = usize::try_from(self.variable(variable)).map_err(|e| e.to_string())?;
                        as_function(ptr::with_exposed_provenance_mut(address)).ok_or("null function")?
                    }
                    None => function(name)?,
                };
                let arguments = self.arguments(arguments)?;
                let code = invoke(call, &arguments.words);
                let mut answer = code.to_string();
                for name in &arguments.written {
                    write!(answer, " {name}={}", self.variable(name)).map_err(|e| e.to_string())?;
                }
                Ok(answer)
            }
        }
    }

    fn proc_address(
        &mut self,
        second: bool,
        symbol: &str,
        version: &str,
        flags: &str,
        variable: &str,
    ) -> Result<String, String> {
        let name = CString::new(symbol).map_err(|e| e.to_string())?;
        let (mut found, mut status) = (ptr::null_mut::<c_void>(), 77_i32);
        let call = function(if second {
            "cuGetProcAddress_v2"
        } else {
            "cuGetProcAddress"
        })?;
        let address = |p: usize| u64::try_from(p).unwrap_or_default();
        let words = [
            address(name.as_ptr().addr()),
            address((&raw mut found).expose_provenance()),
            number(version)?,
            number(flags)?,
            address((&raw mut status).expose_provenance()),
            0,
            0,
            0,
            0,
            0,
            0,
        ];
        name.as_ptr().expose_provenance();
        let code = invoke(call, &words);
        let seen = describe(found);
        self.variables
            .insert(variable.to_owned(), Box::new(address(found.expose_provenance())));
        Ok(if second {
            format!("{code} status={status} {seen}")
        } else {
            format!("{code} {seen}")
        })
    }

    fn with_handle(&mut self, name: &str, out: &str, block: &str, flags: &str) -> Result<String, String> {
        #[repr(C)]
        struct Handle([u64; 8]);
        let call = function(name)?;
        let call = unsafe { std::mem::transmute::<Function, unsafe extern "C" fn(u64, Handle, u32) -> i32>(call) };
        let arguments = self.arguments(&[out])?;
        let mut handle = Handle([0; 8]);
        let block = self.blocks.get(block).ok_or_else(|| format!("no block {block}"))?;
        handle.0.iter_mut().zip(block).for_each(|(place, word)| *place = *word);
        let flags = u32::try_from(number(flags)?).map_err(|e| e.to_string())?;
        let code = unsafe { call(arguments.words[0], handle, flags) };
        let mut answer = code.to_string();
        for name in &arguments.written {
            write!(answer, " {name}={}", self.variable(name)).map_err(|e| e.to_string())?;
        }
        Ok(answer)
    }

    fn threads(&mut self, threads: &str, times: &str, name: &str, arguments: &[&str]) -> Result<String, String> {
        let (call, arguments) = (function(name)?, self.arguments(arguments)?);
        let (threads, times) = (number(threads)?, number(times)?);
        // The context is current per thread.
        let mut context = 0_u64;
        let current = function("cuCtxGetCurrent")?;
        let place = |word: &mut u64| u64::try_from(ptr::from_mut(word).expose_provenance()).unwrap_or_default();
        let mut one = [0; 11];
        one[0] = place(&mut context);
        invoke(current, &one);
        let make_current = function("cuCtxSetCurrent")?;
        let done: u64 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads)
                .map(|_| {
                    let mut words = arguments.words;
                    scope.spawn(move || {
                        let mut first = [0; 11];
                        first[0] = context;
                        invoke(make_current, &first);
                        // Each thread has its own place for the answer.
                        let mut own = 0_u64;
                        words[0] = u64::try_from((&raw mut own).expose_provenance()).unwrap_or_default();
                        (0..times).map(|_| u64::from(invoke(call, &words) == 0)).sum::<u64>()
                    })
                })
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_default())
                .sum()
        });
        Ok(done.to_string())
    }

    fn fork(&mut self, command: &str) -> Result<String, String> {
        let mut ends = [0; 2];
        unsafe { libc::pipe(ends.as_mut_ptr()) };
        let child = unsafe { libc::fork() };
        if child == 0 {
            let answers: Vec<String> = command
                .split(';')
                .map(|one| self.run(one).unwrap_or_else(|e| format!("! {e}")))
                .collect();
            let answer = answers.join("; ");
            unsafe { libc::write(ends[1], answer.as_ptr().cast(), answer.len()) };
            unsafe { libc::_exit(0) };
        }
        unsafe { libc::close(ends[1]) };
        let mut answer = [0_u8; 4096];
        let length = unsafe { libc::read(ends[0], answer.as_mut_ptr().cast(), answer.len()) };
        unsafe { libc::close(ends[0]) };
        unsafe { libc::waitpid(child, ptr::null_mut(), 0) };
        let length = usize::try_from(length).unwrap_or_default();
        Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
    }

    fn arguments(&mut self, texts: &[&str]) -> Result<Arguments, String> {
        let mut arguments = Arguments {
            words: [0; 11],
            written: Vec::new(),
        };
        for (place, text) in arguments.words.iter_mut().zip(texts) {
            *place = match text.split_at_checked(1) {
                Some(("&", name)) => {
                    arguments.written.push(name.to_owned());
                    let variable = self.variables.entry(name.to_owned()).or_default();
                    u64::try_from(ptr::from_mut(variable.as_mut()).expose_provenance()).map_err(|e| e.to_string())?
                }
                _ => self.value(text)?,
            };
        }
        Ok(arguments)
    }

    fn value(&mut self, text: &str) -> Result<u64, String> {
        match text.split_at_checked(1) {
            Some(("$", name)) => match name.split_once('+') {
                Some((name, more)) => Ok(self.variable(name).wrapping_add(number(more)?)),
                None => Ok(self.variable(name)),
            },
            Some(("*", name)) => {
                let block = self.blocks.get_mut(name).ok_or_else(|| format!("no block {name}"))?;
                u64::try_from(block.as_mut_ptr().expose_provenance()).map_err(|e| e.to_string())
            }
            Some(("@", name)) => {
                let variable = self.variables.entry(name.to_owned()).or_default();
                u64::try_from(ptr::from_mut(variable.as_mut()).expose_provenance()).map_err(|e| e.to_string())
            }
            Some(("\"", text)) => {
                let string = CString::new(text).map_err(|e| e.to_string())?;
                let address = u64::try_from(string.as_ptr().expose_provenance()).map_err(|e| e.to_string())?;
                self.strings.push(string);
                Ok(address)
            }
            _ => number(text),
        }
    }

    fn variable(&self, name: &str) -> u64 {
        self.variables.get(name).map_or(0, |value| **value)
    }

    fn bytes(&mut self, block: &str, at: &str, size: &str) -> Result<&mut [u8], String> {
        let block = self.blocks.get_mut(block).ok_or_else(|| format!("no block {block}"))?;
        let bytes = unsafe { std::slice::from_raw_parts_mut(block.as_mut_ptr().cast::<u8>(), block.len() * 8) };
        let at = usize::try_from(number(at)?).map_err(|e| e.to_string())?;
        let size = usize::try_from(number(size)?).map_err(|e| e.to_string())?;
        bytes.get_mut(at..at + size).ok_or_else(|| "outside the block".into())
    }
}

/// In the parent the pid of the child, which from now on reads and writes the two pipes.
fn child(input: &str, output: &str) -> Result<String, String> {
    let open = |path: &str, flags| {
        let path = CString::new(path).map_err(|e| e.to_string())?;
        match unsafe { libc::open(path.as_ptr(), flags) } {
            -1 => Err(std::io::Error::last_os_error().to_string()),
            fd => Ok(fd),
        }
    };
    match unsafe { libc::fork() } {
        0 => {
            let ends = open(input, libc::O_RDONLY).and_then(|i| open(output, libc::O_WRONLY).map(|o| (i, o)));
            let Ok((input, output)) = ends else {
                unsafe { libc::_exit(1) }
            };
            unsafe { (libc::dup2(input, 0), libc::dup2(output, 1)) };
            Ok("ok".into())
        }
        child => Ok(child.to_string()),
    }
}

fn invoke(call: Function, w: &[u64; 11]) -> i32 {
    unsafe { call(w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7], w[8], w[9], w[10]) }
}

fn number(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.find(['K', 'M', 'G']) {
        Some(at) if !text.starts_with("0x") => text.split_at(at),
        _ => (text, ""),
    };
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1_u64 << 30,
        other => return Err(format!("unit {other}")),
    };
    if digits == "null" {
        return Ok(0);
    }
    let value = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    value.map(|n| n.wrapping_mul(unit)).map_err(|e| format!("{text}: {e}"))
}
