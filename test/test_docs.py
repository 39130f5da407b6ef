# SPDX-License-Identifier: Apache-2.0
"""The parameter tables in docs/ are those of the nodes, and README names only what exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.ros
def test_the_trainers_parameters_are_documented_as_they_are():
    from dipod_ros.nodes.trainer import TrainerParams
    from dipod_ros.ros.params import markdown

    assert markdown(TrainerParams) in (ROOT / 'docs/learning.md').read_text()


@pytest.mark.ros
def test_the_recorder_is_documented_as_it_is():
    from pathlib import Path

    from dipod_ros.nodes import _recorder_status, recorder
    from dipod_ros.ros.params import markdown

    text = (ROOT / 'docs/recording.md').read_text()
    assert markdown(recorder.RecorderParams) in text
    body = Path(_recorder_status.__file__).read_text().split('def describe')[1].split('def ')[0]
    fields = re.findall(r"^        '(\w+)':", body, re.MULTILINE)
    assert len(fields) > 10
    assert [f for f in fields if f'`{f}`' not in text] == []


@pytest.mark.parametrize('page', ['README.md', *(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))])
def test_links_and_commands_of_the_documentation_exist(page):
    from dipod_ros.cli.main import available

    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert ((ROOT / page).parent / target).exists(), target
    for command in re.findall(r'^\s+(?:\.venv/bin/)?dipod ([a-z-]+)', text, re.MULTILINE):
        assert command in available(), command
