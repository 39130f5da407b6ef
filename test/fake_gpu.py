# SPDX-License-Identifier: Apache-2.0
"""A GPU for machines without one: the driver's calls on host memory, TensorRT's on ONNX Runtime.

What runs on top is the real engine code, with real graphs, weights and numbers. That it calls only
what TensorRT has is checked against tensorrt_api.json.
"""

import ctypes
import types
from importlib.machinery import ModuleSpec

import numpy as np
import onnx
import onnxruntime as ort

CUDA_ERROR_OUT_OF_MEMORY = 2


class FakeCuda:
    """libcuda as cuda_driver.py calls it; counts what is allocated."""

    def __init__(self, memory_bytes=1 << 30, gpus=1):
        self.allocated, self.limit, self.gpus = {}, memory_bytes, gpus
        self.entered = 0
        for name in dir(type(self)):
            if name.startswith('_cu'):
                setattr(self, name[1:], _function(getattr(self, name)))

    def _take(self, pointer, size):
        if sum(len(v) for v in self.allocated.values()) + size > self.limit:
            return CUDA_ERROR_OUT_OF_MEMORY
        memory = ctypes.create_string_buffer(size)
        pointer._obj.value = ctypes.addressof(memory)
        self.allocated[ctypes.addressof(memory)] = memory
        return 0

    def _free(self, pointer):
        return 0 if self.allocated.pop(pointer.value, None) is not None else 1

    def _cuInit(self, flags):
        return 0

    def _cuGetErrorString(self, code, text):
        text._obj.value = {2: b'out of memory'}.get(code, b'fake error')
        return 0

    def _cuDriverGetVersion(self, version):
        version._obj.value = 12060
        return 0

    def _cuDeviceGetCount(self, count):
        count._obj.value = self.gpus
        return 0

    def _cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal
        return 0

    def _cuDeviceGetName(self, name, size, device):
        name.value = b'Fake Orin'
        return 0

    def _cuDeviceGetAttribute(self, value, which, device):
        value._obj.value = {75: 8, 76: 7, 18: 1, 36: 3_200_000, 37: 256}[which]
        return 0

    def _cuDeviceTotalMem_v2(self, total, device):
        total._obj.value = self.limit
        return 0

    def _cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 0xC0DE
        return 0

    def _cuCtxSetCurrent(self, context):
        assert context.value == 0xC0DE
        self.entered += 1
        return 0

    def _cuMemAlloc_v2(self, pointer, size):
        return self._take(pointer, size)

    def _cuMemFree_v2(self, pointer):
        return self._free(pointer)

    def _cuMemHostAlloc(self, pointer, size, flags):
        return self._take(pointer, size)

    def _cuMemFreeHost(self, pointer):
        return self._free(pointer)

    def _cuMemcpyHtoDAsync_v2(self, device, host, size, stream):
        ctypes.memmove(device.value, host.value, size)
        return 0

    def _cuMemcpyDtoHAsync_v2(self, host, device, size, stream):
        ctypes.memmove(host.value, device.value, size)
        return 0

    def _cuStreamCreate(self, stream, flags):
        stream._obj.value = 0x57
        return 0

    def _cuStreamDestroy_v2(self, stream):
        return 0

    def _cuStreamSynchronize(self, stream):
        return 0


def _function(method):
    # Functions of a library take attributes such as argtypes; bound methods do not.
    return lambda *arguments: method(*arguments)


