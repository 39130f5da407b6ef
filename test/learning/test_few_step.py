# SPDX-License-Identifier: Apache-2.0
"""Every few-step loss on a flow whose map from noise to action is known: a turn and a shrinking."""

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.seeding import torch_rng  # noqa: E402
from dipod_ros.learning.students.distill import DistillConfig, distill  # noqa: E402
from dipod_ros.learning.students.few_step import (  # noqa: E402
    METHODS,
    FewStepLoss,
    TeacherPaths,
    teacher_paths,
)
from dipod_ros.policy.spec import SamplerSpec  # noqa: E402

# dx/dt = A x turns by 1.2 rad between noise and action: one Euler step of it lands far away.
TURN = torch.tensor([[0.3, -1.2], [1.2, 0.3]])


@pytest.fixture(scope='module')
def teacher(linear_flow):
    return linear_flow(TURN)


@pytest.fixture(scope='module')
def observations():
    return np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)


def noise(count=512):
    generator = torch_rng(5, 'test')
    return torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator)


def rms(difference):
    return float(difference.square().mean().sqrt())


def exact(z, span=1.0):
    """Return where the flow takes z in `span` of its time."""
    return z @ torch.linalg.matrix_exp(-span * TURN).T


QUICK = {'train_steps': 300, 'batch': 256, 'pairs': 4096, 'learning_rate': 3e-3}


@pytest.mark.parametrize('steps', [1, 2])
@pytest.mark.parametrize('method', METHODS)
def test_a_student_arrives_where_the_exact_flow_does(teacher, observations, method, steps):
    config = DistillConfig(method=method, steps=steps, **QUICK)
    student = distill(teacher, observations, config)
    assert student.spec.sampler == SamplerSpec('euler', steps)
    o, z = noise()
    with torch.no_grad():
        plain = rms(teacher.sample(o, z, student.spec.sampler) - exact(z))
        taught = rms(student.sample(o, z) - exact(z))
    assert plain > (0.5 if steps == 1 else 0.25)
    # Consistency aims at its own moving average: it comes as near, but later.
    assert taught < (0.15 if method == 'consistency' else 0.06)


