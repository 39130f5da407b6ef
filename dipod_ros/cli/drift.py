# SPDX-License-Identifier: Apache-2.0
"""`dipod drift`: how far a policy's bound, gradient and few-step success have drifted."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path

from dipod_ros.cli.arguments import (
    add_threads_argument,
    find_checkpoint,
    parse_sampler,
    require_at_least,
    require_simulated,
    set_threads,
)
from dipod_ros.cli.output import add_json_argument, write_json, writing
from dipod_ros.errors import UserError

HELP = 'measure the drift of checkpoints: likelihood, bound, gradients, few-step success'

# 1, 2, 4, 10 and 50 evaluations; one Euler step next to one midpoint step costs half of it.
FEW_STEPS = ('euler-1', 'midpoint-1', 'midpoint-2', 'midpoint-5', 'midpoint-25')
# Checkpoints of a run that are measured when --every does not say.
OF_A_RUN = 5
GROUPS = 8  # of episodes, for the gradients: gradient_alignment(groups)
_STAGES = 5  # rollouts, likelihood, bound, G1, gradients


@dataclass(frozen=True)
class Target:
    """One checkpoint to measure; `series` joins those of one run in the picture."""

    series: str
    path: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument(
        'checkpoints', nargs='+', metavar='CHECKPOINT', help='a shipped name, a folder or a run_dir'
    )
    parser.add_argument(
        '--every',
        type=int,
        default=0,
        metavar='N',
        help=f"every Nth of a run's checkpoints and the last (default: {OF_A_RUN} spread evenly)",
    )
    parser.add_argument(
        '--task-episodes', type=int, default=128, help='half for the critic (default %(default)s)'
    )
    parser.add_argument(
        '--samples', type=int, default=512, help='decisions measured (default %(default)s)'
    )
    parser.add_argument(
        '--advantages',
        choices=('returns', 'q'),
        default='returns',
        help='what decisions were worth: by the rest of their episodes, or by a critic of chunks, '
        'with which the gradients have far less noise (default %(default)s)',
    )
    parser.add_argument(
        '--gradient-samples',
        type=int,
        metavar='N',
        help='decisions for the gradients, most of the time; 0 leaves them out (default: all)',
    )
    parser.add_argument('--sampler', help="another deterministic one than the checkpoint's own")
    parser.add_argument(
        '--eval-episodes',
        type=int,
        default=256,
        help=f'for success with {", ".join(FEW_STEPS)}; 0 leaves it out (default %(default)s)',
    )
    parser.add_argument('--seed', type=int, default=0, help='default %(default)s')
    parser.add_argument('--plot', metavar='FILE', help='write a picture (PNG)')
    add_threads_argument(parser)
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure each checkpoint with a progress bar, then print one line for each."""
    from tqdm import tqdm

    from dipod_ros.policy.flow import load_policy

    set_threads(args.threads)
    require_at_least(
        args, task_episodes=2, samples=1, eval_episodes=0, every=0, gradient_samples=0, seed=0
    )
    if args.gradient_samples != 0 and args.task_episodes < 2 * GROUPS:
        raise UserError(
            f'--task-episodes must be at least {2 * GROUPS}, got {args.task_episodes}: half of '
            f'them are for the critic, and the gradients need {GROUPS} episodes; or leave these '
            'out with --gradient-samples 0'
        )
    for name in ('samples', 'gradient_samples'):
        if 0 < (getattr(args, name) or GROUPS) < GROUPS and args.gradient_samples != 0:
            raise UserError(
                f'--{name.replace("_", "-")} must be at least {GROUPS} for the gradients, got '
                f'{getattr(args, name)}: of as many episodes'
            )
    targets = [t for name in args.checkpoints for t in find_targets(name, args.every)]
    _require_measurable(targets, args.sampler)
    samplers = FEW_STEPS if args.eval_episodes else ()
    rows = []
    with tqdm(total=len(targets) * (_STAGES + len(samplers)), unit='stage') as bar:
        for i, target in enumerate(targets):
            policy = load_policy(target.path)
            if args.sampler:
                policy = policy.with_sampler(parse_sampler(args.sampler))
            begun = i * (_STAGES + len(samplers))
            rows.append(_measure(target, policy, args, samplers, bar))
            bar.update(begun + _STAGES + len(samplers) - bar.n)
    for line in table(rows):
        print(line)
    if args.json:
        write_json(args.json, {'seed': args.seed, 'config': _config(args), 'results': rows})
    if args.plot:
        from dipod_ros.learning.drift.picture import plot_drift

        with writing(args.plot) as path:
            plot_drift(path, rows, 'drift: ' + ', '.join(args.checkpoints))
        print(f'plot: {args.plot}')
    return 0


