# SPDX-License-Identifier: Apache-2.0
"""The bare command stream: a process that does nothing but publish at a rate.

`python -m dipod_ros.cli.bench_ticker RATE_HZ SIZE PRIORITY --ros-args -r __ns:=NAMESPACE`. It ends
with its stdin, so it cannot outlive the process that started it, however that ends.
"""

from __future__ import annotations

import gc
import sys
import threading
import time

import numpy as np
from rclpy.node import Node
from std_msgs.msg import Float64MultiArray

from dipod_ros.cli.bench_pong import end_with_stdin
from dipod_ros.ros import messages, qos
from dipod_ros.ros.runtime import run_node
from dipod_ros.ros.scheduling import RealTimePriority, sharpen_sleep

TOPIC = 'bench_ticks'


class Ticker(Node):
    """Publishes an array of zeros on a thread that sleeps until the steady clock says when."""

    def __init__(self) -> None:
        super().__init__('ticker')
        self._period_s = 1 / float(sys.argv[1])
        self._values = np.zeros(int(sys.argv[2]))
        self._priority = RealTimePriority(int(sys.argv[3]), self.get_logger().warning)
        self._publisher = self.create_publisher(Float64MultiArray, TOPIC, qos.COMMAND)
        threading.Thread(target=end_with_stdin, daemon=True).start()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop publishing."""
        self._closing.set()
        self._thread.join(5.0)

    def _tick(self) -> None:
        self._priority.raise_this_thread()
        sharpen_sleep()
        gc.disable()
        msg, due = Float64MultiArray(), time.monotonic()
        while not self._closing.is_set():
            msg.data = messages.doubles(self._values)
            self._publisher.publish(msg)
            due = max(due + self._period_s, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0.0))


def main() -> int:
    """Publish until stdin is closed."""
    return run_node(Ticker)


if __name__ == '__main__':
    raise SystemExit(main())
