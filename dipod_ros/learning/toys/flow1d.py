# SPDX-License-Identifier: Apache-2.0
"""A flow policy over one number with a velocity linear in its parameters: everything is exact.

    v_theta(x, t) = sum_ij theta_ij  space_i(x) time_j(t),     x_t = (1 - t) a + t eps

so that the bound of an action is a quadratic in theta whose coefficients are integrals over
(t, eps), taken once by quadrature. The policy itself is the Euler sampler: its density follows from
the change of variables and its policy gradient from the adjoint of the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dipod_ros.errors import UserError

WEIGHTS = ('elbo', 'cfm')
GRID = np.linspace(-5.0, 5.0, 201)
"""Actions at which the bound is tabulated; it is interpolated in between (cubic)."""

# The bound is integrated over u = logit(t), where its integrand is smooth. Noise below t = e^-7 and
# above 1 - e^-6 is left to the two end terms.
_LOGIT_RANGE, _LOGIT_NODES = (-7.0, 6.0), 40
_NOISE = np.linspace(-5.5, 5.5, 65)  # evenly spaced: spectrally accurate for a normal density


@dataclass(frozen=True)
class Basis:
    """Bumps in x, a constant and x itself, times normalised bumps in logit(t): 16 * 5 = 80."""

    centres: np.ndarray
    width: float
    time_centres: np.ndarray
    time_width: float

    @classmethod
    def default(cls) -> Basis:
        """Return the basis that holds a two-mode policy to within 0.005 nats."""
        return cls(np.linspace(-2.5, 2.5, 14), 5 / 13, np.linspace(-2.0, 2.0, 5), 0.8)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of functions of x and of t."""
        return len(self.centres) + 2, len(self.time_centres)

    def space(self, x: np.ndarray) -> np.ndarray:
        """Return the functions of x [N, 16] for x [N]."""
        out = np.empty((len(x), len(self.centres) + 2))
        out[:, 0], out[:, 1] = 1.0, x
        offset = (x[:, None] - self.centres) * (np.sqrt(0.5) / self.width)
        np.exp(-(offset * offset), out=out[:, 2:])
        return out

    def derivative_coefficients(self, coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (p, q) [16, M] with d/dx space(x) @ coefficients = space(x) @ p + x space(x) @ q.

        A bump is its own derivative times (centre - x) / width^2: no second table is needed.
        """
        p, q = np.zeros_like(coefficients), np.zeros_like(coefficients)
        p[0] = coefficients[1]
        q[2:] = -coefficients[2:] / self.width**2
        p[2:] = -q[2:] * self.centres[:, None]
        return p, q

    def time(self, t: np.ndarray) -> np.ndarray:
        """Return the functions of t [N, 5] for t [N]; they sum to one."""
        t = np.clip(t, 1e-9, 1 - 1e-9)
        offset = (np.log(t / (1 - t))[:, None] - self.time_centres) / self.time_width
        # Only ratios matter; the largest is made 1 so that none of them vanishes far out.
        nearest = (offset**2).min(1, keepdims=True)
        bumps = np.exp(-0.5 * (offset**2 - nearest))
        return bumps / bumps.sum(1, keepdims=True)


@dataclass(frozen=True)
class Bound:
    """constant(a) - (theta' M(a) theta - 2 theta' q(a) + s(a)) for each action a of GRID."""

    matrix: np.ndarray  # M [201, 80, 80]
    vector: np.ndarray  # q [201, 80]
    constant: np.ndarray  # constant - s [201]

    @classmethod
    def integrate(cls, basis: Basis, weight: str) -> Bound:
        """Tabulate the ELBO in nats ('elbo') or minus the flow-matching loss ('cfm').

        With u = logit(t), dt = t (1 - t) du and the target velocity eps - a:

            ELBO(a) = R - K(a) - int (1-t)/t  E|v(x_t, t) - (eps - a)|^2 dt
            R = -log(2 pi s0^2) / 2 - 1/2,    s0 = t0 / (1 - t0)
            K(a) = (t1^2 - 1 - log t1^2 + (1 - t1)^2 a^2) / 2

        is the continuous-time bound of variational diffusion models (arXiv 2107.00630) with alpha
        = 1 - t and sigma = t: R is the reconstruction of a from x_t0, K the prior term at t1.
        FPO (arXiv 2507.21053) uses weight 1 instead of (1 - t) / t: 'cfm' here. That is no bound
        of the action's likelihood.

        Raises:
            UserError: for any other weight.

        """
        if weight not in WEIGHTS:
            raise UserError(f'weight {weight!r} is not one of {list(WEIGHTS)}')
        low, high = _LOGIT_RANGE
        nodes, share = np.polynomial.legendre.leggauss(_LOGIT_NODES)
        u = 0.5 * (high - low) * nodes + 0.5 * (high + low)
        t = 1 / (1 + np.exp(-u))
        dt = 0.5 * (high - low) * share * t * (1 - t)
        noise_share = np.exp(-0.5 * _NOISE**2)
        noise_share /= noise_share.sum()
        scale = dt * (1 - t) / t if weight == 'elbo' else dt
        share = np.outer(scale, noise_share).ravel()
        time = np.repeat(basis.time(t), len(_NOISE), axis=0)
        size = basis.shape[0] * basis.shape[1]
        matrix, vector = np.empty((len(GRID), size, size)), np.empty((len(GRID), size))
        constant = np.empty(len(GRID))
        for i, a in enumerate(GRID):
            x = np.add.outer((1 - t) * a, np.zeros(len(_NOISE))) + np.outer(t, _NOISE)
            target = np.tile(_NOISE, len(t)) - a
            features = (basis.space(x.ravel())[:, :, None] * time[:, None, :]).reshape(-1, size)
            weighted = features * share[:, None]
            matrix[i], vector[i] = weighted.T @ features, weighted.T @ target
            constant[i] = -share @ target**2
        if weight == 'elbo':
            t0, t1 = 1 / (1 + np.exp(-low)), 1 / (1 + np.exp(-high))
            constant += -0.5 * np.log(2 * np.pi * (t0 / (1 - t0)) ** 2) - 0.5
            constant -= 0.5 * (t1**2 - 1 - np.log(t1**2) + (1 - t1) ** 2 * GRID**2)
        return cls(matrix, vector, constant)

    def value(self, theta: np.ndarray) -> np.ndarray:
        """Return the bound at each action of GRID [201] for theta [80]."""
        return self.constant + (2 * self.vector - self.matrix @ theta) @ theta

    def quadratic(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return M [80, 80] and q [80] summed over GRID with `shares` [201].

        Where the shares are a distribution, the maximiser of its mean bound solves M theta = q.
        """
        return np.tensordot(shares, self.matrix, 1), shares @ self.vector

    def gradient(self, theta: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """Return the gradient [80] of shares @ value(theta)."""
        matrix, vector = self.quadratic(shares)
        return 2 * (vector - matrix @ theta)


def at(actions: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return a function tabulated on GRID [201] at any actions [N] inside it."""
    places, shares = _cubic(actions)
    return (table[places] * shares).sum(1)


def onto_grid(actions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return shares [201] with shares @ table = weights @ at(actions, table) for every table."""
    places, shares = _cubic(actions)
    return np.bincount(places.ravel(), (weights[:, None] * shares).ravel(), len(GRID))


def _cubic(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and Lagrange weights [N, 4] of the four points of GRID around each action."""
    if not np.all(np.abs(actions) < GRID[-1]):
        raise UserError(f'an action left [-{GRID[-1]}, {GRID[-1]}]; lower learning_rate')
    place = (actions - GRID[0]) / (GRID[1] - GRID[0])
    first = np.clip(np.floor(place).astype(int) - 1, 0, len(GRID) - 4)
    p = place - first
    shares = [
        -(p - 1) * (p - 2) * (p - 3) / 6,
        p * (p - 2) * (p - 3) / 2,
        -p * (p - 1) * (p - 3) / 2,
        p * (p - 1) * (p - 2) / 6,
    ]
    return first[:, None] + np.arange(4), np.stack(shares, axis=-1)


@dataclass(frozen=True)
class EulerMap:
    """Noise to action in `steps` Euler steps from t = 1 to 0, with what its gradient needs."""

    noise: np.ndarray  # z [N], ascending
    actions: np.ndarray  # [N], ascending
    log_prob: np.ndarray  # log pi of each action [N]
    _features: list[np.ndarray]
    _slopes: list[np.ndarray]
    _time: np.ndarray

    @classmethod
    def push(cls, basis: Basis, theta: np.ndarray, noise: np.ndarray, steps: int) -> EulerMap:
        """Carry noise [N] to actions; density by change of variables, exact for these steps.

        log pi(a) = log N(z; 0, 1) - sum_k log|1 - dv/dx (x_k, t_k) / steps|.

        Raises:
            UserError: when the map folds, because its density is then no single term.

        """
        time = basis.time(1 - np.arange(steps) / steps)
        coefficients = theta.reshape(basis.shape) @ time.T / steps  # of each step [16, steps]
        per_step = np.stack([coefficients, *basis.derivative_coefficients(coefficients)], -1)
        x, log_prob = noise, -0.5 * noise**2 - 0.5 * np.log(2 * np.pi)
        features, slopes = [], []
        for k in range(steps):
            value = basis.space(x)
            move, p, q = (value @ per_step[:, k]).T
            features.append(value)
            slopes.append(1 - (p + x * q))
            x = x - move
        if not np.min(slopes) > 0:
            raise UserError('the Euler map folds: lower learning_rate or raise euler_steps')
        return cls(noise, x, log_prob - np.log(slopes).sum(0), features, slopes, time)

    def pullback(self, slopes_of_actions: np.ndarray) -> np.ndarray:
        """Return sum_n slopes_of_actions[n] d actions[n] / d theta [80] by the adjoint."""
        steps = len(self._slopes)
        gradient = np.zeros((self._features[0].shape[1], self._time.shape[1]))
        sensitivity = slopes_of_actions
        for k in reversed(range(steps)):
            gradient -= np.outer(sensitivity @ self._features[k], self._time[k]) / steps
            sensitivity = sensitivity * self._slopes[k]
        return gradient.ravel()
