# SPDX-License-Identifier: Apache-2.0
"""The main job, end to end and small: simulator, server and trainer as processes, over ROS."""

import json
import os
import subprocess
import sys

import pytest

from dipod_ros.policy import checkpoint as ckpt
from dipod_ros.resources import share_dir

pytestmark = [pytest.mark.ros, pytest.mark.timeout(300)]
# A quarter of the usual episodes and a tenth of the steps: what they teach is tested elsewhere. The
# world runs on while the trainer learns, which lasts where other tests take its turns.
LITTLE = """/**:
  ros__parameters:
    episodes_per_update: 16
    max_episodes_per_update: 16
    epochs: 4
    nice: 0
    student_train_steps: 60
"""


def test_the_demo_learns_swaps_distils_and_leaves_its_results(tmp_path):
    # The first update fits the critic alone; however long this machine takes for the second.
    (tmp_path / 'little.yaml').write_text(LITTLE)
    words = ('--minutes', '4', '--updates', '2', '--headless', '--eval-episodes', '8')
    words += ('--params-file', 'little.yaml')
    done = subprocess.run(
        [sys.executable, '-m', 'dipod_ros.cli', 'demo', *words, '--run-dir', 'here'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(share_dir())},
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    run_dir = tmp_path / 'here'
    assert (tmp_path / 'runs/latest').resolve() == run_dir
    summary = json.loads((run_dir / 'summary.json').read_text())
    assert summary['updates'] >= 2 and summary['version'] >= 1 and summary['swaps'] >= 1
    assert summary['limit_violations'] == 0 and summary['interrupted_decisions'] == 0
    assert summary['ticks_per_s'] > 0 and 0 < summary['decision_ms_p50'] < 1000
    assert summary['evaluation_episodes'] == 8
    for name in ('before', 'after', 'student'):
        low, high = summary[f'success_{name}_95']
        assert 0 <= low <= summary[f'success_{name}'] <= high <= 1
    assert summary['student_live']['episodes'] >= 64
    assert (run_dir / 'learning_curve.png').stat().st_size > 1000
    students = list((run_dir / 'training/students').iterdir())
    assert ckpt.load(students[0]).manifest.kind == 'student'
    assert 'active: acting in lockstep' in (run_dir / 'nodes.log').read_text()
