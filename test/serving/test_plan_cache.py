# SPDX-License-Identifier: Apache-2.0
"""Plans on disk: whole or not there, for one key only, bounded, and safe for two processes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dipod_ros.serving.engines.plan_cache import MAX_BAD, PlanCache, plan_key

FACTS = {'tensorrt': '10.3.0', 'gpu': 'Orin', 'sm': 'sm_87', 'precision': 'fp16'}


@pytest.fixture
def cache(tmp_path):
    return PlanCache(tmp_path / 'plans', max_bytes=1000)


def files(cache):
    return sorted(p.name for p in cache.folder.iterdir() if p.name != '.lock')


def test_what_was_written_is_read(cache):
    key = plan_key(FACTS)
    assert cache.read(key) is None
    assert cache.write(key, b'plan', FACTS)
    assert cache.read(key) == b'plan'
    stated = json.loads((cache.folder / f'{key}.json').read_text())
    assert stated['bytes'] == 4 and FACTS.items() <= stated.items()
    assert files(cache) == [f'{key}.json', f'{key}.plan']


@pytest.mark.parametrize('name', FACTS)
def test_every_fact_is_part_of_the_key(name):
    assert plan_key(FACTS) == plan_key(dict(reversed(FACTS.items())))
    assert plan_key(FACTS | {name: 'other'}) != plan_key(FACTS)


@pytest.mark.parametrize('damage', ['cut', 'changed', 'empty', 'no json', 'bad json', 'list'])
def test_a_damaged_plan_is_set_aside_and_not_read_again(cache, damage):
    cache.write('k', b'a good plan', FACTS)
    plan, sidecar = cache.folder / 'k.plan', cache.folder / 'k.json'
    if damage in ('cut', 'changed', 'empty'):
        plan.write_bytes({'cut': b'a good', 'changed': b'a gooD plan', 'empty': b''}[damage])
    elif damage == 'no json':
        sidecar.unlink()
    else:
        sidecar.write_text({'bad json': '{"sha256": ', 'list': '[1]'}[damage])
    assert cache.read('k') is None
    assert not plan.exists() and (cache.folder / 'k.plan.bad').exists()
    assert cache.read('k') is None
    assert cache.write('k', b'another', FACTS) and cache.read('k') == b'another'


def test_a_plan_that_does_not_work_is_set_aside_by_its_user(cache):
    cache.write('k', b'plan', FACTS)
    cache.set_aside('k')
    assert cache.read('k') is None
    assert files(cache) == ['k.json.bad', 'k.plan.bad']
    cache.set_aside('nobody')  # no error


def test_few_files_that_were_set_aside_are_kept(cache):
    for i in range(MAX_BAD + 3):
        cache.write(f'k{i}', b'plan', FACTS)
        cache.set_aside(f'k{i}')
    assert len(list(cache.folder.glob('*.plan.bad'))) == MAX_BAD
    assert len(list(cache.folder.glob('*.json.bad'))) == MAX_BAD


def test_the_least_recently_used_plan_goes_first(cache):
    for i, name in enumerate('abc'):
        cache.write(name, bytes(300), FACTS)
        os.utime(cache.folder / f'{name}.plan', (i + 1, i + 1))
    assert cache.read('a') is not None  # used again
    cache.write('d', bytes(300), FACTS)
    assert sorted(cache.keys()) == ['a', 'c', 'd']
    assert 'b.json' not in files(cache)


def test_a_plan_above_the_limit_is_not_kept_and_drives_nothing_out(cache):
    cache.write('a', bytes(300), FACTS)
    assert not cache.write('huge', bytes(1001), FACTS)
    assert cache.keys() == ['a']


def test_a_folder_that_cannot_be_made_is_no_obstacle(tmp_path):
    (tmp_path / 'file').write_text('')
    cache = PlanCache(tmp_path / 'file' / 'plans')
    assert not cache.write('k', b'plan', FACTS)
    assert cache.read('k') is None
    cache.set_aside('k')
    cache.write_timing('t', b'x')
    assert cache.read_timing('t') == b''


def test_timing_caches_are_kept_beside(cache):
    assert cache.read_timing('10.3_sm_87') == b''
    cache.write_timing('10.3_sm_87', b'times')
    assert cache.read_timing('10.3_sm_87') == b'times'


def test_the_folder_follows_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert PlanCache().folder == tmp_path / 'dipod_ros' / 'plans'


# Writes and reads one key, over and over; a plan must be one of the two processes', whole.
RACER = """
import sys
from pathlib import Path
from dipod_ros.serving.engines.plan_cache import PlanCache
cache = PlanCache(Path(sys.argv[1]), max_bytes=10_000_000)
mine = sys.argv[2].encode() * 20_000
print('ready', flush=True)
sys.stdin.readline()
for i in range(150):
    assert cache.write('shared', mine, {'writer': sys.argv[2]})
    found = cache.read('shared')
    # The other one may just have set it aside.
    assert found is None or (len(set(found)) == 1 and len(found) == 20_000), i
    if sys.argv[2] == 'a' and i % 30 == 20:
        cache.set_aside('shared')
print('done', flush=True)
"""


def racer(folder, letter):
    return subprocess.Popen(
        [sys.executable, '-c', RACER, str(folder), letter],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_that_race_see_whole_plans_only(cache):
    racers = [racer(cache.folder, letter) for letter in 'ab']
    try:
        for process in racers:
            assert process.stdout.readline() == 'ready\n'
        for process in racers:
            process.stdin.write('go\n')
            process.stdin.flush()
        for process in racers:
            out, _ = process.communicate(timeout=60)
            assert process.returncode == 0 and out == 'done\n'
    finally:
        for process in racers:
            process.kill()
            process.communicate()
    last = PlanCache(cache.folder).read('shared')
    assert last in (b'a' * 20_000, b'b' * 20_000)
    assert not list(cache.folder.glob('*.part'))


def test_a_killed_process_leaves_no_lock_behind(cache):
    cache.write('k', b'plan', FACTS)
    holder = subprocess.Popen(
        [
            sys.executable,
            '-c',
            'import sys, time\n'
            'from pathlib import Path\n'
            'from dipod_ros.serving.engines.plan_cache import PlanCache\n'
            'with PlanCache(Path(sys.argv[1]))._locked():\n'
            "    print('held', flush=True)\n"
            '    time.sleep(60)\n',
            str(cache.folder),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == 'held\n'
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    start = time.monotonic()
    assert cache.read('k') == b'plan'
    assert time.monotonic() - start < 30
