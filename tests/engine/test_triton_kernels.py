"""What can be said about the Triton kernels without a GPU: their results, their code, and how a trace sees them."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

triton = pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from qwen_retrieval.engine import triton_kernels  # noqa: E402

ROOT = Path(__file__).parents[2]


def test_the_kernels_pass_the_tests_for_cuda_in_tritons_interpreter() -> None:
    # In a process of its own: Triton looks at the variable when it is imported and again for each kernel.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, "tests/gpu/test_kernels.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\d\d passed", run.stdout), run.stdout


class _Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names[str(function)] += 1
        return function(*args, **(kwargs or {}))


# What makes a tensor of a shape on the device -> the arguments of a call.
ARGUMENTS: dict[str, Callable[[Callable[..., Tensor]], tuple[Any, ...]]] = {
    "add_rms_norm": lambda new: (new(5, 64), new(5, 64), new(64), 1e-6),
    "norm_rotate": lambda new: (new(5, 3, 8), new(3, 8), new(9, 4), new(9, 4), new(5, dtype=torch.int64), 1e-6),
    "silu_mul": lambda new: (new(5, 64),),
    "quantize_rows": lambda new: (new(5, 64),),
    "merge_attention": lambda new: (new(5, 3, 8), new(3, 5), new(5, 3, 8), new(3, 5)),
}
RESULTS = {
    "add_rms_norm": [((5, 64), torch.bfloat16)],
    "norm_rotate": [],
    "silu_mul": [((5, 32), torch.bfloat16)],
    "quantize_rows": [((5, 64), torch.float8_e4m3fn), ((5, 1), torch.float32)],
    "merge_attention": [((5, 3, 8), torch.bfloat16)],
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_trace_without_a_gpu_sees_one_operator_per_call(name: str) -> None:
    calls = _Calls()
    with FakeTensorMode(), torch.inference_mode():
        arguments = ARGUMENTS[name](functools.partial(_new, device="cuda"))
        with calls:
            found = getattr(triton_kernels, name)(*arguments)
    outputs = found if isinstance(found, tuple) else () if found is None else (found,)
    assert [(tuple(each.shape), each.dtype) for each in outputs] == RESULTS[name]
    assert all(each.device.type == "cuda" for each in outputs)
    assert calls.names == {f"qwen_retrieval.{name}.default": 1}


def _new(*shape: int, device: str, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


# Types of the pointers, compile-time constants (0.6B) and how many loads and stores of 16 bytes a thread then makes
# for its 16 values of each input.
BF16, F32 = "*bf16", "*fp32"
COMPILED: dict[str, tuple[list[str], dict[str, float], tuple[int, int]]] = {
    "add_rms_norm": ([BF16] * 4, {"SIZE": 1024, "BLOCK": 1024}, (6, 4)),
    "norm_rotate": ([BF16, BF16, F32, F32, "*i64"], {"HEADS": 24, "HALF": 64, "BLOCK_HEADS": 8, "BLOCK": 64}, (8, 2)),
    "silu_mul": ([BF16] * 2, {"SIZE": 3072, "BLOCK": 1024}, (4, 2)),
    "quantize_rows": ([BF16, "*fp8e4nv", F32], {"LARGEST": 448.0, "SIZE": 1024, "BLOCK": 1024}, (2, 1)),
    "merge_attention": (
        [BF16, F32, BF16, F32, BF16],
        {"HEADS": 16, "SIZE": 128, "BLOCK_HEADS": 8, "BLOCK": 128},
        (4, 2),
    ),
}


@pytest.mark.parametrize("name", COMPILED)
def test_a_kernel_compiles_for_hopper_to_loads_and_stores_of_16_bytes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = getattr(triton_kernels, f"_{name}_kernel")
    if not isinstance(kernel, triton.JITFunction):
        pytest.skip("TRITON_INTERPRET is set")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    pointers, constants, accesses = COMPILED[name]
    source = _aligned_source(kernel, pointers, constants)
    options = {"num_warps": 2, "enable_fp_fusion": True}
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert (len(re.findall(r"ld\.global\.v4", ptx)), len(re.findall(r"st\.global\.v4", ptx))) == accesses
    assert ".local" not in ptx


def _aligned_source(kernel: Any, pointers: list[str], constants: dict[str, float]) -> ASTSource:
    """What Triton's launcher would ask for if pointers and strides are multiples of 16, as those of Qwen3 are."""
    rest = dict.fromkeys(kernel.arg_names[len(pointers) :], "i32") | dict.fromkeys(constants, "constexpr")
    types = dict(zip(kernel.arg_names, pointers, strict=False)) | rest
    if "eps" in types:
        types["eps"] = "fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, each in enumerate(types.values()) if each[0] in "*i"}
    values = {(kernel.arg_names.index(key),): value for key, value in constants.items()}
    return ASTSource(fn=kernel, signature=types, constexprs=values, attrs=aligned)
