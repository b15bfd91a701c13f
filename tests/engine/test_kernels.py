"""The CPU's fast elementwise operations against the same arithmetic step by step."""

from __future__ import annotations

import pytest
import torch

from qwen_retrieval.engine.kernels import HEAD_ROWS, CpuKernels, EagerKernels, Kernels, Rope, choose_kernels, rope_table

EPS, DIM, HEADS = 1e-6, 16, 4
CPU = torch.device("cpu")


def heads(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, Rope]:
    """Queries and keys as the decoder has them, a part of wider rows; the norms' weights; positions."""
    torch.manual_seed(tokens)
    projected = torch.randn(tokens, (HEADS + 2) * DIM).to(dtype)
    rope = Rope(rope_table(max(1, tokens), DIM, 1e6, CPU), torch.arange(tokens).flip(0))
    return projected.view(tokens, HEADS + 2, DIM)[:, :HEADS], (1 + 0.1 * torch.randn(HEADS, DIM)).to(dtype), rope


def rotated(kernels: Kernels, x: torch.Tensor, weight: torch.Tensor, rope: Rope) -> torch.Tensor:
    changed = x.clone()
    kernels.norm_rotate(changed, weight, rope, EPS)
    return changed


@pytest.mark.parametrize("tokens", [0, 1, HEAD_ROWS - 1, HEAD_ROWS, HEAD_ROWS + 1, 3 * HEAD_ROWS])
def test_norm_and_rotation_in_parts_equal_those_in_one_piece(tokens: int) -> None:
    inputs = heads(tokens, torch.float32)
    found, expected = rotated(CpuKernels(), *inputs), rotated(EagerKernels(), *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_norm_and_rotation_in_bfloat16_err_at_most_twice_as_much_as_step_by_step() -> None:
    x, weight, rope = heads(2 * HEAD_ROWS + 5, torch.bfloat16)
    exact = rotated(EagerKernels(), x.float(), weight.float(), rope)
    theirs = (rotated(EagerKernels(), x, weight, rope) - exact).abs().max()
    found = rotated(CpuKernels(), x, weight, rope)
    assert found.dtype == torch.bfloat16
    assert 0 < (found - exact).abs().max() <= 2 * theirs


@pytest.mark.parametrize("kernels", [CpuKernels(), EagerKernels()], ids=["cpu", "eager"])
def test_norm_and_rotation_leave_what_stands_beside_the_heads(kernels: Kernels) -> None:
    x, weight, rope = heads(HEAD_ROWS + 3, torch.float32)
    whole = torch.as_strided(x, (len(x), HEADS + 2, DIM), x.stride())
    beside = whole[:, HEADS:].clone()
    kernels.norm_rotate(x, weight, rope, EPS)
    assert torch.equal(whole[:, HEADS:], beside)


@pytest.mark.parametrize("kernels", [CpuKernels(), EagerKernels()], ids=["cpu", "eager"])
@pytest.mark.parametrize("adds", [True, False])
def test_the_norm_is_that_of_the_sum_which_stays_in_the_residual_stream(kernels: Kernels, adds: bool) -> None:
    torch.manual_seed(0)
    hidden, delta, weight = torch.randn(7, 32), torch.randn(7, 32), torch.randn(32)
    total = hidden + delta if adds else hidden.clone()
    found = kernels.add_rms_norm(hidden, delta if adds else None, weight, EPS)
    expected = total.double() / (total.double().square().mean(-1, keepdim=True) + EPS).sqrt() * weight.double()
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)
    assert torch.equal(hidden, total)


def test_a_longer_table_gives_the_same_angles() -> None:
    for short, long in zip(rope_table(10, DIM, 1e6, CPU), rope_table(5000, DIM, 1e6, CPU), strict=True):
        assert torch.equal(short, long[:10])


def test_a_cpu_gets_the_kernels_made_for_it() -> None:
    assert isinstance(choose_kernels(CPU), CpuKernels)
