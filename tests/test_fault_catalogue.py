from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from fault_catalogue import FAULTS


@cache
def defined_in(file: str) -> set[str]:
    tree = ast.parse(Path(__file__).with_name(f"test_{file}.py").read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_its_number_once_in_order() -> None:
    assert list(FAULTS) == list(range(1, 103))
    assert len({fault.what for fault in FAULTS.values()}) == 102


@pytest.mark.parametrize("number", FAULTS)
def test_a_fault_has_tests_that_exist_or_a_reason(number: int) -> None:
    fault = FAULTS[number]
    named = list(fault.named_tests())
    assert named or fault.why, fault.what
    assert not [(file, name) for file, name in named if f"test_{name}" not in defined_in(file)]
