# SPDX-License-Identifier: Apache-2.0
"""Double drift of a flow policy, measured without sampling: a bandit with one action.

A policy that was pretrained on two modes (bound tight) learns from a reward with a bump on one
mode, a dip on the other and a small bump outside. All gradients are exact, so what drifts is the
method and not its noise. Arms:

    FPO        ascend E_pi[A grad B]                      (arXiv 2507.21053, unclipped)
    DiPOD      + beta E_pi[grad B]                        (Eq. 7 of arXiv 2606.13795)
    interleave after each step, ascend E_ref[grad B] with the policy itself as the fixed reference
                                                          (Algorithm 1 of arXiv 2606.13795)
    true       ascend the policy gradient of the Euler sampler itself, E_z[r'(a(z)) da/dtheta]

with advantages A = (r - E_pi[r]) / std_pi(r) and B the ELBO or minus the flow-matching loss, see
`flow1d.Bound`. Whatever B is, the gap reported is E_pi[log pi - ELBO], in nats: that of the Euler
policy, which at a tight start is already followed only roughly by the gradient of the ELBO. That
gradient is the policy gradient of the *stochastic* sampler with the same marginals (there
D^L >= 0 pointwise); the deterministic sampler moves differently for the same theta. The cosine
therefore starts below one, and it is its fall that tells of drift. Orders of magnitude are those
of this basis and reward: the toy shows a mechanism and is no benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.toys.flow1d import GRID, WEIGHTS, Basis, Bound, EulerMap, at, onto_grid

MODES, MODE_STD = (-1.0, 1.0), 0.4
# (height, centre, width) of each bump of the reward.
REWARD = ((1.0, 1.0, 0.35), (-0.6, -1.0, 0.4), (0.4, 2.2, 0.3))
TRUE = 'true'


@dataclass(frozen=True)
class Arm:
    """One way to improve the policy."""

    weight: str = 'elbo'  # 'elbo', 'cfm' or, for the policy gradient itself, 'true'
    beta: float = 0.0  # of the regulariser, in units of the normalised advantage
    distillation_steps: int = 0  # after each policy step; 0 never distils

    def __post_init__(self) -> None:
        if self.weight not in (*WEIGHTS, TRUE):
            raise UserError(f'weight {self.weight!r} is not one of {[*WEIGHTS, TRUE]}')
        if not self.beta >= 0:
            raise UserError(f'beta must not be negative, got {self.beta}')
        if self.distillation_steps < 0:
            raise UserError(
                f'distillation_steps must not be negative, got {self.distillation_steps}'
            )
        if self.weight == TRUE and (self.beta or self.distillation_steps):
            raise UserError('the true policy gradient takes neither beta nor distillation_steps')

    @property
    def name(self) -> str:
        """Short name for tables and pictures."""
        if self.weight == TRUE:
            return 'true policy gradient'
        how = f'distil {self.distillation_steps}' if self.distillation_steps else ''
        return ', '.join(filter(None, (self.weight.upper(), f'beta {self.beta:g}', how)))


ARMS = (
    *(Arm(weight, beta) for weight in WEIGHTS for beta in (0.0, 0.2, 1.0, 3.0)),
    *(Arm(weight, distillation_steps=3) for weight in WEIGHTS),
    Arm(TRUE),
)


@dataclass(frozen=True)
class BanditConfig:
    """Numerics; each arm ends at `stop_return`, where its policy has all but collapsed."""

    learning_rate: float = 0.02  # half of it changes gap over return by under 15 %
    steps: int = 400
    stop_return: float = 0.95
    euler_steps: int = 100
    noise_points: int = 161

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f'learning_rate must be above 0, got {self.learning_rate}')
        for name, least in (('steps', 0), ('euler_steps', 1), ('noise_points', 2)):
            if getattr(self, name) < least:
                raise UserError(f'{name} must be at least {least}, got {getattr(self, name)}')


COLUMNS = ('return', 'gap', 'gap_negative', 'gap_positive', 'cosine', 'entropy')


@dataclass(frozen=True)
class BanditHistory:
    """What was measured at each step, and the parameters of the policy."""

    arm: Arm
    columns: dict[str, np.ndarray]  # each of COLUMNS [steps + 1]; gap_* given the sign of A
    thetas: np.ndarray  # [steps + 1, 80]

    def step_at_return(self, value: float) -> int:
        """Return the first step whose return reaches value; the last one where none does."""
        reached = np.flatnonzero(self.columns['return'] >= value)
        return int(reached[0]) if len(reached) else len(self.columns['return']) - 1


def reward(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the reward and its derivative for actions of any shape."""
    value, slope = np.zeros_like(actions), np.zeros_like(actions)
    for height, centre, width in REWARD:
        bump = height * np.exp(-0.5 * ((actions - centre) / width) ** 2)
        value += bump
        slope -= (actions - centre) / width**2 * bump
    return value, slope


