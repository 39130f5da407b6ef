# SPDX-License-Identifier: Apache-2.0
"""What `dipod doctor` tries out, each in a process of its own: a crash here is an answer, too.

`python -m dipod_ros.cli._doctor_probes NAME` prints one JSON object of findings as its last line.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

DDS_TIMEOUT_S = 8.0
TOPIC = 'dipod_doctor'


def rclpy() -> dict[str, Any]:
    """Return rclpy's place and the middleware that loads."""
    import rclpy

    rclpy.init(args=[])
    try:
        rmw = rclpy.get_rmw_implementation_identifier()
    finally:
        rclpy.shutdown()
    return {'path': str(Path(rclpy.__file__).parent), 'rmw': rmw}


def talk() -> dict[str, Any]:
    """Publish until killed or the time is over."""
    import rclpy
    from std_msgs.msg import String

    rclpy.init(args=[])
    publisher = rclpy.create_node('dipod_doctor_talker').create_publisher(String, TOPIC, 10)
    end = time.monotonic() + DDS_TIMEOUT_S
    while time.monotonic() < end:
        publisher.publish(String(data='hello'))
        time.sleep(0.05)
    return {}


def listen() -> dict[str, Any]:
    """Return the seconds until something of talk() was heard, or null."""
    import rclpy
    from std_msgs.msg import String

    rclpy.init(args=[])
    heard = []
    node = rclpy.create_node('dipod_doctor_listener')
    node.create_subscription(String, TOPIC, heard.append, 10)
    start = time.monotonic()
    while not heard and time.monotonic() - start < DDS_TIMEOUT_S:
        rclpy.spin_once(node, timeout_sec=0.1)
    return {'seconds': round(time.monotonic() - start, 2) if heard else None}


def mujoco() -> dict[str, Any]:
    """Compile the shipped arm and step it."""
    import mujoco

    from dipod_ros.resources import resource

    model = mujoco.MjModel.from_xml_path(str(resource('sim/arm7.xml')))
    mujoco.mj_step(model, mujoco.MjData(model))
    return {'version': mujoco.__version__}


def gl() -> dict[str, Any]:
    """Make an offscreen OpenGL context as the renderer does."""
    from dipod_ros.sim.gl import offscreen_context

    return {'library': type(offscreen_context(64, 64)).__module__.rsplit('.', 1)[-1]}


def torch() -> dict[str, Any]:
    """Return torch's version, threads and GPU."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        'version': torch.__version__,
        'threads': torch.get_num_threads(),
        'gpu': torch.cuda.get_device_name(0) if cuda else None,
    }


def onnxruntime() -> dict[str, Any]:
    """Return the version and the execution providers."""
    import onnx
    import onnxruntime

    return {
        'version': onnxruntime.__version__,
        'onnx': onnx.__version__,
        'providers': onnxruntime.get_available_providers(),
    }


def video() -> dict[str, Any]:
    """Write a short MP4 as `dipod eval --video` does."""
    import tempfile

    import cv2
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'probe.mp4'
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, (64, 64))
        for _ in range(5):
            writer.write(np.zeros((64, 64, 3), np.uint8))
        writer.release()
        if not path.is_file() or not path.stat().st_size:
            raise RuntimeError('cv2 opened no MP4 writer')
    return {'version': cv2.__version__}


def engine(name: str) -> dict[str, Any]:
    """Load a backend's class and all that it imports."""
    from dipod_ros.serving.engines.backends import BACKENDS

    return {'class': BACKENDS[name].load().__name__}


def version(name: str) -> dict[str, Any]:
    """Import a package and return its version."""
    return {'version': getattr(importlib.import_module(name), '__version__', 'unknown')}


def main() -> None:
    """Run the probe that the command line names."""
    # Some libraries print to stdout while they load; the findings come last.
    name, *arguments = sys.argv[1:]
    probes = (rclpy, talk, listen, mujoco, gl, torch, onnxruntime, video, engine, version)
    try:
        findings = {p.__name__: p for p in probes}[name](*arguments)
    except Exception as error:
        findings = {'error': (str(error) or type(error).__name__).splitlines()[0]}
    print('\n' + json.dumps(findings), flush=True)
    # A broken library may hang or crash while it unloads; the answer is out.
    os._exit(0)


if __name__ == '__main__':
    main()
