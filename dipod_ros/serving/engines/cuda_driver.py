# SPDX-License-Identifier: Apache-2.0
"""The NVIDIA driver through ctypes: what GPU there is, its memory, one stream. No torch needed.

libcuda comes with the driver, on a Jetson as on a PC; CUDA's Python packages are on neither by
default. Functions whose first version had 32-bit addresses are called by their `_v2` names, as the
macros of cuda.h do. Signatures: CUDA driver API, cuda.h.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

import numpy as np

from dipod_ros.serving.engines.base import EngineError

LIBRARY = 'libcuda.so.1'
# CUdevice_attribute
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_INTEGRATED, _MEMORY_CLOCK_KHZ, _BUS_WIDTH_BITS = 18, 36, 37
_NON_BLOCKING_STREAM = 1

_SIGNATURES = {
    'cuInit': (c_uint,),
    'cuDriverGetVersion': (c_void_p,),
    'cuDeviceGetCount': (c_void_p,),
    'cuDeviceGet': (c_void_p, c_int),
    'cuDeviceGetName': (c_char_p, c_int, c_int),
    'cuDeviceGetAttribute': (c_void_p, c_int, c_int),
    'cuDeviceTotalMem_v2': (c_void_p, c_int),
    'cuDevicePrimaryCtxRetain': (c_void_p, c_int),
    'cuCtxSetCurrent': (c_void_p,),
    'cuMemAlloc_v2': (c_void_p, c_size_t),
    'cuMemFree_v2': (c_uint64,),
    'cuMemHostAlloc': (c_void_p, c_size_t, c_uint),
    'cuMemFreeHost': (c_void_p,),
    'cuMemcpyHtoDAsync_v2': (c_uint64, c_void_p, c_size_t, c_void_p),
    'cuMemcpyDtoHAsync_v2': (c_void_p, c_uint64, c_size_t, c_void_p),
    'cuStreamCreate': (c_void_p, c_uint),
    'cuStreamDestroy_v2': (c_void_p,),
    'cuStreamSynchronize': (c_void_p,),
    'cuGetErrorString': (c_int, c_void_p),
}


@dataclass(frozen=True)
class Gpu:
    """One GPU as its driver describes it."""

    name: str
    capability: tuple[int, int]  # compute capability, (8, 7) on a Jetson Orin
    memory_bytes: int
    integrated: bool  # shares the memory of the CPU, as a Jetson does
    driver: int  # CUDA version of the driver, 12060 for 12.6
    # Peak of the memory in bytes per second by clock and bus width, 0 when the driver hides them.
    bandwidth: float = 0.0

    @property
    def sm(self) -> str:
        """Return the architecture as compilers name it, `sm_87`."""
        return f'sm_{self.capability[0]}{self.capability[1]}'


class Driver:
    """Calls into libcuda; raises EngineError with the driver's own words."""

    def __init__(self, library: Any = None) -> None:
        """Load the driver; raises EngineError when there is none or it does not start."""
        self._cuda = _load() if library is None else library
        for name, types in _SIGNATURES.items():
            function = getattr(self._cuda, name)
            function.argtypes, function.restype = types, c_int
        self.call('cuInit', 0)
        self._context = c_void_p()

    def call(self, name: str, *arguments: Any) -> None:
        """Call one function; raises EngineError when it returns anything but success."""
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = c_char_p()
            self._cuda.cuGetErrorString(code, byref(text))
            reason = (text.value or b'unknown error').decode(errors='replace')
            raise EngineError(f'CUDA driver: {name} failed with {code}, {reason}')

    def count(self) -> int:
        """Return the number of GPUs."""
        number = c_int()
        self.call('cuDeviceGetCount', byref(number))
        return number.value

    def gpu(self) -> Gpu:
        """Return what the first GPU is."""
        device, version, total = c_int(), c_int(), c_size_t()
        name = ctypes.create_string_buffer(256)
        self.call('cuDeviceGet', byref(device), 0)
        self.call('cuDriverGetVersion', byref(version))
        self.call('cuDeviceGetName', name, len(name), device)
        self.call('cuDeviceTotalMem_v2', byref(total), device)

        def attribute(which: int) -> int:
            value = c_int()
            self.call('cuDeviceGetAttribute', byref(value), which, device)
            return value.value

        clock_hz = 1e3 * attribute(_MEMORY_CLOCK_KHZ)
        return Gpu(
            name=name.value.decode(errors='replace'),
            capability=(attribute(_CAPABILITY_MAJOR), attribute(_CAPABILITY_MINOR)),
            memory_bytes=total.value,
            integrated=bool(attribute(_INTEGRATED)),
            driver=version.value,
            bandwidth=2 * clock_hz * attribute(_BUS_WIDTH_BITS) / 8,  # double data rate
        )

    def enter(self) -> None:
        """Make the first GPU's primary context that of this thread; torch and TensorRT share it."""
        if not self._context.value:
            device = c_int()
            self.call('cuDeviceGet', byref(device), 0)
            self.call('cuDevicePrimaryCtxRetain', byref(self._context), device)
        self.call('cuCtxSetCurrent', self._context)

    def stream(self) -> Stream:
        """Return a stream of its own; call `enter` first."""
        return Stream(self)

    def buffer(self, shape: tuple[int, ...]) -> Buffer:
        """Return memory for float32 [shape] on both sides; call `enter` first."""
        return Buffer(self, shape)


