# SPDX-License-Identifier: Apache-2.0
"""Runs jobs of the benchmark in processes of their own, and ends them cleanly. No torch here.

A worker that dies is started once more and goes on from its last state; one that fails leaves
`seed<k>.error.json`. Several benchmarks may share a folder: a job that another one works on is
left to it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.jobs import Job

# Exit codes of a worker.
FAILED, BUSY, STOPPED = 1, 3, 4
ATTEMPTS = 2
# Seconds that a worker gets to save after it was asked to end; an update may take as long.
PATIENCE_S = 20.0
POLL_S = 0.2
NICENESS = 10


@dataclass
class _Worker:
    job: Job
    process: subprocess.Popen
    attempt: int
    share: float = 0.0
    text: str = ''


@dataclass
class Outcome:
    """How the jobs of one call ended."""

    done: list[Job] = field(default_factory=list)
    failed: dict[Job, str] = field(default_factory=dict)
    elsewhere: list[Job] = field(default_factory=list)  # another process works on them
    left: list[Job] = field(default_factory=list)  # not begun, or ended on the way: time was up


def run_jobs(
    jobs: Sequence[Job],
    run_dir: Path,
    *,
    workers: int = 1,
    seconds: float = float('inf'),
    show: Callable[[float, str], None] = lambda finished, text: None,
) -> Outcome:
    """Run jobs that have no result yet, `workers` at a time, for at most `seconds`.

    `show` is called often with the jobs finished (running ones by their share) and a few words.
    Whatever ends this call ends the workers too, after they have saved.
    """
    outcome = Outcome()
    waiting: list[tuple[Job, int]] = []
    for job in jobs:
        if job.file(run_dir).is_file():
            outcome.done.append(job)
        else:
            waiting.append((job, 1))
    until = time.monotonic() + seconds
    running: list[_Worker] = []
    try:
        while (waiting or running) and time.monotonic() < until:
            while waiting and len(running) < workers:
                running.append(_begin(*waiting.pop(0), Path(run_dir)))
            time.sleep(POLL_S)
            for worker in [w for w in running if w.process.poll() is not None]:
                running.remove(worker)
                if not _settle(worker, outcome, Path(run_dir)):
                    waiting.insert(0, (worker.job, worker.attempt + 1))
            finished = len(outcome.done) + len(outcome.failed) + len(outcome.elsewhere)
            text = ', '.join(f'{w.job} {w.text}' for w in running)
            show(finished + sum(w.share for w in running), text)
    finally:
        _end(running)
        for worker in running:
            if worker.process.returncode == 0:
                outcome.done.append(worker.job)
            else:
                outcome.left.append(worker.job)
        outcome.left += [job for job, _ in waiting]
    return outcome


def _begin(job: Job, attempt: int, run_dir: Path) -> _Worker:
    log = job.file(run_dir, '.log')
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        job.file(run_dir, '.error.json').unlink(missing_ok=True)
        with open(log, 'ab') as stderr:
            process = subprocess.Popen(
                [sys.executable, '-m', __name__, str(run_dir), json.dumps(asdict(job))],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                # Ctrl-C is for this process, which then asks the workers to end.
                start_new_session=True,
                env=os.environ | {'OMP_NUM_THREADS': '1'},
            )
    except OSError as error:
        raise UserError(f'cannot write {run_dir}: {error.strerror or error}') from error
    worker = _Worker(job, process, attempt)
    threading.Thread(target=_listen, args=(worker,), daemon=True).start()
    return worker


def _listen(worker: _Worker) -> None:
    for line in worker.process.stdout:
        share, _, worker.text = line.strip().partition(' ')
        with contextlib.suppress(ValueError):
            worker.share = float(share)


def _settle(worker: _Worker, outcome: Outcome, run_dir: Path) -> bool:
    """Note how a worker ended; False when its job has to be tried again."""
    job, code = worker.job, worker.process.returncode
    error = job.file(run_dir, '.error.json')
    if code == 0:
        outcome.done.append(job)
    elif code == BUSY:
        outcome.elsewhere.append(job)
    elif code == FAILED and error.is_file():
        outcome.failed[job] = read_error(error)
    elif worker.attempt < ATTEMPTS:
        return False
    else:
        log = job.file(run_dir, '.log')
        text = f'the worker ended with {code} {worker.attempt} times; see {log}'
        error.write_text(json.dumps({'error': text}))
        outcome.failed[job] = text
    return True


def read_error(file: Path) -> str:
    """Return what a failed job said."""
    try:
        return str(json.loads(file.read_text(encoding='utf-8'))['error'])
    except (OSError, ValueError, KeyError, TypeError):
        return f'{file} cannot be read'


def _end(running: Sequence[_Worker]) -> None:
    for worker in running:
        worker.process.terminate()
    until = time.monotonic() + PATIENCE_S
    try:
        for worker in running:
            worker.process.wait(max(0.0, until - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for worker in running:
            worker.process.kill()
            worker.process.wait()


def main(argv: Sequence[str]) -> int:
    """Be a worker: run the job that `argv` names, saying on stdout how far it is."""
    run_dir, job = Path(argv[0]), Job(**json.loads(argv[1]))
    parent = os.getppid()
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    os.nice(NICENESS)

    # An orphan ends as well: nobody waits for it.
    def stop() -> bool:
        return bool(asked) or os.getppid() != parent

    lock_file = job.file(run_dir, '.lock')
    with open(lock_file, 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return BUSY
        code = _work(job, run_dir, stop)
        lock_file.unlink(missing_ok=True)
        if code == 0:
            job.file(run_dir, '.log').unlink(missing_ok=True)
        return code


def _work(job: Job, run_dir: Path, stop: Callable[[], bool]) -> int:
    import torch

    from dipod_ros.learning.bench.experiment import Interrupted, run_job
    from dipod_ros.learning.bench.experiment_result import write_json

    torch.set_num_threads(1)

    def progress(share: float, text: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(f'{share:.3f} {text}', flush=True)
        # While it learns, `stop` is asked where there is something to save.
        if text == 'measuring' and stop():
            raise Interrupted(str(job))

    try:
        run_job(job, run_dir, progress, stop)
    except Interrupted:
        return STOPPED
    except Exception as error:
        text = str(error).split('\n')[0]
        if not isinstance(error, UserError):
            text = f'{type(error).__name__}: {text}'
        write_json(
            job.file(run_dir, '.error.json'),
            {'error': text, 'traceback': traceback.format_exc()},
        )
        return FAILED
    return 0


if __name__ == '__main__':
    raise SystemExit(main(sys.argv[1:]))
