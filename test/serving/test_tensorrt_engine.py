# SPDX-License-Identifier: Apache-2.0
"""What the TensorRT engine makes of faults, caches and refits. TensorRT and the driver are fakes.

The fakes run the real graphs with the real weights (fake_gpu.py); no GPU was involved.
"""

import numpy as np
import pytest
from checkpoints import make_policy, save_checkpoint, save_lying_checkpoint
from fake_gpu import FakeCuda, fake_tensorrt, install

pytest.importorskip('onnxruntime')

from dipod_ros.policy.checkpoint import load  # noqa: E402
from dipod_ros.serving.engines import cuda_driver, verified  # noqa: E402
from dipod_ros.serving.engines.base import EngineError, EngineOptions, check_golden  # noqa: E402
from dipod_ros.serving.engines.plan_cache import PlanCache  # noqa: E402
from dipod_ros.serving.engines.select import EngineFactory  # noqa: E402


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that puts a TensorRT and a GPU in place."""
    from dipod_ros.serving.engines import graph_cache

    # Plans start anew in each test; exported graphs are those of the session.
    graphs = graph_cache.cache_dir()
    monkeypatch.setattr(graph_cache, 'cache_dir', lambda: graphs)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))

    def make(version='10.3.0', faults=(), **cuda):
        return install(monkeypatch, fake_tensorrt(version, faults), FakeCuda(**cuda))

    yield make
    monkeypatch.undo()
    cuda_driver.find_gpu.cache_clear()


@pytest.fixture
def checkpoints(tmp_path):
    for seed in (0, 1):
        save_checkpoint(tmp_path / str(seed), seed=seed)
    return [load(tmp_path / str(seed)) for seed in (0, 1)]


def assert_acts_as(engine, seed):
    rng = np.random.default_rng(0)
    policy = make_policy(seed)
    o = rng.normal(size=policy.spec.observation_size).astype(np.float32)
    z = rng.normal(size=policy.spec.noise_size).astype(np.float32)
    expected = policy.act(o[None], z[None])[0]
    np.testing.assert_allclose(engine.run(o, z), expected, rtol=0, atol=1e-6)


def test_the_second_start_builds_nothing_and_takes_other_weights(machine, checkpoints):
    trt, _ = machine()
    first = EngineFactory('tensorrt').build(checkpoints[0])
    assert trt.builds == 1 and first.info().detail == 'plan built now'
    second = EngineFactory('tensorrt').build(checkpoints[1])
    assert trt.builds == 1 and second.info().detail == 'plan from the cache'
    assert_acts_as(first, 0)
    assert_acts_as(second, 1)


def test_another_version_gpu_precision_or_graph_is_another_plan(machine, checkpoints, tmp_path):
    for version, precision in (('10.3.0', 'fp32'), ('11.4.0', 'fp32'), ('11.4.0', 'fp16')):
        trt, _ = machine(version)
        factory = EngineFactory('tensorrt', precision=precision)
        check_golden(factory.build(checkpoints[0]), checkpoints[0].manifest.golden)
        assert trt.builds == 1
    assert len(PlanCache().keys()) == 3


@pytest.mark.parametrize('damage', ['cut', 'of another version'])
def test_a_bad_plan_is_set_aside_and_built_again(machine, checkpoints, damage):
    trt, _ = machine()
    EngineFactory('tensorrt').build(checkpoints[0])
    cache = PlanCache()
    (key,) = cache.keys()
    if damage == 'cut':
        plan = cache.folder / f'{key}.plan'
        plan.write_bytes(plan.read_bytes()[:100])
    else:  # whole as a file, and yet nothing that this TensorRT takes
        cache.write(key, b'9.9'.ljust(16) + b'REFIT', {})
    assert_acts_as(EngineFactory('tensorrt').build(checkpoints[1]), 1)
    assert trt.builds == 2
    assert (cache.folder / f'{key}.plan.bad').exists()
    assert_acts_as(EngineFactory('tensorrt').build(checkpoints[0]), 0)
    assert trt.builds == 2


def test_a_refittable_plan_that_loses_biases_gives_way_to_one_that_is_not(machine, checkpoints):
    """TensorRT 11.3 documents this fault."""
    trt, _ = machine('11.3.0', ['drop_bias'])
    factory = EngineFactory('tensorrt')
    engine = factory.build(checkpoints[0])
    assert trt.builds == 2 and 'not refittable: golden check failed' in engine.info().detail
    assert_acts_as(engine, 0)
    # A swap cannot refit it: it builds, and the old one goes on.
    new = factory.build(checkpoints[1])
    assert trt.builds == 4
    assert_acts_as(new, 1)
    assert_acts_as(engine, 0)
    # The plan that works is kept for exactly these weights.
    assert_acts_as(EngineFactory('tensorrt').build(checkpoints[1]), 1)
    assert trt.builds == 4


def test_a_refit_that_loses_biases_is_followed_by_a_rebuild(machine, checkpoints):
    trt, _ = machine('11.3.0', ['drop_on_refit'])
    factory = EngineFactory('tensorrt')
    old = factory.build(checkpoints[0])
    assert trt.builds == 1
    new = factory.build(checkpoints[1])
    assert trt.builds == 2
    assert_acts_as(new, 1)
    assert_acts_as(old, 0)


@pytest.mark.parametrize(
    ('fault', 'word'),
    [('parse', 'no such operator'), ('build', 'any implementation'), ('no_context', 'context')],
)
def test_a_failing_build_is_a_named_error_of_one_line(machine, checkpoints, fault, word):
    machine(faults=[fault])
    with pytest.raises(EngineError, match=word) as error:
        EngineFactory('tensorrt').build(checkpoints[0])
    assert '\n' not in str(error.value)
    assert PlanCache().keys() == []


def test_a_failing_swap_leaves_the_old_engine_at_work(machine, checkpoints, tmp_path):
    machine()
    factory = EngineFactory('tensorrt')
    old = factory.build(checkpoints[0])
    save_lying_checkpoint(tmp_path / 'lying')
    with pytest.raises(EngineError, match='golden check failed'):
        factory.build(load(tmp_path / 'lying'))
    assert_acts_as(old, 0)
    assert_acts_as(factory.build(checkpoints[1]), 1)


def test_a_gpu_without_memory_is_a_named_error_and_nothing_leaks(machine, checkpoints):
    _, cuda = machine(memory_bytes=100)
    with pytest.raises(EngineError, match='out of memory'):
        EngineFactory('tensorrt').build(checkpoints[0])
    assert not cuda.allocated


def test_memory_is_given_back(machine, checkpoints):
    _, cuda = machine()
    engine = EngineFactory('tensorrt').build(checkpoints[0])
    assert len(cuda.allocated) == 6
    other = engine.refit(checkpoints[1].weights)
    assert len(cuda.allocated) == 12
    del engine
    assert len(cuda.allocated) == 6
    assert_acts_as(other, 1)
    del other
    assert not cuda.allocated


def test_a_timing_cache_is_kept_and_one_of_another_gpu_is_not_used(machine, checkpoints):
    machine()
    EngineFactory('tensorrt').build(checkpoints[0])
    cache = PlanCache()
    assert cache.read_timing('10.3.0_sm_87') == b'measured'
    cache.set_aside(cache.keys()[0])
    cache.write_timing('10.3.0_sm_87', b'of another GPU')
    EngineFactory('tensorrt').build(checkpoints[0])
    assert cache.read_timing('10.3.0_sm_87') == b'measured'


class TestAuto:
    def test_a_gpu_that_nobody_checked_is_not_trusted(self, machine):
        machine()
        factory = EngineFactory('auto')
        assert factory.name == 'onnx' and 'gpu-check' in factory.reason

    def test_the_fastest_that_passed_on_this_gpu_is_taken(self, machine, checkpoints):
        machine()
        gpu = cuda_driver.find_gpu()
        verified.write(gpu, {'tensorrt': 90.0, 'no such backend': 1.0})
        factory = EngineFactory('auto')
        assert factory.name == 'tensorrt' and 'Fake Orin' in factory.reason
        assert_acts_as(factory.build(checkpoints[0]), 0)
        assert EngineFactory('auto', precision='fp16').name == 'tensorrt'

    def test_one_that_fails_makes_way_for_the_next(self, machine, checkpoints):
        machine(faults=['build'])
        verified.write(cuda_driver.find_gpu(), {'tensorrt': 90.0})
        factory = EngineFactory('auto')
        assert_acts_as(factory.build(checkpoints[0]), 0)
        assert factory.name == 'onnx' and 'tensorrt failed' in factory.reason

    def test_a_checkpoint_that_lies_is_refused_by_all(self, machine, tmp_path):
        machine()
        verified.write(cuda_driver.find_gpu(), {'tensorrt': 90.0})
        save_lying_checkpoint(tmp_path / 'lying')
        checkpoint = load(tmp_path / 'lying')
        factory = EngineFactory('auto')
        with pytest.raises(EngineError, match='golden check failed'):
            check_golden(factory.build(checkpoint), checkpoint.manifest.golden)

    def test_a_record_is_for_one_gpu_and_one_set_of_versions(self, machine, monkeypatch):
        machine()
        verified.write(cuda_driver.find_gpu(), {'tensorrt': 90.0})
        monkeypatch.setattr(verified, '_version', lambda package: 'another')
        assert EngineFactory('auto').name == 'onnx'

    @pytest.mark.parametrize('text', ['', '[]', '{"passed_us": 3}', '{"passed_us": {"a": "b"}}'])
    def test_a_record_that_cannot_be_read_counts_for_nothing(self, machine, text):
        machine()
        gpu = cuda_driver.find_gpu()
        verified.write(gpu, {'tensorrt': 90.0})
        (record,) = verified._folder().iterdir()
        record.write_text(text)
        assert verified.read(gpu) == {}


class TestDriver:
    def test_it_says_what_the_gpu_is(self, machine):
        machine()
        gpu = cuda_driver.find_gpu()
        assert (gpu.name, gpu.sm, gpu.driver, gpu.integrated) == ('Fake Orin', 'sm_87', 12060, True)
        assert gpu.bandwidth == pytest.approx(204.8e9)  # what NVIDIA states for an AGX Orin

    def test_no_gpu_and_no_driver_are_none(self, machine, monkeypatch):
        machine(gpus=0)
        assert cuda_driver.find_gpu() is None
        monkeypatch.undo()
        cuda_driver.find_gpu.cache_clear()
        monkeypatch.setattr(cuda_driver, 'LIBRARY', 'libno_such_driver.so.1')
        assert cuda_driver.find_gpu() is None
        with pytest.raises(EngineError, match='no NVIDIA driver'):
            cuda_driver.Driver()

    def test_failures_carry_the_drivers_words(self, machine):
        _, cuda = machine(memory_bytes=10)
        driver = cuda_driver.Driver()
        driver.enter()
        with pytest.raises(EngineError, match='cuMemHostAlloc failed with 2, out of memory'):
            driver.buffer((100,))
        assert not cuda.allocated


def test_options_that_make_no_sense_are_refused(machine):
    machine()
    with pytest.raises(EngineError, match='precision'):
        EngineFactory('tensorrt', precision='int3')
    with pytest.raises(EngineError, match='threads'):
        EngineOptions(threads=0)
    with pytest.raises(EngineError, match='fp32 or fp16 here, not bf16'):
        EngineFactory('tensorrt', precision='bf16')
    with pytest.raises(EngineError, match='fp32 here, not fp16'):
        EngineFactory('onnx', precision='fp16')
