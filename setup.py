# SPDX-License-Identifier: Apache-2.0
"""Build description for pip and for colcon (ament_python)."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'dipod_ros'
ROOT = Path(__file__).resolve().parent


def shared(*folders):
    """Return data_files entries that keep each folder's tree under share/dipod_ros."""
    entries = []
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*')):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and '__pycache__' not in parts:
                relative = Path(*parts)
                entries.append((f'share/{PACKAGE}/{relative.parent.as_posix()}', [str(relative)]))
    return entries


setup(
    name=PACKAGE,
    version='0.1.0',
    description='Diffusion policies on robots: served, swapped live and improved over ROS 2',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8')
    if (ROOT / 'README.md').is_file()
    else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    author='dipod_ros maintainers',
    maintainer='dipod_ros maintainers',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *shared('config', 'launch', 'models', 'sim'),
    ],
    zip_safe=False,
    python_requires='>=3.10',
    install_requires=[
        'numpy>=1.24',
        'scipy>=1.10',
        'torch>=2.4',
        'safetensors>=0.4',
        'onnx>=1.16',
        'onnxscript>=0.2',
        'onnxruntime>=1.18',
        'mujoco>=3.3',
        'gymnasium>=1.0',
        # headless: nothing here opens a window, and opencv-python needs libGL, which a robot's
        # computer or a CI container often lacks.
        'opencv-python-headless>=4.7',
        'pyyaml>=6.0',
        'tqdm>=4.60',
        'matplotlib>=3.6',
        'tensorboard>=2.14',
    ],
    extras_require={
        # rclpy is not a plain requirement: on a machine with ROS 2 it comes from apt, and a second
        # one from PyPI would mix two builds in one process.
        'jazzy': [
            'ros-jazzy-rclpy>=7.1.6',
            'ros-jazzy-common-interfaces>=5.3.6',
            'ros-jazzy-rmw-fastrtps-cpp>=8.4.3',
        ],
        # docs/external.md; Gymnasium's own MuJoCo envs import imageio
        'bench': ['ogbench>=1.2.2', 'stable-baselines3>=2.9', 'imageio>=2.14'],
        'test': ['pytest>=7', 'pytest-timeout>=2.1', 'hypothesis>=6'],
        'dev': [
            'pytest>=7',
            'pytest-timeout>=2.1',
            'pytest-xdist>=3.5',
            'hypothesis>=6',
            'ruff>=0.5',
            'import-linter>=2.0',
            'colcon-common-extensions',
        ],
    },
    entry_points={
        'console_scripts': [
            'policy_server = dipod_ros.nodes.policy_server:main',
            'trainer = dipod_ros.nodes.trainer:main',
            'mujoco_sim = dipod_ros.nodes.mujoco_sim:main',
            'recorder = dipod_ros.nodes.recorder:main',
            'dipod = dipod_ros.cli.main:main',
        ],
    },
    classifiers=[
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
)
