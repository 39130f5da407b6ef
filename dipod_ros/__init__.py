# SPDX-License-Identifier: Apache-2.0
"""Diffusion policies that act, and keep learning, on a ROS 2 robot."""

__version__ = '0.1.0'
