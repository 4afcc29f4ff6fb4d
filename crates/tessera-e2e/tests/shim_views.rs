//! What programs see of a limited card, and every way to find the entries.

#![allow(clippy::unwrap_used, reason = "tests")]

mod shim_support;

use std::process::Command;

use shim_support::{Client, GIB, MIB, Machine, can_mount};

#[test]
fn the_driver_and_nvml_show_the_same() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[4 * GIB]);
    let mut client = container.ready();
    client.expect("nvmlInit_v2", "0");
    for (step, used) in [
        ("cuMemAlloc_v2 &a 1000MiB", 1000),
        ("cuMemAllocManaged &b 500MiB 1", 1500),
        ("cuMemAllocAsync &c 200MiB null", 1700),
        ("cuMemFree_v2 $a", 700),
        ("cuMemAlloc_v2 &a 3396MiB", 4096),
    ] {
        client.expect(step, "0");
        assert_eq!(client.memory(), (4 * GIB - used * MIB, 4 * GIB), "{step}");
        assert_eq!(
            client.nvml_memory(),
            [4 * GIB, 4 * GIB - used * MIB, used * MIB],
            "{step}"
        );
        client.expect("@new m2 40", "ok");
        client.expect("@set m2 0 4 0x02000028", "ok");
        client.expect("nvmlDeviceGetMemoryInfo_v2 $d *m2", "0");
        let second = [8, 16, 24, 32].map(|at| client.ask(&format!("@get m2 {at} 8")).parse::<u64>().unwrap());
        assert_eq!(second, [4 * GIB, 0, 4 * GIB - used * MIB, used * MIB], "{step}");
    }
    client.expect("nvmlDeviceGetMemoryInfo $d null", "2");
}

#[test]
fn a_limit_above_the_card_shows_the_card() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[64 * GIB]);
    let mut client = container.ready();
    let mut bare = machine.bare();
    bare.expect("cuInit 0", "0");
    let card = bare.value("cuDeviceTotalMem_v2 &t 0", "t");
    assert_eq!(client.value("cuDeviceTotalMem_v2 &t 0", "t"), card);
    client.expect("cuDeviceTotalMem_v2 &t 7", "101");
    let (free, total) = client.memory();
    assert_eq!(total, card);
    assert!(free < card, "the context is on the card");

    let small = machine.container(&[GIB]);
    let mut client = small.ready();
    assert_eq!(client.value("cuDeviceTotalMem_v2 &t 0", "t"), GIB);
}

#[test]
fn a_neighbours_memory_is_not_free() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mine = machine.container(&[8 * GIB]);
    let other = machine.container(&[12 * GIB]);
    let mut client = mine.ready();
    let mut neighbour = other.ready();
    neighbour.expect("cuMemAlloc_v2 &p 10GiB", "0");
    let (free, total) = client.memory();
    assert_eq!(total, 8 * GIB);
    assert!(free < 6 * GIB, "{free}");
}

#[test]
fn process_lists_show_the_containers_own() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let other = machine.container(&[GIB]);
    let mut neighbour = other.ready();
    neighbour.expect("cuMemAlloc_v2 &p 1MiB", "0");
    let mut client = container.ready();
    client.expect("cuMemAlloc_v2 &p 10MiB", "0");
    client.expect("nvmlInit_v2", "0");
    client.expect("nvmlDeviceGetHandleByIndex_v2 0 &d", "0");
    client.expect("@new n 8", "ok");
    // Asking for the number: too small, and how many there are.
    client.expect("nvmlDeviceGetComputeRunningProcesses_v3 $d *n null", "7");
    assert_eq!(client.ask("@get n 0 4"), "1");
    client.expect("@set n 0 4 10", "ok");
    client.expect("@new list 240", "ok");
    client.expect("nvmlDeviceGetComputeRunningProcesses_v3 $d *n *list", "0");
    assert_eq!(client.ask("@get n 0 4"), "1");
    assert_eq!(client.ask("@get list 0 4"), client.child.id().to_string());
    assert_eq!(client.ask("@get list 8 8"), (10 * MIB).to_string());
    client.expect("@set n 0 4 10", "ok");
    client.expect("nvmlDeviceGetGraphicsRunningProcesses_v3 $d *n *list", "0");
    assert_eq!(client.ask("@get n 0 4"), "0");
}

#[test]
fn every_lookup_leads_to_the_library_if_the_driver_has_the_name() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut client = container.ready();
    client.expect("nvmlInit_v2", "0");
    for handle in ["libcuda", "default", "next", "self"] {
        client.expect(&format!("@dlsym {handle} cuMemAlloc_v2"), "libvgpu.so:cuMemAlloc_v2");
    }
    client.expect(
        "@dlsym nvml nvmlDeviceGetMemoryInfo",
        "libvgpu.so:nvmlDeviceGetMemoryInfo",
    );
    // Launches are the driver's own: they cost nothing.
    client.expect("@dlsym libcuda cuLaunchKernel", "libcuda.so.1:cuLaunchKernel");
    client.expect("@gpa cuLaunchKernel 4000 0 l", "0 status=0 libcuda.so.1:cuLaunchKernel");
    // What the driver lacks is absent, and what is not the driver's is not touched.
    client.expect("@dlsym libcuda cuNoSuchCall", "null");
    client.expect("@dlsym libcuda nvmlInit_v2", "null");
    client.expect("@dlsym default curl_easy_init", "null");
    for _ in 0..3 {
        client.expect("@dlsym default malloc", "libc.so.6:malloc");
    }
}

