# SPDX-License-Identifier: Apache-2.0
"""Takes messages where the executor cannot: in a callback that has to wait for something."""

from __future__ import annotations

from rclpy.subscription import Subscription

# More than any queue of a sensor holds; a publisher without pause must not keep the caller.
MOST = 100


def take(subscription: Subscription) -> int:
    """Call back for each message that has arrived, as the executor would; return how many.

    Only on the executor's own thread, or while it does not spin. The executor finds nothing to take
    later and goes on. The callback must take the message alone.
    """
    for count in range(MOST):
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
        if taken is None:
            return count
        subscription.callback(taken[0])
    return MOST
