# SPDX-License-Identifier: Apache-2.0
"""The parameter tables in docs/ are those of the nodes, and README names only what exists."""

import importlib
import importlib.util
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


PAGES = ['README.md', 'docs/results/README.md', *(f'docs/{p.name}' for p in ROOT.glob('docs/*.md'))]


@pytest.mark.parametrize('page', PAGES)
def test_links_and_commands_of_the_documentation_exist(page):
    from dipod_ros.cli.main import available

    text = (ROOT / page).read_text()
    for target in re.findall(r'\]\((?!https?:|#)([^)#]+)', text):
        assert ((ROOT / page).parent / target).exists(), target
    for command in re.findall(r'^\s+(?:\.venv/bin/)?dipod ([a-z-]+)', text, re.MULTILINE):
        assert command in available(), command


def anchors(page):
    """Return the names that GitHub gives the headings of a page."""
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL)
    headings = re.findall(r'^#+ +(.*)$', text, re.MULTILINE)
    titles = (re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', heading) for heading in headings)
    return {re.sub(r'[^\w\- ]', '', title.strip().lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES)
def test_headings_that_links_lead_to_exist(page):
    here = ROOT / page
    for target, anchor in re.findall(r'\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)', here.read_text()):
        there = here.parent / target if target else here
        if there.suffix == '.md':
            assert anchor in anchors(there), f'{target}#{anchor}'


@pytest.mark.parametrize('page', PAGES)
def test_files_and_modules_that_the_documentation_names_exist(page):
    text = (ROOT / page).read_text()
    files = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'dipod_ros').rglob('*.py')}
    files |= {p.relative_to(ROOT).as_posix() for p in (ROOT / 'test').rglob('*.py')}
    for name in re.findall(r'`([\w/]+\.py)[`:]', text):
        if not name.rpartition('/')[2].startswith('my_'):  # the reader's own
            assert any(f'/{f}'.endswith(f'/{name}') for f in files), name
    for module in re.findall(r'(?:^\s*import|-m) (dipod_ros[\w.]*)', text, re.MULTILINE):
        assert importlib.util.find_spec(module) is not None, module
    for module, names in re.findall(r'^\s*from (dipod_ros[\w.]*) import (.+)$', text, re.MULTILINE):
        for name in names.split(', '):
            assert hasattr(importlib.import_module(module), name.strip()), f'{module}: {name}'