def mixture_density(actions: np.ndarray) -> np.ndarray:
    """Return the density of the policy at the start: two equal modes."""
    parts = [np.exp(-0.5 * ((actions - mode) / MODE_STD) ** 2) for mode in MODES]
    return np.mean(parts, axis=0) / (MODE_STD * np.sqrt(2 * np.pi))


class Bandit:
    """The integrals of one basis, the tight start, and training of any arm from it."""

    def __init__(self, config: BanditConfig | None = None, basis: Basis | None = None) -> None:
        self.config = config or BanditConfig()
        self.basis = basis or Basis.default()
        self.bounds = {weight: Bound.integrate(self.basis, weight) for weight in WEIGHTS}
        self.noise = np.linspace(-6.0, 6.0, self.config.noise_points)
        self.noise_share = np.exp(-0.5 * self.noise**2)
        self.noise_share /= self.noise_share.sum()
        # Least squares under the weight of the ELBO is the argmax of E[ELBO] over the mixture.
        shares = mixture_density(GRID)
        matrix, vector = self.bounds['elbo'].quadratic(shares / shares.sum())
        self.start = np.linalg.lstsq(matrix, vector, rcond=1e-10)[0]

    def policy(self, theta: np.ndarray, noise: np.ndarray | None = None) -> EulerMap:
        """Return the policy of theta [80] on noise [N], by default on the quadrature points."""
        noise = self.noise if noise is None else noise
        return EulerMap.push(self.basis, theta, noise, self.config.euler_steps)

    def measure(
        self, theta: np.ndarray, weight: str
    ) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
        """Return COLUMNS at theta, the arm's policy gradient, and that of its regulariser.

        Both gradients [80] are of normalised advantages (std 1).
        """
        policy, share = self.policy(theta), self.noise_share
        value, slope = reward(policy.actions)
        mean = share @ value
        std = np.sqrt(share @ (value - mean) ** 2)
        advantage = (value - mean) / std
        true = policy.pullback(share * slope) / std
        bound = self.bounds['elbo' if weight == TRUE else weight]
        proxy = bound.gradient(theta, onto_grid(policy.actions, share * advantage))
        regulariser = bound.gradient(theta, onto_grid(policy.actions, share))
        gap = policy.log_prob - at(policy.actions, self.bounds['elbo'].value(theta))
        bad = advantage < 0
        row = {
            'return': mean,
            'gap': share @ gap,
            'gap_negative': (share @ (gap * bad)) / (share @ bad),
            'gap_positive': (share @ (gap * ~bad)) / (share @ ~bad),
            'cosine': proxy @ true / (np.linalg.norm(proxy) * np.linalg.norm(true)),
            'entropy': -share @ policy.log_prob,
        }
        return row, (true if weight == TRUE else proxy), regulariser

    def distil(self, theta: np.ndarray, weight: str, steps: int, rate: float) -> np.ndarray:
        """Ascend E_ref[B_theta] from theta, the reference being the policy of theta, fixed."""
        shares = onto_grid(self.policy(theta).actions, self.noise_share)
        matrix, vector = self.bounds[weight].quadratic(shares)
        for _ in range(steps):
            theta = theta + rate * 2 * (vector - matrix @ theta)
        return theta

    def train(self, arm: Arm, config: BanditConfig | None = None) -> BanditHistory:
        """Train one arm from the tight start until `stop_return` or for `steps` steps.

        A config given here replaces learning rate, steps and end for this arm only.
        """
        config, theta = config or self.config, self.start
        rows, thetas = [], []
        for step in range(config.steps + 1):
            row, gradient, regulariser = self.measure(theta, arm.weight)
            rows.append(row)
            thetas.append(theta)
            if row['return'] >= config.stop_return or step == config.steps:
                break
            theta = theta + config.learning_rate * (gradient + arm.beta * regulariser)
            if arm.distillation_steps:
                steps = arm.distillation_steps
                theta = self.distil(theta, arm.weight, steps, config.learning_rate)
        columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
        return BanditHistory(arm, columns, np.array(thetas))


def run(config: BanditConfig | None = None, arms: tuple[Arm, ...] = ARMS) -> list[BanditHistory]:
    """Train every arm; the same numbers every time, since nothing is drawn."""
    bandit = Bandit(config)
    return [bandit.train(arm) for arm in arms]
