# SPDX-License-Identifier: Apache-2.0
"""Double drift where everything is exact: a masked diffusion model of two tokens, six numbers.

The diagnostic of arXiv 2606.13795 (section 4.1, appendix D). A sequence x1 x2 over {A, B} is
decoded from two masks, one token at a time, in an order drawn by a coin. Six logits say it all:

    a = x1 is A | x2 = A    b = x1 is A | both masked    e = x1 is A | x2 = B
    c = x2 is A | x1 = A    d = x2 is A | both masked    f = x2 is A | x1 = B

Four sequences and two orders, so the log-likelihood, its bounds and every policy gradient are sums
of eight terms: nothing is sampled and nothing is estimated. With u and v the log-probabilities of
x by the two orders, log pi = log(e^u / 2 + e^v / 2) and ELBO = u / 2 + v / 2, hence

    gap = log pi - ELBO = log cosh((u - v) / 2),     0 exactly when both orders agree.

Three policy gradients, all E_pi[A grad s(x)] with A = r - E_pi[r], ascended with a plain step:

    true   s = log pi
    fpo    s = ELBO                                          (Eq. 4 of arXiv 2606.13795)
    spg    s = ELBO where A > 0, EUBO where A < 0            (Eq. 5)

The EUBO is that of SPG (arXiv 2510.09541): 1/k sum_i log E[pi(x_i | context)^k], the expectation
over the contexts of token i with the weights of the ELBO (here 1/2 and 1/2), up to a constant
that no gradient sees. DiPOD adds beta E_pi[grad ELBO] to any of them (Eq. 7).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from dipod_ros.errors import UserError
from dipod_ros.learning.seeding import numpy_rng

SCORES = ('true', 'fpo', 'spg')
PAPER_REWARD = (0.8, 1.0, 0.7, 1.0)
BETAS = (0.0, 0.05, 0.1, 0.2, 0.5)

# Factors of each sequence: x1 first (b, then c or f), then x2 first (d, then a or e). The sign
# turns the logit of A into that of the token the sequence has.
_FACTORS = torch.tensor([[1, 2, 3, 0], [1, 2, 3, 4], [1, 5, 3, 0], [1, 5, 3, 4]])
_SIGNS = torch.tensor(
    [[1, 1, 1, 1], [1, -1, -1, 1], [-1, 1, 1, -1], [-1, -1, -1, -1]], dtype=torch.float64
)
_LOG_2 = math.log(2)


@dataclass(frozen=True)
class TwoTokenConfig:
    """Settings of the paper."""

    learning_rate: float = 0.1
    steps: int = 1500
    eubo_power: float = 1.5  # k of the EUBO, called beta in arXiv 2510.09541

    def __post_init__(self) -> None:
        if not self.learning_rate > 0:
            raise UserError(f'learning_rate must be above 0, got {self.learning_rate}')
        if self.steps < 1:
            raise UserError(f'steps must be at least 1, got {self.steps}')
        if not self.eubo_power >= 1:
            raise UserError(f'eubo_power must be at least 1, got {self.eubo_power}')


@dataclass(frozen=True)
class TwoTokenHistory:
    """What was measured before each step and after the last, each [steps + 1, runs]."""

    reward: torch.Tensor  # E_pi[r]
    gap: torch.Tensor  # E_pi[log pi - ELBO], nats
    gap_aa: torch.Tensor  # log pi(AA) - ELBO(AA), nats
    cosine: torch.Tensor  # of E_pi[A grad s] with the true policy gradient; beta has no part in it
    logits: torch.Tensor  # at the end [runs, 6]


def log_factors(logits: torch.Tensor) -> torch.Tensor:
    """Return log-probabilities [..., 4 sequences, 4 factors]: x1, x2 | x1, x2, x1 | x2."""
    return torch.nn.functional.logsigmoid(logits[..., _FACTORS] * _SIGNS)


def log_prob(logits: torch.Tensor) -> torch.Tensor:
    """Return log pi of the four sequences [..., 4]."""
    f = log_factors(logits)
    return torch.logaddexp(f[..., 0] + f[..., 1], f[..., 2] + f[..., 3]) - _LOG_2


def elbo(logits: torch.Tensor) -> torch.Tensor:
    """Return the lower bound of log pi of the four sequences [..., 4]."""
    return log_factors(logits).sum(-1) / 2


def eubo(logits: torch.Tensor, power: float) -> torch.Tensor:
    """Return SPG's upper bound up to its constant [..., 4]; both contexts of a token together."""
    f = log_factors(logits) * power
    first = torch.logaddexp(f[..., 0], f[..., 3]) - _LOG_2
    second = torch.logaddexp(f[..., 1], f[..., 2]) - _LOG_2
    return (first + second) / power


