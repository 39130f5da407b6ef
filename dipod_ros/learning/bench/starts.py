# SPDX-License-Identifier: Apache-2.0
"""Owns the policies that learning starts from on the external benchmarks: mediocre on purpose.

A start is demonstrations, from a flawed script or from an expert stopped early, and the flow cloned
from them. It is made once and then found again; a run that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.bench.starts_gait import GaitRecipe, collect_gait, train_expert
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.evaluate import evaluate_policy
from dipod_ros.learning.pretrain import PretrainConfig, pretrain
from dipod_ros.learning.task_spec import spec_for
from dipod_ros.policy.atomic import write_file
from dipod_ros.policy.checkpoint import read_manifest
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.sim.external.ogbench_demos import Flaws, collect_cube
from dipod_ros.sim.external.registry import EXTERNAL, GYMNASIUM, make_env

if TYPE_CHECKING:
    from dipod_ros.sim.external.chunk_env import ExternalChunkEnv


@dataclass(frozen=True)
class CubeRecipe:
    """How the demonstrations of the cube task are made."""

    episodes: int = 60
    flaws: Flaws = Flaws()

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise UserError('episodes must be at least 1')


RECIPES: dict[str, CubeRecipe | GaitRecipe] = {
    'cube_single': CubeRecipe(),
    'hopper': GaitRecipe(expert_steps=200_000),
    'walker2d': GaitRecipe(expert_steps=330_000),
}
# Episodes that the figures in the manifest are measured on.
EVALUATION_EPISODES = {'cube_single': 256, 'hopper': 128, 'walker2d': 128}
CHECKPOINT_FOLDER = 'flow'
DEMONSTRATIONS_FILE = 'demonstrations.safetensors'
# Says how the demonstrations were made. Written after them: where it is, they are complete.
RECIPE_FILE = 'demonstrations.json'


def external_spec(env: Any) -> PolicySpec:
    """Return what a policy for an external env must be: actions in the env's own units."""
    return replace(spec_for(env), action=env.action)


def make_start(
    task: str,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
    *,
    recipe: CubeRecipe | GaitRecipe | None = None,
    config: PretrainConfig | None = None,
    episodes: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Make the start policy of an external task, or find the one that was made before.

    Args:
        task: `cube_single`, `hopper` or `walker2d`.
        folder: where it goes; default `runs/starts/<task>`.
        seed: of everything.
        recipe: how the demonstrations are made; default `RECIPES[task]`.
        config: behaviour cloning; default `PretrainConfig(seed=seed)`.
        episodes: of the measurement at the end; default `EVALUATION_EPISODES[task]`.
        say: called with a line for each part done.

    Returns the checkpoint folder. The demonstrations lie beside it and are used again when they
    were made with the same settings. Raises UserError for an unknown task, a folder that holds
    another start, or a package that is missing.

    """
    if task not in EXTERNAL:
        raise UserError(f'no start to make for {task!r}; external tasks are {list(EXTERNAL)}')
    say = say or (lambda line: None)
    folder = Path('runs/starts') / task if folder is None else Path(folder)
    config = config or PretrainConfig(seed=seed)
    recipe = recipe or RECIPES[task]
    # Through JSON, as it is read back: a tuple is a list there.
    how = json.loads(json.dumps({'task': task, 'seed': seed, 'recipe': asdict(recipe)}))
    cloning = asdict(config)
    checkpoint = folder / CHECKPOINT_FOLDER
    if checkpoint.exists():
        made = read_manifest(checkpoint).lineage
        # An older release had fewer settings; what it did then is today's default.
        cloned = asdict(PretrainConfig()) | made.get('cloning', {})
        if made.get('demonstrations') != how or cloned != cloning:
            raise UserError(f'{checkpoint} was made with other settings: give another folder')
        say(f'{task}: {checkpoint} is there')
        return checkpoint
    env = make_env(task, min(64, episodes or EVALUATION_EPISODES[task]), seed)
    demonstrations, demonstrator_return = _demonstrations(task, folder, seed, recipe, how, env)
    say(
        f'{task}: {len(demonstrations.success)} demonstrations, return {demonstrator_return:.2f}, '
        f'success {demonstrations.success.mean():.3f}'
    )
    state_file = folder / f'.{CHECKPOINT_FOLDER}.pretrain'
    policy = pretrain(demonstrations.spec, demonstrations, config, state_file=state_file)
    count = episodes or EVALUATION_EPISODES[task]
    rate = evaluate_policy(env, policy, episodes=count, seed=seed + 1)
    say(f'{task}: cloned flow, return {rate.return_mean:.2f}, success {rate}')
    policy.save(
        checkpoint,
        lineage={
            'method': 'behaviour cloning',
            'demonstrations': how,
            'demonstrator_success': float(demonstrations.success.mean()),
            'demonstrator_return': demonstrator_return,
            'cloning': cloning,
        },
        metrics=rate.to_dict(),
    )
    return checkpoint


def _demonstrations(
    task: str,
    folder: Path,
    seed: int,
    recipe: CubeRecipe | GaitRecipe,
    how: dict[str, Any],
    env: ExternalChunkEnv,
) -> tuple[Demonstrations, float]:
    """Return the demonstrations and their mean return; made only where they are not there yet."""
    file, note = folder / DEMONSTRATIONS_FILE, folder / RECIPE_FILE
    if note.is_file():
        made = json.loads(note.read_text(encoding='utf-8'))
        if made.get('how') == how:
            return Demonstrations.load(file), float(made['return_mean'])
    if isinstance(recipe, GaitRecipe):
        expert = train_expert(GYMNASIUM[task], recipe.expert_steps, seed)
        shown, returns = collect_gait(GYMNASIUM[task], expert, recipe.episodes, env.horizon, seed)
    else:
        shown = collect_cube(recipe.episodes, seed, recipe.flaws)
        returns = shown.success.astype(np.float64)
    demonstrations = Demonstrations(
        spec=external_spec(env),
        observations=shown.observations,
        actions=shown.actions,
        episodes=shown.episodes,
        success=shown.success,
        seed=seed,
    )
    demonstrations.save(file)
    return_mean = float(returns.mean())
    write_file(note, json.dumps({'how': how, 'return_mean': return_mean}, indent=2).encode())
    return demonstrations, return_mean
