# SPDX-License-Identifier: Apache-2.0
"""When a policy counts as collapsed: one rule on plain numbers, online and for a stored curve.

Two numbers come from `health.check_health`, relative to the policy that learning started from: the
flow-matching loss of own actions and their spread per state. The third is the mean return of the
rollouts so far, because narrow actions alone say little: a gait that gets better needs fewer of
them, and a policy that has stopped exploring at something worse does not recover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError

# How far below the best a mean return may be by luck.
STANDARD_ERRORS = 5


@dataclass(frozen=True)
class HealthConfig:
    """When to say that a policy has collapsed, against the policy it started from."""

    # Healthy runs stayed below 1.35; every run that passed this lost its success.
    max_cfm_ratio: float = 1.5
    # Below it actions are narrow: a collapse, unless the return says otherwise (`keeps_return`).
    min_action_std_ratio: float = 0.45
    states: int = 64
    actions_per_state: int = 8
    # Below it nothing is explored any more, whatever the return. Matters for narrow actions only.
    lost_action_std_ratio: float = 0.05
    # Updates whose mean return is compared, so that one lucky rollout decides nothing.
    return_updates: int = 5
    # Share of the return gained since the start that a policy with narrow actions must keep.
    min_kept_gain: float = 0.5

    def __post_init__(self) -> None:
        if not self.return_updates >= 1:
            raise UserError(f'return_updates must be at least 1, got {self.return_updates}')
        if not 0 <= self.min_kept_gain <= 1:
            raise UserError(f'min_kept_gain must be within 0..1, got {self.min_kept_gain}')


def has_collapsed(
    cfm_ratio: float,
    std_ratio: float,
    returns: Sequence[float],
    config: HealthConfig,
    keeps_flow: bool = True,
) -> bool:
    """Return whether a policy has collapsed; one that is not a number has.

    Args:
        cfm_ratio: flow-matching loss of own actions, relative to the start's.
        std_ratio: spread of own actions, relative to the start's.
        returns: mean return of each rollout learned from so far, the oldest first.
        config: the limits.
        keeps_flow: False for a method whose velocity is no flow of its own actions: a rising loss
            then says nothing.

    """
    limit = config.max_cfm_ratio if keeps_flow else math.inf
    # Written so that NaN counts as collapsed.
    if not cfm_ratio <= limit:
        return True
    if std_ratio >= config.min_action_std_ratio:
        return False
    return not (std_ratio >= config.lost_action_std_ratio and keeps_return(returns, config))


def keeps_return(returns: Sequence[float], config: HealthConfig) -> bool:
    """Return whether a policy does about as well as it did: it keeps what learning gained.

    With R_k the mean return of `return_updates` = W rollouts in a row, k = 0 the first ones:

        R_now >= R_best - max((1 - min_kept_gain) (R_best - R_0), 5 s)
        s = sqrt(2 / W) (sqrt(pi) / 2) mean |r_i+1 - r_i|

    s is the standard error of a difference of two such means, from successive differences of the
    rollouts' returns r, which hardly see the trend (sqrt(pi) / 2 of their mean size is the standard
    deviation of normal ones). 5 of them, because the best is the luckiest of many. False with fewer
    than 2 W rollouts, which cannot tell.
    """
    window = config.return_updates
    if len(returns) < 2 * window:
        return False
    values = np.asarray(returns, dtype=float)
    means = np.lib.stride_tricks.sliding_window_view(values, window).mean(axis=1)
    deviation = math.sqrt(math.pi) / 2 * float(np.abs(np.diff(values)).mean())
    error = deviation * math.sqrt(2 / window)
    may_lose = max((1 - config.min_kept_gain) * (means.max() - means[0]), STANDARD_ERRORS * error)
    return bool(means[-1] >= means.max() - may_lose)


def first_alarm(
    curve: Sequence[Mapping[str, float]], config: HealthConfig, keeps_flow: bool = True
) -> int | None:
    """Return the control steps after which a learning curve first counts as collapsed, or None.

    Each update has `return_mean`, `cfm_ratio`, `action_std_ratio` and `control_steps`.
    """
    returns: list[float] = []
    for row in curve:
        returns.append(row['return_mean'])
        if has_collapsed(row['cfm_ratio'], row['action_std_ratio'], returns, config, keeps_flow):
            return int(row['control_steps'])
    return None
