# SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

from dipod_ros.resources import share_dir
from dipod_ros.ros.launch_runner.text import (
    LaunchError,
    Scope,
    check_value,
    parse_text,
    to_value,
    truth,
)

SCOPE = Scope(
    Path('/files/a.launch.yaml'), {'task': 'reach', 'name': 'task', 'gap': 'a b'}, {'HOME': '/me'}
)

TEXTS = {
    '': '',
    'plain': 'plain',
    'costs $5 (five)': 'costs $5 (five)',
    '$(var task)': 'reach',
    'x/$(var task)_flow': 'x/reach_flow',
    '$(var none other)': 'other',
    "$(var none 'a b')": 'a b',
    '$(var none "a $(var task)")': 'a reach',
    '$(var $(var name))': 'reach',
    '$(env HOME)/x': '/me/x',
    '$(env NOT_SET there)': 'there',
    '$(env NOT_SET $(var task))': 'reach',
    '$(dirname)/b.yaml': '/files/b.yaml',
    r'\$(var task)': '$(var task)',
    r'a\\b': r'a\b',
}


@pytest.mark.parametrize('text', TEXTS)
def test_text_is_substituted(text):
    assert parse_text(text).evaluate(SCOPE) == TEXTS[text]


def test_share_folder_of_this_package_needs_no_index():
    assert parse_text('$(find-pkg-share dipod_ros)').evaluate(SCOPE) == str(share_dir())


@pytest.mark.parametrize(
    ('text', 'says'),
    [
        ('$(eval 1+1)', 'unknown substitution'),
        ('$()', 'unknown substitution'),
        ('$(var)', 'takes 1 to 2 arguments'),
        ('$(var task', 'not closed'),
        ('$(var none)', 'no such argument; known here: gap, name, task'),
        ('$(env NOT_SET)', 'NOT_SET'),
        ('$(find-pkg-share nowhere)', "package 'nowhere' not found"),
    ],
)
def test_what_cannot_be_substituted_is_named(text, says):
    with pytest.raises(LaunchError, match=says):
        parse_text(text).evaluate(SCOPE)


def test_a_substituted_word_is_not_split():
    text = parse_text("--a $(var gap) 'b c' --d=$(var task)")
    assert text.split(SCOPE) == ['--a', 'a b', 'b c', '--d=reach']


@pytest.mark.parametrize(
    ('text', 'kind', 'value'),
    [
        ('2', None, 2),
        ('2.5', None, 2.5),
        ('true', None, True),
        ('', None, ''),
        ('[1, 2]', None, [1, 2]),
        ('2', 'float', 2.0),
        ('1e-3', 'float', 1e-3),  # YAML 1.1 alone takes it for a string
        ('2', 'str', '2'),
        ('on', 'str', 'on'),
        ('1', 'bool', True),
        ('no', 'bool', False),
        ('[a, b]', 'list_of_str', ['a', 'b']),
    ],
)
def test_text_becomes_a_value(text, kind, value):
    result = to_value(text, kind)
    assert result == value
    assert type(result) is type(value)


@pytest.mark.parametrize(
    ('text', 'kind'),
    [
        ('x', 'int'),
        ('2.5', 'int'),
        ('maybe', 'bool'),
        ('a', 'list_of_str'),
        ('[1, a]', None),
        ('[]', None),
        ('{a: 1}', None),
        ('[[1]]', None),
        ('[1', None),
        ('2026-01-01', None),
    ],
)
def test_text_that_is_no_value_is_refused(text, kind):
    with pytest.raises(LaunchError):
        to_value(text, kind)


def test_an_int_is_no_float():
    with pytest.raises(LaunchError, match='2 is no float'):
        check_value(2, 'float')


def test_conditions_are_true_or_false_and_nothing_else():
    assert [truth(t) for t in ('true', ' True', '1')] == [True] * 3
    assert [truth(t) for t in ('false', 'FALSE ', '0')] == [False] * 3
    with pytest.raises(LaunchError, match="not 'yes'"):
        truth('yes')
