# SPDX-License-Identifier: Apache-2.0
"""Instruments for the two drifts of DiPOD (arXiv 2606.13795, section 3.1). torch, no ROS.

likelihood.py  exact log-likelihoods, of what the sampler did and of any action
bound.py       the evidence bound in nats
alignment.py   the gradient that training follows against the true policy gradient
report.py      all of them for one policy on its own rollouts
picture.py     reports of several versions as a picture
"""
