//! Programs that are linked against musl cannot be held to a share by a preloaded library: their loader reads no
//! `/etc/ld.so.preload`, and a library made for glibc ends them. So they are refused, with the reason.
//!
//! In a container that is done by a file of our own at the place of musl's loader ([`Processor::loader`]). The system
//! starts a program's loader in its place, so every program that is linked dynamically against musl then says
//! [`REFUSAL`] and ends with status [`STATUS`]. Programs of glibc name another loader and never meet that file.
//!
//! The file ([`Processor::program`]) is put together here, byte by byte: it needs no C library, no linker, and nothing
//! in an image or a package that could be missing. Programs linked statically, and those that bring musl's loader under
//! another name, are not met by it.

mod interpreter;

pub use interpreter::{is_musl_loader, musl_loader_of};

/// Why a program on musl is not let at a share: part of a sentence, after the name of what is refused.
pub const REASON: &str =
    "is built on musl, whose loader takes no preloaded library, so its share of the card cannot be held";

/// The line, with its end, that a refused program writes to standard error.
pub const REFUSAL: &str = "tessera: this image is built on musl, whose loader takes no preloaded library, so this \
                           container's share of the card cannot be held. Use an image with glibc, or ask for a whole \
                           card.\n";

/// Exit status of a refused program: a shell's for what could not be run.
pub const STATUS: u8 = 127;

/// Processors that there is a refusing program for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// 64-bit x86.
    X86_64,
    /// 64-bit Arm, little endian.
    Aarch64,
}

/// Bytes of the head of a 64-bit ELF file.
const HEAD: u16 = 64;
/// Bytes of one entry of its program table.
const ENTRY: u16 = 56;
/// Parts in the program table: what is loaded, and the stack's rights.
const PARTS: u16 = 2;
/// Where the code begins, in the file and in memory.
const CODE_AT: u16 = HEAD + PARTS * ENTRY;
/// The largest page of the two processors; what is loaded begins at a multiple.
const PAGE: u64 = 0x1_0000;

impl Processor {
    /// The processor that this was compiled for; `None` where there is no refusing program.
    #[must_use]
    pub const fn of_this_build() -> Option<Self> {
        if cfg!(target_arch = "x86_64") {
            Some(Self::X86_64)
        } else if cfg!(target_arch = "aarch64") {
            Some(Self::Aarch64)
        } else {
            None
        }
    }

    /// Path of musl's loader, which programs linked against musl name.
    #[must_use]
    pub const fn loader(self) -> &'static str {
        match self {
            Self::X86_64 => "/lib/ld-musl-x86_64.so.1",
            Self::Aarch64 => "/lib/ld-musl-aarch64.so.1",
        }
    }

    /// An executable file that writes [`REFUSAL`] to standard error and exits with [`STATUS`]: position independent,
    /// without relocations, less than a page long. It works as a program, and as the loader of one.
    #[must_use]
    pub fn program(self) -> Vec<u8> {
        let code = self.code();
        let size = u64::from(CODE_AT) + (code.len() + REFUSAL.len()) as u64;
        let mut file = Vec::with_capacity(512);
        // The ELF head: 64 bits, little endian, version 1, System V.
        file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
        push(&mut file, &[u16::to_le_bytes(3), u16::to_le_bytes(self.elf_number())]);
        push(&mut file, &[u32::to_le_bytes(1)]);
        // Entry point, program table, no section table.
        push(
            &mut file,
            &[u64::from(CODE_AT), u64::from(HEAD), 0].map(u64::to_le_bytes),
        );
        push(&mut file, &[u32::to_le_bytes(0)]);
        push(&mut file, &[HEAD, ENTRY, PARTS, 0, 0, 0].map(u16::to_le_bytes));
        // Everything is loaded, to be read and run.
        push(&mut file, &[1_u32, 5].map(u32::to_le_bytes));
        push(&mut file, &[0, 0, 0, size, size, PAGE].map(u64::to_le_bytes));
        // A stack that cannot be run.
        push(&mut file, &[0x6474_e551_u32, 6].map(u32::to_le_bytes));
        push(&mut file, &[0, 0, 0, 0, 0, 16].map(u64::to_le_bytes));
        file.extend_from_slice(&code);
        file.extend_from_slice(REFUSAL.as_bytes());
        file
    }

    /// `e_machine`.
    const fn elf_number(self) -> u16 {
        match self {
            Self::X86_64 => 62,
            Self::Aarch64 => 183,
        }
    }

    /// Two system calls, `write` and `exit_group`. The text lies behind the code.
    fn code(self) -> Vec<u8> {
        const LENGTH: u16 = {
            assert!(REFUSAL.len() < 4096, "the file is less than a page long");
            #[expect(clippy::cast_possible_truncation, reason = "less than 4096")]
            let length = REFUSAL.len() as u16;
            length
        };
        let mut code = Vec::with_capacity(40);
        match self {
            Self::X86_64 => {
                // lea rsi, [rip + 31]: this instruction ends at 7, the code at 38.
                code.extend_from_slice(&[0x48, 0x8d, 0x35, 31, 0, 0, 0]);
                // mov edx, LENGTH
                code.push(0xba);
                push(&mut code, &[u32::from(LENGTH).to_le_bytes()]);
                // mov edi, 2; mov eax, write; syscall
                code.extend_from_slice(&[0xbf, 2, 0, 0, 0, 0xb8, 1, 0, 0, 0, 0x0f, 0x05]);
                // mov edi, STATUS; mov eax, exit_group; syscall
                code.extend_from_slice(&[0xbf, STATUS, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]);
                // ud2: where leaving is forbidden, the system ends it.
                code.extend_from_slice(&[0x0f, 0x0b]);
            }
            Self::Aarch64 => {
                /// `movz x<register>, #value`.
                const fn set(register: u32, value: u16) -> u32 {
                    0xd280_0000 | (value as u32) << 5 | register
                }
                const CALL: u32 = 0xd400_0001;
                let words = [
                    // adr x1, 36: nine instructions of four bytes on.
                    0x1000_0000 | 9 << 5 | 1,
                    set(0, 2),
                    set(2, LENGTH),
                    // write
                    set(8, 64),
                    CALL,
                    set(0, STATUS as u16),
                    // exit_group
                    set(8, 94),
                    CALL,
                    // brk: where leaving is forbidden, the system ends it.
                    0xd420_0000,
                ];
                push(&mut code, &words.map(u32::to_le_bytes));
            }
        }
        code
    }
}

fn push<const N: usize>(file: &mut Vec<u8>, values: &[[u8; N]]) {
    file.extend_from_slice(values.as_flattened());
}

#[cfg(test)]
mod tests;
