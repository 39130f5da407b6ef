# SPDX-License-Identifier: Apache-2.0
"""`dipod models` makes flow, student and cards in one go, and goes on where it was interrupted."""

import json
from functools import partial
from pathlib import Path

import pytest

from dipod_ros.cli import distill, models
from dipod_ros.cli._models_journal import Journal
from dipod_ros.cli.main import main
from dipod_ros.learning.students import distill as students
from dipod_ros.policy import checkpoint as ckpt

SMALL = models.Recipe(demonstrations=4, pretrain_steps=3, student_steps=2, student_episodes=8)


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder to make the models of `reach` in, tiny; returns the command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(models.RECIPES, 'reach', SMALL)
    monkeypatch.setattr(models, 'FLOW_SAMPLERS', ('euler-1', 'midpoint-5'))
    monkeypatch.setattr(models, 'STUDENT_SAMPLERS', ('euler-1',))
    # The teacher's pairs are half of the time, however few steps learn from them.
    monkeypatch.setattr(students, 'DistillConfig', partial(students.DistillConfig, pairs=512))
    return lambda: main(['models', 'reach', '--out', 'made', '--episodes', '8'])


def interrupt(*_):
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_and_a_finished_one_begins_again(small, monkeypatch, capsys):
    with monkeypatch.context() as before_the_student:
        before_the_student.setattr(distill, 'run', interrupt)
        small()
    assert not Path('made/reach_student').exists()
    data, flow = Path('runs/demos/reach.safetensors'), Path('made/reach_flow/manifest.yaml')
    times = data.stat().st_mtime_ns, flow.stat().st_mtime_ns
    with monkeypatch.context() as at_the_cards:
        at_the_cards.setattr(models, '_write_card', interrupt)
        small()
    kept = json.loads(Path('runs/models/reach.json').read_text())
    assert [line.split()[1] for line in kept['done']] == ['demos', 'pretrain', 'distill']

    assert small() == 0
    assert (data.stat().st_mtime_ns, flow.stat().st_mtime_ns) == times
    card = Path('made/reach_flow/README.md').read_text()
    assert ckpt.read_manifest('made/reach_flow').sha256 in card
    assert '--steps 3 ' in card and '| midpoint-5 (its own) | 10 |' in card
    assert 'dipod distill' in Path('made/reach_student/README.md').read_text()
    assert not Path('runs/models/reach.json').exists()
    capsys.readouterr()

    assert small() == 0  # nothing to go on with: everything again
    assert 'interrupted' not in capsys.readouterr().out
    assert data.stat().st_mtime_ns > times[0] and flow.stat().st_mtime_ns > times[1]


def test_the_journal_counts_only_what_is_still_there(tmp_path):
    made, file = tmp_path / 'made', tmp_path / 'journal.json'
    made.write_text('one')
    journal = Journal(file)
    assert not journal.is_done('make', made)
    journal.note('make', made)
    assert journal.measured('figure', lambda: 0.5) == 0.5

    again = Journal(file)
    assert again.is_done('make', made)
    assert again.measured('figure', lambda: 0.7) == 0.5
    made.write_text('another')
    assert not again.is_done('make', made)
    made.unlink()
    assert not again.is_done('make', made)
    again.remove()
    assert not file.exists()


def test_a_journal_that_a_kill_left_unreadable_counts_as_none(tmp_path):
    file = tmp_path / 'journal.json'
    for text in ('{', '[]', '{"done": 3}'):
        file.write_text(text)
        assert Journal(file).measured('figure', lambda: 1) == 1
