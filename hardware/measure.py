"""One part of a measurement, in a process of its own: prints one line of JSON.

Uses the CUDA driver interface through cuda-bindings, so that the same lines run on a real card and on a simulated
one. `hardware/run` starts it bare and inside `tessera run`.
"""

import argparse
import json
import time

MIB = 1 << 20

# Waits for so many nanoseconds of the card's own clock, in one thread; an empty kernel with 0.
PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry spin(.param .u64 span)
{
    .reg .pred %p;
    .reg .u64 %r<5>;
    ld.param.u64 %r1, [span];
    mov.u64 %r2, %globaltimer;
again:
    mov.u64 %r3, %globaltimer;
    sub.u64 %r4, %r3, %r2;
    setp.lt.u64 %p, %r4, %r1;
    @%p bra again;
    ret;
}
\0"""


def check(answer):
    code, *values = answer
    if int(code) != 0:
        raise SystemExit(f"the driver answered {code}")
    return values[0] if len(values) == 1 else tuple(values)


class Card:
    """The first visible card, with a context and the kernel."""

    def __init__(self):
        from cuda.bindings import driver

        self.cuda = driver
        check(driver.cuInit(0))
        self.device = self.first()
        self.context = check(driver.cuDevicePrimaryCtxRetain(self.device))
        check(driver.cuCtxSetCurrent(self.context))
        self.stream = check(driver.cuStreamCreate(1))
        module = check(driver.cuModuleLoadData(PTX))
        self.spin = check(driver.cuModuleGetFunction(module, b"spin"))

    def first(self):
        """The first card that may be used: a share's card need not be number 0, the others are refused."""
        for number in range(check(self.cuda.cuDeviceGetCount())):
            device = check(self.cuda.cuDeviceGet(number))
            code, *_ = self.cuda.cuDevicePrimaryCtxRetain(device)
            if int(code) == 0:
                check(self.cuda.cuDevicePrimaryCtxRelease(device))
                return device
        raise SystemExit("no card may be used here")

    def launch(self, nanoseconds=0, blocks=1):
        import ctypes

        check(
            self.cuda.cuLaunchKernel(
                self.spin, blocks, 1, 1, 32, 1, 1, 0, self.stream, ((nanoseconds,), (ctypes.c_uint64,)), 0
            )
        )

    def wait(self):
        check(self.cuda.cuStreamSynchronize(self.stream))


def card(_options):
    one = Card()
    attribute = one.cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    version = check(one.cuda.cuDriverGetVersion())
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
    except Exception:  # The package is a help, not a need.
        driver = "unknown"
    return {
        "name": check(one.cuda.cuDeviceGetName(128, one.device)).split(b"\0")[0].decode(),
        "total_mib": check(one.cuda.cuDeviceTotalMem(one.device)) // MIB,
        "sms": check(one.cuda.cuDeviceGetAttribute(attribute, one.device)),
        "cuda": f"{version // 1000}.{version % 1000 // 10}",
        "driver": driver,
    }


def fill(_options):
    """How much is shown, and how much can be had in pieces of 2 MiB."""
    one = Card()
    _, total = check(one.cuda.cuMemGetInfo())
    had = 0
    while int(one.cuda.cuMemAlloc(2 * MIB)[0]) == 0:
        had += 2
    return {"shown_mib": total // MIB, "had_mib": had}


def cost(_options):
    """Host time of a launch and of an allocation with its free, medians."""
    one = Card()
    one.launch()
    one.wait()

    def median(act, rounds, between):
        times = []
        for _ in range(rounds):
            begun = time.perf_counter_ns()
            act()
            times.append(time.perf_counter_ns() - begun)
            between(len(times))
        return round(sorted(times)[len(times) // 2] / 1000, 3)

    def allocate_free():
        check(one.cuda.cuMemFree(check(one.cuda.cuMemAlloc(4 * MIB))))

    # The queue never fills: a launch that waits for room measures the card.
    drain = lambda count: one.wait() if count % 64 == 0 else None
    return {
        "launch_us": median(one.launch, 2000, drain),
        "allocate_free_us": median(allocate_free, 500, lambda count: None),
    }


def work(options):
    """Whole-card kernels of 1 ms, one after the other: how many a second."""
    one = Card()
    attribute = one.cuda.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
    blocks = 32 * check(one.cuda.cuDeviceGetAttribute(attribute, one.device))
    end = time.monotonic() + options.seconds
    begun, count = time.monotonic(), 0
    while options.until_killed or time.monotonic() < end:
        for _ in range(4):
            one.launch(1_000_000, blocks)
        one.wait()
        count += 4
    return {"per_second": round(count / (time.monotonic() - begun), 3)}


def latency(options):
    """A kernel of 100 us and a wait for it, again and again with a pause: p99."""
    one = Card()
    times = []
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        begun = time.perf_counter_ns()
        one.launch(100_000)
        one.wait()
        times.append(time.perf_counter_ns() - begun)
        time.sleep(0.002)
    times.sort()
    return {"p99_us": round(times[min(len(times) - 1, len(times) * 99 // 100)] / 1000, 1), "samples": len(times)}


def torch_there(_options):
    try:
        import torch

        return {"there": bool(torch.cuda.is_available())}
    except Exception:  # Not installed, or built for another driver: then there are no figures of it.
        return {"there": False}


def torch_work(options):
    import torch

    size = 2048
    a, b = (torch.rand(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    begun, count = time.monotonic(), 0
    while time.monotonic() - begun < options.seconds:
        for _ in range(20):
            a @ b
        torch.cuda.synchronize()
        count += 20
    return {"matmuls_per_second": round(count / (time.monotonic() - begun), 2)}


PARTS = {
    "card": card,
    "fill": fill,
    "cost": cost,
    "work": work,
    "latency": latency,
    "torch-there": torch_there,
    "torch": torch_work,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--until-killed", action="store_true")
    options = parser.parse_args()
    print(json.dumps(PARTS[options.part](options)), flush=True)


main()
