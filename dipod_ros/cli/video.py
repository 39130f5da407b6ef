# SPDX-License-Identifier: Apache-2.0
"""Films a policy: some episodes side by side in one MP4. Needs GL; says so where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import numpy_rng
from dipod_ros.learning.vision import see_with
from dipod_ros.policy.flow import FlowPolicy
from dipod_ros.sim.vector_env import ChunkVectorEnv

WIDTH, HEIGHT = 320, 240
COLUMNS = 3
# Frames that the last picture of an episode stays, so that success can be seen.
LINGER = 12
GREEN, RED = (60, 200, 60), (60, 60, 220)  # BGR


def record_video(path: Path, policy: FlowPolicy, task: str, episodes: int, seed: int) -> Path:
    """Run `episodes` episodes with the policy's own sampler and write them as a mosaic.

    Raises UserError without GL (dipod_ros.sim.render.NoGL) or where no MP4 can be written.
    """
    import cv2

    from dipod_ros.sim.render import SceneRenderer

    if episodes < 1:
        raise UserError(f'a video needs at least 1 episode, got {episodes}')
    env = ChunkVectorEnv(task, episodes, policy.spec.robot, seed=seed, autoreset=False)
    see_with(env, policy)
    renderer = SceneRenderer(env.task.world, WIDTH, HEIGHT)
    pictures: list[np.ndarray] = []
    frames: list[np.ndarray] = []
    alive = np.ones(episodes, dtype=bool)
    won = np.zeros(episodes, dtype=bool)

    def look() -> None:
        for i in np.flatnonzero(alive):
            rgb = renderer.render(env.episodes.worlds.state[i], goal=env.episodes.goal[i])
            picture = np.ascontiguousarray(rgb[:, :, ::-1])
            if i < len(pictures):
                pictures[i] = picture
            else:
                pictures.append(picture)
        frames.append(_mosaic(pictures))

    rng = numpy_rng(seed, 'video')
    observation, _ = env.reset(seed=seed)
    look()
    env.on_period = look
    while alive.any():
        noise = rng.standard_normal((episodes, policy.spec.noise_size)).astype(np.float32)
        observation, _, terminated, _, info = env.step(policy.act(observation, noise))
        won |= alive & info['success']
        for i in np.flatnonzero(alive & terminated):
            text, color = ('success', GREEN) if won[i] else ('failed', RED)
            cv2.putText(pictures[i], text, (10, 26), cv2.FONT_HERSHEY_SIMPLEX, 0.8, color, 2)
            cv2.rectangle(pictures[i], (0, 0), (WIDTH - 1, HEIGHT - 1), color, 3)
        alive &= ~terminated
    renderer.close()
    frames += [_mosaic(pictures)] * LINGER
    _write(path, frames, 1 / env.control_period_s)
    return path


def _mosaic(pictures: list[np.ndarray]) -> np.ndarray:
    columns = min(COLUMNS, len(pictures))
    blank = np.zeros_like(pictures[0])
    padded = pictures + [blank] * (-len(pictures) % columns)
    rows = [np.hstack(padded[i : i + columns]) for i in range(0, len(padded), columns)]
    return np.vstack(rows)


def _write(path: Path, frames: list[np.ndarray], rate_hz: float) -> None:
    import cv2

    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), rate_hz, (width, height))
    if not writer.isOpened():
        raise UserError(
            f'cannot write {path}: no MP4 encoder in this OpenCV, or the folder is not writable'
        )
    for frame in frames:
        writer.write(frame)
    writer.release()
