# SPDX-License-Identifier: Apache-2.0
"""A node of the test's own beside the one under test: hears, waits, calls services."""

import threading
import time

import rclpy
from node_process import TIMEOUT_S
from rclpy.node import Node
from std_srvs.srv import Trigger

from dipod_ros.ros import runtime


class Peer(Node):
    """Spins on a thread of its own; whatever it hears is news, at which `wait` looks again."""

    services_of = ''  # the node whose services `call` calls

    def __init__(self, context, name):
        super().__init__(name, context=context)
        self.news = threading.Condition()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)

    def begin(self):
        """Start to listen: the last thing that a constructor does."""
        self._thread.start()

    def close(self):
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._thread.join(5.0)
        self.destroy_node()

    def wait(self, condition, timeout_s=TIMEOUT_S):
        """Block until `condition()` is true and return it; news of any kind makes it look again."""
        with self.news:
            assert self.news.wait_for(condition, timeout_s), f'waited {timeout_s} s in vain'
            return condition()

    def wait_until(self, connected, what):
        """Poll: discovery has no event in rclpy."""
        deadline = time.monotonic() + TIMEOUT_S
        while not connected():
            assert time.monotonic() < deadline, f'{what} did not connect'
            time.sleep(0.02)

    def call(self, service, kind=Trigger, request=None, **fields):
        """Call a service, with a request or with its fields, and return the response."""
        client = self.create_client(kind, f'{self.services_of}/{service}')
        assert client.wait_for_service(TIMEOUT_S), f'no service {service}'
        future = client.call_async(request or kind.Request(**fields))
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(TIMEOUT_S), f'no answer from {service}'
        self.destroy_client(client)
        return future.result()

    def _add(self, kept, item):
        with self.news:
            kept.append(item)
            self.news.notify_all()

    def _spin(self):
        executor = runtime.make_executor(self.context)
        executor.add_node(self)
        while not self._stopping.is_set() and self.context.ok():
            runtime.spin_slice(executor)
        executor.remove_node(self)
        executor.shutdown()


def make_context():
    context = rclpy.Context()
    rclpy.init(context=context)
    return context
