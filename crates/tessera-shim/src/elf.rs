//! Finds `dlvsym` in the C library by reading its symbol table.
//!
//! This library exports `dlsym` and `dlvsym` itself, and the dynamic loader would bind every reference of ours to our
//! own. So the first real one is found by hand; everything after that through it.

use core::{
    ffi::{CStr, c_char, c_int, c_void},
    ptr,
};

use libc::{Elf64_Phdr, Elf64_Sym, dl_phdr_info};

const PT_DYNAMIC: u32 = 2;
const DT_NULL: i64 = 0;
const DT_STRTAB: i64 = 5;
const DT_SYMTAB: i64 = 6;
const DT_GNU_HASH: i64 = 0x6fff_fef5;

#[repr(C)]
struct Dynamic {
    tag: i64,
    value: u64,
}

struct Search {
    name: &'static CStr,
    found: *mut c_void,
}

/// Address of a function of the C library (or of `libdl`, before the two were merged); null when there is none.
pub(crate) fn libc_function(name: &'static CStr) -> *mut c_void {
    let mut search = Search {
        name,
        found: ptr::null_mut(),
    };
    // SAFETY: the callback gets the pointer that is passed here and is not called after the return.
    unsafe { libc::dl_iterate_phdr(Some(visit), ptr::from_mut(&mut search).cast()) };
    search.found
}

unsafe extern "C" fn visit(info: *mut dl_phdr_info, _size: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid object, and `data` is the search of `libc_function`.
    let (info, search) = unsafe { (&*info, &mut *data.cast::<Search>()) };
    if info.dlpi_name.is_null() {
        return 0;
    }
    // SAFETY: the loader keeps names as C strings.
    let path = unsafe { CStr::from_ptr(info.dlpi_name) }.to_bytes();
    if !path.ends_with(b"/libc.so.6") && !path.ends_with(b"/libdl.so.2") {
        return 0;
    }
    // SAFETY: a loaded object, as described by the loader.
    search.found = unsafe { find(info, search.name) };
    c_int::from(!search.found.is_null())
}

/// # Safety
/// `info` describes a loaded object.
unsafe fn find(info: &dl_phdr_info, name: &CStr) -> *mut c_void {
    let mut dynamic: *const Dynamic = ptr::null();
    for n in 0..info.dlpi_phnum {
        // SAFETY: the loader gives `dlpi_phnum` headers.
        let header: &Elf64_Phdr = unsafe { &*info.dlpi_phdr.add(usize::from(n)) };
        if header.p_type == PT_DYNAMIC {
            dynamic = at(info.dlpi_addr.wrapping_add(header.p_vaddr));
        }
    }
    let (mut strings, mut symbols, mut hash) = (0, 0, 0);
    if dynamic.is_null() {
        return ptr::null_mut();
    }
    loop {
        // SAFETY: the section ends with a null entry.
        let entry = unsafe { &*dynamic };
        match entry.tag {
            DT_NULL => break,
            DT_STRTAB => strings = entry.value,
            DT_SYMTAB => symbols = entry.value,
            DT_GNU_HASH => hash = entry.value,
            _ => {}
        }
        // SAFETY: not the last entry.
        dynamic = unsafe { dynamic.add(1) };
    }
    if strings == 0 || symbols == 0 || hash == 0 {
        return ptr::null_mut();
    }
    // The loader has relocated these on most systems; where it has not they are offsets.
    let absolute = |value: u64| {
        if value < info.dlpi_addr {
            value.wrapping_add(info.dlpi_addr)
        } else {
            value
        }
    };
    // SAFETY: the three tables of a loaded object.
    let value = unsafe { look_up(absolute(strings), absolute(symbols), absolute(hash), name) };
    match value {
        0 => ptr::null_mut(),
        value => at::<c_void>(info.dlpi_addr.wrapping_add(value)).cast_mut(),
    }
}

/// Value of a defined symbol, 0 when there is none. The table has the layout of `DT_GNU_HASH`: four words (buckets,
/// first hashed symbol, filter words, shift), the filter in 64-bit words, the buckets, the chains.
///
/// # Safety
/// The addresses are those of the tables of a loaded object.
unsafe fn look_up(strings: u64, symbols: u64, hash: u64, name: &CStr) -> u64 {
    let head = at::<u32>(hash);
    // SAFETY: the four words of the head.
    let [buckets, first, filter, _shift] = unsafe { head.cast::<[u32; 4]>().read() };
    let wanted = name.to_bytes().iter().fold(5381_u32, |sum, &byte| {
        sum.wrapping_mul(33).wrapping_add(u32::from(byte))
    });
    let Some(bucket) = wanted.checked_rem(buckets) else {
        return 0;
    };
    let words = |count: u32| u64::from(count).wrapping_mul(4);
    let buckets_at = hash.wrapping_add(16).wrapping_add(words(filter).wrapping_mul(2));
    let chains_at = buckets_at.wrapping_add(words(buckets));
    // SAFETY: a bucket of the table.
    let mut index = unsafe { at::<u32>(buckets_at.wrapping_add(words(bucket))).read() };
    if index < first {
        return 0;
    }
    loop {
        // SAFETY: the chain of a bucket lies within the table up to the entry with the lowest bit set.
        let link = unsafe { at::<u32>(chains_at.wrapping_add(words(index.wrapping_sub(first)))).read() };
        if link | 1 == wanted | 1 {
            // SAFETY: hashed symbols lie within the symbol table.
            let symbol = unsafe { &*at::<Elf64_Sym>(symbols).add(usize::try_from(index).unwrap_or(0)) };
            // SAFETY: names are offsets into the string table.
            let found = unsafe { CStr::from_ptr(at::<c_char>(strings.wrapping_add(u64::from(symbol.st_name)))) };
            if symbol.st_shndx != 0 && symbol.st_value != 0 && found == name {
                return symbol.st_value;
            }
        }
        if link & 1 != 0 {
            return 0;
        }
        index = index.wrapping_add(1);
    }
}

fn at<T>(address: u64) -> *const T {
    ptr::with_exposed_provenance(usize::try_from(address).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::libc_function;

    #[test]
    fn finds_what_the_loader_finds() {
        // None that a sanitizer puts its own in the place of.
        for name in [c"getpid", c"dlvsym", c"lfind"] {
            // SAFETY: plain lookups.
            let expected = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
            assert_eq!(libc_function(name), expected, "{name:?}");
        }
        assert!(libc_function(c"no_such_function_anywhere").is_null());
    }
}
