# SPDX-License-Identifier: Apache-2.0
"""What a dense reward wants that a reward at the end of an episode does not. No torch.

Of a gait, the few decisions that a fall follows would be half of an update: 1 % of them have 56 %
of the squares. And the values of random weights are far too low for episodes of 250 decisions, so
that seven updates take almost every action for a good one. With a reward at the end, both cost
success or do nothing (docs/dipod.md#dense-rewards).
"""

from __future__ import annotations

from typing import Any

# Of an UpdateConfig and of a CriticConfig.
DENSE_UPDATE: dict[str, Any] = {'advantage_clip': 3.0}
DENSE_CRITIC: dict[str, Any] = {'refresh': True, 'first_sweeps': 4}
