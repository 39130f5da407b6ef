# SPDX-License-Identifier: Apache-2.0
"""Demonstrated decisions as a policy would make them: one chunk after the other. numpy, no ROS.

A recording has a decision at every control step, or every few: chunks that overlap. A policy acts a
chunk to its end before it decides again. The overlap itself says how far apart decisions are.
"""

from __future__ import annotations

import numpy as np

from dipod_ros.errors import UserError


def chunk_chains(
    actions: np.ndarray, episodes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows, in which every decision begins where the chunk of the one before ends.

    An episode of overlapping chunks becomes several, which begin one decision after another; other
    episodes stay as they are. Either all episodes overlap or none: chunks that happen to differ
    where they meet say nothing of how far apart they are.

    Args:
        actions: chunks [M, H, A], episode after episode.
        episodes: [M], the episode of each.

    Returns:
        The order of the rows [M]; whether each, in this order, is the last of its chain [M]; and
        how many chunks its episode is old [M].

    Raises:
        UserError: where no decision of an episode begins at the end of another's chunk, and where
            some episodes overlap and others do not.

    """
    horizon = actions.shape[1]
    bounds = np.flatnonzero(episodes[1:] != episodes[:-1]) + 1
    parts = np.split(np.arange(len(episodes)), bounds)
    strides = [_overlap(actions[part]) if len(part) > 1 else 0 for part in parts]
    if any(strides) and None in strides:
        raise UserError(
            'some of the demonstrations have chunks that overlap, others do not: keep sessions '
            'recorded with different strides in files of their own, or give the Q critic none'
        )
    chains, ages = [], []
    for part, stride in zip(parts, strides, strict=True):
        every = 1
        if stride:
            if horizon % stride:
                raise UserError(
                    f'the demonstrations have a decision every {stride} control steps and chunks '
                    f'of {horizon}, so that none begins where another ends: record them with a '
                    f'stride that divides {horizon}, or give the Q critic none'
                )
            every = horizon // stride
        age = np.arange(len(part)) / every
        for begin in range(min(every, len(part))):
            chains.append(part[begin::every])
            ages.append(age[begin::every])
    last = np.zeros(len(episodes), dtype=bool)
    last[np.cumsum([len(chain) for chain in chains]) - 1] = True
    return np.concatenate(chains), last, np.concatenate(ages)


def _overlap(chunks: np.ndarray) -> int | None:
    """Return by how many steps each chunk [M, H, A] is the one before moved on, None if it is not.

    What two chunks say of the same steps is the same to the last bit: they were cut out of one
    motion. 0 is for one motion throughout, standing still, which fits any number of steps.
    """
    horizon = chunks.shape[1]
    if np.array_equal(chunks, np.broadcast_to(chunks[:1, :1], chunks.shape)):
        return 0
    for steps in range(1, horizon):
        if np.array_equal(chunks[1:, : horizon - steps], chunks[:-1, steps:]):
            return steps
    return None
