# SPDX-License-Identifier: Apache-2.0
"""Pictures of the two toys, for readers who see the subject for the first time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dipod_ros.errors import UserError
from dipod_ros.learning.plots import BLUE, GREEN, GREY, ORANGE
from dipod_ros.learning.pyplot import pyplot
from dipod_ros.learning.toys.bandit import Arm, Bandit, BanditHistory, reward
from dipod_ros.learning.toys.flow1d import at
from dipod_ros.learning.toys.two_token import TwoTokenHistory

EQUAL_RETURN = 0.7
"""Arms learn at different speeds; they are compared where they have learned as much."""

# The arms of the bandit that are drawn, with their colours and names.
_DRAWN = {
    Arm('elbo'): (ORANGE, '-', 'FPO (beta 0)'),
    Arm('elbo', 1.0): (ORANGE, '--', 'beta 1'),
    Arm('elbo', 3.0): (BLUE, '-', 'DiPOD (beta 3)'),
    Arm('elbo', distillation_steps=3): (GREEN, '--', 'DiPOD (interleaved self-distillation)'),
    Arm('true'): (GREY, '-', 'true policy gradient'),
}


def draw_two_token(path: Path, runs: Mapping[str, tuple[TwoTokenHistory, int]]) -> Path:
    """Draw gap, cosine and reward over the steps, one line for each named history.

    Args:
        path: PNG to write; its folder exists.
        runs: up to four lines by name, the one without a remedy first: a history and which of
            its runs.

    """
    plt = pyplot()
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout='constrained')
    styles = ((ORANGE, '-'), (BLUE, '-'), (GREEN, '--'), (GREY, ':'))
    content = (
        ('gap_aa', 'Drift 1: the bound leaves the likelihood', 'log pi(AA) - ELBO(AA)  [nats]'),
        (
            'cosine',
            'Drift 2: the update leaves the gradient',
            'cosine with the true policy gradient',
        ),
        ('reward', 'The reward hardly notices (here)', 'expected reward'),
    )
    for axes, (name, title, y_label) in zip(panels, content, strict=True):
        for (label, (history, run)), (color, line) in zip(runs.items(), styles, strict=False):
            axes.plot(getattr(history, name)[:, run].numpy(), line, color=color, label=label)
        axes.set(title=title, xlabel='gradient step', ylabel=y_label)
        axes.grid(alpha=0.3)
    panels[1].set_ylim(top=1.005)
    panels[0].legend(loc='upper left', fontsize=8)
    figure.suptitle('Two tokens, six logits, exact gradients (diagnostic of arXiv 2606.13795)')
    return _save(plt, figure, path)


def draw_bandit(path: Path, bandit: Bandit, histories: Sequence[BanditHistory]) -> Path:
    """Draw policies at equal return, and gap and cosine over return. PNG; its folder exists.

    Raises:
        UserError: when FPO or DiPOD at beta 3 is not among the histories.

    """
    by_arm = {history.arm: history for history in histories}
    pair = Arm('elbo'), Arm('elbo', 3.0)
    if not all(arm in by_arm for arm in pair):
        raise UserError(f'the picture needs the arms {" and ".join(a.name for a in pair)}')
    plt = pyplot()
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout='constrained')
    for axes, arm in zip(panels[0], pair, strict=True):
        _draw_policy(axes, bandit, by_arm[arm])
    panels[0, 0].sharey(panels[0, 1])
    for arm, (color, line, label) in _DRAWN.items():
        if arm in by_arm:
            columns = by_arm[arm].columns
            for axes, name in zip(panels[1], ('gap', 'cosine'), strict=True):
                axes.plot(columns['return'], columns[name], line, color=color, label=label)
    panels[1, 0].set(
        yscale='log',
        title='Drift 1: the bound leaves the likelihood',
        ylabel='mean of log pi(a) - ELBO(a)  [nats, log scale]',
    )
    panels[1, 1].set(
        title='Drift 2: the update leaves the policy gradient',
        ylabel="cosine of the bound's gradient with the true one",
    )
    for axes in panels[1]:
        axes.set_xlabel('expected reward reached (learning goes to the right)')
        axes.grid(alpha=0.3)
    panels[1, 0].legend(loc='lower right', fontsize=8)
    figure.suptitle('One action, exact gradients: what policy improvement does to a flow policy')
    return _save(plt, figure, path)


def _draw_policy(axes, bandit: Bandit, history: BanditHistory) -> None:
    """Draw reward, the policy before and after, and the density its bound stands for."""
    color, _, name = _DRAWN[history.arm]
    step = history.step_at_return(EQUAL_RETURN)
    reached = history.columns['return'][step]
    noise = np.linspace(bandit.noise[0], bandit.noise[-1], 2001)  # a curve without corners
    x = np.linspace(-2.6, 3.0, 400)
    axes.fill_between(x, 0, reward(x)[0], color=GREY, alpha=0.25, lw=0, label='reward')
    for theta, line_color, label in (
        (history.thetas[0], 'black', 'policy before'),
        (history.thetas[step], color, f'policy after {step} steps, reward {reached:.2f}'),
    ):
        policy = bandit.policy(theta, noise)
        axes.plot(policy.actions, np.exp(policy.log_prob), color=line_color, label=label)
    bound = at(policy.actions, bandit.bounds['elbo'].value(history.thetas[step]))
    axes.plot(policy.actions, np.exp(bound), ':', color=color, label='exp(ELBO) after')
    gap = history.columns['gap'][step]
    axes.set(
        xlim=(x[0], x[-1]),
        title=f'{name}: gap {gap:.2g} nats',
        xlabel='action',
        ylabel='probability density; reward',
    )
    axes.grid(alpha=0.3)
    axes.legend(loc='upper left', fontsize=8)


def _save(plt, figure, path: Path) -> Path:
    try:
        figure.savefig(path, dpi=110)
    except OSError as error:
        raise UserError(
            f'cannot write {path}: {error.strerror}; give a folder that can be written'
        ) from None
    finally:
        plt.close(figure)
    return Path(path)
