# SPDX-License-Identifier: Apache-2.0
"""`dipod models`: makes the shipped models again, from demonstrations to model card."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dipod_ros.cli._models_journal import Journal
from dipod_ros.cli.arguments import add_threads_argument, require_at_least, set_threads

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
    student_steps: int = 1200
    student_episodes: int = 0  # of the teacher, to distil on; 0 leaves it to `dipod distill`
    seed: int = 0
    encoder_steps: int = 0
    about: str = ''  # what the flow's card says of it, in place of ABOUT
    beside: str = ''  # a task with the same episodes, whose flow the card is to name too


ABOUT = {
    'flow': 'Flow-matching policy cloned from scripted, imperfect demonstrations: the start of '
    'online learning, not a good policy.',
    'student': 'Few-step student of the cloned flow, distilled with coupled noise (reflow).',
}
# An encoder learns from every picture on its own: it takes more of them.
RECIPES = {
    'reach_camera': Recipe(
        demonstrations=4000,
        pretrain_steps=5000,
        encoder_steps=10_000,
        about='Flow-matching policy that sees its goal through a camera. Its encoder was taught '
        'where the goal is by the simulator, which knows, and then kept; the flow was cloned from '
        'scripted, imperfect demonstrations.',
        beside='reach',
    )
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('tasks', nargs='*', help=f'default: {" ".join(TASKS)}')
    parser.add_argument('--out', default='models', metavar='DIR', help='default %(default)s')
    parser.add_argument('--episodes', type=int, default=1024, help='for the cards (%(default)s)')
    add_threads_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Make a flow and a student for each task; existing ones are replaced.

    A run that was interrupted goes on where it stopped.
    """
    from dipod_ros.cli import demos, distill, pretrain
    from dipod_ros.cli.main import call
    from dipod_ros.errors import UserError
    from dipod_ros.policy.writable import require_writable

    set_threads(args.threads)
    require_at_least(args, episodes=1)
    require_writable(args.out, folder=True)
    unknown = [t for t in args.tasks if t not in TASKS]
    if unknown:
        raise UserError(f'no recipe for {unknown}; there are {list(TASKS)}')
    out = Path(args.out)
    for task in args.tasks or TASKS:
        recipe = RECIPES.get(task, Recipe())
        data = Path(f'runs/demos/{task}.safetensors')
        flow, student = out / f'{task}_flow', out / f'{task}_student'
        commands = _commands(task, recipe, data, flow, student)
        lines = [f'dipod {" ".join(command)}' for command in commands]
        journal = Journal(Path(f'runs/models/{task}.json'))
        stages = zip((demos, pretrain, distill), commands, (data, flow, student), strict=True)
        for number, (module, command, made) in enumerate(stages):
            print(f'{task} {number + 1}/5: {lines[number]}')
            if journal.is_done(lines[number], made):
                print(f'{made} is there, from the run that was interrupted')
                continue
            journal.forget(lines[number:])
            call(module, command[1:])
            journal.note(lines[number], made)
        beside = [_beside(recipe.beside, args.episodes, journal)] if recipe.beside else []
        cards = (
            (flow, lines[:2], FLOW_SAMPLERS, recipe.about or ABOUT['flow']),
            (student, lines, STUDENT_SAMPLERS, ABOUT['student']),
        )
        for number, (folder, made_by, samplers, about) in enumerate(cards):
            print(f'{task} {number + 4}/5: the card of {folder}')
            _write_card(folder, made_by, samplers, about, args.episodes, beside, journal)
        journal.remove()
    return 0


def _commands(
    task: str, recipe: Recipe, data: Path, flow: Path, student: Path
) -> tuple[list[str], ...]:
    """Return the command lines, without `dipod`, that make the models of a task."""
    seed = ['--seed', str(recipe.seed)]
    looking = ['--encoder-steps', str(recipe.encoder_steps)] if recipe.encoder_steps else []
    taught = ['--episodes', str(recipe.student_episodes)] if recipe.student_episodes else []
    return (
        [
            'demos', task, '--episodes', str(recipe.demonstrations), *seed, '--overwrite',
        ],
        [
            'pretrain', str(data), '--out', str(flow), '--sampler', recipe.sampler, *looking,
            '--steps', str(recipe.pretrain_steps), *seed, '--overwrite',
        ],
        [
            'distill', str(flow), '--out', str(student), '--sampler', recipe.student,
            # A reflow student may be sampled with more steps than its own: the card shows it.
            '--method', 'reflow', '--steps', str(recipe.student_steps), *taught, *seed,
            '--overwrite',
        ],
    )  # fmt: skip


def _rate(journal: Journal, policy, sha256: str, sampler, task: str, episodes: int) -> Any:
    """Return success, low and high of a policy on episodes of a task, seed 1; measured once."""
    from dipod_ros.learning.evaluate import evaluate_policy
    from dipod_ros.learning.vision import see_with
    from dipod_ros.sim.vector_env import ChunkVectorEnv

    def measure() -> dict[str, float]:
        worlds = min(256, episodes)
        env = ChunkVectorEnv(task, worlds, policy.spec.robot, seed=0, autoreset=False)
        see_with(env, policy)
        rate = evaluate_policy(env, policy.with_sampler(sampler), episodes=episodes, seed=1)
        env.close()
        return rate.to_dict()

    return journal.measured(f'{sha256} {sampler} {task} {episodes}', measure)


def _beside(task: str, episodes: int, journal: Journal) -> str:
    """Return the card's row on the shipped flow of another task with the same episodes."""
    from dipod_ros.cli.arguments import find_checkpoint
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.flow import FlowPolicy

    checkpoint = ckpt.load(find_checkpoint(f'{task}_flow'))
    sampler, sha256 = checkpoint.spec.sampler, checkpoint.manifest.sha256
    policy = FlowPolicy.from_checkpoint(checkpoint)
    rate = _rate(journal, policy, sha256, sampler, task, episodes)
    return (
        f'| `{task}_flow` on `{task}`, {sampler.solver}-{sampler.steps} | {sampler.evaluations} | '
        f'{rate["success"]:.3f} | {rate["low"]:.3f} to {rate["high"]:.3f} |'
    )


def _write_card(
    folder: Path,
    commands: list[str],
    samplers: tuple[str, ...],
    about: str,
    episodes: int,
    beside: list[str],
    journal: Journal,
) -> None:
    from tqdm import tqdm

    from dipod_ros.cli.arguments import parse_sampler
    from dipod_ros.policy import checkpoint as ckpt
    from dipod_ros.policy.flow import FlowPolicy
    from dipod_ros.policy.image import weights_of

    checkpoint = ckpt.load(folder)
    policy, manifest = FlowPolicy.from_checkpoint(checkpoint), checkpoint.manifest
    spec = policy.spec
    rows = []
    for text in tqdm(samplers, unit='sampler', desc=folder.name):
        sampler = parse_sampler(text)
        rate = _rate(journal, policy, manifest.sha256, sampler, spec.task, episodes)
        own = ' (its own)' if sampler == spec.sampler else ''
        rows.append(
            f'| {text}{own} | {sampler.evaluations} | {rate["success"]:.3f} | '
            f'{rate["low"]:.3f} to {rate["high"]:.3f} |'
        )
    parameters = sum(v.size for k, v in checkpoint.weights.items() if k.startswith('net.'))
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
