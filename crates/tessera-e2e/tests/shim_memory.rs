//! The memory limit, family by family, on the simulated driver.

#![allow(clippy::unwrap_used, reason = "tests")]

mod shim_support;

use shim_support::{Client, Container, GIB, MIB, Machine, can_mount};
use tessera_region::{CardFlags, CardGrant};

/// One container with 1 GiB of the only card, and a client with a context.
fn with_one(test: impl FnOnce(&Container<'_>, &mut Client)) {
    if can_mount() {
        let machine = Machine::new(1);
        let container = machine.container(&[GIB]);
        test(&container, &mut container.ready());
    }
}

/// The same where a context of 300 MiB counts.
fn with_counted_context(test: impl FnOnce(&Container<'_>, &mut Client)) {
    if can_mount() {
        let machine = Machine::new(1);
        let card = CardGrant {
            flags: CardFlags::COUNT_CONTEXT,
            ..CardGrant::with_memory(&machine.uuids[0], GIB).unwrap()
        };
        let container = machine.container_with([card]);
        test(&container, &mut container.ready());
    }
}

#[test]
fn plain_memory_is_limited_to_the_byte() {
    with_one(|_, client| {
        assert_eq!(client.memory(), (GIB, GIB));
        client.expect("cuMemAlloc_v2 &p 1073741825", "2");
        client.expect("cuMemAlloc_v2 &p 1GiB", "0");
        assert_eq!(client.memory(), (0, GIB));
        client.expect("cuMemAlloc_v2 &q 1", "2");
        client.expect("cuMemFree_v2 $p", "0");
        assert_eq!(client.memory(), (GIB, GIB));
        client.expect("cuMemAlloc_v2 &p 1023MiB", "0");
        client.expect("cuMemAlloc_v2 &q 2MiB", "2");
    });
}

#[test]
fn what_fits_to_the_byte_is_not_refused_for_rounding() {
    if can_mount() {
        let machine = Machine::new(1);
        let container = machine.container(&[3001 * MIB]);
        let mut client = container.ready();
        client.expect("cuMemAlloc_v2 &p 3001MiB", "0");
        client.expect("cuMemAlloc_v2 &q 1", "2");
        assert_eq!(client.memory(), (0, 3001 * MIB));
    }
}

#[test]
fn managed_and_pitched_memory_count() {
    with_one(|_, client| {
        client.expect("cuMemAllocManaged &p 1025MiB 1", "2");
        client.expect("cuMemAllocManaged &p 512MiB 1", "0");
        assert_eq!(client.used(), 512 * MIB);
        // 4096 rows of 1000 bytes, 1024 apart.
        assert_eq!(client.value("cuMemAllocPitch_v2 &q &w 1000 4096 4", "w"), 1024);
        assert_eq!(client.used(), 516 * MIB);
        client.expect("cuMemAllocPitch_v2 &r &w 1MiB 1024 4", "2");
        client.expect("cuMemFree_v2 $q", "0");
        client.expect("cuMemFree_v2 $p", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn stream_ordered_memory_counts_as_long_as_the_pool_holds_it() {
    for suffix in ["", "_ptsz"] {
        with_one(|_, client| {
            client.expect(&format!("cuMemAllocAsync{suffix} &p 1026MiB null"), "2");
            client.expect(&format!("cuMemAllocAsync{suffix} &p 1GiB null"), "0");
            client.expect("cuMemAlloc_v2 &q 1MiB", "2");
            assert_eq!(client.memory(), (0, GIB));
            client.expect(&format!("cuMemFreeAsync{suffix} $p null"), "0");
            let pool = client.value("cuDeviceGetDefaultMemPool &d 0", "d");
            assert_ne!(pool, 0);
            client.expect("cuMemPoolTrimTo $d 0", "0");
            assert_eq!(client.memory(), (GIB, GIB));
        });
    }
}

#[test]
fn unused_pool_memory_gives_way_before_a_refusal() {
    with_one(|_, client| {
        client.expect("cuMemAllocAsync &p 500MiB null", "0");
        client.expect("cuMemFreeAsync $p null", "0");
        client.expect("cuMemAlloc_v2 &q 900MiB", "0");
        assert_eq!(client.used(), 900 * MIB);
    });
}

#[test]
fn a_pool_of_the_programs_own_counts_too() {
    with_one(|_, client| {
        client.expect("@new props 88", "ok");
        client.expect("@set props 0 4 1", "ok");
        client.expect("@set props 8 4 1", "ok");
        client.expect("cuMemPoolCreate &q *props", "0");
        client.expect("cuMemAllocFromPoolAsync &p 1026MiB $q null", "2");
        client.expect("cuMemAllocFromPoolAsync &p 1000MiB $q null", "0");
        assert_eq!(client.used(), 1000 * MIB);
        client.expect("cuMemFreeAsync $p null", "0");
        client.expect("cuMemPoolTrimTo $q 0", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuMemAllocFromPoolAsync_ptsz &p 100MiB $q null", "0");
        client.expect("cuMemFreeAsync $p null", "0");
        client.expect("cuMemPoolDestroy $q", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn either_free_takes_either_memory() {
    with_one(|_, client| {
        client.expect("cuMemAllocAsync &p 10MiB null", "0");
        client.expect("cuMemFree_v2 $p", "0");
        client.expect("cuMemAlloc_v2 &q 10MiB", "0");
        client.expect("cuMemFreeAsync $q null", "0");
        client.expect("cuCtxSynchronize", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn the_driver_judges_pointers_that_are_not_known() {
    with_one(|_, client| {
        client.expect("cuMemFree_v2 0", "0");
        client.expect("cuMemFree_v2 0x123400000", "1");
        client.expect("cuMemFreeAsync 0x123400000 null", "1");
        client.expect("cuMemAlloc_v2 &p 1MiB", "0");
        client.expect("cuMemFree_v2 $p", "0");
        client.expect("cuMemFree_v2 $p", "1");
        assert_eq!(client.used(), 0);
    });
}

fn device_memory(client: &mut Client, device: u32) {
    client.expect("@new prop 32", "ok");
    client.expect("@set prop 0 4 1", "ok");
    client.expect("@set prop 8 4 1", "ok");
    client.expect(&format!("@set prop 12 4 {device}"), "ok");
}

#[test]
fn physical_memory_counts_until_nothing_refers_to_it() {
    with_one(|_, client| {
        device_memory(client, 0);
        client.expect("cuMemCreate &h 1026MiB *prop 0", "2");
        client.expect("cuMemCreate &h 400MiB *prop 0", "0");
        client.expect("cuMemAddressReserve &v 400MiB 0 0 0", "0");
        client.expect("cuMemMap $v 400MiB 0 $h 0", "0");
        client.expect("cuMemRetainAllocationHandle &h2 $v", "0");
        client.expect("cuMemRelease $h", "0");
        assert_eq!(client.used(), 400 * MIB);
        client.expect("cuMemUnmap $v 400MiB", "0");
        assert_eq!(client.used(), 400 * MIB);
        client.expect("cuMemAlloc_v2 &p 700MiB", "2");
        client.expect("cuMemRelease $h2", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuMemAlloc_v2 &p 1GiB", "0");
    });
}

#[test]
fn a_range_of_mappings_is_unmapped_at_once() {
    with_one(|_, client| {
        device_memory(client, 0);
        client.expect("cuMemAddressReserve &v 4MiB 0 0 0", "0");
        client.expect("cuMemCreate &a 2MiB *prop 0", "0");
        client.expect("cuMemCreate &b 2MiB *prop 0", "0");
        client.expect("cuMemMap $v 2MiB 0 $a 0", "0");
        client.expect("cuMemMap $v+2MiB 2MiB 0 $b 0", "0");
        client.expect("cuMemRelease $a", "0");
        client.expect("cuMemRelease $b", "0");
        assert_eq!(client.used(), 4 * MIB);
        client.expect("cuMemUnmap $v 4MiB", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn memory_is_charged_to_the_card_that_it_names() {
    if can_mount() {
        let machine = Machine::new(2);
        let container = machine.container(&[GIB, GIB]);
        let mut client = container.ready();
        client.expect("cuDevicePrimaryCtxRetain &ctx1 1", "0");
        device_memory(&mut client, 1);
        client.expect("cuMemCreate &h 1026MiB *prop 0", "2");
        client.expect("cuMemCreate &h 700MiB *prop 0", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuCtxSetCurrent $ctx1", "0");
        assert_eq!(client.used(), 700 * MIB);
    }
}

fn array(client: &mut Client, name: &str, extent: [u64; 3], channels: u64) {
    client.expect(&format!("@new {name} 40"), "ok");
    for (n, size) in extent.iter().enumerate() {
        client.expect(&format!("@set {name} {} 8 {size}", n * 8), "ok");
    }
    client.expect(&format!("@set {name} 24 4 32"), "ok");
    client.expect(&format!("@set {name} 28 4 {channels}"), "ok");
}

#[test]
fn arrays_count() {
    with_one(|_, client| {
        client.expect("@new flat 24", "ok");
        for (at, size, value) in [(0, 8, 4096), (8, 8, 4096), (16, 4, 32), (20, 4, 4)] {
            client.expect(&format!("@set flat {at} {size} {value}"), "ok");
        }
        client.expect("cuArrayCreate_v2 &a *flat", "0");
        assert_eq!(client.used(), 256 * MIB);
        array(client, "large", [1024, 1024, 512], 1);
        client.expect("cuArray3DCreate_v2 &b *large", "2");
        client.expect("cuMipmappedArrayCreate &b *large 1", "2");
        array(client, "small", [1024, 1024, 64], 1);
        client.expect("cuArray3DCreate_v2 &b *small", "0");
        client.expect("cuMipmappedArrayCreate &c *small 1", "0");
        assert_eq!(client.used(), 768 * MIB);
        client.expect("cuMipmappedArrayDestroy $c", "0");
        client.expect("cuArrayDestroy $b", "0");
        client.expect("cuArrayDestroy $a", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn what_dies_with_a_context_is_given_back() {
    with_one(|_, client| {
        client.expect("cuMemAlloc_v2 &p 500MiB", "0");
        client.expect("cuDevicePrimaryCtxReset_v2 0", "0");
        client.expect("cuCtxSetCurrent $ctx0", "0");
        client.expect("cuDevicePrimaryCtxRetain &ctx0 0", "0");
        client.expect("cuCtxSetCurrent $ctx0", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuMemAlloc_v2 &q 1GiB", "0");
        client.expect("cuMemFree_v2 $q", "0");

        client.expect("cuCtxCreate_v2 &other 0 0", "0");
        client.expect("cuMemAlloc_v2 &q 700MiB", "0");
        client.expect("cuCtxDestroy_v2 $other", "0");
        client.expect("cuCtxSetCurrent $ctx0", "0");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn contexts_count_where_the_grant_says_so() {
    with_counted_context(|_, client| {
        assert_eq!(client.memory(), (724 * MIB, GIB));
        client.expect("cuMemAlloc_v2 &p 726MiB", "2");
        client.expect("cuCtxCreate_v2 &other 0 0", "0");
        assert_eq!(client.memory(), (424 * MIB, GIB));
        client.expect("cuCtxDestroy_v2 $other", "0");
        client.expect("cuCtxSetCurrent $ctx0", "0");
        // References are counted: a second use and its end change nothing.
        client.expect("cuDevicePrimaryCtxRetain &c 0", "0");
        client.expect("cuDevicePrimaryCtxRelease_v2 0", "0");
        assert_eq!(client.memory(), (724 * MIB, GIB));
        client.expect("cuMemAlloc_v2 &p 724MiB", "0");
        assert_eq!(client.memory(), (0, GIB));
        // A reset takes what was made in the context, not the context from who retained it: the next use of it brings
        // its memory back.
        client.expect("cuDevicePrimaryCtxReset_v2 0", "0");
        assert_eq!(client.memory(), (724 * MIB, GIB));
        client.expect("cuMemAlloc_v2 &p 725MiB", "2");
    });
}

#[test]
fn a_context_above_the_limit_shows_nothing_free() {
    if can_mount() {
        let machine = Machine::new(1);
        let card = CardGrant {
            flags: CardFlags::COUNT_CONTEXT,
            ..CardGrant::with_memory(&machine.uuids[0], 200 * MIB).unwrap()
        };
        let container = machine.container_with([card]);
        let mut client = container.ready();
        assert_eq!(client.memory(), (0, 200 * MIB));
        client.expect("nvmlInit_v2", "0");
        assert_eq!(client.nvml_memory()[..2], [200 * MIB, 0]);
        client.expect("cuMemAlloc_v2 &p 1", "2");
    }
}

#[test]
fn memory_of_graphs_counts_when_they_run() {
    with_one(|_, client| {
        client.expect("cuGraphCreate &g 0", "0");
        client.expect("@new node 128", "ok");
        for (at, size, value) in [(0, 4, 1), (8, 4, 1), (104, 8, 2 * GIB)] {
            client.expect(&format!("@set node {at} {size} {value}"), "ok");
        }
        client.expect("cuGraphAddMemAllocNode &n $g null 0 *node", "0");
        client.expect("cuGraphInstantiateWithFlags &x $g 0", "0");
        client.expect("cuGraphLaunch $x null", "2");
        assert_eq!(client.used(), 0);

        client.expect("cuGraphCreate &g 0", "0");
        client.expect(&format!("@set node 104 8 {}", 500 * MIB), "ok");
        client.expect("cuGraphAddMemAllocNode &n $g null 0 *node", "0");
        client.expect("cuGraphInstantiateWithFlags &x $g 0", "0");
        client.expect("cuGraphLaunch $x null", "0");
        assert_eq!(client.used(), 500 * MIB);
        client.expect("cuMemAlloc_v2 &p 600MiB", "2");
        // In use until it is freed, kept by the card's store until that is trimmed.
        client.expect("cuDeviceGraphMemTrim 0", "0");
        assert_eq!(client.used(), 500 * MIB);
        let address = client.ask("@get node 112 8");
        client.expect(&format!("cuMemFree_v2 {address}"), "0");
        client.expect("cuDeviceGraphMemTrim 0", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuMemAlloc_v2 &p 1GiB", "0");
    });
}

#[test]
fn a_recorded_request_counts_when_it_runs() {
    with_one(|_, client| {
        client.expect("cuStreamCreate &s 0", "0");
        client.expect("cuStreamBeginCapture_v2 $s 0", "0");
        client.expect("cuMemAllocAsync &p 700MiB $s", "0");
        client.expect("cuStreamEndCapture $s &g", "0");
        assert_eq!(client.used(), 0);
        client.expect("cuGraphInstantiateWithFlags &x $g 0", "0");
        client.expect("cuMemAlloc_v2 &q 600MiB", "0");
        client.expect("cuGraphLaunch $x null", "2");
        client.expect("cuMemFree_v2 $q", "0");
        client.expect("cuGraphLaunch $x null", "0");
        assert_eq!(client.used(), 700 * MIB);
    });
}

#[test]
fn memory_opened_in_another_process_is_paid_for_by_its_owner() {
    with_one(|container, owner| {
        owner.expect("cuMemAlloc_v2 &p 200MiB", "0");
        owner.expect("@new handle 64", "ok");
        owner.expect("cuIpcGetMemHandle *handle $p", "0");
        let mut opener = container.ready();
        opener.expect("@new handle 64", "ok");
        for at in (0..64).step_by(8) {
            let word = owner.ask(&format!("@get handle {at} 8"));
            opener.expect(&format!("@set handle {at} 8 {word}"), "ok");
        }
        opener.expect("@handle cuIpcOpenMemHandle_v2 &r handle 1", "0");
        assert_eq!(opener.used(), 200 * MIB);
        opener.expect("cuMemFree_v2 $r", "1");
        opener.expect("cuIpcCloseMemHandle $r", "0");
        assert_eq!(opener.used(), 200 * MIB);
        owner.expect("cuMemFree_v2 $p", "0");
        assert_eq!(opener.used(), 0);
    });
}

#[test]
fn null_arguments_and_sizes_out_of_range_are_the_callers_error() {
    with_one(|_, client| {
        device_memory(client, 0);
        for command in [
            "cuMemGetInfo_v2 null &t",
            "cuMemGetInfo_v2 &f null",
            "cuDeviceTotalMem_v2 null 0",
            "cuMemAllocAsync null 1MiB null",
            "cuMemCreate &h 2MiB null 0",
            "cuMemAllocPitch_v2 null &w 64 64 4",
            "cuMemAllocPitch_v2 &p &w 1000 1000 0",
            "cuMemAllocManaged null 1MiB 1",
            "cuGetProcAddress_v2 null &f 12000 0 &s",
        ] {
            client.expect(command, "1");
        }
        client.expect("cuMemAlloc_v2 &p 18446744073709551615", "2");
        client.expect("cuMemAllocPitch_v2 &p &w 8589934592 8589934592 4", "2");
        client.expect("cuMemCreate &h 18446744073707454464 *prop 0", "2");
        assert_eq!(client.used(), 0);
    });
}

#[test]
fn host_memory_is_not_device_memory() {
    with_one(|_, client| {
        client.expect("cuMemAlloc_v2 &p 1GiB", "0");
        client.expect("cuMemHostAlloc &h 1MiB 0", "0");
        client.expect("cuMemFreeHost $h", "0");
    });
}

#[test]
fn threads_of_one_process_fill_the_limit_exactly() {
    with_one(|_, client| {
        client.expect("@threads 4 1000 cuMemAlloc_v2 &p 1MiB", "1024");
        assert_eq!(client.memory(), (0, GIB));
    });
}

#[test]
fn without_a_limit_the_driver_answers_alone() {
    if can_mount() {
        let machine = Machine::new(1);
        let container = machine.container_with([CardGrant::unlimited(&machine.uuids[0]).unwrap()]);
        let mut client = container.ready();
        let mut bare = machine.bare();
        bare.make_ready(0);
        assert_eq!(client.memory(), bare.memory());
        client.expect("cuMemAlloc_v2 &p 8GiB", "0");
        client.expect("cuMemAllocAsync &q 1GiB null", "0");
        assert_eq!(client.memory(), bare.memory());
        client.expect("cuMemFree_v2 $p", "0");
    }
}
