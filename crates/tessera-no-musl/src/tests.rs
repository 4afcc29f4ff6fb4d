use std::ffi::OsStr;
use std::os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

fn folder() -> tempfile::TempDir {
    // Short, so that a path in it fits where a program has the path of its loader.
    tempfile::Builder::new().prefix("m").tempdir_in("/tmp").unwrap()
}

fn put(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// This test's own program, with another loader.
fn with_loader(loader: &Path) -> Vec<u8> {
    let mut program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let old = if cfg!(target_arch = "aarch64") {
        &b"/lib/ld-linux-aarch64.so.1\0"[..]
    } else {
        &b"/lib64/ld-linux-x86-64.so.2\0"[..]
    };
    let at = program.windows(old.len()).position(|bytes| bytes == old).unwrap();
    let new = loader.as_os_str().as_bytes();
    assert!(new.len() < old.len(), "{} is too long", loader.display());
    let place = &mut program[at..at + old.len()];
    place.fill(0);
    place[..new.len()].copy_from_slice(new);
    program
}

#[test]
fn it_says_why_and_ends_as_a_program_and_as_the_loader_of_one() {
    let Some(processor) = Processor::of_this_build() else {
        return;
    };
    let folder = folder();
    let (loader, program) = (folder.path().join("l"), folder.path().join("p"));
    put(&loader, &processor.program());
    put(&program, &with_loader(&loader));
    let library = folder.path().join("none.so");
    for path in [&loader, &program] {
        let output = Command::new(path)
            .arg("--list")
            .env("LD_PRELOAD", &library)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(i32::from(STATUS)), "{}", path.display());
        assert_eq!(String::from_utf8(output.stderr).unwrap(), REFUSAL);
        assert!(output.stdout.is_empty());
    }
    // Nobody listens: it ends all the same.
    let mut deaf = Command::new("/bin/sh");
    deaf.args(["-c", "exec \"$0\" 2>&-"]).arg(&program);
    assert_eq!(deaf.status().unwrap().code(), Some(i32::from(STATUS)));
}

#[test]
fn the_refusal_is_one_line_with_a_next_step() {
    assert_eq!(REFUSAL.lines().count(), 1);
    assert!(REFUSAL.ends_with("Use an image with glibc, or ask for a whole card.\n"));
}

#[test]
fn each_processor_has_its_own_program_less_than_a_page_long() {
    for (processor, number) in [(Processor::X86_64, 62), (Processor::Aarch64, 183)] {
        let program = processor.program();
        assert_eq!(program[18..20], u16::to_le_bytes(number));
        assert!(program.len() < 4096);
        assert!(program.ends_with(REFUSAL.as_bytes()));
        // Where the code says that the text is.
        let code = &program[usize::from(CODE_AT)..];
        let text = match processor {
            Processor::X86_64 => 7 + usize::from(code[3]),
            Processor::Aarch64 => {
                (u32::from_le_bytes([code[0], code[1], code[2], code[3]]) >> 5 & 0x7_ffff) as usize * 4
            }
        };
        assert_eq!(&code[text..], REFUSAL.as_bytes(), "{processor:?}");
        assert!(is_musl_loader(Path::new(processor.loader())));
    }
}

#[test]
fn a_program_is_known_by_the_loader_that_it_names() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let musl = PathBuf::from("/lib/ld-musl-x86_64.so.1");
    put(&at("musl"), &with_loader(&musl));
    put(&at("script"), format!("#! {} -u\n", at("musl").display()).as_bytes());
    put(&at("scripted"), format!("#!{}\n", at("script").display()).as_bytes());
    for name in ["musl", "script", "scripted"] {
        assert_eq!(musl_loader_of(&at(name)).unwrap(), Some(musl.clone()), "{name}");
    }
    assert_eq!(musl_loader_of(&musl).unwrap(), Some(musl.clone()), "called by hand");
    put(&at("round"), format!("#!{}\n", at("round").display()).as_bytes());
    put(&at("empty"), b"");
    put(&at("nothing"), b"#!\n");
    let this = std::env::current_exe().unwrap();
    for path in [at("round"), at("empty"), at("nothing"), this] {
        assert_eq!(musl_loader_of(&path).unwrap(), None, "{}", path.display());
    }
    assert!(musl_loader_of(&at("absent")).is_err());
}

#[test]
fn damaged_programs_name_no_loader_and_break_nothing() {
    let folder = folder();
    let path = folder.path().join("p");
    let whole = with_loader(Path::new("/lib/ld-musl-x86_64.so.1"));
    let head = &whole[..4096.min(whole.len())];
    for length in 0..512 {
        put(&path, &head[..length]);
        assert_eq!(musl_loader_of(&path).unwrap(), None, "{length} bytes");
    }
    // Each byte of the head and the program table, with the two values that carry furthest.
    for at in 6..512 {
        for value in [0x7f, 0xff] {
            let mut bytes = head.to_vec();
            bytes[at] = value;
            put(&path, &bytes);
            let found = musl_loader_of(&path).unwrap();
            assert!(
                found.is_none_or(|found| found.file_name() == Some(OsStr::new("ld-musl-x86_64.so.1"))),
                "byte {at}"
            );
        }
    }
}
