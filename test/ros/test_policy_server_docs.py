# SPDX-License-Identifier: Apache-2.0
"""The server's documentation and its settings file say what the parameter table says."""

from pathlib import Path

import pytest
import yaml

pytest.importorskip('rclpy')

from dipod_ros.nodes._policy_server_params import PolicyServerParams  # noqa: E402
from dipod_ros.ros.params import entries, markdown  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


def test_the_documented_parameters_are_those_of_the_node():
    table = markdown(PolicyServerParams)
    text = (ROOT / 'docs/policy_server.md').read_text()
    assert table in text, f'put this table into docs/policy_server.md:\n{table}'


def test_the_settings_file_holds_known_parameters_at_their_defaults():
    tree = yaml.safe_load((ROOT / 'config/policy_server.yaml').read_text())
    given = tree['/**']['ros__parameters']
    defaults = {e.name: e.default for e in entries(PolicyServerParams)}
    assert given
    for name, value in given.items():
        assert name in defaults, f'no parameter {name}'
        assert value == defaults[name], name


def test_every_status_field_is_documented():
    from dipod_ros.nodes import _policy_server_reports as reports

    source = Path(reports.__file__).read_text()
    body = source.split('def now(')[1].split('def ')[0]
    fields = [line.split("'")[1] for line in body.splitlines() if line.strip().startswith("'")]
    text = (
        (ROOT / 'docs/policy_server.md').read_text().split('`~/status`:')[1].split('## Services')[0]
    )
    assert len(fields) > 8
    assert [f for f in fields if f not in text] == []
