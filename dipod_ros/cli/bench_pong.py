# SPDX-License-Identifier: Apache-2.0
"""The other end of the bare round trip: a process that sends every JointState back as it came.

`python -m dipod_ros.cli.bench_pong --ros-args -r __ns:=NAMESPACE`. It ends with its stdin, so it
cannot outlive the process that started it, however that ends.
"""

from __future__ import annotations

import os
import threading

from rclpy.node import Node
from sensor_msgs.msg import JointState

from dipod_ros.ros import qos
from dipod_ros.ros.runtime import request_exit, run_node

PING, PONG = 'bench_ping', 'bench_pong'


class Pong(Node):
    """Publishes on one topic what it hears on the other, on the executor that all nodes use."""

    def __init__(self) -> None:
        super().__init__('pong')
        publisher = self.create_publisher(JointState, PONG, qos.STATE)
        self.create_subscription(JointState, PING, publisher.publish, qos.STATE)
        # Here, where `run_node` already listens to `request_exit`.
        threading.Thread(target=end_with_stdin, daemon=True).start()


def end_with_stdin() -> None:
    """Ask this process to end when its stdin is closed."""
    # Not sys.stdin: its lock, held here, would be fatal to an interpreter that ends by a signal.
    while os.read(0, 4096):
        pass
    request_exit()


def main() -> int:
    """Answer until stdin is closed."""
    return run_node(Pong)


if __name__ == '__main__':
    raise SystemExit(main())
