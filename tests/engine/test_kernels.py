"""The CPU's fast elementwise operations against the same arithmetic step by step."""

from __future__ import annotations

import pytest
import torch

from qwen_retrieval.engine.kernels import HEAD_ROWS, norm_rotate, rms_norm, rope_table, rotate

EPS, DIM = 1e-6, 16


def heads(tokens: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries as the decoder has them, a part of wider rows; the norm's weight; positions."""
    torch.manual_seed(tokens)
    projected = torch.randn(tokens, 6 * DIM).to(dtype)
    positions = torch.arange(tokens).flip(0)
    return projected[:, : 4 * DIM].view(tokens, 4, DIM), (1 + 0.1 * torch.randn(DIM)).to(dtype), positions


def step_by_step(x: torch.Tensor, weight: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return rotate(rms_norm(x, weight, EPS), rope_table(positions, DIM, 1e6, x.dtype))


@pytest.mark.parametrize("tokens", [0, 1, HEAD_ROWS - 1, HEAD_ROWS, HEAD_ROWS + 1, 3 * HEAD_ROWS])
def test_norm_and_rotation_in_parts_equal_those_in_one_piece(tokens: int) -> None:
    x, weight, positions = heads(tokens, torch.float32)
    expected = step_by_step(x, weight, positions)
    found = norm_rotate(x, weight, rope_table(positions, DIM, 1e6, torch.float32), EPS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_norm_and_rotation_in_bfloat16_err_at_most_twice_as_much_as_step_by_step() -> None:
    x, weight, positions = heads(2 * HEAD_ROWS + 5, torch.bfloat16)
    exact = step_by_step(x.float(), weight.float(), positions)
    theirs = (step_by_step(x, weight, positions) - exact).abs().max()
    found = norm_rotate(x, weight, rope_table(positions, DIM, 1e6, torch.float32), EPS)
    assert found.dtype == torch.bfloat16
    assert 0 < (found - exact).abs().max() <= 2 * theirs


def test_norm_and_rotation_leave_what_stands_beside_the_heads() -> None:
    projected = torch.randn(HEAD_ROWS + 3, 6 * DIM)
    beside = projected[:, 4 * DIM :].clone()
    table = rope_table(torch.arange(len(projected)), DIM, 1e6, torch.float32)
    norm_rotate(projected[:, : 4 * DIM].view(-1, 4, DIM), torch.ones(DIM), table, EPS)
    assert torch.equal(projected[:, 4 * DIM :], beside)
