# SPDX-License-Identifier: Apache-2.0
"""Demonstrations: from scripted experts and from recordings, in memory and on disk."""
