# SPDX-License-Identifier: Apache-2.0
"""One policy-gradient estimator per file; they share rollouts, critic, networks and the loop."""
