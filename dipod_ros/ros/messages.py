# SPDX-License-Identifier: Apache-2.0
"""Messages <-> numpy arrays, without an opinion on what they are for. Creates no node.

Numbers go into messages as `array.array`: any other sequence is checked element by element by the
generated setters, which costs more than everything else here together.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PointStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, MultiArrayDimension, UInt8MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from dipod_ros.errors import UserError
from dipod_ros.serving.decisions import Outcome
from dipod_ros.serving.observation import SAME_STAMP_NS

NS_PER_S = 1_000_000_000

# A Time counts its seconds in 31 bits, and an outcome is dated by the clock of joint states.
STAMP_END_S = 2.0**31
# Whole numbers are exact in a float64 up to here, and fit into the int64 of whoever counts on.
WHOLE_END = 2.0**53

OUTCOME_FIELDS = 'stamp_s,episode,reward,success,terminated,truncated,reset'
_STAMP_LABEL = 'stamp_ns='


class MessageError(UserError):
    """A message whose content cannot be used; one line that says why."""


class MissingJointsError(MessageError):
    """A message that does not name all joints that are wanted."""


def doubles(values: np.ndarray | Sequence[float]) -> array:
    """Return float64 numbers, flattened in C order, in the form that setters take unchecked."""
    return array('d', np.ascontiguousarray(values, dtype=np.float64).tobytes())


def stamp_ns(stamp: Time) -> int:
    """Return a Time message in nanoseconds."""
    return stamp.sec * NS_PER_S + stamp.nanosec


def time_msg(ns: int) -> Time:
    """Return nanoseconds as a Time message."""
    sec, nanosec = divmod(int(ns), NS_PER_S)
    return Time(sec=sec, nanosec=nanosec)


def duration_msg(seconds: float) -> Duration:
    """Return seconds as a Duration message, rounded to a nanosecond."""
    sec, nanosec = divmod(round(seconds * NS_PER_S), NS_PER_S)
    return Duration(sec=sec, nanosec=nanosec)


def seconds_to_ns(seconds: float) -> int:
    """Return a stamp in float seconds as nanoseconds."""
    return round(seconds * NS_PER_S)


def same_stamp(a_ns: int, b_ns: int) -> bool:
    """Tell whether two stamps mean the same instant."""
    return abs(a_ns - b_ns) <= SAME_STAMP_NS


class JointIndex:
    """Picks joints out of name-labelled arrays; remembers the order that a sender uses."""

    def __init__(self, joints: Sequence[str]) -> None:
        """Take the names wanted, in the order wanted."""
        self.joints = tuple(joints)
        self._names: list[str] | None = None
        self._pick: np.ndarray = np.zeros(0, dtype=np.intp)

    def pick(self, names: Sequence[str]) -> np.ndarray:
        """Return where each wanted joint is in `names`.

        Raises MessageError when one is not there, or there twice.
        """
        if names != self._names:
            missing = [j for j in self.joints if j not in names]
            if missing:
                raise MissingJointsError(f'joints {missing} are not among {list(names)}')
            double = [j for j in self.joints if names.count(j) > 1]
            if double:
                raise MessageError(f'joints {double} are named twice: which value is theirs?')
            self._pick = np.array([names.index(j) for j in self.joints], dtype=np.intp)
            self._names = list(names)
        return self._pick

    def read(self, names: Sequence[str], values: Sequence[float], what: str) -> np.ndarray:
        """Return float64 [A] of `values` labelled by `names`; raises MessageError."""
        pick = self.pick(names)
        if len(values) != len(names):
            raise MessageError(f'{len(values)} {what} values for {len(names)} joints')
        return np.asarray(values, dtype=np.float64)[pick]

    def positions(self, msg: JointState) -> np.ndarray:
        """Return positions [A] in rad; raises MessageError when a joint or its value is missing."""
        return self.read(msg.name, msg.position, 'position')

    def velocities(self, msg: JointState) -> np.ndarray:
        """Return velocities [A] in rad/s; raises MessageError when the sender gives none."""
        return self.read(msg.name, msg.velocity, 'velocity')


class JointStateWriter:
    """Builds JointState messages for one fixed list of joints."""

    def __init__(self, joints: Sequence[str], frame_id: str = '') -> None:
        """Take the joint names, in the order of the arrays to come."""
        self._joints = list(joints)
        self._frame_id = frame_id

    def message(
        self,
        ns: int,
        position: np.ndarray,
        velocity: np.ndarray | None = None,
        effort: np.ndarray | None = None,
    ) -> JointState:
        """Return a message stamped `ns` with arrays [A] in rad, rad/s, Nm."""
        msg = JointState()
        msg.header.stamp = time_msg(ns)
        msg.header.frame_id = self._frame_id
        msg.name = self._joints
        msg.position = doubles(position)
        if velocity is not None:
            msg.velocity = doubles(velocity)
        if effort is not None:
            msg.effort = doubles(effort)
        return msg


class TrajectoryWriter:
    """Builds JointTrajectory messages with points `period_s` apart.

    header.stamp is the time of the observation that the trajectory answers: point k is due at that
    stamp + offset + (k + 1) * period_s, and a controller skips the points whose time has passed.
    """

    def __init__(self, joints: Sequence[str], period_s: float) -> None:
        """Take the joint names, in the order of the arrays to come, and the spacing of points."""
        self._joints = list(joints)
        self._period_ns = round(period_s * NS_PER_S)
        self._points: list[JointTrajectoryPoint] = []

    def message(
        self, ns: int, positions: np.ndarray, velocities: np.ndarray, offset_ns: int = 0
    ) -> JointTrajectory:
        """Return a message of K points from positions and velocities [K, A] (rad, rad/s).

        The points are reused: publish the message before asking for the next one.
        """
        count = len(positions)
        while len(self._points) < count:
            self._points.append(JointTrajectoryPoint())
        msg = JointTrajectory()
        msg.header.stamp = time_msg(ns)
        msg.joint_names = self._joints
        for k, point in enumerate(self._points[:count]):
            point.positions = doubles(positions[k])
            point.velocities = doubles(velocities[k])
            due_ns = offset_ns + (k + 1) * self._period_ns
            point.time_from_start.sec, point.time_from_start.nanosec = divmod(due_ns, NS_PER_S)
        msg.points = self._points[:count]
        return msg


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A trajectory in the receiver's joint order."""

    stamp_ns: int
    times_s: np.ndarray  # [K] from the start, strictly increasing
    positions: np.ndarray  # [K, A] rad
    velocities: np.ndarray | None  # [K, A] rad/s