def test_independent_noise_teaches_the_mean_and_not_the_map(teacher, observations):
    """The same regression, noise and actions paired at random: one step makes one action of all."""
    o, z = noise(4096)
    coupled = teacher_paths(teacher, o, z, 'reflow', SamplerSpec('euler', 1))
    generator = torch_rng(6, 'test')
    shuffled = torch.randperm(len(z), generator=generator)
    points = torch.stack([coupled.points[:, 0], coupled.points[shuffled, 1]], dim=1)
    student = teacher.with_sampler(SamplerSpec('euler', 1))
    student.requires_grad_(True)
    compute_loss = FewStepLoss('trajectory', student.spec.sampler)
    optimizer = torch.optim.Adam(student.net.parameters(), lr=3e-3)
    paths = TeacherPaths(coupled.observation, points)
    for _ in range(300):
        batch = paths[torch.randint(len(z), (256,), generator=generator)]
        loss = compute_loss(student, student, teacher, batch, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    o, z = noise()
    with torch.no_grad():
        landed = student.sample(o, z)
    assert rms(landed - exact(z)) > 0.5
    assert rms(landed) < 0.3 * rms(exact(z))


@pytest.mark.parametrize('steps', [1, 2, 3, 4])
def test_paths_pass_through_the_students_times(teacher, steps):
    o, z = noise()
    paths = teacher_paths(teacher, o, z, 'trajectory', SamplerSpec('euler', steps))
    assert paths.points.shape == (len(z), steps + 1, 2) and len(paths) == len(z)
    for k in range(steps + 1):
        assert rms(paths.points[:, k] - exact(z, k / steps)) < 2e-3
    if steps != 3:  # steps that divide the teacher's 20: its very own sample
        with torch.no_grad():
            assert rms(paths.points[:, -1] - teacher.sample(o, z)) < 1e-6


def test_a_landing_target_is_exact(teacher):
    """A student whose velocity is the target lands on the teacher's point, step by step."""
    o, z = noise()
    sampler = SamplerSpec('euler', 4)
    paths = teacher_paths(teacher, o, z, 'trajectory', sampler)
    loss = FewStepLoss('trajectory', sampler)
    x, t, target = loss._trajectory(teacher, teacher, paths, torch_rng(1))
    assert set(t.tolist()) == {1.0, 0.75, 0.5, 0.25}
    k = torch.round((1 - t) * 4).long()
    rows = torch.arange(len(z))
    assert torch.equal(x, paths.points[rows, k])
    assert torch.allclose(x - target / 4, paths.points[rows, k + 1], atol=1e-6)


@pytest.mark.parametrize('steps', [1, 2, 4])
def test_the_true_mean_velocity_is_consistent(teacher, linear_flow, steps):
    """Where the average is the exact jump to its interval's end, so is every target."""
    o, z = noise()
    paths = teacher_paths(teacher, o, z, 'consistency', SamplerSpec('euler', steps))

    class Exact:
        def velocity(self, x, t, _):
            r = (torch.ceil(t * steps - 1e-5).clamp(1, steps) - 1) / steps
            span = (t - r).clamp(min=1e-9)[:, None, None]
            jump = torch.linalg.matrix_exp(-span * TURN)
            return (x - (jump @ x[..., None])[..., 0]) / span[:, 0]

    loss = FewStepLoss('consistency', SamplerSpec('euler', steps))
    x, t, target = loss._consistency(Exact(), teacher, paths, torch_rng(2))
    assert rms(target - Exact().velocity(x, t, o)) < 0.02


def test_a_method_that_is_none_is_refused():
    with pytest.raises(UserError, match="'reflow', 'trajectory', 'consistency'"):
        DistillConfig(method='magic')
    with pytest.raises(UserError, match='choose sampler euler'):
        DistillConfig(method='trajectory', solver='midpoint')
    with pytest.raises(UserError, match='choose sampler euler'):
        FewStepLoss('consistency', SamplerSpec('midpoint', 2))
    assert DistillConfig(method='reflow', solver='midpoint').solver == 'midpoint'


@pytest.mark.parametrize('method', METHODS)
def test_every_method_repeats_and_leaves_the_teacher_alone(
    teacher, observations, assert_same_weights, method
):
    before = teacher.clone()
    config = DistillConfig(method=method, steps=2, train_steps=5, batch=16, pairs=64)
    first = distill(teacher, observations, config)
    assert_same_weights(first, distill(teacher, observations, config))
    assert_same_weights(teacher, before)


def test_the_bench_of_methods_compares_them_on_a_real_flow():
    from dipod_ros.cli.bench_distill import compare
    from dipod_ros.resources import share_dir

    models = share_dir() / 'models'
    config = DistillConfig(train_steps=2, batch=16, pairs=64)
    told = []
    results = compare(
        [models / 'reach_flow'],
        config=config,
        methods=('trajectory', 'reflow'),
        steps=(1,),
        seeds=2,
        episodes=4,
        teacher_episodes=4,
        progress=told.append,
    )
    rows = results[str(models / 'reach_flow')]
    teachers = {name for name in rows if name.startswith('teacher')}
    assert {int(name.split('(')[1].split()[0]) for name in teachers} == {10, 50}
    assert rows.keys() - teachers - {'sha256'} == {'trajectory euler-1', 'reflow euler-1'}
    one = rows['trajectory euler-1']
    assert len(one['success_seeds']) == 2 and one['rms'] > 0 and one['cpu_s'] > 0
    assert one['rms'] == pytest.approx(np.mean(one['rms_seeds']))
    assert len(told) == 3
    with pytest.raises(UserError, match='give the flow'):
        compare([models / 'reach_student'], config=config)
