# SPDX-License-Identifier: Apache-2.0
"""`dipod toys`: double drift in two problems small enough to be solved without sampling."""

from __future__ import annotations

import argparse
from pathlib import Path

from dipod_ros.cli.output import add_json_argument, write_json

HELP = 'show double drift in two exact toys, as tables and pictures'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.add_argument('--plot-dir', metavar='DIR', help='write two pictures (PNG) into DIR')
    add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Run both toys, print their tables, then write what was asked for."""
    import torch

    # Six logits: more threads only wait for each other.
    torch.set_num_threads(1)
    if args.plot_dir:
        _make_folder(Path(args.plot_dir))
    tokens, token_results = _two_token()
    bandit, histories, bandit_results = _bandit()
    if args.plot_dir:
        from dipod_ros.learning.toys.pictures import draw_bandit, draw_two_token

        folder = Path(args.plot_dir)
        print(f'picture: {draw_two_token(folder / "toy_two_token.png", tokens)}')
        print(f'picture: {draw_bandit(folder / "toy_bandit.png", bandit, histories)}')
    if args.json:
        write_json(args.json, {'two_token': token_results, 'bandit': bandit_results})
    return 0


def _two_token(config=None):
    """Print the first table; return the lines to draw and the results."""
    from dipod_ros.learning.toys import two_token as tt

    config = config or tt.TwoTokenConfig()
    paper = {score: tt.paper_runs(score, config=config) for score in ('fpo', 'spg', 'true')}
    random = tt.random_runs(config=config)
    results = {
        'steps': config.steps,
        'paper': [
            {'score': score, **_ends(history, beta, slice(i, i + 1))}
            for score, history in paper.items()
            for i, beta in enumerate(tt.BETAS)
        ],
        'random': [
            {'score': 'fpo, mean of 12 random', **_ends(random, beta, slice(12 * i, 12 * (i + 1)))}
            for i, beta in enumerate(tt.BETAS)
        ],
    }
    print(f'Two tokens (arXiv 2606.13795, section 4.1) after {config.steps} steps; gaps in nats')
    print(f'  {"score":22} {"beta":>6}  gap(AA)  mean gap  cosine  reward')
    for row in results['paper'] + results['random']:
        print(
            f'  {row["score"]:22} {row["beta"]:6g} {row["gap_aa"]:8.4f} {row["gap"]:9.4f}'
            f' {row["cosine"]:7.3f} {row["reward"]:7.4f}'
        )
    drawn = {
        'FPO (beta 0)': (paper['fpo'], 0),
        'DiPOD (beta 0.2)': (paper['fpo'], tt.BETAS.index(0.2)),
        'SPG (beta 0)': (paper['spg'], 0),
        'true policy gradient': (paper['true'], 0),
    }
    return drawn, results


def _ends(history, beta: float, runs: slice) -> dict[str, float]:
    """Return beta and the last measurements, the mean over some runs."""
    names = ('gap_aa', 'gap', 'cosine', 'reward')
    return {'beta': beta, **{n: float(getattr(history, n)[-1, runs].mean()) for n in names}}


def _bandit(config=None):
    """Print the second table; return the bandit, its histories and the results."""
    from tqdm import tqdm

    from dipod_ros.learning.toys.bandit import ARMS, Bandit
    from dipod_ros.learning.toys.pictures import EQUAL_RETURN

    bandit = Bandit(config)
    histories = [bandit.train(arm) for arm in tqdm(ARMS, desc='bandit', unit='arm', leave=False)]
    print(f'Flow bandit where the return first reaches {EQUAL_RETURN}; gaps in nats')
    print(f'  {"arm":22}  steps  return      gap  gap, A<0  cosine  entropy')
    arms = []
    for history in histories:
        step = history.step_at_return(EQUAL_RETURN)
        row = {name: float(column[step]) for name, column in history.columns.items()}
        reached = row['return'] >= EQUAL_RETURN
        print(
            f'  {history.arm.name:22} {step:6d} {row["return"]:7.3f} {row["gap"]:8.3f}'
            f' {row["gap_negative"]:9.3f} {row["cosine"]:7.3f} {row["entropy"]:8.3f}'
            f'{"" if reached else "  (not reached)"}'
        )
        name = history.arm.name
        arms.append(
            {'arm': name, 'step': step, 'reached': reached, **row, 'history': history.columns}
        )
    return bandit, histories, {'equal_return': EQUAL_RETURN, 'arms': arms}


def _make_folder(folder: Path) -> None:
    from dipod_ros.errors import UserError

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f'cannot make {folder}: {error.strerror}; give --plot-dir a folder'
        ) from None
