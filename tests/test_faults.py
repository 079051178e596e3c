"""Each fault meets its own task, and nobody else."""

import pytest

from .conftest import Configure
from .faults import FAULTS, PAGE, Fault, Provoke, with_faults
from .gates import LONG_S, Gate
from .tasks import add, hold


@pytest.mark.parametrize(
    "fault, alias, case, provoke",
    [
        pytest.param(fault, alias, case, provoke, id=f"{name}-{case}-{alias}")
        for name, fault in FAULTS.items()
        for case, provoke in fault.cases.items()
        for alias in fault.on
    ],
)
def test_a_fault_is_told_and_harms_nobody_else(
    fault: Fault,
    alias: str,
    case: str,
    provoke: Provoke,
    configure: Configure,
    gate: Gate,
) -> None:
    configure(alias, MAX_WORKERS=2, **fault.options)
    neighbour = hold.using(backend=alias).enqueue(gate.port, "unharmed")
    visitor = gate.next_visitor()

    handle = provoke(alias)
    following = add.using(backend=alias).enqueue(1, 2)
    handle.join(LONG_S)

    fault.expect(handle, case)
    assert following.wait(LONG_S) == 3
    visitor.let_go()
    assert neighbour.wait(LONG_S) == "unharmed"


def test_the_documentation_tells_them_all() -> None:
    text = PAGE.read_text()
    assert with_faults(text) == text
