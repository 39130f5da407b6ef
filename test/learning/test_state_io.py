# SPDX-License-Identifier: Apache-2.0
"""Training state: exact, atomic, and one line when something is wrong."""

import pytest

torch = pytest.importorskip('torch')

from safetensors.torch import save as dump  # noqa: E402

from dipod_ros.errors import UserError  # noqa: E402
from dipod_ros.learning.state_io import (  # noqa: E402
    load_info,
    load_state,
    pack_module,
    pack_optimizer,
    save_state,
    unpack_module,
    unpack_optimizer,
)


def trained(seed, steps, rate=1e-2):
    torch.manual_seed(seed)
    net = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    return net, optimizer, train(net, optimizer, 0, steps)


def train(net, optimizer, begin, end):
    for k in range(begin, end):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        (net(x) - 1).square().mean().backward()
        optimizer.step()
    return net


def test_training_goes_on_bit_by_bit(tmp_path):
    straight, _, _ = trained(0, 10)
    net, optimizer, _ = trained(0, 4)
    tensors = pack_module('net', net) | pack_optimizer('adam', optimizer)
    save_state(tmp_path / 'state', tensors, {'done': 4})

    other, adam, _ = trained(9, 7)
    tensors, info = load_state(tmp_path / 'state')
    unpack_module('net', other, tensors)
    unpack_optimizer('adam', adam, tensors)
    train(other, adam, info['done'], 10)
    assert torch.equal(other.weight, straight.weight) and torch.equal(other.bias, straight.bias)


def test_an_optimiser_that_never_stepped_comes_back_as_such():
    net, optimizer, _ = trained(0, 3)
    fresh = torch.optim.Adam(net.parameters())
    unpack_optimizer('adam', optimizer, pack_optimizer('adam', fresh))
    assert not optimizer.state_dict()['state']


def test_the_learning_rate_stays_that_of_the_optimiser():
    net, slow, _ = trained(0, 3, rate=1e-4)
    _, fast, _ = trained(0, 3, rate=1e-2)
    unpack_optimizer('adam', slow, pack_optimizer('adam', fast))
    assert slow.param_groups[0]['lr'] == 1e-4


def test_prefixes_that_begin_alike_are_kept_apart():
    one, two = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    tensors = pack_module('recent.1', one) | pack_module('recent.10', two)
    again = torch.nn.Linear(2, 2)
    unpack_module('recent.1', again, tensors)
    assert torch.equal(again.weight, one.weight)


def test_packing_copies():
    net = torch.nn.Linear(2, 2)
    tensors = pack_module('net', net)
    before = tensors['net.weight'].clone()
    with torch.no_grad():
        net.weight.add_(1)
    assert torch.equal(tensors['net.weight'], before)


def test_a_state_replaces_the_one_before_and_leaves_nothing_else(tmp_path):
    for value in (1, 2):
        save_state(tmp_path / 'deep' / 'state', {'x': torch.full((3,), value)}, {'v': value})
    tensors, info = load_state(tmp_path / 'deep' / 'state')
    assert info == {'v': 2} and tensors['x'].tolist() == [2, 2, 2]
    assert [p.name for p in (tmp_path / 'deep').iterdir()] == ['state']


def test_a_folder_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file' / 'state', tmp_path):
        with pytest.raises(UserError, match='cannot write') as error:
            save_state(path, {'x': torch.ones(1)}, {})
        assert '\n' not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize('keep', [0, 5, 40, -1])
def test_a_truncated_state_is_an_error_of_one_line(tmp_path, keep):
    save_state(tmp_path / 'state', {'x': torch.ones(100)}, {})
    payload = (tmp_path / 'state').read_bytes()
    (tmp_path / 'state').write_bytes(payload[:keep])
    with pytest.raises(UserError, match='cannot read'):
        load_state(tmp_path / 'state')


def test_a_missing_state_and_a_folder_are_errors_of_one_line(tmp_path):
    for path in (tmp_path / 'absent', tmp_path):
        with pytest.raises(UserError, match='cannot read') as error:
            load_state(path)
        assert '\n' not in str(error.value)


@pytest.mark.parametrize('info', ['[' * 100_000, '[1]', '3', '{'])
def test_info_that_is_none_is_an_error_of_one_line(tmp_path, info):
    payload = dump({'x': torch.ones(2)}, metadata={'info': info})
    (tmp_path / 'state').write_bytes(payload)
    for load in (load_state, load_info):
        with pytest.raises(UserError, match='cannot read') as error:
            load(tmp_path / 'state')
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'change', [{'adam.0.exp_avg': torch.ones(4, 4)}, {'adam.7.exp_avg': torch.ones(2, 3)},
               {'adam.0.exp_avg_sq': torch.ones(())}, {'adam.1.step': torch.ones(5)}]
)  # fmt: skip
def test_moments_of_other_parameters_are_refused_and_change_nothing(change):
    net, optimizer, _ = trained(0, 3)
    tensors = pack_optimizer('adam', optimizer)
    with pytest.raises(ValueError, match=next(iter(change))):
        unpack_optimizer('adam', optimizer, tensors | change)
    after = pack_optimizer('adam', optimizer)
    assert all(torch.equal(after[k], v) for k, v in tensors.items())