def read_trajectory(msg: JointTrajectory, index: JointIndex) -> Trajectory:
    """Return the arrays of a JointTrajectory in the joint order of `index`.

    Raises MessageError for missing joints, points without positions, velocities on some points
    only, times that do not increase, and numbers that are not finite. No points at all is a legal
    message ("cancel") and gives K = 0.
    """
    index.pick(msg.joint_names)
    count, joints = len(msg.points), len(index.joints)
    times = np.zeros(count)
    positions = np.zeros((count, joints))
    velocities = np.zeros((count, joints))
    with_velocity = [len(p.velocities) > 0 for p in msg.points]
    if any(with_velocity) and not all(with_velocity):
        raise MessageError('some trajectory points carry velocities and some do not')
    for k, point in enumerate(msg.points):
        positions[k] = index.read(msg.joint_names, point.positions, 'position')
        if with_velocity[k]:
            velocities[k] = index.read(msg.joint_names, point.velocities, 'velocity')
        times[k] = point.time_from_start.sec + point.time_from_start.nanosec * 1e-9
    if count and (times[0] < 0 or np.any(np.diff(times) <= 0)):
        raise MessageError('time_from_start of trajectory points must increase')
    if not (np.all(np.isfinite(positions)) and np.all(np.isfinite(velocities))):
        raise MessageError('trajectory holds numbers that are not finite')
    return Trajectory(
        stamp_ns=stamp_ns(msg.header.stamp),
        times_s=times,
        positions=positions,
        velocities=velocities if count and with_velocity[0] else None,
    )


