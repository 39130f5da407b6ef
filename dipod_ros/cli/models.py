# SPDX-License-Identifier: Apache-2.0
"""`dipod models`: makes the shipped models again, from demonstrations to model card."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from dipod_ros.cli.arguments import add_threads_argument, set_threads

HELP = 'make the shipped models again (demonstrations, flow, student, model cards)'

TASKS = ('reach', 'pillar_reach', 'rail_push', 'reach_camera')
DEMONSTRATIONS = 300
# Success is reported at these samplers: 1, 2, 4, 10 and 50 evaluations.
FLOW_SAMPLERS = ('euler-1', 'midpoint-1', 'midpoint-2', 'midpoint-5', 'midpoint-25')
STUDENT_SAMPLERS = ('euler-1', 'euler-2', 'midpoint-2', 'midpoint-5')


@dataclass(frozen=True)
class Recipe:
    """How the models of one task are made."""

    demonstrations: int = DEMONSTRATIONS
    sampler: str = 'midpoint-5'
    student: str = 'euler-1'
    pretrain_steps: int = 4500
    seed: int = 0
    beside: str = ''  # a task with the same episodes, whose flow the card is to name too


# An encoder learns from every picture on its own: it takes more of them.
RECIPES = {'reach_camera': Recipe(demonstrations=2400, pretrain_steps=3000, beside='reach')}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('tasks', nargs='*', help=f'default: {" ".join(TASKS)}')
    parser.add_argument('--out', default='models', metavar='DIR', help='default %(default)s')
    parser.add_argument('--episodes', type=int, default=1024, help='for the cards (%(default)s)')
    add_threads_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Make a flow and a student for each task; existing ones are replaced."""
    from dipod_ros.cli import demos, distill, pretrain
    from dipod_ros.cli.main import call
    from dipod_ros.errors import UserError

    set_threads(args.threads)
    unknown = [t for t in args.tasks if t not in TASKS]
    if unknown:
        raise UserError(f'no recipe for {unknown}; there are {list(TASKS)}')
    out = Path(args.out)
    for task in args.tasks or TASKS:
        recipe = RECIPES.get(task, Recipe())
        data = f'runs/demos/{task}.safetensors'
        flow, student = out / f'{task}_flow', out / f'{task}_student'
        commands = [
            ['demos', task, '--episodes', str(recipe.demonstrations), '--seed', str(recipe.seed)],
            [
                'pretrain', data, '--out', str(flow), '--sampler', recipe.sampler,
                '--steps', str(recipe.pretrain_steps), '--seed', str(recipe.seed), '--overwrite',
            ],
            [
                'distill', str(flow), '--out', str(student), '--sampler', recipe.student,
                # A reflow student may be sampled with more steps than its own: the card shows it.
                '--method', 'reflow', '--steps', '1200',
                '--seed', str(recipe.seed), '--overwrite',
            ],
        ]  # fmt: skip
        for module, command in zip((demos, pretrain, distill), commands, strict=True):
            call(module, command[1:])
        lines = [f'dipod {" ".join(command)}' for command in commands]
        beside = [_beside(recipe.beside, args.episodes)] if recipe.beside else []
        _write_card(flow, lines[:2], FLOW_SAMPLERS, args.episodes, beside)
        _write_card(student, lines, STUDENT_SAMPLERS, args.episodes, beside)
    return 0


def _beside(task: str, episodes: int) -> str:
    """Return the card's row on the shipped flow of another task with the same episodes."""
    from dipod_ros.cli.arguments import find_checkpoint
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.policy.flow import load_policy
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    policy = load_policy(find_checkpoint(f'{task}_flow'))
    env = ChunkVectorEnv(task, 256, policy.spec.robot, seed=0, autoreset=False)
    rate = evaluate_policy(env, policy, episodes=episodes, seed=1)
    sampler = policy.spec.sampler
    return (
        f'| `{task}_flow` on `{task}`, {sampler.solver}-{sampler.steps} | {sampler.evaluations} | '
        f'{rate.success:.3f} | {rate.low:.3f} to {rate.high:.3f} |'
    )


def _write_card(
    folder: Path, commands: list[str], samplers, episodes: int, beside: list[str]
) -> None:
    from tqdm import tqdm

    from dipod_ros.cli.arguments import parse_sampler
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.vision import see_with
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.policy.image import weights_of
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    checkpoint = ckpt.load(folder)
    policy, manifest = FlowPolicy.from_checkpoint(checkpoint), checkpoint.manifest
    spec = policy.spec
    env = ChunkVectorEnv(spec.task, 256, spec.robot, seed=0, autoreset=False)
    see_with(env, policy)
    rows = []
    for text in tqdm(samplers, unit='sampler', desc=folder.name):
        sampler = parse_sampler(text)
        rate = evaluate_policy(env, policy.with_sampler(sampler), episodes=episodes, seed=1)
        own = ' (its own)' if sampler == spec.sampler else ''
        rows.append(
            f'| {text}{own} | {sampler.evaluations} | {rate.success:.3f} | '
            f'{rate.low:.3f} to {rate.high:.3f} |'
        )
    parameters = sum(v.size for k, v in checkpoint.weights.items() if k.startswith('net.'))
    about = {
        'flow': 'Flow-matching policy cloned from scripted, imperfect demonstrations: the start of '
        'online learning, not a good policy.',
        'student': 'Few-step student of the cloned flow, distilled with coupled noise (reflow).',
    }[manifest.kind]
    lineage = '\n'.join(f'- {key}: {value}' for key, value in manifest.lineage.items())
    steps = '\n'.join(commands)
    cameras = ''.join(
        f'- camera: {s.image.width}x{s.image.height} {s.image.encoding} on `{s.topic}`, '
        f'{dict(s.image.encoder)}, {s.size} features, '
        f'{sum(v.size for v in weights_of(checkpoint.weights, s.name).values())} parameters\n'
        for s, _ in spec.images
    )
    (folder / 'README.md').write_text(
        f"""# {folder.name}

{about}

- task: `{spec.task}` on `{spec.robot}`, {len(spec.joints)} joints
- network: {dict(spec.network)}, {parameters} parameters
{cameras}- chunk: {spec.horizon} steps of {spec.control_period_s} s, {spec.action} (rad per step)
- sampler: {spec.sampler}
- sha256: `{manifest.sha256}`
- license: Apache-2.0; the data is made by this package's own simulator

## Made by

```
{steps}
```

{lineage}

## Success

{episodes} simulated episodes each, seed 1, Gaussian noise, 95 % Wilson intervals.

| sampler | evaluations | success | interval |
|---|---|---|---|
{chr(10).join([*rows, *beside])}

Measured by `dipod models` in simulation only; never on a real robot.
""",
        encoding='utf-8',
    )
