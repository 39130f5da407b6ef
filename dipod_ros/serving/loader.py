# SPDX-License-Identifier: Apache-2.0
"""From the name of a checkpoint to a policy that is fit to act on this robot. No ROS."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipod_ros.policy.checkpoint import (
    Checkpoint,
    CheckpointError,
    Manifest,
    load,
    read_manifest,
    resolve,
)
from dipod_ros.policy.limits import JointLimits
from dipod_ros.serving.engines.base import PolicyEngine, check_golden
from dipod_ros.serving.engines.encoder import EncoderFactory
from dipod_ros.serving.engines.select import EngineFactory
from dipod_ros.serving.observation import ObservationLayout

if TYPE_CHECKING:
    from dipod_ros.serving.vision import Eyes


@dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """A checkpoint with the engine that runs it, checked and warm."""

    manifest: Manifest
    engine: PolicyEngine
    layout: ObservationLayout
    eyes: Eyes | None = None  # of a policy with image streams


class PolicyLoader:
    """Validates checkpoints against one robot, and builds their engines."""

    def __init__(
        self,
        limits: JointLimits,
        control_period_s: float,
        model_dirs: Sequence[Path],
        engines: EngineFactory,
    ) -> None:
        """Take the robot, the folders that checkpoints may come from, and the engine factory."""
        self._limits = limits
        self._control_period_s = control_period_s
        self._model_dirs = tuple(model_dirs)
        self.engines = engines
        self._encoders = EncoderFactory(engines.name, engines.threads)
        self._building = threading.Lock()  # the factory keeps the last engine of each graph

    def validate(self, name_or_path: str, sha256: str = '') -> Manifest:
        """Read a manifest and check it against the robot, without reading weights.

        Raises CheckpointError: not there, outside the model folders, another format, joints,
        control period or limits, or not the `sha256` that was announced; and nothing else, because
        a file that anybody may have written must not end whoever acts.
        """
        try:
            return self._validated(name_or_path, sha256)
        except CheckpointError:
            raise
        except Exception as error:
            reason = str(error).split('\n')[0]
            raise CheckpointError(
                f'{name_or_path[:200]} cannot be used: {type(error).__name__}: {reason}'
            ) from error

    def _validated(self, name_or_path: str, sha256: str) -> Manifest:
        manifest = read_manifest(resolve(name_or_path, self._model_dirs))
        if sha256 and not re.fullmatch(r'[0-9a-f]{64}', sha256):
            raise CheckpointError(f'sha256 {sha256!r} is not 64 hexadecimal digits')
        if sha256 and sha256 != manifest.sha256:
            raise CheckpointError(
                f'{manifest.path} holds sha256 {manifest.sha256[:12]}..., '
                f'announced was {sha256[:12]}...'
            )
        reason = manifest.spec.mismatch(self._limits, self._control_period_s)
        if reason:
            raise CheckpointError(f'{manifest.path.name}: {reason}')
        return manifest

    def build(self, manifest: Manifest) -> LoadedPolicy:
        """Load the weights, build the engine, run the golden check.

        Raises CheckpointError or EngineError; nothing that is acting is touched. What is built is
        what was validated: the sha256 is of the weights alone, so the spec is compared too.
        """
        checkpoint = load(manifest.path)
        same_weights = checkpoint.manifest.sha256 == manifest.sha256
        if not same_weights or checkpoint.spec.to_dict() != manifest.spec.to_dict():
            raise CheckpointError(f'{manifest.path} changed since it was requested; ask again')
        with self._building:
            engine = self.engines.build(checkpoint)
            eyes = self._eyes(checkpoint)
        check_golden(engine, checkpoint.manifest.golden)
        layout = ObservationLayout(checkpoint.spec, self._limits.joints)
        return LoadedPolicy(checkpoint.manifest, engine, layout, eyes)

    def _eyes(self, checkpoint: Checkpoint) -> Eyes | None:
        images = checkpoint.spec.images
        if not images:
            return None
        from dipod_ros.serving.vision import Eyes  # loads OpenCV

        return Eyes(images, self._encoders.build(checkpoint))
