"""Unmodified clients on the simulated driver.

Needs nvidia-ml-py, nvitop, cuda-bindings and cuda-core in the interpreter that runs it, and a
driver root of two A100-SXM4-40GB in TESSERA_SIM_ROOT (its lib64 in LD_LIBRARY_PATH).
Prints one line a check; the first failure ends it with a trace and a status other than 0.
"""

import ctypes
import os
import pty
import select
import signal
import subprocess
import sys
import time

MIB = 1 << 20
SIZE = 40960 * MIB
USABLE = 40389 * MIB
CONTEXT = 412 * MIB


def check_nvidia_ml_py():
    import pynvml as n

    n.nvmlInit()
    assert n.nvmlDeviceGetCount() == 2
    first, second = (n.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    assert n.nvmlDeviceGetName(first) == "NVIDIA A100-SXM4-40GB"
    uuid = n.nvmlDeviceGetUUID(first)
    assert uuid.startswith("GPU-") and len(uuid) == 40
    assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByUUID(uuid)) == 0
    bus = n.nvmlDeviceGetPciInfo(second).busId
    assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleByPciBusId(bus)) == 1
    assert n.nvmlDeviceGetIndex(n.nvmlDeviceGetHandleBySerial(n.nvmlDeviceGetSerial(second))) == 1
    old = n.nvmlDeviceGetMemoryInfo(first)
    new = n.nvmlDeviceGetMemoryInfo(first, version=n.nvmlMemory_v2)
    assert old.total == new.total == SIZE
    assert old.used == new.used + new.reserved
    assert new.total == new.free + new.used + new.reserved
    assert n.nvmlDeviceGetMinorNumber(second) == 1
    assert n.nvmlDeviceGetMigMode(first) == [0, 0]
    assert n.nvmlDeviceGetMaxMigDeviceCount(first) == 7
    assert n.nvmlDeviceGetCudaComputeCapability(first) == (8, 0)
    assert n.nvmlDeviceGetMemoryAffinity(first, 1, n.NVML_AFFINITY_SCOPE_NODE)[0] == 1
    assert n.nvmlDeviceGetTopologyCommonAncestor(first, second) == n.NVML_TOPOLOGY_NODE
    # Partitions, from nothing to a device with a name and memory of its own.
    n.nvmlDeviceSetMigMode(second, 1)
    profile = n.nvmlDeviceGetGpuInstanceProfileInfo(second, n.NVML_GPU_INSTANCE_PROFILE_2_SLICE)
    room = ctypes.c_uint(8)
    places = (n.c_nvmlGpuInstancePlacement_t * 8)()
    n.nvmlDeviceGetGpuInstancePossiblePlacements(second, profile.id, places, ctypes.byref(room))
    assert [(p.start, p.size) for p in places[: room.value]] == [(0, 2), (2, 2), (4, 2)]
    assert n.nvmlDeviceGetGpuInstanceRemainingCapacity(second, profile.id) == 3
    instance = n.nvmlDeviceCreateGpuInstance(second, profile.id)
    compute = n.nvmlGpuInstanceCreateComputeInstance(instance, 1)
    part = n.nvmlDeviceGetMigDeviceHandleByIndex(second, 0)
    assert n.nvmlDeviceGetUUID(part).startswith("MIG-")
    assert n.nvmlDeviceGetName(part) == "NVIDIA A100-SXM4-40GB MIG 2g.10gb"
    assert n.nvmlDeviceGetMemoryInfo(part).total == profile.memorySizeMB * MIB
    assert n.nvmlDeviceGetAttributes_v2(part).multiprocessorCount == 28
    assert n.nvmlDeviceGetGpuInstanceId(part) == n.nvmlGpuInstanceGetInfo(instance).id
    n.nvmlComputeInstanceDestroy(compute)
    n.nvmlGpuInstanceDestroy(instance)
    n.nvmlDeviceSetMigMode(second, 0)
    try:
        n.nvmlDeviceGetAccountingStats(first, 1)
        raise AssertionError("accounting is not simulated")
    except n.NVMLError_NotSupported:
        pass
    n.nvmlShutdown()


def check_nvitop_once():
    out = subprocess.run([sys.executable, "-m", "nvitop", "-1"], capture_output=True, text=True, check=True)
    assert out.stdout.count("A100-SXM4-40GB") == 2, out.stdout
    assert "580.95.05" in out.stdout


