# SPDX-License-Identifier: Apache-2.0
"""A policy that sees: built with its encoder, fed once per picture, braked when blind."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import make_limits
from eyes import FINE, SMALL, TOPIC, make_camera_policy, make_camera_spec

from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.policy.image import golden_image
from dipod_ros.policy.vision import load_encoder
from dipod_ros.serving import safety
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.engines.base import EngineError
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.loader import LoadedPolicy, PolicyLoader
from dipod_ros.serving.lockstep import LockstepLoop
from dipod_ros.serving.picture import Picture
from dipod_ros.serving.realtime import RealTimeLoop
from dipod_ros.serving.vision import Eyes

DT, DT_NS = 0.04, 40_000_000
START = np.array([0.1, 0.2, 0.3])


def picture(seed=0):
    return Picture(golden_image(SMALL, seed), 'rgb')


class CountingEncoder:
    """Tells the mean of the picture, and how often it was asked."""

    def __init__(self):
        self.runs = 0

    def run(self, pixels):
        self.runs += 1
        return np.full(5, pixels.mean(), np.float32)


@pytest.fixture
def loader(tmp_path):
    def make(kind='onnx'):
        limits = make_limits()
        return PolicyLoader(limits, DT, [tmp_path], EngineFactory(kind))

    return make


@pytest.mark.parametrize('kind', ['onnx', 'torch'])
@pytest.mark.parametrize('image', [SMALL, FINE], ids=['small', 'fine'])
def test_the_served_policy_does_what_the_trained_one_does(loader, tmp_path, kind, image):
    policy = make_camera_policy(spec=make_camera_spec(image=image))
    policy.save(tmp_path / 'seeing')
    loading = loader(kind)
    loaded = loading.build(loading.validate('seeing'))
    vector = np.array([0.1, 0.2, 0.3, *[np.nan] * 5, 0.1, 0.2, 0.3], np.float32)
    loaded.eyes.look([picture(3)], vector)
    stream = policy.spec.streams[1]
    features = load_encoder(stream, policy.encoder_weights).encode(golden_image(SMALL, 3)[None])
    np.testing.assert_allclose(vector[3:8], features[0], atol=1e-5)
    noise = np.zeros(policy.spec.noise_size, np.float32)
    np.testing.assert_allclose(
        loaded.engine.run(vector, noise), policy.act(vector[None], noise[None])[0], atol=1e-5
    )


@pytest.mark.parametrize('kind', ['onnx', 'torch'])
def test_an_encoder_that_sees_something_else_never_acts(loader, tmp_path, kind):
    policy = make_camera_policy()
    golden = policy.golden()
    lie = replace(golden, features={'camera': golden.features['camera'] + np.float32(0.01)})
    ckpt.save(tmp_path / 'lying', policy.spec, policy.weights(), kind='flow', golden=lie)
    loading = loader(kind)
    with pytest.raises(EngineError, match='golden check failed: the encoder of stream camera'):
        loading.build(loading.validate('lying'))


@pytest.mark.parametrize('image', [SMALL, FINE], ids=['small', 'fine'])
def test_a_frozen_encoder_is_kept_and_a_new_one_refitted(loader, tmp_path, image):
    loading, spec = loader(), make_camera_spec(image=image)
    first = make_camera_policy(seed=0, spec=spec)
    # Another network behind the same eyes.
    learned = make_camera_policy(seed=1, spec=spec)
    learned.encoder_weights = first.encoder_weights
    first.save(tmp_path / 'first')
    learned.save(tmp_path / 'learned')
    make_camera_policy(seed=2, spec=spec).save(tmp_path / 'other')
    engines = {}
    for name in ('first', 'learned', 'other'):
        loaded = loading.build(loading.validate(name))
        engines[name] = loaded.eyes._encoders['camera']
    assert engines['learned'] is engines['first']
    assert engines['other'] is not engines['first']
    assert not np.allclose(
        engines['other'].run(picture().pixels), engines['first'].run(picture().pixels)
    )


def test_a_damaged_graph_in_the_cache_is_replaced(loader, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    make_camera_policy().save(tmp_path / 'seeing')
    loader().build(loader().validate('seeing'))
    (kept,) = (tmp_path / 'cache/dipod_ros/graphs').glob('encoder-*.onnx')
    kept.write_bytes(b'not a graph')
    loading = loader()
    assert loading.build(loading.validate('seeing')).eyes is not None
    assert kept.read_bytes() != b'not a graph'


def test_a_policy_without_cameras_has_no_eyes(loader, tmp_path):
    from checkpoints import save_checkpoint

    save_checkpoint(tmp_path / 'blind')
    loading = loader()
    assert loading.build(loading.validate('blind')).eyes is None


@pytest.fixture
def bench(make_bench):
    """Return a function that makes a loop whose policy sees through a counting encoder."""

    def make(loop_class, **config):
        bench = make_bench(loop_class, make_camera_spec(), make_limits(), **config)
        spec = bench.spec
        bench.encoder = CountingEncoder()
        blind = bench.agent.policy
        bench.agent.policy = LoadedPolicy(
            blind.manifest, blind.engine, blind.layout, Eyes(spec.images, {'camera': bench.encoder})
        )
        return bench

    return make


def answer(bench, stamp_ns, seen, episode=0, **outcome):
    bench.loop.on_outcome(Outcome(stamp_ns, episode, **outcome))
    if seen is not None:
        bench.buffer.put('image', TOPIC, seen, stamp_ns)
    bench.sense(stamp_ns, START, goal=None)
    return bench.loop.step()


def test_lockstep_waits_for_the_picture_and_records_its_features(bench):
    bench = bench(LockstepLoop)
    assert answer(bench, 0, None, episode=-1, reset=True) is None
    assert 'stream camera on front/image_raw' in bench.loop.look_around()
    bench.buffer.reject('image', TOPIC, "encoding '16UC1' is not one of [...]")
    assert "(encoding '16UC1'" in bench.loop.look_around()
    assert answer(bench, 0, picture(1), episode=-1, reset=True) is not None
    seen = bench.engine.observations[0]
    np.testing.assert_allclose(seen[3:8], golden_image(SMALL, 1).mean(), rtol=1e-6)
    np.testing.assert_allclose(seen[:3], START, rtol=1e-6)
    answer(bench, 6 * DT_NS, picture(2))
    record = bench.loop.finished_records(flush=True)[0]
    np.testing.assert_array_equal(record.observation, seen)


def test_an_encoder_that_fails_is_an_engine_that_fails(bench):
    bench = bench(LockstepLoop)
    bench.encoder.run = lambda pixels: 1 / 0
    command, _ = answer(bench, 0, picture(), episode=-1, reset=True)
    assert command.plan.chunk_start is None  # braking
    assert bench.safety.counts[safety.FAULT] == 1
    assert any('ZeroDivisionError' in text for _, text in bench.told)


class World:
    """The arm and its camera in real time."""

    def __init__(self, bench):
        self.bench, self.loop, self.clock = bench, bench.loop, bench.clock
        self.camera = lambda ns: self.bench.buffer.put('image', TOPIC, picture(ns), ns)

    def run(self, periods):
        for _ in range(periods):
            now_ns = round(self.clock.now * 1e9)
            self.camera(now_ns)
            self.bench.sense(now_ns, START, goal=None)
            self.loop.step()
            end = self.clock.now + DT
            while self.loop.next_control_s() <= end + 1e-9:
                self.clock.now = max(self.clock.now, self.loop.next_control_s())
                self.loop.control()
                self.loop.step()
            self.clock.now = max(self.clock.now, end)

    def told(self):
        return [text for _, text in self.bench.told]


def test_each_picture_is_encoded_once_however_often_the_policy_decides(bench):
    world = World(bench(RealTimeLoop, replan_steps=1))
    stamps = []

    def every_fourth(ns):
        if not stamps or ns - stamps[-1] >= 4 * DT_NS:
            stamps.append(ns)
            world.bench.buffer.put('image', TOPIC, picture(len(stamps)), ns)

    world.camera = every_fourth
    world.run(40)
    decided = world.bench.agent.number
    assert 3 < world.bench.encoder.runs <= len(stamps) < decided


@pytest.mark.parametrize('fault', ['stops', 'freezes', 'rejected'])
def test_a_camera_that_fails_brakes_the_arm_until_it_is_back(bench, fault):
    """A frozen driver repeats its last stamp; a broken one sends what cannot be read."""
    world = World(bench(RealTimeLoop))
    good = world.camera
    world.run(20)
    assert world.bench.agent.number > 0 and world.bench.safety.counts[safety.STALE] == 0
    frozen_ns = round(world.clock.now * 1e9)
    good(frozen_ns)
    world.camera = {
        'stops': lambda ns: None,
        'freezes': lambda ns: good(frozen_ns),
        'rejected': lambda ns: world.bench.buffer.reject('image', TOPIC, 'truncated: 5 bytes'),
    }[fault]
    world.run(20)
    assert world.bench.safety.counts[safety.STALE] == 1
    assert any(t.startswith('stream camera: nothing new on front/image_raw') for t in world.told())
    if fault == 'rejected':
        assert any('(truncated: 5 bytes)' in t for t in world.told())
    before = world.bench.agent.number
    world.run(5)
    assert world.bench.agent.number == before  # holding
    world.camera = good
    world.run(20)
    assert world.bench.agent.number > before
    assert 'stream camera is there again' in world.told()
