# SPDX-License-Identifier: Apache-2.0
"""Few-step students of a flow: distilled at the end, or kept fresh while it learns."""
