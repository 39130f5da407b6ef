# SPDX-License-Identifier: Apache-2.0
"""Runs `*.launch.yaml` files on machines without ROS 2's own launch, which is not on PyPI.

text.py       substitutions and typed values
file.py       YAML to actions; refuses what is not supported
arguments.py  the arguments that a file takes
plan.py       actions to nodes
node.py       a node's command line
runner.py     starts the nodes, watches and ends them
child.py      ties a node's life to the runner's
"""

from dipod_ros.ros.launch_runner.runner import LaunchRunner

__all__ = ['LaunchRunner']
