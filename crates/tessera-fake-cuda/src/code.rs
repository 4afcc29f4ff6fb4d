//! Modules, libraries and functions.
//!
//! What a function costs stands in the module's text; see the crate's documentation.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};

use crate::abi::{
    FILE_NOT_FOUND, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, NOT_FOUND, R, Res, get, put, put_wanted, text,
};
use crate::state::{self, Driver, Inner, Kind};

/// What an image says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// Name, microseconds, SMs; 0 SMs means "as many as blocks".
    kernels: BTreeMap<String, (u64, u32)>,
    globals: BTreeMap<String, u64>,
    code_bytes: u64,
    /// An image that cannot be read: every name is in it.
    opaque: bool,
}

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) context: u64,
    image: Image,
    functions: BTreeMap<String, u64>,
    globals: BTreeMap<String, (u64, u64)>,
}

/// A function, or a kernel of a library.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Module or library that it is in.
    pub(crate) owner: u64,
    pub(crate) name: CString,
    pub(crate) micros: u64,
    pub(crate) sms: u32,
    attributes: BTreeMap<c_int, c_int>,
}

/// A library: code that no context owns.
#[derive(Debug)]
pub(crate) struct Library {
    image: Image,
    kernels: BTreeMap<String, u64>,
    /// Its module in each context that asked for one.
    modules: BTreeMap<u64, u64>,
}

/// Reads an image. It begins with `data` and says itself where it ends.
unsafe fn parse(driver: &Driver, data: *const c_void) -> Res<Image> {
    // SAFETY: the caller of the entry point gives an image; the first four bytes are there.
    unsafe {
        let head: [u8; 4] = get(data.cast())?;
        let magic = u32::from_le_bytes(head);
        // ELF, fat binary and its wrapper: not read any further.
        if head == *b"\x7fELF" || magic == 0xba55_ed50 || magic == 0x4662_43b1 {
            return Ok(Image {
                opaque: true,
                ..Image::default()
            });
        }
        let source = text(data.cast())?;
        let image = parse_text(&source, driver.machine.default_kernel_us());
        if image.kernels.is_empty() && image.globals.is_empty() && image.code_bytes == 0 {
            return Err(INVALID_IMAGE);
        }
        Ok(image)
    }
}

fn parse_text(source: &str, default_us: u64) -> Image {
    let mut image = Image::default();
    for line in source.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["kernel", name, rest @ ..] => {
                let micros = rest.first().and_then(|w| w.parse().ok());
                let sms = rest.get(1).and_then(|w| w.parse().ok());
                image
                    .kernels
                    .insert((*name).to_owned(), (micros.unwrap_or(default_us), sms.unwrap_or(0)));
            }
            ["global", name, bytes] => {
                if let Ok(bytes) = bytes.parse() {
                    image.globals.insert((*name).to_owned(), bytes);
                }
            }
            ["code", bytes] => image.code_bytes = bytes.parse().unwrap_or(0),
            _ => {
                // PTX: `.visible .entry name(`
                if let Some(at) = words.iter().position(|w| *w == ".entry")
                    && let Some(word) = words.get(at + 1)
                {
                    let name = word.split('(').next().unwrap_or(word);
                    image.kernels.insert(name.to_owned(), (default_us, 0));
                }
            }
        }
    }
    image
}

impl Image {
    fn cost(&self, name: &str, default_us: u64) -> Option<(u64, u32)> {
        self.kernels
            .get(name)
            .copied()
            .or_else(|| self.opaque.then_some((default_us, 0)))
    }
}

fn load(driver: &Driver, inner: &mut Inner, context: u64, image: Image) -> Res<u64> {
    let device = inner.contexts[&context].device;
    let module = inner.id();
    let mut globals = BTreeMap::new();
    let code = (image.code_bytes > 0).then_some((String::new(), image.code_bytes));
    for (name, bytes) in image.globals.iter().map(|(n, b)| (n.clone(), *b)).chain(code) {
        match driver.allocate(inner, device, context, bytes.max(1), Kind::Global(module)) {
            Ok(address) => {
                globals.insert(name, (address, bytes));
            }
            Err(code) => {
                for (address, _) in globals.values() {
                    driver.release(inner, *address);
                }
                return Err(code);
            }
        }
    }
    inner.modules.insert(
        module,
        Module {
            context,
            image,
            functions: BTreeMap::new(),
            globals,
        },
    );
    Ok(module)
}

