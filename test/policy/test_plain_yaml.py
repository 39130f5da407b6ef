# SPDX-License-Identifier: Apache-2.0
"""YAML and XML that anybody may have written: bounded, and one line says what to change."""

import pytest
import yaml

from dipod_ros.errors import UserError
from dipod_ros.policy import plain_yaml, text_file
from dipod_ros.policy.plain_xml import read_xml
from dipod_ros.policy.plain_yaml import YamlError, dump_yaml, parse_yaml, read_yaml

# A few lines that stand for 10^30 words.
LAUGHS = 'a0: &a0 [lol, lol]\n' + ''.join(
    f'a{i}: &a{i} [{", ".join([f"*a{i - 1}"] * 10)}]\n' for i in range(1, 30)
)


def refusal(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    assert str(error.value) and '\n' not in str(error.value)
    return str(error.value)


def test_plain_values_come_back():
    value = {'a': [1, 2.5, 'x', None, True], 'b': {'c': []}}
    assert parse_yaml(dump_yaml(value)) == value


@pytest.mark.parametrize('text', [LAUGHS, 'a: &x 1\nb: *x', 'a: &x [*x]', 'b: &x {c: 1}\n<<: *x'])
def test_an_alias_is_refused_with_what_to_write_instead(text):
    message = refusal(parse_yaml, text)
    assert 'alias in line' in message and 'write out what *' in message


def test_what_is_written_twice_is_written_out():
    row = [1.0, 2.0]
    text = dump_yaml({'a': row, 'b': row})
    assert '*' in yaml.safe_dump({'a': row, 'b': row}) and '*' not in text
    assert parse_yaml(text) == {'a': row, 'b': row}


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        ('[' * 40 + ']' * 40, 'deeper than 32 levels'),
        ('[' + '1, ' * plain_yaml.MAX_ENTRIES + ']', f'more than {plain_yaml.MAX_ENTRIES} entries'),
        ('a: 1' + ':1' * plain_yaml.MAX_SCALAR, 'value of more than'),
        ('a: "' + 'x' * plain_yaml.MAX_SCALAR + 'y"', 'value of more than'),
        ('a: 2026-99-99', 'is not YAML'),
        ('a: !!int ""', 'is not YAML'),
        ('a: [', 'is not YAML'),
    ],
)
def test_what_would_take_long_is_refused_before_it_is_built(text, word, monkeypatch):
    loads = []
    load = yaml.load
    monkeypatch.setattr(yaml, 'load', lambda *a, **k: loads.append(a) or load(*a, **k))
    assert word in refusal(parse_yaml, text)
    assert len(loads) == (word == 'is not YAML' and text != 'a: [')


def test_a_file_is_named_with_what_it_is(tmp_path):
    path = tmp_path / 'f.yaml'
    path.write_text('a: *b')
    assert refusal(read_yaml, path, 'robot file').startswith(f'robot file {path} uses an alias')
    path.write_bytes(b'\xff')
    assert f'robot file {path} is no UTF-8 text' in refusal(read_yaml, path, 'robot file')
    assert f'cannot read robot file {path}x: No such' in refusal(
        read_yaml, f'{path}x', 'robot file'
    )
    with pytest.raises(YamlError):
        path.write_text('a: [')
        read_yaml(path)


def test_a_file_without_an_end_is_not_read_to_it():
    assert f'larger than {text_file.MAX_BYTES} bytes' in refusal(text_file.read_text, '/dev/zero')


ENTITIES = '<!ENTITY a0 "lol">' + ''.join(
    f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 30)
)


@pytest.mark.parametrize(
    ('text', 'word'),
    [
        (f'<!DOCTYPE robot [{ENTITIES}]><robot>&a29;</robot>', 'remove its <!DOCTYPE'),
        ('<!DOCTYPE robot [<!ENTITY a SYSTEM "file:///etc/passwd">]><r>&a;</r>', 'remove its'),
        ('<!DOCTYPE robot><robot/>', 'remove its <!DOCTYPE'),
        ('<a>' * 100 + '</a>' * 100, 'nested deeper than 64'),
        ('<a>', 'is not XML'),
        ('\x00', 'is not XML'),
    ],
)
def test_xml_that_asks_for_more_than_elements_is_refused(tmp_path, text, word):
    path = tmp_path / 'arm.urdf'
    path.write_text(text)
    message = refusal(read_xml, path, 'workspace.model')
    assert word in message and message.startswith(f'workspace.model {path}')


def test_plain_xml_is_read(tmp_path):
    path = tmp_path / 'arm.urdf'
    path.write_text('<?xml version="1.0" encoding="utf-8"?>\n<robot><!-- &no; --><link/></robot>')
    root, text = read_xml(path)
    assert root.tag == 'robot' and [e.tag for e in root] == ['link'] and text.startswith('<?xml')
