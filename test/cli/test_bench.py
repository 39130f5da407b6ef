# SPDX-License-Identifier: Apache-2.0
"""`dipod bench` runs, says what docs/benchmarks.md promises, and leaves nothing behind."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from dipod_ros.cli.bench_measure import ratio_of_medians, spread, time_calls
from dipod_ros.cli.bench_report import table

DOCS = Path(__file__).resolve().parents[2] / 'docs/benchmarks.md'
TIMEOUT_S = 400.0  # far above anything but a machine that is swamped
MARK = 'DIPOD_BENCH_TEST'


def keys(name):
    """Return the keys that the table of one benchmark in the documentation lists."""
    section = DOCS.read_text().split(f'\n## {name}\n')[1].split('\n## ')[0]
    listed = [row.split('|')[1] for row in section.splitlines() if row.startswith('| `')]
    return {key for cell in listed for key in re.findall(r'`(\w+)`', cell)}


class Bench:
    """A run of the command in a process of its own, whose descendants can be told apart."""

    def __init__(self, *arguments, **environment):
        self.mark = uuid.uuid4().hex
        self.process = subprocess.Popen(
            [sys.executable, '-m', 'dipod_ros.cli', 'bench', *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {MARK: self.mark} | environment,
        )

    def finish(self):
        """Return exit code, stdout and stderr."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            raise
        return self.process.returncode, out, err

    def family(self):
        """Return the command lines of all processes that it started and that still run."""
        found = []
        for folder in Path('/proc').glob('[0-9]*'):
            try:
                if f'{MARK}={self.mark}'.encode() in (folder / 'environ').read_bytes():
                    words = (folder / 'cmdline').read_bytes().split(b'\0')
                    if int(folder.name) != self.process.pid and words[0]:
                        found.append(' '.join(w.decode() for w in words))
            except OSError:  # it ended meanwhile, or is somebody else's
                continue
        return found


def check(results, name):
    """Assert that every documented figure is there and a finite number above 0."""
    assert keys(name) <= results.keys()
    for key in keys(name):
        value = results[key]
        for tail in ('_p99', '_max'):
            assert value <= results.get(key + tail, math.inf), key
        assert math.isfinite(value) and value > 0, (key, value)


def measure(tmp_path, name):
    path = tmp_path / 'results.json'
    bench = Bench(name, '--quick', '--json', str(path))
    code, out, err = bench.finish()
    assert code == 0, err
    assert bench.family() == []
    results = json.loads(path.read_text())
    assert results.keys() == {'machine', name}
    for key in keys(name):
        assert key in out
    check(results[name], name)
    return results


@pytest.mark.timeout(500)
def test_engine(tmp_path):
    results = measure(tmp_path, 'engine')
    engine = results['engine']
    check(engine, 'engine')
    for name, network in {'student': 'mlp', 'dit': 'dit', 'unet': 'unet'}.items():
        other = {'mlp_speedup', 'dit_speedup', 'unet_speedup'} - {f'{network}_speedup'}
        other |= {k for k in keys('engine') if k.startswith('encoder_')}
        assert keys('engine') - other <= engine[name].keys()
    assert (engine['checkpoint'], engine['k']) == ('pillar_reach_flow', 10)
    assert engine['student']['checkpoint'] == 'pillar_reach_student'
    # Not a speed: two backends of one policy agree, on any machine.
    assert max(engine['parity'], engine['student']['parity']) < 1e-4
    assert max(engine['dit']['parity'], engine['unet']['parity']) < 1e-4
    assert keys('machine') == results['machine'].keys()
    assert results['machine']['cpu'] and len(results['machine']['loadavg']) == 3


@pytest.mark.ros
@pytest.mark.timeout(300)
def test_sim(tmp_path):
    sim = measure(tmp_path, 'sim')['sim']
    assert sim['worlds'] == 256
    assert sim['limit_violations'] == 0


@pytest.mark.alone
@pytest.mark.ros
@pytest.mark.timeout(400)
def test_realtime(tmp_path):
    figures = measure(tmp_path, 'realtime')['realtime']
    assert figures['command_rate_hz'] == 100.0
    assert figures['limit_violations'] == figures['with_trainer']['limit_violations'] == 0
    assert figures['with_trainer']['trainer_core_share'] > 0
    assert figures['missed_ticks'] >= 0
    assert ('camera_core_share' in figures) != ('camera_not_measured' in figures)


