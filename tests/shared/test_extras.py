"""Somebody who installed a part of the package is told which extra brings the rest."""

from __future__ import annotations

import pytest

from shared.extras import naming_extra


@pytest.mark.parametrize(
    ("module", "extra"), [("prometheus_client.core", "edge"), ("torch.nn", "torch")]
)
def test_a_module_of_others_that_is_missing_ends_the_program_in_one_line(
    module: str, extra: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, naming_extra("neucodex-edge", "edge"):
        raise ModuleNotFoundError(name=module)
    assert ended.value.code == 2
    name = module.partition(".")[0]
    assert capsys.readouterr().err == (
        f"neucodex-edge: expected the Python module {name} "
        f"(pip install 'neucodex[{extra}]'), it is not there\n"
    )


@pytest.mark.parametrize("module", ["shared.nothing", None])
def test_a_module_of_our_own_that_is_missing_is_a_fault_of_ours(module: str | None) -> None:
    with pytest.raises(ModuleNotFoundError), naming_extra("neucodex-edge", "edge"):
        raise ModuleNotFoundError(name=module)
