# SPDX-License-Identifier: Apache-2.0
"""Whether the arm follows its command while it acts, and when it is tried again. numpy, no ROS.

An arm behind a controller that was switched off, or held by a protective stop, goes on publishing
where it is. A command that goes on without it ends far away, and the controller that takes up the
next one jumps there. So the arm has to be where the command was a moment ago:

    min x_j(s) - tolerance_rad <= q_j(t) <= max x_j(s) + tolerance_rad,  t - lag_s <= s <= t

for each joint j, with q_j(t) measured and x_j(s) the setpoint. An arm that trails its setpoint by a
time of up to lag_s is within these bounds at any speed: what is allowed grows with the speed of the
command, up to tolerance_rad + lag_s * (velocity limit), and is tolerance_rad where it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.episode_hold import MOVED_RAD
from dipod_ros.serving.notices import Notices
from dipod_ros.serving.observation import Sample
from dipod_ros.serving.stillness import AGREE_RAD
from dipod_ros.serving.timeline import TRAIL, Plan

# The arm has to be elsewhere in so many joint states of as many control periods: one may be odd.
PATIENCE = 3
# In a world that puts the arm elsewhere, joint states may be there before the outcome that says so.
PATIENCE_WITH_RESETS = 12
# The tick of a joint state is the nearest one: the setpoint may have been that of the next, too.
ROUNDING = 1
# After a stop it is tried again this long (s) after the command was put where the arm is, twice as
# long after each stop that follows within CALM_S of acting (s), up to the longest: a controller
# that is switched on again in the middle of a try would jump.
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 32.0
CALM_S = 10.0
# A joint that is seen a whole turn away, give or take how far the arm gets meanwhile (rad), did not
# go there: its driver tells angles between -pi and pi.
TURN_RAD = 0.5


@dataclass(frozen=True)
class FollowingConfig:
    """How far the arm may be from where its command was."""

    tolerance_rad: float = 0.1  # 0 allows everything
    # By how much an arm may trail its command. Industrial drives take 0.02 to 0.1 s.
    lag_s: float = 0.2

    def __post_init__(self) -> None:
        if not (0 <= self.tolerance_rad < math.inf):
            raise UserError(f'following_rad must be 0 or more, got {self.tolerance_rad}')
        if not (0 <= self.lag_s < math.inf):
            raise UserError(f'following_lag_s must be 0 or more, got {self.lag_s}')


class FollowingGuard:
    """Compares arm and command; remembers a stop until the arm may be tried again."""

    def __init__(
        self,
        config: FollowingConfig,
        limits: JointLimits,
        dt: float,
        notices: Notices,
        patience: int = PATIENCE,
    ) -> None:
        """Take the limits, the control period in seconds, whom to tell, and how long to wait."""
        self._patience = patience
        self.config, self._limits, self._dt, self._notices = config, limits, dt, notices
        self._window = math.ceil(config.lag_s / dt - 1e-9) + ROUNDING
        self._setpoints: dict[int, np.ndarray] = {}  # [A] rad by tick
        # Setpoints are remembered for as long as a joint state may be late, and the window besides.
        self._memory = self._window + TRAIL + math.ceil(1.0 / dt)
        self._last: Sample | None = None
        self._strays: list[int] = []  # the ticks of joint states in a row
        self._began_tick = 0  # when it was tried again
        self._stops = 0  # that followed one another soon
        self._due_tick: int | None = None  # None: the command is not where the arm is
        self._stood: np.ndarray | None = None  # where the arm was [A] when it was placed
        self.stopped = False  # it did not follow, and was not tried again since

    def note(self, plan: Plan, tick: int) -> None:
        """Take the setpoints of `tick` and of those before it, as they are by now."""
        trail = plan.trail_at(tick)
        for k, knot in enumerate((trail[:-1] + trail[1:]) / 2):
            self._setpoints[tick - TRAIL + 2 + k] = knot
        if len(self._setpoints) > 2 * self._memory:
            oldest = tick - self._memory
            self._setpoints = {k: v for k, v in self._setpoints.items() if k >= oldest}

    def forget(self) -> None:
        """Forget the command, and a stop: the arm was put elsewhere, where the next one begins."""
        self._setpoints.clear()
        self._strays, self._due_tick, self._stood = [], None, None
        self._go_on()

    def judge(self, sample: Sample, seen: int, tick: int) -> None:
        """Take joint positions that show tick `seen`; `stopped` is set when the arm is astray."""
        if not self.config.tolerance_rad or sample is self._last or seen not in self._setpoints:
            return
        self._last = sample
        ticks = range(seen - self._window, seen + ROUNDING + 1)
        path = np.array([self._setpoints[k] for k in ticks if k in self._setpoints])
        away = np.maximum(sample.values - path.max(axis=0), path.min(axis=0) - sample.values)
        joint = int(np.argmax(away))
        self._strays = [*self._strays, seen] if away[joint] > self.config.tolerance_rad else []
        # After a stall of the machine several may be judged at once: they are one moment.
        if len(set(self._strays)) >= self._patience:
            self._stop(joint, float(away[joint]), tick)

    def wants(self, position: np.ndarray, command: np.ndarray) -> bool:
        """Return whether a command [A] (rad) should be brought to [A], where the arm stands.

        Once is enough for an arm that sinks a little under its own weight: it would sink on.
        """
        stood = self._stood
        if stood is None or np.max(np.abs(position - stood)) > MOVED_RAD:
            return True
        return bool(np.max(np.abs(command - stood)) > AGREE_RAD)  # it was stopped on its way

    def placed(self, position: np.ndarray, tick: int) -> None:
        """Note that the command is where the arm stands [A] (rad) from `tick` on."""
        wait_s = min(FIRST_WAIT_S * 2 ** (self._stops - 1), LONGEST_WAIT_S)
        self._stood = position
        self._due_tick = tick + math.ceil(wait_s / self._dt)

    def misplaced(self) -> None:
        """Note that the command cannot come to where the arm stands: it is not tried from there."""
        self._due_tick = None

    def may_try(self, tick: int) -> bool:
        """Return whether nothing speaks against a decision."""
        return not self.stopped or (self._due_tick is not None and tick >= self._due_tick)

    def resume(self, tick: int) -> None:
        """Note that the arm is tried again."""
        self._began_tick, self._strays = tick, []
        self._go_on()

    def _stop(self, joint: int, away: float, tick: int) -> None:
        if (tick - self._began_tick) * self._dt > CALM_S:
            self._stops = 0
        self._stops += 1
        self._strays, self._due_tick, self._stood = [], None, None
        self.stopped = True
        config = self.config
        self._notices.set(
            'following',
            f'the arm does not follow: joint {self._limits.joints[joint]} is {away:.2f} rad away '
            f'from where it was told to be in the last {config.lag_s:g} s, more than following_rad '
            f'{config.tolerance_rad:g}: {_why(away)} Stopped; trying again later, from where it '
            'stands',
        )

    def _go_on(self) -> None:
        self.stopped = False
        self._notices.clear('following', 'trying again whether the arm follows')


def _why(away_rad: float) -> str:
    if abs(away_rad - 2 * math.pi) < TURN_RAD:
        return (
            'a whole turn, its driver seems to wrap angles; give the joint position limits between '
            'the angles where it does.'
        )
    return 'is its controller active?'