unsafe fn load_data(out: *mut u64, data: *const c_void) -> R {
    let driver = state::driver()?;
    // SAFETY: the caller of the entry point gives an image.
    let image = unsafe { parse(driver, data) }?;
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let context = driver.current(inner)?;
    let module = load(driver, inner, context, image)?;
    // SAFETY: the caller vouches for `out`.
    unsafe { put(out, module) }
}

unsafe fn read_file(name: *const c_char) -> Res<CString> {
    // SAFETY: the caller of the entry point gives a name.
    let name = unsafe { text(name) }?;
    let mut bytes = std::fs::read(name).map_err(|_| FILE_NOT_FOUND)?;
    if bytes.starts_with(b"\x7fELF") {
        bytes.truncate(4);
    }
    bytes.retain(|b| *b != 0);
    CString::new(bytes).map_err(|_| INVALID_IMAGE)
}

fn make_function(inner: &mut Inner, owner: u64, name: &str, cost: (u64, u32)) -> Res<u64> {
    let handle = inner.id();
    inner.functions.insert(
        handle,
        Function {
            owner,
            name: CString::new(name).map_err(|_| INVALID_VALUE)?,
            micros: cost.0,
            sms: cost.1,
            attributes: BTreeMap::new(),
        },
    );
    Ok(handle)
}

fn function_of(driver: &Driver, inner: &mut Inner, module: u64, name: &str) -> Res<u64> {
    let entry = inner.modules.get(&module).ok_or(INVALID_HANDLE)?;
    if let Some(handle) = entry.functions.get(name) {
        return Ok(*handle);
    }
    let cost = entry
        .image
        .cost(name, driver.machine.default_kernel_us())
        .ok_or(NOT_FOUND)?;
    let handle = make_function(inner, module, name, cost)?;
    if let Some(entry) = inner.modules.get_mut(&module) {
        entry.functions.insert(name.to_owned(), handle);
    }
    Ok(handle)
}

fn kernel_of(driver: &Driver, inner: &mut Inner, library: u64, name: &str) -> Res<u64> {
    let entry = inner.libraries.get(&library).ok_or(INVALID_HANDLE)?;
    if let Some(handle) = entry.kernels.get(name) {
        return Ok(*handle);
    }
    let cost = entry
        .image
        .cost(name, driver.machine.default_kernel_us())
        .ok_or(NOT_FOUND)?;
    let handle = make_function(inner, library, name, cost)?;
    if let Some(entry) = inner.libraries.get_mut(&library) {
        entry.kernels.insert(name.to_owned(), handle);
    }
    Ok(handle)
}

fn module_of(driver: &Driver, inner: &mut Inner, library: u64) -> Res<u64> {
    let context = driver.current(inner)?;
    let entry = inner.libraries.get(&library).ok_or(INVALID_HANDLE)?;
    if let Some(module) = entry.modules.get(&context)
        && inner.modules.contains_key(module)
    {
        return Ok(*module);
    }
    let image = entry.image.clone();
    let module = load(driver, inner, context, image)?;
    if let Some(entry) = inner.libraries.get_mut(&library) {
        entry.modules.insert(context, module);
    }
    Ok(module)
}

fn unload(driver: &Driver, inner: &mut Inner, module: u64) -> R {
    let entry = inner.modules.remove(&module).ok_or(INVALID_HANDLE)?;
    for (address, _) in entry.globals.values() {
        driver.release(inner, *address);
    }
    inner.functions.retain(|_, f| f.owner != module);
    Ok(())
}

unsafe fn global(out: *mut u64, size: *mut usize, module: u64, name: *const c_char) -> R {
    let driver = state::driver()?;
    // SAFETY: arguments of the entry point.
    unsafe {
        let name = text(name)?;
        let inner = driver.lock();
        let entry = inner.modules.get(&module).ok_or(INVALID_HANDLE)?;
        let (address, bytes) = entry.globals.get(&name).ok_or(NOT_FOUND)?;
        put_wanted(out, *address);
        put_wanted(size, *bytes as usize);
    }
    Ok(())
}

fn function_attribute(function: &Function, number: c_int) -> Res<c_int> {
    if let Some(value) = function.attributes.get(&number) {
        return Ok(*value);
    }
    Ok(match number {
        0 => 1024,
        1..=3 => 0,
        4 => 32,
        5 | 6 => 80,
        7..=15 => match number {
            8 => 48 << 10,
            9 => -1,
            _ => 0,
        },
        _ => return Err(INVALID_VALUE),
    })
}

