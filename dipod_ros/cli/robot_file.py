# SPDX-License-Identifier: Apache-2.0
"""`dipod robot-file`: the robot file of an arm, from its URDF and its joint limits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dipod_ros.policy.urdf import UrdfJoint

HELP = 'write the robot file of your arm from its URDF'

HEAD = """\
# {name}: written by `dipod robot-file` from {urdf}. A ROS parameter file.
#
# The command never leaves these limits (rad, rad/s, rad/s^2). They are those of the URDF{more}.
# Read them before the arm moves, and make them smaller where the task allows it.
"""
TIP = """\
    # Where the tip ({tip}) is, for forecasts under delay: three numbers per joint, all joints at 0,
    # in the frame of {base}.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('urdf', help='the URDF (expand xacro first)')
    parser.add_argument('--tip', required=True, metavar='LINK', help='link at the end of the arm')
    parser.add_argument('--base', default='', metavar='LINK', help='first link (default: the root)')
    parser.add_argument(
        '--joint-limits',
        metavar='FILE',
        help='joint_limits.yaml as MoveIt and ros2_control have it; the tighter limit counts',
    )
    parser.add_argument(
        '--acceleration',
        type=float,
        metavar='RAD_S2',
        help='of joints that --joint-limits says nothing about: a URDF has no such limits',
    )
    parser.add_argument(
        '--scale', type=float, default=1.0, help='of speeds and accelerations, at most 1'
    )
    parser.add_argument(
        '--control-period',
        type=float,
        default=0.04,
        metavar='S',
        help='one action per period (default %(default)s)',
    )
    parser.add_argument(
        '--controller', default='arm_controller', help='prefix of the command topics (%(default)s)'
    )
    parser.add_argument('--name', help='of the robot (default: that of the file)')
    parser.add_argument('--out', required=True, metavar='FILE', help='the robot file (.yaml)')
    parser.add_argument('--overwrite', action='store_true', help='replace a file that is there')


def run(args: argparse.Namespace) -> int:
    """Read, check, write."""
    from dipod_ros.errors import UserError
    from dipod_ros.policy.atomic import write_file
    from dipod_ros.policy.ros_names import require_topic
    from dipod_ros.policy.urdf import chain_to, moving, read_joint_limits, read_urdf

    out = Path(args.out)
    if out.suffix not in ('.yaml', '.yml'):
        raise UserError(f'--out {out}: name a .yaml file')
    if out.exists() and not args.overwrite:
        raise UserError(f'{out} is there already; choose another --out or add --overwrite')
    # More would be faster than the URDF and --joint-limits allow.
    for name, value, most in (
        ('--scale', args.scale, 1), ('--control-period', args.control_period, 10)
    ):  # fmt: skip
        if not 0 < value <= most:
            raise UserError(f'{name} must be above 0 and at most {most}, got {value:g}')
    if args.acceleration is not None and args.acceleration <= 0:
        raise UserError(f'--acceleration must be above 0, in rad/s^2, got {args.acceleration:g}')
    require_topic(args.controller, '--controller')
    chain = chain_to(read_urdf(args.urdf), args.tip, args.base)
    joints = moving(chain)
    given = read_joint_limits(args.joint_limits) if args.joint_limits else {}
    limits = make_limits(joints, given, args.acceleration, args.scale)
    name = args.name or out.stem
    text = robot_text(name, args, chain, joints, limits)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, text.encode())
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error
    print(f'{out}: {len(joints)} joints, {", ".join(j.name for j in joints)}')
    for joint, *values in zip(joints, *(limits[k] for k in limits if k != 'effort'), strict=True):
        low, high, velocity, acceleration = values
        print(
            f'  {joint.name:24}{low:8.3f} to {high:7.3f} rad  {velocity:6.3f} rad/s  '
            f'{acceleration:7.3f} rad/s^2'
        )
    return 0


