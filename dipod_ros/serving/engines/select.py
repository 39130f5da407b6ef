# SPDX-License-Identifier: Apache-2.0
"""Picks an engine by name and builds it for checkpoints, refitting where the graph is the same."""

from __future__ import annotations

from collections import OrderedDict

from dipod_ros.errors import UserError
from dipod_ros.policy.checkpoint import Checkpoint
from dipod_ros.serving.engines import verified
from dipod_ros.serving.engines.backends import BACKENDS, NAMES, Backend
from dipod_ros.serving.engines.base import EngineError, EngineOptions, PolicyEngine, check_golden
from dipod_ros.serving.engines.cuda_driver import find_gpu
from dipod_ros.serving.engines.graph_cache import graph_key

CHOICES = ('auto', *NAMES)
# Graphs whose last engine is kept for a refit: the acting policy's, its candidate's, and those
# before them. Each holds its weights.
MAX_GRAPHS = 4


class EngineFactory:
    """Builds engines of one kind; knows why it is that kind.

    `auto` takes the fastest GPU backend that `dipod gpu-check` saw working on this GPU, else ONNX
    Runtime, else PyTorch; one that cannot build a checkpoint makes way for the next.
    """

    def __init__(
        self,
        choice: str = 'auto',
        threads: int = 1,
        precision: str = 'fp32',
        guided: bool = False,
    ) -> None:
        """Pick the engine now; raises EngineError when the one asked for cannot work here.

        guided: build engines that can continue known steps, for `seam: rtc`.
        """
        if choice not in CHOICES:
            raise EngineError(f'engine {choice!r} is not one of {list(CHOICES)}')
        self.options = EngineOptions(threads, precision, guided)
        self.threads = threads
        automatic = choice == 'auto'
        self._candidates = _automatic(self.options) if automatic else [(choice, 'asked for')]
        self.name, self.reason = self._candidates[0]
        _require(self.name, self.options)
        self._class = BACKENDS[self.name].load()
        # The last engine of each of the graphs used last; usually there is one graph per robot.
        self._by_graph: OrderedDict[str, PolicyEngine] = OrderedDict()

    def build(self, checkpoint: Checkpoint) -> PolicyEngine:
        """Return an engine for a checkpoint; raises EngineError or CheckpointError.

        Whatever a backend raises, running out of memory included, comes as an EngineError. Nothing
        that was built before is touched. Image encoders are other engines' business (encoder.py).
        """
        checkpoint = checkpoint.without_encoders()
        while True:
            try:
                return self._build(checkpoint)
            except UserError as error:
                if not self._give_way(str(error)):
                    raise
            except Exception as error:
                reason = f'{type(error).__name__}: {(str(error).splitlines() or [""])[0]}'
                if not self._give_way(reason):
                    raise EngineError(f'engine {self.name} cannot be built: {reason}') from error

    def _build(self, checkpoint: Checkpoint) -> PolicyEngine:
        key = graph_key(checkpoint.spec, self.options.guided)
        known = self._by_graph.get(key)
        if known is None:
            engine = self._class.build(checkpoint, self.options)
        else:
            engine = _refitted(known, checkpoint)
            engine = engine or self._class.build(checkpoint, self.options)
        self._by_graph[key] = engine
        self._by_graph.move_to_end(key)
        while len(self._by_graph) > MAX_GRAPHS:
            self._by_graph.popitem(last=False)
        return engine

    def _give_way(self, reason: str) -> bool:
        """Go on with the next candidate of `auto`, before anything was built; say whether."""
        if len(self._candidates) < 2 or self._by_graph:
            return False
        failed, _ = self._candidates.pop(0)
        self.name, why = self._candidates[0]
        self.reason = f'{why}; {failed} failed: {reason}'
        self._class = BACKENDS[self.name].load()
        return True


def _refitted(known: PolicyEngine, checkpoint: Checkpoint) -> PolicyEngine | None:
    """Return a refitted engine; None when a new build may do better.

    A GPU runtime may lose weights in a refit (TensorRT 11.3 documents biases of products that are
    taken as zero), so there the golden values decide, and a rebuild follows while the old one acts.
    """
    if not getattr(known, 'rebuild_after_failed_refit', False):
        return known.refit(checkpoint.weights)
    try:
        engine = known.refit(checkpoint.weights)
        check_golden(engine, checkpoint.manifest.golden)
        return engine
    except EngineError:
        return None


def _require(name: str, options: EngineOptions) -> None:
    backend = BACKENDS[name]
    missing = backend.missing()
    if missing:
        raise EngineError(
            f'engine {name}: {", ".join(missing)}; {backend.advice()}; or use engine: auto'
        )
    if options.precision not in backend.precisions:
        raise EngineError(
            f'engine {name} runs {" or ".join(backend.precisions)} here, not {options.precision}'
        )
    if options.guided and not backend.guided:
        able = [b.name for b in BACKENDS.values() if b.guided]
        raise EngineError(
            f'engine {name} cannot guide the sampler: use one of the engines {able}, or seam '
            'replace or ensemble'
        )


def _suits(backend: Backend, options: EngineOptions) -> bool:
    return options.precision in backend.precisions and (backend.guided or not options.guided)


def _automatic(options: EngineOptions) -> list[tuple[str, str]]:
    """Return the backends that `auto` tries, best first, each with the reason."""
    found, note = [], ''
    gpu = find_gpu()
    if gpu is not None:
        checked = verified.read(gpu)
        for name in sorted(checked, key=checked.get):
            backend = BACKENDS.get(name)
            if backend and _suits(backend, options) and not backend.missing():
                found.append((name, f'auto: passed dipod gpu-check on {gpu.name}'))
        if not found:
            note = f'; {gpu.name} is here, and dipod gpu-check would say whether to use it'
    missing = BACKENDS['onnx'].missing()
    if not missing:
        found.append(('onnx', f'auto: fastest on a CPU{note}'))
    why = f'auto: {", ".join(missing)} ({BACKENDS["onnx"].advice()})' if missing else 'auto: last'
    return [*found, ('torch', why + (note if missing else ''))]
