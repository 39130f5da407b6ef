# SPDX-License-Identifier: Apache-2.0
"""Writes tensorrt_api.json from wheels read as files; nothing of them is imported or run.

    python test/data/extract_tensorrt_api.py WHEEL... > test/data/tensorrt_api.json

Takes wheels of tensorrt bindings (any number) and of torch_tensorrt, whose libraries need a GPU
driver to load. From bindings: which of the names that our code uses stand as C strings in the
binary, which is how pybind11 registers what Python sees. From torch_tensorrt: the aten operators
that have a converter, those decomposed before conversion, and the parameters of two functions.
"""

import ast
import json
import re
import sys
import zipfile
from pathlib import Path

ENGINES = Path(__file__).resolve().parents[2] / 'dipod_ros' / 'serving' / 'engines'
SOURCES = ('tensorrt_plan.py',)
# Attributes of TensorRT's objects, as opposed to those of `trt` itself, are told by their owners.
OWNERS = {
    'builder', 'network', 'parser', 'config', 'cache', 'times', 'refitter', 'kind',
    '_engine', '_runtime', '_context',
}  # fmt: skip
CONVERTERS = 'torch_tensorrt/dynamo/conversion/aten_ops_converters.py'
EVALUATORS = 'torch_tensorrt/dynamo/conversion/ops_evaluators.py'
DECOMPOSITIONS = 'torch_tensorrt/dynamo/lowering/_decomposition_groups.py'


def names_used():
    """Return the names of TensorRT that our engines use, in three places of their syntax."""
    names = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse((ENGINES / source).read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                while isinstance(owner, ast.Call):
                    owner = owner.func
                root = owner
                while isinstance(root, ast.Attribute):
                    root = root.value
                last = getattr(owner, 'attr', getattr(owner, 'id', ''))
                ours = isinstance(root, ast.Name) and root.id == 'trt'
                if ours or last in OWNERS or last == 'get_error':
                    names.add(node.attr)
    return sorted(n for n in names if not n.startswith('__'))


def bindings(wheel):
    """Return which names the binary of a bindings wheel holds."""
    binary = wheel.read(next(n for n in wheel.namelist() if n.endswith('tensorrt.so')))
    # A string may be the tail of a longer one that the linker merged, so only its end is sure.
    names = [*names_used(), 'EXPLICIT_BATCH', 'STRONGLY_TYPED']
    return {name: name.encode() + b'\0' in binary for name in sorted(set(names))}


def operators(wheel, path, function):
    """Return the aten operators that decorators of one file name, without their overloads."""
    text = wheel.read(path).decode()
    if function is None:
        return sorted(set(re.findall(r'aten\.(\w+)', text)))
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == function:
            found |= set(re.findall(r'torch\.ops\.aten\.(\w+)', ast.unparse(node.args[0])))
    return sorted(found)


def parameters(wheel, path, function):
    """Return the parameter names of one function."""
    for node in ast.walk(ast.parse(wheel.read(path).decode())):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            given = node.args
            return [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    raise SystemExit(f'{path} has no {function}')


def main():
    """Read the wheels of the command line and print JSON."""
    result = {'bindings': {}, 'torch_tensorrt': {}}
    for path in sys.argv[1:]:
        name, version = Path(path).name.split('-')[:2]
        with zipfile.ZipFile(path) as wheel:
            if name == 'torch_tensorrt':
                result[name] = {
                    'wheel': Path(path).name,
                    'version': version,
                    'converters': operators(wheel, CONVERTERS, 'dynamo_tensorrt_converter'),
                    'evaluators': operators(wheel, EVALUATORS, None),
                    'decomposed': operators(wheel, DECOMPOSITIONS, None),
                    'compile': parameters(wheel, 'torch_tensorrt/dynamo/_compiler.py', 'compile'),
                    'refit_module_weights': parameters(
                        wheel, 'torch_tensorrt/dynamo/_refit.py', 'refit_module_weights'
                    ),
                }
            else:
                result['bindings'][version] = {
                    'wheel': Path(path).name,
                    'names': bindings(wheel),
                }
    json.dump(result, sys.stdout, indent=1, sort_keys=True)
    print()


if __name__ == '__main__':
    main()
