# SPDX-License-Identifier: Apache-2.0
"""What our TensorRT code calls exists, as far as wheels can tell that were read as files.

No GPU runs these tests. data/tensorrt_api.json says which wheels were read and how
(data/extract_tensorrt_api.py); make it again when the engines call something new.
"""

import ast
import importlib.util
import json
from pathlib import Path

import pytest

from dipod_ros.policy.spec import SamplerSpec

DATA = Path(__file__).resolve().parents[1] / 'data'
API = json.loads((DATA / 'tensorrt_api.json').read_text())
ENGINES = Path(__file__).resolve().parents[2] / 'dipod_ros/serving/engines'
# Looked up with a default, since one of the versions lacks it.
OPTIONAL = {'EXPLICIT_BATCH'}


@pytest.fixture(scope='module')
def extract():
    found = importlib.util.spec_from_file_location('extract', DATA / 'extract_tensorrt_api.py')
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_versions_of_jetpack_6_and_of_today_were_read():
    versions = sorted(API['bindings'])
    assert versions[0].startswith('10.3.') and versions[-1].startswith('11.')
    for version, read in API['bindings'].items():
        assert version in read['wheel']


@pytest.mark.parametrize('version', sorted(API['bindings']))
def test_every_name_that_we_use_is_in_every_version(extract, version):
    listed = API['bindings'][version]['names']
    used = set(extract.names_used())
    # The walk finds what matters: a rename in our code must not empty the comparison.
    assert {'Refitter', 'set_named_weights', 'execute_async_v3', 'TF32', 'desc'} <= used
    assert used <= listed.keys(), 'make data/tensorrt_api.json again'
    assert {n for n in used if not listed[n]} == set()
    assert {n for n, there in listed.items() if not there} <= OPTIONAL


def test_weak_typing_which_tensorrt_11_dropped_is_not_used(extract):
    assert not {'FP16', 'INT8', 'BF16', 'device_memory_size'} & set(extract.names_used())


def test_torch_tensorrt_is_called_with_parameters_that_it_has():
    known = API['torch_tensorrt']
    calls = {}
    for node in ast.walk(ast.parse((ENGINES / 'torch_tensorrt_engine.py').read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith('torch_tensorrt.'):
            calls[node.func.attr] = {k.arg for k in node.keywords}, len(node.args)
    assert calls.keys() == {'compile', 'refit_module_weights'}
    for name, (keywords, positional) in calls.items():
        assert keywords <= set(known[name]), name
        assert not keywords & set(known[name][:positional]), name


# Removed from the graph before conversion (lowering/passes/remove_assert_nodes.py).
REMOVED = {'_assert_tensor_metadata'}
NETWORKS = {
    'mlp': {'kind': 'residual_mlp', 'width': 16, 'depth': 2},
    'dit': {'kind': 'dit', 'width': 16, 'depth': 1, 'heads': 2},
    'unet': {'kind': 'unet', 'width': 8, 'depth': 2},
}


# An odd horizon is padded by the U-Net; to the others it is a size like any other.
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize(('network', 'horizon'), [*((n, 4) for n in NETWORKS), ('unet', 5)])
def test_torch_tensorrt_has_a_converter_for_every_operator_of_the_sampler(
    network, precision, horizon
):
    torch = pytest.importorskip('torch')
    from checkpoints import make_policy

    from dipod_ros.policy.export import DTYPES, UnrolledSampler

    policy = make_policy(
        0, network=NETWORKS[network], horizon=horizon, sampler=SamplerSpec('sde', 2)
    )
    sampler = UnrolledSampler(policy, DTYPES[precision]).eval()
    example = (
        torch.zeros(1, policy.spec.observation_size),
        torch.zeros(1, policy.spec.noise_size),
    )
    # The compiler decomposes to core operators before it converts, with a table of its own.
    program = torch.export.export(sampler, example).run_decompositions()
    nodes = [n.target for n in program.graph.nodes if n.op == 'call_function']
    used = {t.__name__.split('.')[0] for t in nodes if hasattr(t, '_schema')}
    known = API['torch_tensorrt']
    covered = {*known['converters'], *known['decomposed'], *known['evaluators'], *REMOVED}
    assert {'addmm', 'sigmoid'} <= used
    assert used - covered == set()
