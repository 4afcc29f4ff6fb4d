//! Takes exported names out of a library file, to play a driver that lacks them.

fn u16_at(b: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(b.get(at..at + 2)?.try_into().ok()?)))
}

fn u32_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(b.get(at..at + 4)?.try_into().ok()?)).ok()
}

fn u64_at(b: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u64::from_le_bytes(b.get(at..at + 8)?.try_into().ok()?)).ok()
}

/// Marks the dynamic symbols of these names as not defined here. Names that the library does
/// not have are passed over: a description lists names of both libraries.
pub(crate) fn hide(image: &mut [u8], names: &[String]) -> Result<(), String> {
    if names.is_empty() {
        return Ok(());
    }
    hide_inner(image, names).ok_or_else(|| "not a 64-bit library with a symbol table".to_owned())
}

fn hide_inner(image: &mut [u8], names: &[String]) -> Option<()> {
    const SHT_DYNSYM: usize = 11;
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (u64_at(image, 40)?, u16_at(image, 58)?, u16_at(image, 60)?);
    let header = |i: usize| table + i * size;
    let section = (0..count).find(|i| u32_at(image, header(*i) + 4) == Some(SHT_DYNSYM))?;
    let symbols = u64_at(image, header(section) + 24)?;
    let bytes = u64_at(image, header(section) + 32)?;
    let strings = u64_at(image, header(u32_at(image, header(section) + 40)?) + 24)?;
    for at in (symbols..symbols + bytes).step_by(24) {
        let start = strings + u32_at(image, at)?;
        let end = start + image.get(start..)?.iter().position(|b| *b == 0)?;
        if names.iter().any(|n| n.as_bytes() == &image[start..end]) {
            // Neither section nor value: the loader passes such an entry over.
            image.get_mut(at + 6..at + 16)?.fill(0);
        }
    }
    Some(())
}