def make_limits(
    joints: Sequence[UrdfJoint],
    given: Mapping[str, Mapping[str, Any]],
    acceleration: float | None,
    scale: float = 1.0,
) -> dict[str, list[float]]:
    """Return the `limits` block of a robot file; of several limits the tightest counts.

    Args:
        joints: of the URDF.
        given: entries of a joint_limits file, by joint.
        acceleration: of joints without one there, rad/s^2.
        scale: of velocities and accelerations.

    Raises UserError, naming the joint and what to give, when one has no limit of some kind.

    """
    import math

    from dipod_ros.errors import UserError
    from dipod_ros.policy.limits import JointLimits

    def extra(joint: UrdfJoint, kind: str, key: str) -> float:
        entry = given.get(joint.name, {})
        # MoveIt writes has_..., ros2_control may leave it out.
        if key not in entry or not entry.get(f'has_{kind}_limits', True):
            return math.nan
        try:
            return float(entry[key])
        except (TypeError, ValueError) as error:
            raise UserError(
                f'joint_limits: {key} of {joint.name} must be a number, got {entry[key]!r}'
            ) from error

    def tightest(joint: UrdfJoint, what: str, fix: str, choose: Any, *values: float) -> float:
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            raise UserError(f'joint {joint.name} has no {what}: {fix}')
        return choose(finite)

    file = 'give it in --joint-limits'
    block: dict[str, list[float]] = {
        k: [] for k in ('position_lower', 'position_upper', 'velocity', 'acceleration')
    }
    for j in joints:
        for key, value, kind, name, choose in (
            ('position_lower', j.lower, 'position', 'min_position', max),
            ('position_upper', j.upper, 'position', 'max_position', min),
        ):
            more = extra(j, kind, name)
            block[key].append(tightest(j, f'{name} ({j.kind})', file, choose, value, more))
        velocity = extra(j, 'velocity', 'max_velocity')
        velocity = tightest(j, 'max_velocity', file, min, j.velocity, velocity)
        block['velocity'].append(velocity * scale)
        most = extra(j, 'acceleration', 'max_acceleration')
        most = (acceleration or math.nan) if math.isnan(most) else most
        fix = f'{file}, or give --acceleration'
        block['acceleration'].append(tightest(j, 'max_acceleration', fix, min, most) * scale)
    JointLimits.from_params([j.name for j in joints], block)
    if all(math.isfinite(j.effort) and j.effort > 0 for j in joints):
        block['effort'] = [j.effort for j in joints]
    return block


def robot_text(
    name: str,
    args: argparse.Namespace,
    chain: Sequence[UrdfJoint],
    joints: Sequence[UrdfJoint],
    limits: Mapping[str, Sequence[float]],
) -> str:
    """Return the robot file as text."""
    from dipod_ros.cli.output import printable
    from dipod_ros.policy.urdf import screws

    more = f' and of {args.joint_limits}' if args.joint_limits else ''
    if args.scale != 1:
        more += f', speeds and accelerations times {args.scale:g}'
    lines = [
        # A line break in a name would end the comment.
        HEAD.format(name=printable(name), urdf=printable(args.urdf), more=printable(more)) + '/**:',
        '  ros__parameters:',
        f'    robot: {_yaml(name)}',
        f'    joints: {_yaml([j.name for j in joints])}',
        '    limits:',
        *(f'      {key}: {_row(values)}' for key, values in limits.items()),
        f'    control_period_s: {float(args.control_period)}',
        f'    controller: {_yaml(args.controller)}',
    ]
    found = screws(chain)
    if found is not None:
        axes, origins, tip = found
        lines += [
            TIP.format(tip=printable(args.tip), base=printable(chain[0].parent)).rstrip('\n'),
            '    kinematics:',
            f'      axes: {_row(axes.ravel(), 6)}',
            f'      origins: {_row(origins.ravel(), 6)}',
            f'      tip: {_row(tip, 6)}',
        ]
    return '\n'.join(lines) + '\n'


def _row(values: Sequence[float], digits: int | None = None) -> str:
    import numpy as np

    # With a point and without an exponent: ROS parameters of doubles refuse anything else.
    words = (np.format_float_positional(float(v) + 0.0, precision=digits, trim='0') for v in values)
    return '[' + ', '.join(w if float(w) else '0.0' for w in words) + ']'


def _yaml(value: Any) -> str:
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float('inf'))
    return text.removesuffix('...\n').strip()
