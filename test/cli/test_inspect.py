# SPDX-License-Identifier: Apache-2.0
"""`dipod inspect` on checkpoints that somebody else made."""

from checkpoints import save_checkpoint

from dipod_ros.cli.main import main
from dipod_ros.policy.checkpoint import MANIFEST_FILE


def inspected(folder, capsys):
    code = main(['inspect', str(folder)])
    read = capsys.readouterr()
    return code, read.out, read.err


def test_a_checkpoint_is_described(tmp_path, capsys):
    save_checkpoint(tmp_path / 'm')
    code, said, _ = inspected(tmp_path / 'm', capsys)
    assert code == 0 and '(verified)' in said and 'task        toy on toy_arm' in said


def test_what_a_manifest_says_reaches_the_terminal_as_text(tmp_path, capsys):
    save_checkpoint(tmp_path / 'm')
    file = tmp_path / 'm' / MANIFEST_FILE
    text = file.read_text().replace('task: toy', r'task: "a\e]0;owned\a\r\nb"')
    file.write_text(text)
    code, said, _ = inspected(tmp_path / 'm', capsys)
    assert code == 0 and 'task        a?]0;owned???b on toy_arm' in said
    assert all(c.isprintable() or c == '\n' for c in said)


def test_a_hostile_manifest_is_refused_in_one_line(tmp_path, capsys):
    save_checkpoint(tmp_path / 'm')
    file = tmp_path / 'm' / MANIFEST_FILE
    whole = file.read_text()
    for change, word in (
        (whole.replace('task: toy', 'task: &a [x, x]\nmore: *a'), 'alias'),
        (whole.replace('width: 16', 'width: 60000'), 'width must be'),
        (whole.replace('width: 16', 'width: 16000').replace('depth: 2', 'depth: 60'), 'at most'),
        (whole.replace('name: goal', r'name: "g\e[2J"').replace('size: 3', 'size: 4'), 'g?[2J'),
    ):
        assert change != whole
        file.write_text(change)
        code, said, error = inspected(tmp_path / 'm', capsys)
        assert code == 2 and word in error and not said
        assert error.count('\n') == 1 and '\x1b' not in error