def fake_tensorrt(version='10.3.0', faults=()):
    """Return a module `tensorrt` that keeps ONNX in its plans and runs them on ONNX Runtime.

    faults: 'parse' and 'build' fail; 'drop_bias' zeroes biases in refittable plans, as TensorRT
    11.3 documents; 'drop_on_refit' when a plan is refitted; 'no_context' runs out of memory.
    """
    trt = types.ModuleType('tensorrt')
    trt.__version__, trt.__spec__ = version, ModuleSpec('tensorrt', None)
    trt.builds = 0
    major = int(version.split('.')[0])

    class Severity:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    class ILogger:
        def __init__(self):
            pass

    ILogger.Severity = Severity

    class Flags:
        STRONGLY_TYPED = 1

    if major < 11:
        Flags.EXPLICIT_BATCH = 0

    class BuilderFlag:
        REFIT, TF32 = 'REFIT', 'TF32'

    class Memory(bytes):
        pass

    class TimingCache:
        def __init__(self, content):
            self.content = content or b'measured'

        def serialize(self):
            return Memory(self.content)

    class Config:
        def __init__(self):
            self.flags, self.cache = {'TF32'}, None

        def set_memory_pool_limit(self, pool, size):
            assert pool == 'WORKSPACE' and size > 0

        def set_flag(self, flag):
            self.flags.add(flag)

        def clear_flag(self, flag):
            self.flags.discard(flag)

        def create_timing_cache(self, content):
            return TimingCache(content)

        def set_timing_cache(self, cache, ignore_mismatch):
            if cache.content == b'of another GPU':
                return False
            self.cache = cache
            return True

        def get_timing_cache(self):
            return self.cache

    class Network:
        graph = None

    class ParserError:
        def desc(self):
            return 'no such operator'

    class OnnxParser:
        def __init__(self, network, log):
            self.network, self.num_errors = network, 0

        def parse(self, graph):
            if 'parse' in faults:
                self.num_errors = 1
                return False
            onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)
            self.network.graph = graph
            return True

        def get_error(self, i):
            return ParserError()

    class Builder:
        def __init__(self, log):
            self.log = log

        def create_network(self, flags):
            assert flags & 2
            return Network()

        def create_builder_config(self):
            return Config()

        def build_serialized_network(self, network, config):
            trt.builds += 1
            if 'build' in faults:
                self.log.log(Severity.ERROR, 'could not find any\n implementation')
                return None
            assert 'TF32' not in config.flags
            head = b'REFIT' if 'REFIT' in config.flags else b'FIXED'
            return Memory(version.encode().ljust(16) + head + network.graph)

    class Engine:
        def __init__(self, plan):
            self.refittable = plan[16:21] == b'REFIT'
            self.model = onnx.load_model_from_string(plan[21:])
            if self.refittable and 'drop_bias' in faults:
                self.drop()
            self.load()
            self.num_io_tensors = 3
            self.device_memory_size_v2 = 4096

        def drop(self):
            for slot in self.model.graph.initializer:
                if slot.name.endswith('.bias'):
                    value = 0 * onnx.numpy_helper.to_array(slot)
                    slot.CopyFrom(onnx.numpy_helper.from_array(value, slot.name))

        def load(self):
            options = ort.SessionOptions()
            options.log_severity_level, options.intra_op_num_threads = 3, 1
            self.session = ort.InferenceSession(
                self.model.SerializeToString(), options, providers=['CPUExecutionProvider']
            )
            ends = [*self.session.get_inputs(), *self.session.get_outputs()]
            self.ends = {v.name: tuple(v.shape) for v in ends}

        def get_tensor_name(self, i):
            return list(self.ends)[i]

        def get_tensor_shape(self, name):
            return self.ends[name]

        def get_tensor_dtype(self, name):
            return 'FLOAT'

        def get_tensor_mode(self, name):
            return 'OUTPUT' if name == 'chunk' else 'INPUT'

        def create_execution_context(self):
            return None if 'no_context' in faults else Context(self)

    class Context:
        def __init__(self, engine):
            self.engine, self.addresses = engine, {}

        def set_input_shape(self, name, shape):
            assert shape == self.engine.ends[name]
            return True

        def set_tensor_address(self, name, address):
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream):
            assert stream == 0x57

            def array(name):
                shape = self.engine.ends[name]
                memory = (ctypes.c_float * int(np.prod(shape))).from_address(self.addresses[name])
                return np.frombuffer(memory, np.float32).reshape(shape)

            feed = {n: array(n) for n in ('observation', 'noise')}
            array('chunk')[...] = self.engine.session.run(['chunk'], feed)[0]
            return True

    class Runtime:
        def __init__(self, log):
            self.log = log

        def deserialize_cuda_engine(self, plan):
            if plan[:16].strip() != version.encode():
                self.log.log(Severity.ERROR, 'the plan is of another version')
                return None
            return Engine(plan)

    class Weights:
        def __init__(self, array):
            assert array.flags.c_contiguous
            self.array = array

    class Refitter:
        def __init__(self, engine, log):
            self.engine = engine
            self.slots = {i.name: i for i in engine.model.graph.initializer}

        def get_all_weights(self):
            return list(self.slots)

        def set_named_weights(self, name, weights):
            slot = self.slots[name]
            tensor = onnx.numpy_helper.from_array(weights.array, name)
            if list(tensor.dims) != list(slot.dims) or tensor.data_type != slot.data_type:
                return False
            slot.CopyFrom(tensor)
            return True

        def get_missing_weights(self):
            return []

        def refit_cuda_engine(self):
            if 'drop_on_refit' in faults:
                self.engine.drop()
            self.engine.load()
            return True

    trt.ILogger, trt.Builder, trt.OnnxParser, trt.Runtime = ILogger, Builder, OnnxParser, Runtime
    trt.NetworkDefinitionCreationFlag, trt.BuilderFlag = Flags, BuilderFlag
    trt.MemoryPoolType = types.SimpleNamespace(WORKSPACE='WORKSPACE')
    trt.DataType = types.SimpleNamespace(FLOAT='FLOAT')
    trt.TensorIOMode = types.SimpleNamespace(INPUT='INPUT', OUTPUT='OUTPUT')
    trt.Weights, trt.Refitter = Weights, Refitter
    return trt


def install(monkeypatch, trt=None, cuda=None):
    """Put the fakes where the engines look; return both."""
    import sys

    from dipod_ros.serving.engines import cuda_driver

    cuda, trt = cuda or FakeCuda(), trt or fake_tensorrt()
    monkeypatch.setattr(cuda_driver, '_load', lambda: cuda)
    monkeypatch.setitem(sys.modules, 'tensorrt', trt)
    for name in ('tensorrt_engine', 'tensorrt_plan'):
        monkeypatch.delitem(sys.modules, f'dipod_ros.serving.engines.{name}', raising=False)
    cuda_driver.find_gpu.cache_clear()
    return trt, cuda