def _load() -> Any:
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise EngineError(f'no NVIDIA driver: {LIBRARY} cannot be loaded') from error


class Stream:
    """A stream that does not wait for the default one."""

    def __init__(self, driver: Driver) -> None:
        """Create it in the current context."""
        self._driver = driver
        self.handle = c_void_p()
        driver.call('cuStreamCreate', byref(self.handle), _NON_BLOCKING_STREAM)

    def synchronize(self) -> None:
        """Wait until all that was queued is done."""
        self._driver.call('cuStreamSynchronize', self.handle)

    def close(self) -> None:
        """Give it back; also when asked twice."""
        if self.handle.value:
            self._driver.call('cuStreamDestroy_v2', self.handle)
            self.handle = c_void_p()


class Buffer:
    """One float32 array in pinned host memory and its twin on the GPU."""

    def __init__(self, driver: Driver, shape: tuple[int, ...]) -> None:
        """Allocate both; raises EngineError when memory runs out."""
        self._driver = driver
        self.nbytes = 4 * int(np.prod(shape))
        self._host, self._device = c_void_p(), c_uint64()
        driver.call('cuMemHostAlloc', byref(self._host), self.nbytes, 0)
        try:
            driver.call('cuMemAlloc_v2', byref(self._device), self.nbytes)
        except EngineError:
            self.close()
            raise
        memory = (ctypes.c_float * (self.nbytes // 4)).from_address(self._host.value)
        self.host = np.frombuffer(memory, dtype=np.float32).reshape(shape)
        self.host[...] = 0.0

    @property
    def address(self) -> int:
        """Return the address on the GPU."""
        return int(self._device.value)

    def upload(self, stream: Stream) -> None:
        """Queue the copy from host to GPU."""
        self._driver.call(
            'cuMemcpyHtoDAsync_v2', self._device, self._host, self.nbytes, stream.handle
        )

    def download(self, stream: Stream) -> None:
        """Queue the copy from GPU to host."""
        self._driver.call(
            'cuMemcpyDtoHAsync_v2', self._host, self._device, self.nbytes, stream.handle
        )

    def close(self) -> None:
        """Free both; also when asked twice. `host` must not be used any more."""
        if self._device.value:
            self._driver.call('cuMemFree_v2', self._device)
            self._device = c_uint64()
        if self._host.value:
            self._driver.call('cuMemFreeHost', self._host)
            self._host = c_void_p()


@functools.cache
def find_gpu() -> Gpu | None:
    """Return the first GPU, None when there is no driver or no GPU. Asked once per process."""
    try:
        driver = Driver()
        return driver.gpu() if driver.count() else None
    except (EngineError, AttributeError):  # a library without these functions is no driver
        return None