#[test]
fn before_the_driver_is_loaded_its_names_are_absent() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut client = container.client();
    client.expect("@dlsym default cuInit", "null");
    client.expect("@dlsym self cuMemAlloc_v2", "null");
    client.expect("cuInit 0", "0");
    client.expect("@dlsym default cuInit", "libvgpu.so:cuInit");
}

#[test]
fn lookup_through_the_driver_keeps_version_and_form() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let mut client = container.ready();
    for (symbol, version, flags, found) in [
        ("cuMemAlloc", 2000, 0, "cuMemAlloc"),
        ("cuMemAlloc", 3020, 0, "cuMemAlloc_v2"),
        ("cuMemAlloc", 12080, 0, "cuMemAlloc_v2"),
        ("cuMemAllocAsync", 11020, 0, "cuMemAllocAsync"),
        ("cuMemAllocAsync", 11020, 2, "cuMemAllocAsync_ptsz"),
        ("cuMemAlloc", 12000, 2, "cuMemAlloc_v2"),
        ("cuCtxCreate", 3020, 0, "cuCtxCreate_v2"),
        ("cuCtxCreate", 11040, 0, "cuCtxCreate_v3"),
        ("cuCtxCreate", 13000, 0, "cuCtxCreate_v4"),
        ("cuMemGetInfo", 12000, 0, "cuMemGetInfo_v2"),
        ("cuGetProcAddress", 11030, 0, "cuGetProcAddress"),
        ("cuGetProcAddress", 12000, 0, "cuGetProcAddress_v2"),
    ] {
        let question = format!("@gpa {symbol} {version} {flags} f");
        client.expect(&question, &format!("0 status=0 libvgpu.so:{found}"));
    }
    // A version from before the call existed: no pointer, and the driver's own status.
    let answer = client.ask("@gpa cuMemAllocAsync 10000 0 f");
    assert!(answer.ends_with("null") && !answer.contains("status=77"), "{answer}");
    client.expect("@gpa1 cuMemAlloc 3020 0 f", "0 libvgpu.so:cuMemAlloc_v2");
    client.expect("$f &p 1025MiB", "2");
    client.expect("$f &p 1GiB", "0");
    client.expect("cuMemFree_v2 $p", "0");
    client.expect(
        "@gpa cuMemAllocAsync 12000 2 f",
        "0 status=0 libvgpu.so:cuMemAllocAsync_ptsz",
    );
    client.expect("$f &p 1026MiB null", "2");
    client.expect("$f &p 10MiB null", "0");
    assert_eq!(client.used(), 10 * MIB);
}

/// A program in another language, through its own loader, with a library that binds deeply.
#[test]
fn python_with_deep_binding_is_limited() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let program = "
import ctypes, os
for mode in (os.RTLD_NOW, os.RTLD_NOW | os.RTLD_DEEPBIND, os.RTLD_LAZY | os.RTLD_GLOBAL):
    cuda = ctypes.CDLL('libcuda.so.1', mode=mode)
    assert cuda.cuInit(0) == 0
    context, pointer = ctypes.c_void_p(), ctypes.c_uint64()
    assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
    assert cuda.cuCtxSetCurrent(context) == 0
    over = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t((1 << 30) + 1))
    fits = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(1 << 30))
    gone = cuda.cuMemFree_v2(pointer)
    print(over, fits, gone)
";
    let mut command = Command::new("python3");
    command.arg("-c").arg(program);
    container.enter(&mut command);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "2 0 0\n2 0 0\n2 0 0\n",
        "{said}"
    );
}

/// Another preloaded library, behind ours, that finds the next function after itself: the C library must see it as the
/// caller, or it finds itself and never returns.
#[test]
fn another_preloaded_library_finds_what_is_behind_it() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let container = machine.container(&[GIB]);
    let source = machine.root.path().join("second.c");
    let second = machine.root.path().join("second.so");
    std::fs::write(
        &source,
        "#define _GNU_SOURCE
        #include <dlfcn.h>
        int getppid(void) { return ((int (*)(void))dlsym(RTLD_NEXT, \"getppid\"))() + 1000000000; }
        int getpgrp(void) { return ((int (*)(void))dlvsym(RTLD_NEXT, \"getpgrp\", \"GLIBC_2.2.5\"))() + 1000000000; }",
    )
    .unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .arg(&second)
        .arg(&source)
        .status()
        .unwrap();
    assert!(built.success());
    let mut command = Command::new("python3");
    command.args([
        "-c",
        "import os; print(os.getppid() > 10**9, os.getpgrp() > 10**9, os.getppid() < 2 * 10**9)",
    ]);
    container.enter(&mut command);
    command.env(
        "LD_PRELOAD",
        format!("{} {}", shim_support::library().display(), second.display()),
    );
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "True True True\n", "{said}");
}

#[test]
fn a_start_makes_no_context() {
    if !can_mount() {
        return;
    }
    let machine = Machine::new(1);
    let mut bare = machine.bare();
    bare.make_ready(0);
    let before = bare.memory();
    let container = machine.container(&[GIB]);
    let mut clients: Vec<Client> = (0..4).map(|_| container.client()).collect();
    for client in &mut clients {
        client.expect("cuInit 0", "0");
        client.expect("nvmlInit_v2", "0");
    }
    assert_eq!(bare.memory(), before);
}