fn with<T>(handle: u64, act: impl FnOnce(&mut Function) -> Res<T>) -> Res<T> {
    let driver = state::driver()?;
    let inner = &mut *driver.lock();
    act(inner.functions.get_mut(&handle).ok_or(INVALID_HANDLE)?)
}

unsafe fn library(out: *mut u64, image: Image) -> R {
    let driver = state::driver()?;
    if out.is_null() {
        return Err(INVALID_VALUE);
    }
    let inner = &mut *driver.lock();
    let handle = inner.id();
    inner.libraries.insert(
        handle,
        Library {
            image,
            kernels: BTreeMap::new(),
            modules: BTreeMap::new(),
        },
    );
    // SAFETY: the caller of the entry point vouches for `out`.
    unsafe { put(out, handle) }
}

api! {
    fn cuModuleLoad(out: *mut u64, name: *const c_char) {
        let image = read_file(name)?;
        load_data(out, image.as_ptr().cast())
    }
    fn cuModuleLoadData(out: *mut u64, image: *const c_void) { load_data(out, image) }
    fn cuModuleLoadDataEx(out: *mut u64, image: *const c_void, count: c_uint, options: *const c_uint, values: *const *mut c_void) {
        let _ = (count, options, values);
        load_data(out, image)
    }
    fn cuModuleLoadFatBinary(out: *mut u64, image: *const c_void) { load_data(out, image) }
    fn cuModuleUnload(module: u64) {
        let driver = state::driver()?;
        unload(driver, &mut driver.lock(), module)
    }
    fn cuModuleGetLoadingMode(out: *mut c_uint) { state::driver()?; put(out, 2) }
    fn cuModuleGetFunction(out: *mut u64, module: u64, name: *const c_char) {
        let driver = state::driver()?;
        let name = text(name)?;
        let handle = function_of(driver, &mut driver.lock(), module, &name)?;
        put(out, handle)
    }
    fn cuModuleGetFunctionCount(out: *mut c_uint, module: u64) {
        let driver = state::driver()?;
        put(out, driver.lock().modules.get(&module).ok_or(INVALID_HANDLE)?.image.kernels.len() as c_uint)
    }
    fn cuModuleEnumerateFunctions(out: *mut u64, count: c_uint, module: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let names: Vec<String> = inner.modules.get(&module).ok_or(INVALID_HANDLE)?.image.kernels.keys().take(count as usize).cloned().collect();
        for (i, name) in names.iter().enumerate() {
            put(out.add(i), function_of(driver, inner, module, name)?)?;
        }
        Ok(())
    }
    fn cuModuleGetGlobal_v2(out: *mut u64, size: *mut usize, module: u64, name: *const c_char) { global(out, size, module, name) }
    fn cuFuncGetAttribute(out: *mut c_int, number: c_int, function: u64) {
        put(out, with(function, |f| function_attribute(f, number))?)
    }
    fn cuFuncSetAttribute(function: u64, number: c_int, value: c_int) {
        with(function, |f| { f.attributes.insert(number, value); Ok(()) })
    }
    fn cuFuncSetCacheConfig(function: u64, config: c_int) { let _ = config; with(function, |_| Ok(())) }
    fn cuFuncSetSharedMemConfig(function: u64, config: c_int) { let _ = config; with(function, |_| Ok(())) }
    fn cuFuncGetModule(out: *mut u64, function: u64) { put(out, with(function, |f| Ok(f.owner))?) }
    fn cuFuncGetName(out: *mut *const c_char, function: u64) { put(out, with(function, |f| Ok(f.name.as_ptr()))?) }
    fn cuFuncIsLoaded(out: *mut c_uint, function: u64) { put(out, with(function, |_| Ok(1))?) }
    fn cuFuncLoad(function: u64) { with(function, |_| Ok(())) }
    fn cuFuncGetParamCount(function: u64, out: *mut usize) { put(out, with(function, |_| Ok(0))?) }
    fn cuFuncGetParamInfo(function: u64, index: usize, offset: *mut usize, size: *mut usize) {
        let _ = (index, offset, size);
        with(function, |_| Err(INVALID_VALUE))
    }
    fn cuLibraryLoadData(out: *mut u64, image: *const c_void, a: *const c_void, b: *const c_void, n: c_uint, c: *const c_void, d: *const c_void, m: c_uint) {
        let _ = (a, b, n, c, d, m);
        let driver = state::driver()?;
        library(out, parse(driver, image)?)
    }
    fn cuLibraryLoadFromFile(out: *mut u64, name: *const c_char, a: *const c_void, b: *const c_void, n: c_uint, c: *const c_void, d: *const c_void, m: c_uint) {
        let _ = (a, b, n, c, d, m);
        let driver = state::driver()?;
        let image = read_file(name)?;
        library(out, parse(driver, image.as_ptr().cast())?)
    }
    fn cuLibraryUnload(library: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let entry = inner.libraries.remove(&library).ok_or(INVALID_HANDLE)?;
        for module in entry.modules.values() {
            // Gone already when its context is.
            unload(driver, inner, *module).ok();
        }
        inner.functions.retain(|_, f| f.owner != library);
        Ok(())
    }
    fn cuLibraryGetKernel(out: *mut u64, library: u64, name: *const c_char) {
        let driver = state::driver()?;
        let name = text(name)?;
        let handle = kernel_of(driver, &mut driver.lock(), library, &name)?;
        put(out, handle)
    }
    fn cuLibraryGetKernelCount(out: *mut c_uint, library: u64) {
        let driver = state::driver()?;
        put(out, driver.lock().libraries.get(&library).ok_or(INVALID_HANDLE)?.image.kernels.len() as c_uint)
    }
    fn cuLibraryEnumerateKernels(out: *mut u64, count: c_uint, library: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let names: Vec<String> = inner.libraries.get(&library).ok_or(INVALID_HANDLE)?.image.kernels.keys().take(count as usize).cloned().collect();
        for (i, name) in names.iter().enumerate() {
            put(out.add(i), kernel_of(driver, inner, library, name)?)?;
        }
        Ok(())
    }
    fn cuLibraryGetModule(out: *mut u64, library: u64) {
        let driver = state::driver()?;
        let module = module_of(driver, &mut driver.lock(), library)?;
        put(out, module)
    }
    fn cuLibraryGetGlobal(out: *mut u64, size: *mut usize, library: u64, name: *const c_char) {
        let driver = state::driver()?;
        let module = module_of(driver, &mut driver.lock(), library)?;
        global(out, size, module, name)
    }
    fn cuLibraryGetManaged(out: *mut u64, size: *mut usize, library: u64, name: *const c_char) {
        let _ = (out, size, name);
        let driver = state::driver()?;
        driver.lock().libraries.get(&library).ok_or(INVALID_HANDLE)?;
        Err(NOT_FOUND)
    }
    fn cuKernelGetFunction(out: *mut u64, kernel: u64) {
        let driver = state::driver()?;
        let inner = &mut *driver.lock();
        let entry = inner.functions.get(&kernel).ok_or(INVALID_HANDLE)?.clone();
        if !inner.libraries.contains_key(&entry.owner) {
            return Err(INVALID_HANDLE);
        }
        let module = module_of(driver, inner, entry.owner)?;
        let name = entry.name.to_string_lossy().into_owned();
        let handle = function_of(driver, inner, module, &name)?;
        put(out, handle)
    }
    fn cuKernelGetLibrary(out: *mut u64, kernel: u64) { put(out, with(kernel, |f| Ok(f.owner))?) }
    fn cuKernelGetName(out: *mut *const c_char, kernel: u64) { put(out, with(kernel, |f| Ok(f.name.as_ptr()))?) }
    fn cuKernelGetAttribute(out: *mut c_int, number: c_int, kernel: u64, device: c_int) {
        state::driver()?.device(device)?;
        put(out, with(kernel, |f| function_attribute(f, number))?)
    }
    fn cuKernelSetAttribute(number: c_int, value: c_int, kernel: u64, device: c_int) {
        state::driver()?.device(device)?;
        with(kernel, |f| { f.attributes.insert(number, value); Ok(()) })
    }
    fn cuKernelSetCacheConfig(kernel: u64, config: c_int, device: c_int) {
        let _ = config;
        state::driver()?.device(device)?;
        with(kernel, |_| Ok(()))
    }
    fn cuKernelGetParamCount(kernel: u64, out: *mut usize) { put(out, with(kernel, |_| Ok(0))?) }
    fn cuKernelGetParamInfo(kernel: u64, index: usize, offset: *mut usize, size: *mut usize) {
        let _ = (index, offset, size);
        with(kernel, |_| Err(INVALID_VALUE))
    }
}