def train(
    rewards: torch.Tensor,
    logits: torch.Tensor,
    betas: torch.Tensor,
    score: str = 'fpo',
    config: TwoTokenConfig | None = None,
) -> TwoTokenHistory:
    """Ascend E_pi[A grad s] + beta E_pi[grad ELBO] for many runs at once.

    Args:
        rewards: of AA, AB, BA, BB in each run [runs, 4].
        logits: a to f at the start [runs, 6].
        betas: of the regulariser [runs].
        score: 'true', 'fpo' or 'spg'.
        config: step size and number of steps; the paper's by default.

    Raises:
        UserError: for a score that is none of the three.

    """
    config = config or TwoTokenConfig()
    if score not in SCORES:
        raise UserError(f'score {score!r} is not one of {list(SCORES)}')
    rewards, logits = rewards.double(), logits.double().clone()
    beta = betas.double()[:, None]
    rows = []
    for step in range(config.steps + 1):
        true, proxy, regulariser, row = _gradients(rewards, logits, score, config.eubo_power)
        rows.append((*row, torch.cosine_similarity(proxy, true, dim=-1)))
        if step < config.steps:
            logits = logits + config.learning_rate * (proxy + beta * regulariser)
    reward, gap, gap_aa, cosine = (torch.stack(column) for column in zip(*rows, strict=True))
    return TwoTokenHistory(reward, gap, gap_aa, cosine, logits)


def paper_runs(
    score: str = 'fpo',
    betas: tuple[float, ...] = BETAS,
    config: TwoTokenConfig | None = None,
) -> TwoTokenHistory:
    """Train the paper's problem from its tight start (all probabilities 1/2), one run a beta."""
    count = len(betas)
    rewards = torch.tensor(PAPER_REWARD, dtype=torch.float64).expand(count, 4)
    start = torch.zeros(count, 6, dtype=torch.float64)
    return train(rewards, start, torch.tensor(betas, dtype=torch.float64), score, config)


def random_runs(
    score: str = 'fpo',
    betas: tuple[float, ...] = BETAS,
    problems: int = 12,
    seed: int = 0,
    config: TwoTokenConfig | None = None,
) -> TwoTokenHistory:
    """Train random problems; runs are ordered [beta, problem] and share problems across betas.

    Rewards are uniform on [0, 1]. Starts are tight, as after pretraining: independent tokens, so
    that a = b = e and c = d = f, both standard normal.
    """
    rng = numpy_rng(seed, 'two_token')
    rewards = torch.from_numpy(rng.uniform(size=(problems, 4)))
    first, second = torch.from_numpy(rng.normal(size=(2, problems)))
    start = torch.stack([first, first, second, second, first, second], dim=-1)
    repeated = torch.tensor(betas, dtype=torch.float64).repeat_interleave(problems)
    count = len(betas)
    return train(rewards.repeat(count, 1), start.repeat(count, 1), repeated, score, config)


def _gradients(
    rewards: torch.Tensor, logits: torch.Tensor, score: str, power: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    """Return the true, the proxy and the regulariser's gradient, and (reward, gap, gap of AA)."""
    logits = logits.detach().requires_grad_()
    likelihood, bound = log_prob(logits), elbo(logits)
    pi = likelihood.detach().exp()
    reward = (pi * rewards).sum(-1)
    advantage = rewards - reward[:, None]
    proxy = {
        'true': lambda: likelihood,
        'fpo': lambda: bound,
        'spg': lambda: torch.where(advantage > 0, bound, eubo(logits, power)),
    }[score]()

    def gradient(values: torch.Tensor) -> torch.Tensor:
        # Runs do not interact, so the gradient of the sum is the gradient of each.
        return torch.autograd.grad(values.sum(), logits, retain_graph=True)[0]

    gap = (likelihood - bound).detach()
    return (
        gradient(pi * advantage * likelihood),
        gradient(pi * advantage * proxy),
        gradient(pi * bound),
        (reward, (pi * gap).sum(-1), gap[:, 0]),
    )
