# SPDX-License-Identifier: Apache-2.0
"""The benchmark of methods of online learning: what is run, how it is judged, what is reported."""
