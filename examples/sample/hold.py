"""Shows a pod its own share of a card, with clients that know nothing of Tessera.

Prints one JSON object: what NVML and CUDA say the card has, how much could be allocated, and the error of the
allocation after that. Then holds half of the share until it is told to stop.
"""

import json
import signal
import sys

import pynvml
from cuda.bindings import driver as cuda

MIB = 1 << 20


def call(result, what):
    """The values of a driver call, or an exit with its error code."""
    code, *values = result
    if code != cuda.CUresult.CUDA_SUCCESS:
        sys.exit(f"{what}: {code.name} ({int(code)})")
    return values[0] if len(values) == 1 else values


def allocate_all(step):
    """Allocates until refused; the addresses and the refusal."""
    held = []
    while True:
        code, address = cuda.cuMemAlloc(step)
        if code != cuda.CUresult.CUDA_SUCCESS:
            return held, code
        held.append(address)


def main():
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    nvml = pynvml.nvmlDeviceGetMemoryInfo(handle)
    call(cuda.cuInit(0), "cuInit")
    device = call(cuda.cuDeviceGet(0), "cuDeviceGet")
    context = call(cuda.cuDevicePrimaryCtxRetain(device), "cuDevicePrimaryCtxRetain")
    call(cuda.cuCtxSetCurrent(context), "cuCtxSetCurrent")
    free, total = call(cuda.cuMemGetInfo(), "cuMemGetInfo")
    held, refusal = allocate_all(64 * MIB)
    got = len(held) * 64
    for address in held[len(held) // 2 :]:
        call(cuda.cuMemFree(address), "cuMemFree")
    print(
        json.dumps(
            {
                "card": pynvml.nvmlDeviceGetUUID(handle),
                "name": pynvml.nvmlDeviceGetName(handle),
                "nvml_total_mib": nvml.total // MIB,
                "cuda_total_mib": total // MIB,
                "allocated_mib": got,
                "then": refusal.name,
            }
        ),
        flush=True,
    )
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    main()