def find_targets(name: str, every: int) -> list[Target]:
    """Return the checkpoint of that name, or those of a run: its first and some up to its last.

    With the run's initial checkpoint as the first, where it is still at hand.
    """
    folder = Path(name).expanduser()
    if not (folder / 'run.json').is_file():
        return [Target(name, find_checkpoint(name))]
    kept = sorted(p for p in (folder / 'checkpoints').glob('v*') if p.is_dir())
    paths = [*_initial(folder), *kept]
    if not paths:
        raise UserError(f'{folder} is a run without any checkpoint yet')
    last = len(paths) - 1
    if every:
        index = sorted({*range(0, last + 1, every), last})
    else:
        count = min(OF_A_RUN, len(paths))
        index = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    return [Target(name, paths[i]) for i in index]


def table(rows: list[dict]) -> list[str]:
    """Return one line of text for each measured checkpoint, below a heading."""
    name = max([len(r['name']) for r in rows] + [10])
    heads = ('gap', '+-', 'A>0', 'A<0', 'G1', 'entropy', 'std', 'cos ELBO', '+-', 'cos CFM', '+-')
    few = list(dict.fromkeys(s for r in rows for s in r['success']))
    lines = [
        f'{"checkpoint":{name}} {"version":>7} '
        + ' '.join(f'{h:>8}' for h in (*heads, *(s.split(' ')[0] for s in few)))
    ]
    for row in rows:
        report, alignment = row['report'], row['report']['alignment'] or {}
        keys = ('mean', 'error', 'positive', 'negative')
        values = [report[f'gap_{key}'] for key in keys]
        values += [report['g1_gap'], report['entropy'], report['action_std']]
        values += [
            alignment.get(kind, {}).get(key, math.nan)
            for kind in ('elbo', 'cfm')
            for key in ('value', 'error')
        ]
        values += [row['success'][s]['success'] if s in row['success'] else math.nan for s in few]
        cells = ' '.join(f'{"-" if math.isnan(v) else format(v, ".2f"):>8}' for v in values)
        lines.append(f'{row["name"]:{name}} {row["version"]:>7} {cells}')
        for kind in ('elbo', 'cfm'):
            note = alignment.get(kind, {}).get('note')
            if note:
                lines.append(f'{"":{name}} cos {kind}: {note}')
    return lines


def _measure(target, policy, args, samplers, bar) -> dict:
    from dipod_ros.learning.drift.decisions import own_decisions
    from dipod_ros.learning.drift.report import measure_drift
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    manifest = ckpt.read_manifest(target.path)
    name = f'{target.series}:{target.path.name}' if target.path.name[:1] == 'v' else target.series

    def stage(text: str) -> None:
        bar.set_description(f'{target.path.name}: {text}')
        bar.update(1)

    bar.set_description(f'{target.path.name}: rollouts')
    rollout, advantages = own_decisions(policy, args.task_episodes, args.seed, args.advantages)
    report = measure_drift(
        policy,
        rollout,
        advantages,
        decisions=args.samples,
        gradient_decisions=args.gradient_samples,
        seed=args.seed,
        progress=stage,
    )
    success = {}
    if samplers:
        worlds = min(256, args.eval_episodes)
        spec = policy.spec
        env = ChunkVectorEnv(spec.task, worlds, spec.robot, seed=0, autoreset=False)
        see_with(env, policy)
    for text in samplers:
        other = policy.with_sampler(parse_sampler(text))
        stage(text)
        rate = evaluate_policy(env, other, episodes=args.eval_episodes, seed=args.seed)
        success[str(other.spec.sampler)] = rate.to_dict()
    return {
        'name': name,
        'series': target.series,
        'path': target.path,
        'sha256': manifest.sha256,
        'kind': manifest.kind,
        'version': manifest.version,
        'task': policy.spec.task,
        'rollout_success': float(rollout.success.mean()),
        'report': report.to_dict(),
        'success': success,
    }


def _require_measurable(targets: list[Target], sampler: str | None) -> None:
    """Raise UserError, before anything is measured, for what would end in the middle."""
    from dipod_ros.learning.drift.likelihood import require_deterministic
    from dipod_ros.policy.checkpoint import read_manifest

    other = parse_sampler(sampler) if sampler else None
    for target in targets:
        spec = read_manifest(target.path).spec
        require_simulated(spec.task)
        require_deterministic(other or spec.sampler)


def _initial(folder: Path) -> list[Path]:
    from dipod_ros.policy import checkpoint as ckpt

    try:
        begun = json.loads((folder / 'run.json').read_text())
        manifest = ckpt.read_manifest(Path(begun['initial']))
        return [manifest.path] if manifest.sha256 == begun['initial_sha256'] else []
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return []


def _config(args: argparse.Namespace) -> dict:
    names = ('checkpoints', 'task_episodes', 'samples', 'gradient_samples', 'advantages', 'sampler')
    return {name: getattr(args, name) for name in (*names, 'eval_episodes')}
