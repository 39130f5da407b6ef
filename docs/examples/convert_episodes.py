# SPDX-License-Identifier: Apache-2.0
"""Turn plain arrays, one .npz per episode, into the file that `dipod pretrain` reads.

    python docs/examples/convert_episodes.py --robot my_arm.yaml --policy pick.yaml \
        --out runs/demos/pick.safetensors episodes/*.npz

An episode is what LeRobot, HDF5 or a bag give you at whatever rate, of T samples:

    time_s          [T]       s, increasing
    joint_position  [T, A]    rad, measured; joints in the order of the robot file
    command         [T, A]    rad, absolute targets that were sent; leave it out where the arm was
                              moved by hand
    success         []        bool
    <stream>        [T, size] of each further stream of --policy, by its name; for an image stream
                              uint8 [T, height, width, 3], RGB, of any size
"""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.demonstrations.dataset import Demonstrations
from dipod_ros.learning.demonstrations.windows import Refused, WindowConfig, cut, resample
from dipod_ros.policy.limits import JointLimits
from dipod_ros.policy.plain_yaml import read_yaml
from dipod_ros.policy.spec import PolicySpec
from dipod_ros.policy.spec_file import read_spec_file
from dipod_ros.serving.picture import Picture, fit


def read_spec(robot_file: str, policy_file: str) -> PolicySpec:
    """Return what the policy to be sees and does, from a robot file and a policy file."""
    tree = read_yaml(robot_file)
    robot = next(iter(tree.values()))['ros__parameters']
    limits = JointLimits.from_params(tuple(robot['joints']), robot['limits'])
    return read_spec_file(policy_file, robot['robot'], limits, robot['control_period_s'])


def read_episode(file: str) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz; raises UserError where it holds less than it says."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise UserError(f'{file} cannot be read as an .npz of arrays: {error}') from error


def check(spec: PolicySpec, episode: Mapping[str, np.ndarray], file: str) -> None:
    """Raise UserError where arrays are missing, of another size, no numbers, or not in order."""
    seen = {s.source if s.source.startswith('joint_') else s.name for s in spec.streams if s.topic}
    missing = sorted(({'time_s', 'joint_position', 'success'} | seen) - episode.keys())
    if missing:
        raise UserError(f'{file} has no {missing}; it has {sorted(episode)}')
    used = {k: episode[k] for k in sorted(seen | {'time_s', 'command'}) if k in episode}
    lengths = {k: v.shape[0] if v.ndim else 0 for k, v in used.items()}
    if len(set(lengths.values())) != 1:
        raise UserError(f'{file}: arrays of one episode must be equally long, not {lengths}')
    for name, values in used.items():
        if not np.issubdtype(values.dtype, np.number) or not np.isfinite(values).all():
            raise UserError(f'{file}: {name} holds NaN, or what else is no finite number')
    if len(episode['time_s']) < 2 or not np.all(np.diff(episode['time_s']) > 0):
        raise UserError(f'{file}: time_s must increase from sample to sample')
    for name in {'joint_position', 'joint_velocity', 'command'} & used.keys():
        if used[name].shape[1:] != (len(spec.joints),):
            shape = ', '.join(('T', *map(str, used[name].shape[1:])))
            raise UserError(
                f'{file}: {name} is [{shape}], the robot has {len(spec.joints)} joints: '
                f'{", ".join(spec.joints)}'
            )
    for stream in spec.streams:
        size = used[stream.name].size // len(used['time_s']) if stream.name in used else None
        if stream.image is None and size not in (None, stream.size):
            raise UserError(
                f'{file}: {stream.name} has {size} numbers per sample, the policy file says '
                f'{stream.size}'
            )


def decisions(
    spec: PolicySpec, episode: Mapping[str, np.ndarray], stride: int
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return observations [M, O], chunks [M, H, A] and pictures [M, H, W, C] of one episode.

    Raises Refused where no policy within the limits could repeat the motion.
    """
    dt, time = spec.control_period_s, np.asarray(episode['time_s'], dtype=float)
    command = np.asarray(episode.get('command', episode['joint_position']), dtype=float)
    # A tick's command lies half a period ahead, by its spline (learning/demonstrations/windows.py).
    ticks = np.arange(time[0], time[-1] - dt / 2 + 1e-9, dt)
    points = resample(time, command, ticks + dt / 2)
    windows = cut(points, spec.horizon, spec.limits, dt, WindowConfig(stride=stride))
    at = ticks[windows.ticks]
    newest = np.searchsorted(time, at + 1e-9, side='right') - 1
    columns, pictures = [], {}
    for stream in spec.streams:
        if stream.source == 'command':
            columns.append(windows.command)
        elif stream.image is not None:
            seen = [fit(Picture(p, 'rgb'), stream.image) for p in episode[stream.name][newest]]
            pictures[stream.name] = np.stack(seen)
            columns.append(np.zeros((len(at), stream.size)))
        elif stream.source.startswith('joint_'):
            columns.append(resample(time, np.asarray(episode[stream.source], dtype=float), at))
        else:
            columns.append(np.reshape(episode[stream.name][newest], (len(at), stream.size)))
    return np.concatenate(columns, axis=1), windows.actions, pictures


def convert(spec: PolicySpec, files: list[str], stride: int) -> Demonstrations:
    """Return the demonstrations of all files; what is refused is left out, with a line."""
    parts, success = [], []
    for file in files:
        episode = read_episode(file)
        check(spec, episode, file)
        try:
            parts.append(decisions(spec, episode, stride))
            success.append(bool(episode['success']))
        except Refused as reason:
            print(f'{file} is left out: {reason}')
    if not parts:
        raise UserError('no episode is left')
    observations, actions, pictures = zip(*parts, strict=True)
    return Demonstrations(
        spec,
        observations=np.concatenate(observations).astype(np.float32),
        actions=np.concatenate(actions).astype(np.float32),
        episodes=np.repeat(np.arange(len(parts)), [len(o) for o in observations]),
        success=np.array(success),
        seed=0,
        images={s.name: np.concatenate([p[s.name] for p in pictures]) for s, _ in spec.images},
    )


def main() -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('files', nargs='+', help='one .npz per episode')
    parser.add_argument('--robot', required=True, help='robot file (docs/robot.md)')
    parser.add_argument('--policy', required=True, help='policy file (docs/recording.md)')
    parser.add_argument('--out', required=True)
    parser.add_argument('--stride', type=int, default=1, help='control steps between decisions')
    args = parser.parse_args()
    try:
        made = convert(read_spec(args.robot, args.policy), args.files, args.stride)
        made.save(args.out)
    except UserError as error:
        raise SystemExit(f'error: {error}') from error
    print(f'{args.out}: {len(made.success)} episodes, {len(made.observations)} decisions')


if __name__ == '__main__':
    main()