def check_nvitop_full_screen():
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="130", LINES="45")
        os.execv(sys.executable, [sys.executable, "-m", "nvitop", "-m", "full"])
    import fcntl
    import struct
    import termios

    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 45, 130, 0, 0))
    seen, drawn, deadline = b"", False, time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([fd], [], [], 1)[0]:
            try:
                piece = os.read(fd, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        drawn = drawn or (b"A100-SXM4-40GB" in seen and b"Processes" in seen)
        if drawn:
            # A key that comes before the program listens is lost, so it is pressed until it helps.
            os.write(fd, b"q")
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert drawn, seen[-3000:].decode(errors="replace")
    assert os.waitstatus_to_exitcode(status) == 0


def check_cuda_bindings():
    from cuda.bindings import driver as d

    def ok(result):
        assert result[0] == d.CUresult.CUDA_SUCCESS, result
        rest = result[1:]
        return rest[0] if len(rest) == 1 else rest or None

    def code(result):
        return int(result[0])

    ok(d.cuInit(0))
    assert ok(d.cuDeviceGetCount()) == 2
    device = ok(d.cuDeviceGet(0))
    assert ok(d.cuDeviceTotalMem(device)) == USABLE
    context = ok(d.cuDevicePrimaryCtxRetain(device))
    ok(d.cuCtxSetCurrent(context))

    def free():
        return ok(d.cuMemGetInfo())[0]

    empty = USABLE - CONTEXT
    assert free() == empty

    # plain
    pointer = ok(d.cuMemAlloc(1000 * MIB))
    assert free() == empty - 1000 * MIB
    assert code(d.cuMemAlloc(40000 * MIB)) == 2
    ok(d.cuMemcpyHtoD(pointer, b"written", 7))
    back = bytearray(7)
    ok(d.cuMemcpyDtoH(back, pointer, 7))
    assert bytes(back) == b"written"
    assert [int(x) for x in ok(d.cuMemGetAddressRange(pointer))] == [int(pointer), 1000 * MIB]
    ok(d.cuMemFree(pointer))
    assert code(d.cuMemFree(pointer)) == 1
    small = [ok(d.cuMemAlloc(1000)) for _ in range(1000)]
    assert free() == empty - 2 * MIB
    for pointer in small:
        ok(d.cuMemFree(pointer))
    assert free() == empty

    # pitch, managed, host
    pointer, pitch = ok(d.cuMemAllocPitch(1000, 1000, 4))
    assert pitch == 1024
    ok(d.cuMemFree(pointer))
    pointer = ok(d.cuMemAllocManaged(64 * MIB, 1))
    kind = d.CUpointer_attribute.CU_POINTER_ATTRIBUTE_IS_MANAGED
    assert int(ok(d.cuPointerGetAttribute(kind, pointer))) == 1
    assert free() == empty - 64 * MIB
    ok(d.cuMemFree(pointer))
    host = ok(d.cuMemHostAlloc(MIB, 0))
    assert free() == empty
    ok(d.cuMemFreeHost(host))

    # virtual memory: a handle lives as long as it is held or mapped
    prop = d.CUmemAllocationProp()
    prop.type = d.CUmemAllocationType.CU_MEM_ALLOCATION_TYPE_PINNED
    prop.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    prop.location.id = 0
    unit = ok(d.cuMemGetAllocationGranularity(prop, d.CUmemAllocationGranularity_flags(0)))
    handle = ok(d.cuMemCreate(16 * unit, prop, 0))
    space = ok(d.cuMemAddressReserve(32 * unit, 0, 0, 0))
    second = int(space) + 16 * unit
    ok(d.cuMemMap(space, 16 * unit, 0, handle, 0))
    ok(d.cuMemMap(second, 16 * unit, 0, handle, 0))
    access = d.CUmemAccessDesc()
    access.location.type = d.CUmemLocationType.CU_MEM_LOCATION_TYPE_DEVICE
    access.location.id = 0
    access.flags = d.CUmemAccess_flags.CU_MEM_ACCESS_FLAGS_PROT_READWRITE
    ok(d.cuMemSetAccess(space, 32 * unit, [access], 1))
    ok(d.cuMemcpyHtoD(space, b"shared", 6))
    back = bytearray(6)
    ok(d.cuMemcpyDtoH(back, second, 6))
    assert bytes(back) == b"shared"
    ok(d.cuMemRelease(handle))
    assert free() == empty - 16 * unit
    ok(d.cuMemUnmap(space, 16 * unit))
    ok(d.cuMemUnmap(second, 16 * unit))
    assert free() == empty
    ok(d.cuMemAddressFree(space, 32 * unit))

    # arrays
    shape = d.CUDA_ARRAY_DESCRIPTOR()
    shape.Width, shape.Height = 4096, 4096
    shape.Format, shape.NumChannels = d.CUarray_format.CU_AD_FORMAT_FLOAT, 1
    array = ok(d.cuArrayCreate(shape))
    assert free() == empty - 64 * MIB
    ok(d.cuArrayDestroy(array))

    # pools: freed memory stays in the pool until a synchronisation
    stream = ok(d.cuStreamCreate(1))
    pool = ok(d.cuDeviceGetDefaultMemPool(device))
    reserved = d.CUmemPool_attribute.CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT
    pointer = ok(d.cuMemAllocAsync(100 * MIB, stream))
    assert int(ok(d.cuMemPoolGetAttribute(pool, reserved))) == 100 * MIB
    ok(d.cuMemFreeAsync(pointer, stream))
    assert free() == empty - 100 * MIB
    ok(d.cuStreamSynchronize(stream))
    assert free() == empty
    threshold = d.CUmemPool_attribute.CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    ok(d.cuMemPoolSetAttribute(pool, threshold, d.cuuint64_t(1 << 40)))
    pointer = ok(d.cuMemAllocAsync(100 * MIB, stream))
    ok(d.cuMemFree(pointer))
    ok(d.cuStreamSynchronize(stream))
    assert free() == empty - 100 * MIB
    pointer = ok(d.cuMemAlloc(empty - 51 * MIB))
    assert free() == 51 * MIB, "a full card takes back what pools only keep"
    ok(d.cuMemFree(pointer))
    assert code(d.cuMemAllocAsync(41000 * MIB, stream)) == 2

    # launches, events, capture, graphs with memory
    module = ok(d.cuModuleLoadData(b"kernel work 2000 108\nglobal table 4096\n\0"))
    function = ok(d.cuModuleGetFunction(module, b"work"))
    assert code(d.cuModuleGetFunction(module, b"other")) == 500
    assert ok(d.cuModuleGetGlobal(module, b"table"))[1] == 4096

    def launch():
        ok(d.cuLaunchKernel(function, 108, 1, 1, 256, 1, 1, 0, stream, 0, 0))

    begin, end = ok(d.cuEventCreate(0)), ok(d.cuEventCreate(0))
    ok(d.cuEventRecord(begin, stream))
    for _ in range(5):
        launch()
    ok(d.cuEventRecord(end, stream))
    assert code(d.cuEventQuery(end)) == 600
    ok(d.cuEventSynchronize(end))
    assert 10 <= ok(d.cuEventElapsedTime(begin, end)) < 30
    ok(d.cuStreamBeginCapture(stream, d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    launch()
    pointer = ok(d.cuMemAllocAsync(64 * MIB, stream))
    launch()
    ok(d.cuMemFreeAsync(pointer, stream))
    assert code(d.cuStreamSynchronize(stream)) == 900
    assert code(d.cuStreamEndCapture(stream)) == 901
    ok(d.cuStreamBeginCapture(stream, d.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_GLOBAL))
    launch()
    pointer = ok(d.cuMemAllocAsync(64 * MIB, stream))
    launch()
    ok(d.cuMemFreeAsync(pointer, stream))
    graph = ok(d.cuStreamEndCapture(stream))
    nodes, count = ok(d.cuGraphGetNodes(graph, 16))
    kinds = [int(ok(d.cuGraphNodeGetType(n))) for n in nodes[:count]]
    assert kinds == [0, 10, 0, 11], kinds
    executable = ok(d.cuGraphInstantiate(graph, 0))
    used = d.CUgraphMem_attribute.CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT
    assert int(ok(d.cuDeviceGetGraphMemAttribute(device, used))) == 0
    ok(d.cuEventRecord(begin, stream))
    ok(d.cuGraphLaunch(executable, stream))
    ok(d.cuEventRecord(end, stream))
    ok(d.cuStreamSynchronize(stream))
    assert 4 <= ok(d.cuEventElapsedTime(begin, end)) < 15
    assert int(ok(d.cuDeviceGetGraphMemAttribute(device, used))) == 64 * MIB
    ok(d.cuDeviceGraphMemTrim(device))
    assert int(ok(d.cuDeviceGetGraphMemAttribute(device, used))) == 0

    # the last reference takes everything with it
    ok(d.cuMemAlloc(500 * MIB))
    ok(d.cuDevicePrimaryCtxRelease(device))
    assert code(d.cuMemGetInfo()) == 201
    context = ok(d.cuDevicePrimaryCtxRetain(device))
    ok(d.cuCtxSetCurrent(context))
    assert free() == empty
    ok(d.cuDevicePrimaryCtxRelease(device))


def check_shared_memory():
    """A handle of one process, opened by another."""
    reader = """
import ctypes, sys
from cuda.bindings import driver as d
def ok(r):
    assert r[0] == d.CUresult.CUDA_SUCCESS, r
    return r[1] if len(r) > 1 else None
ok(d.cuInit(0)); ok(d.cuCtxSetCurrent(ok(d.cuDevicePrimaryCtxRetain(0))))
handle = d.CUipcMemHandle(); ctypes.memmove(handle.getPtr(), bytes.fromhex(sys.argv[1]), 64)
pointer = ok(d.cuIpcOpenMemHandle(handle, 1))
back = bytearray(5); ok(d.cuMemcpyDtoH(back, pointer, 5)); assert bytes(back) == b"hello", back
ok(d.cuIpcCloseMemHandle(pointer))
"""
    writer = """
import ctypes, subprocess, sys
from cuda.bindings import driver as d
def ok(r):
    assert r[0] == d.CUresult.CUDA_SUCCESS, r
    return r[1] if len(r) > 1 else None
ok(d.cuInit(0)); ok(d.cuCtxSetCurrent(ok(d.cuDevicePrimaryCtxRetain(0))))
ok(d.cuMemAlloc(100)); pointer = ok(d.cuMemAlloc(1 << 20)); ok(d.cuMemcpyHtoD(pointer, b"hello", 5))
handle = ok(d.cuIpcGetMemHandle(pointer))
subprocess.run([sys.executable, "-c", sys.argv[1], ctypes.string_at(handle.getPtr(), 64).hex()], check=True)
"""
    subprocess.run([sys.executable, "-c", writer, reader], check=True)


def check_cuda_core():
    from cuda.core import Device, LaunchConfig, ObjectCode, launch

    device = Device(0)
    device.set_current()
    assert device.name == "NVIDIA A100-SXM4-40GB"
    assert device.properties.multiprocessor_count == 108
    stream = device.create_stream()
    buffer = device.allocate(MIB, stream=stream)
    assert buffer.size == MIB and buffer.is_device_accessible
    buffer.close(stream)
    stream.record().sync()
    code = ObjectCode.from_ptx(b".version 8.0\n.target sm_80\n.visible .entry scale(\n)\n{ ret; }\n\0")
    launch(stream, LaunchConfig(grid=4, block=128), code.get_kernel("scale"))
    stream.sync()


def check_busy_card_is_seen():
    worker = """
import sys
from cuda.bindings import driver as d
d.cuInit(0); d.cuCtxSetCurrent(d.cuDevicePrimaryCtxRetain(0)[1])
module = d.cuModuleLoadData(b"kernel work 100000 108\\n\\0")[1]
function = d.cuModuleGetFunction(module, b"work")[1]
for _ in range(15): d.cuLaunchKernel(function, 108, 1, 1, 32, 1, 1, 0, 0, 0, 0)
d.cuCtxSynchronize()
print("done", flush=True); sys.stdin.read()
"""
    import pynvml as n

    worker = subprocess.Popen([sys.executable, "-c", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert worker.stdout.readline() == "done\n"
    n.nvmlInit()
    card = n.nvmlDeviceGetHandleByIndex(0)
    assert n.nvmlDeviceGetUtilizationRates(card).gpu >= 60
    samples = n.nvmlDeviceGetProcessUtilization(card, 0)
    assert {s.pid for s in samples} == {worker.pid}
    assert max(s.smUtil for s in samples) >= 95
    processes = n.nvmlDeviceGetComputeRunningProcesses(card)
    assert [(p.pid, p.usedGpuMemory) for p in processes] == [(worker.pid, CONTEXT)]
    worker.stdin.close()
    worker.wait()
    assert n.nvmlDeviceGetComputeRunningProcesses(card) == []
    n.nvmlShutdown()


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for name, check in list(globals().items()):
        if name.startswith("check_") and (not wanted or name in wanted):
            # Each in a process of its own: a driver is initialised once.
            if wanted == [name]:
                check()
                print(f"ok {name}", flush=True)
            elif not wanted:
                if subprocess.run([sys.executable, __file__, name]).returncode != 0:
                    sys.exit(f"failed {name}")