def commands_msg(positions: np.ndarray, ns: int | None = None) -> Float64MultiArray:
    """Return positions [A] (rad) as a forward_command_controller reads them.

    The message has no header: in lockstep `ns`, the stamp of the observation that this answers,
    travels in the label of the only dimension.
    """
    msg = Float64MultiArray()
    if ns is not None:
        size = len(positions)
        msg.layout.dim = [MultiArrayDimension(label=f'{_STAMP_LABEL}{ns}', size=size, stride=size)]
    msg.data = doubles(positions)
    return msg


def read_commands(msg: Float64MultiArray) -> tuple[np.ndarray, int | None]:
    """Return positions [A] and the stamp in nanoseconds, None where the message carries none."""
    values = np.asarray(msg.data, dtype=np.float64)
    label = msg.layout.dim[0].label if msg.layout.dim else ''
    if not label.startswith(_STAMP_LABEL):
        return values, None
    try:
        return values, int(label[len(_STAMP_LABEL) :])
    except ValueError as error:
        raise MessageError(f'label {label!r} holds no stamp in nanoseconds') from error


def point_msg(ns: int, point: np.ndarray, frame_id: str = 'world') -> PointStamped:
    """Return a point [3] (m) stamped `ns`."""
    msg = PointStamped()
    msg.header.stamp = time_msg(ns)
    msg.header.frame_id = frame_id
    msg.point.x, msg.point.y, msg.point.z = (float(v) for v in point)
    return msg


def read_point(msg: PointStamped) -> np.ndarray:
    """Return the point [3] (m) as float64."""
    return np.array([msg.point.x, msg.point.y, msg.point.z])


def outcome_msg(outcome: Outcome) -> Float64MultiArray:
    """Return an outcome as a labelled multiarray."""
    msg = Float64MultiArray()
    msg.layout.dim = [MultiArrayDimension(label=OUTCOME_FIELDS, size=7, stride=7)]
    msg.data = array(
        'd',
        (
            outcome.stamp_ns / NS_PER_S,
            outcome.episode,
            outcome.reward,
            outcome.success,
            outcome.terminated,
            outcome.truncated,
            outcome.reset,
        ),
    )
    return msg


def read_outcome(msg: Float64MultiArray) -> Outcome:
    """Return the outcome in a multiarray; raises MessageError when it is something else."""
    label = msg.layout.dim[0].label if msg.layout.dim else ''
    if label != OUTCOME_FIELDS or len(msg.data) != 7:
        raise MessageError(
            f'not an outcome: label {label!r} with {len(msg.data)} numbers; '
            f'expected label {OUTCOME_FIELDS!r}'
        )
    stamp_s, episode, reward, success, terminated, truncated, reset = msg.data
    if not all(map(math.isfinite, msg.data)):
        raise MessageError('outcome holds numbers that are not finite')
    if not 0 <= stamp_s < STAMP_END_S:
        raise MessageError(f'outcome has stamp_s {stamp_s:g}: not 0 to 2**31 s')
    if not (episode.is_integer() and abs(episode) < WHOLE_END):
        raise MessageError(f'outcome has episode {episode:g}: not a whole number below 2**53')
    return Outcome(
        stamp_ns=seconds_to_ns(stamp_s),
        episode=int(episode),
        reward=reward,
        success=bool(success),
        terminated=bool(terminated),
        truncated=bool(truncated),
        reset=bool(reset),
    )


def payload_msg(payload: bytes) -> UInt8MultiArray:
    """Return bytes (an encoded Decision) as a message."""
    msg = UInt8MultiArray()
    msg.data = array('B', payload)
    return msg


def read_payload(msg: UInt8MultiArray) -> bytes:
    """Return the bytes that `payload_msg` packed."""
    return bytes(msg.data)
