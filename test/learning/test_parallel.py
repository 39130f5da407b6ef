# SPDX-License-Identifier: Apache-2.0
"""Two real processes under torchrun learn what one process learns from the same data."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip('torch')

from safetensors.torch import load_file  # noqa: E402

from dipod_ros.learning import parallel  # noqa: E402

ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
NAMES = ('1-0', '2-0', '2-1')
# Python, torch and a group in each process, on a machine that may be busy.
pytestmark = pytest.mark.timeout(400)

WORKER = Path(__file__).with_name('parallel_worker.py')


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def launch(processes, *arguments):
    """Run the worker in `processes` processes, all on this machine."""
    command = [sys.executable]
    if processes > 1:
        command += ['-m', 'torch.distributed.run', f'--nproc-per-node={processes}', '--nnodes=1']
        command += ['--master-addr=127.0.0.1', f'--master-port={free_port()}']
    done = subprocess.run(
        [*command, str(WORKER), *map(str, arguments)],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def launch_apart(*arguments):
    """Run the worker in two processes of which none looks after the other, as on two machines.

    Returns (exit code, what it said) of each.
    """
    place = {'WORLD_SIZE': '2', 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(free_port())}
    running = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env=os.environ | ENVIRONMENT | place | {'RANK': str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [(process.returncode, text) for process, text in zip(running, said, strict=True)]


def test_two_processes_learn_what_one_learns(make_policy, tmp_path):
    make_policy().save(tmp_path / 'start')
    launch(1, tmp_path / 'start', tmp_path)
    launch(2, tmp_path / 'start', tmp_path)
    rows = [json.loads((tmp_path / f'{n}.json').read_text()) for n in NAMES]
    weights = [load_file(tmp_path / f'{n}.safetensors') for n in NAMES]
    start = make_policy().state_dict()
    for name, alone in weights[0].items():
        # Sums in another order: round-off, which Adam's division makes visible in small gradients.
        torch.testing.assert_close(weights[1][name], alone, rtol=0, atol=2e-5)
        assert torch.equal(weights[1][name], weights[2][name]), f'{name} differs between the two'
    assert any((weights[0][n] - start[n]).abs().max() > 1e-3 for n in start)
    for alone, first, second in zip(*rows, strict=True):
        assert first == second
        assert first.keys() == alone.keys()
        for name in ('policy_loss', 'cfm_loss', 'gradient_norm', 'ratio_mean', 'clip_fraction'):
            assert first[name] == pytest.approx(alone[name], rel=1e-3, abs=1e-5), name


def test_two_processes_keep_the_same_q_critic(make_policy, tmp_path):
    """Each fits its own, from the same numbers: nothing of it is sent."""
    make_policy().save(tmp_path / 'start')
    launch(2, tmp_path / 'start', tmp_path, 'q_critic')
    first, second = (load_file(tmp_path / f'2-{rank}.safetensors') for rank in (0, 1))
    assert first.keys() == second.keys() and 'q_memory.rewards' in first
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    start = make_policy().state_dict()
    assert any((first[n] - start[n]).abs().max() > 1e-3 for n in start)


def test_a_process_without_a_row_takes_part_all_the_same(make_policy, tmp_path):
    """4 decisions in 4 minibatches are one row each, and the first process takes all of them."""
    make_policy().save(tmp_path / 'start')
    launch(1, tmp_path / 'start', tmp_path, 'few')
    assert [code for code, _ in launch_apart(tmp_path / 'start', tmp_path, 'few')] == [0, 0]
    alone, first, second = (json.loads((tmp_path / f'{n}.json').read_text()) for n in NAMES)
    assert first == second
    for one, two in zip(alone, first, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=1e-3, abs=1e-4)


def test_processes_with_folders_of_their_own_go_on_with_the_run_of_the_first(make_policy, tmp_path):
    """As on two machines of which the second one has never seen the run."""
    make_policy().save(tmp_path / 'start')
    launch(1, tmp_path / 'start', tmp_path, 'run')
    assert [code for code, _ in launch_apart(tmp_path / 'start', tmp_path, 'run')] == [0, 0]
    first, second = (load_file(tmp_path / f'2-{rank}.safetensors') for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    rows = [json.loads((tmp_path / f'2-{rank}.json').read_text()) for rank in (0, 1)]
    assert [[r['updates'] for r in part] for part in rows] == [[4, 5, 6]] * 2
    assert not (tmp_path / 'run-1').exists()  # it has nothing to read or write there


@pytest.mark.parametrize(
    ('what', 'reason'),
    [
        ('run,uneven', 'differ in decisions (90 | 91)'),
        ('run,settings', 'differ in settings ('),
    ],
)
def test_processes_that_hold_different_things_end_with_the_reason(
    make_policy, tmp_path, what, reason
):
    """Gradients of different episodes would add up without any error."""
    make_policy().save(tmp_path / 'start')
    for code, said in launch_apart(tmp_path / 'start', tmp_path, what):
        assert code != 0 and said.strip().splitlines()[-1].endswith(
            'start them with the same arguments and files'
        )
        assert reason in said


def test_the_group_takes_tensors_of_the_cpu_where_a_gpu_is_seen(monkeypatch):
    """Learning moves nothing to a GPU, so its gradients must meet in main memory."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    place = {'RANK': 0, 'WORLD_SIZE': 1, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    for name, value in (place | {'GLOO_SOCKET_IFNAME': 'lo'}).items():
        monkeypatch.setenv(name, str(value))
    parallel.join()
    try:
        assert torch.distributed.get_backend() == 'gloo'
    finally:
        parallel.leave()


def test_alone_nothing_is_shared():
    index = torch.arange(5)
    assert torch.equal(parallel.share(index), index)
    assert (parallel.rank(), parallel.world_size()) == (0, 1)
    assert parallel.sum_values({'a': 1.5}) == {'a': 1.5}
    assert parallel.gather(b'x') == [b'x'] and parallel.broadcast(b'x') == b'x'
    parallel.require_same({'updates': 1})
    parallel.join()
    assert parallel.world_size() == 1