@pytest.mark.ros
@pytest.mark.timeout(300)
def test_serve(tmp_path):
    serve = measure(tmp_path, 'serve')['serve']
    check(serve['flow'], 'serve')
    assert serve['checkpoint'] == 'pillar_reach_student'
    assert serve['flow']['checkpoint'] == 'pillar_reach_flow'


@pytest.mark.ros
@pytest.mark.timeout(300)
def test_swap(tmp_path):
    swap = measure(tmp_path, 'swap')['swap']
    assert swap['swaps'] == 20
    assert swap['limit_violations'] == swap['decisions_lost'] == 0
    assert swap['commands'] > 100 and swap['decisions'] > 20


@pytest.mark.timeout(300)
def test_train(tmp_path):
    train = measure(tmp_path, 'train')['train']
    assert 0 < train['not_gradient_share'] < 1
    # The critic's gradients are gradients: the same rollouts, a longer update.
    assert train['with_q_critic']['update_s'] > train['update_s']
    assert 0 < train['with_q_critic']['not_gradient_share'] < 1
    # Own chunks and targets of Q are no gradient math.
    assert train['with_q_critic']['not_gradient_share'] > 0.1
    for part in (train, train['with_q_critic']):
        assert part['gap_s'] > 0 and part['drift_log_share'] > 0 and part['health_share'] > 0
        assert part['drift_log_share'] + part['health_share'] < part['not_gradient_share']
    assert 0.5 < train['dipod_over_fpo'] < 2  # the same work: far from another pass of the network


@pytest.mark.ros
@pytest.mark.timeout(300)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_a_bench_that_is_stopped(tmp_path, number):
    bench = Bench('serve', TMPDIR=str(tmp_path))  # a killed process cannot tidy up
    nodes = ('policy_server', 'bench_pong')
    wait(lambda: all(any(n in line for line in bench.family()) for n in nodes), 'nodes', bench)
    bench.process.send_signal(number)
    code, _, _ = bench.finish()
    assert code == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[number]
    if number == signal.SIGKILL:  # nobody is left to wait for them
        wait(lambda: not bench.family(), 'the end of the nodes')
    assert bench.family() == []


def wait(condition, what, bench=None):
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f'waited for {what} in vain'
        assert bench is None or bench.process.poll() is None, bench.process.stderr.read()
        time.sleep(0.05)  # processes of others: nothing tells us


@pytest.mark.parametrize(
    ('arguments', 'says'),
    [
        (('engine', '--checkpoint', 'no_such_model'), 'no_such_model'),
        (('engine', '--sampler', 'euler'), 'write SOLVER-STEPS'),
        (('training',), 'invalid choice'),
    ],
)
def test_mistakes_are_one_line(arguments, says):
    code, out, err = Bench(*arguments).finish()
    assert code == 2
    assert says in err and 'Traceback' not in err


def test_spread_is_median_p99_and_maximum():
    values = np.arange(101.0)
    assert spread('x', values) == {'x': 50.0, 'x_p99': 99.0, 'x_max': 100.0}


def test_a_slow_minute_that_hits_both_leaves_the_ratio():
    one, other = np.full((5, 4), 3.0), np.full((5, 4), 2.0)
    one[2:4] *= 10
    other[2:4] *= 10
    one[0, 0] = 1000.0
    assert ratio_of_medians(one, other) == 1.5


def test_calls_are_numbered_and_timed():
    seen = []
    seconds = time_calls(seen.append, 3)
    assert seen == [0, 1, 2]
    assert seconds.shape == (3,) and np.all(seconds >= 0)


def test_the_table_puts_tails_beside_their_median_and_parts_below():
    text = table('serve', {'a_us': 2.0, 'a_us_p99': 12345.6, 'a_us_max': 4.5, 'flow': {'b': 1}})
    lines = text.splitlines()
    assert lines[2].split() == ['a_us', '2', '12346', '4.5']
    assert lines[4].split()[:2] == ['serve', 'flow']
    assert lines[5].split() == ['b', '1']
