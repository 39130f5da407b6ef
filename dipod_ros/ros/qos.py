# SPDX-License-Identifier: Apache-2.0
"""The quality-of-service profiles of every topic here, each with its reason."""

from __future__ import annotations

from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSProfile,
    QoSReliabilityPolicy,
    qos_profile_sensor_data,
)


def _profile(depth: int, *, reliable: bool = True, latched: bool = False) -> QoSProfile:
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=(
            QoSReliabilityPolicy.RELIABLE if reliable else QoSReliabilityPolicy.BEST_EFFORT
        ),
        durability=(
            QoSDurabilityPolicy.TRANSIENT_LOCAL if latched else QoSDurabilityPolicy.VOLATILE
        ),
    )


# Subscribing to sensors: best effort matches any publisher, reliable or not, and never makes a
# driver wait for a slow reader.
SENSOR = qos_profile_sensor_data

# Reading a camera in real time: only the newest picture counts, and a queue of them is work.
IMAGE = _profile(1, reliable=False)

# Publishing state (joint_states, task streams), and reading it in lockstep where a lost sample
# would stall the world until the resend. Reliable like joint_state_broadcaster, so that both
# reliable and best-effort readers match.
STATE = _profile(10)

# Commands: only the newest counts, but it must arrive.
COMMAND = _profile(1)

# Reading a command stream to judge it: all of it, in order.
STREAM = _profile(100)

# Outcomes are summed up by the reader: none may be lost.
OUTCOME = _profile(100)

# Status and announcements: a late joiner gets the last one, and an old one is never queued up.
LATCHED = _profile(1, latched=True)

# An e-stop, which has to be heard from any publisher: reliable ones with every message, best-effort
# ones, which a reliable reader does not match, and transient-local ones with what they said before
# the reader was there. Of the latter only the last counts: a button that was let go is no stop.
ESTOP_FROM_ANY = _profile(10, reliable=False)
ESTOP = (_profile(10), ESTOP_FROM_ANY, LATCHED)

# Decisions for the trainer: deep enough for an update's pause; records carry numbers, so that what
# is lost beyond that is counted.
REPLAY = _profile(1000)

# /clock as rclpy's time source reads it.
CLOCK = _profile(1, reliable=False)
