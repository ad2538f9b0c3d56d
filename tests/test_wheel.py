"""The wheel, installed into an empty environment, does what the README shows first."""

import sys
from pathlib import Path

import install
import pytest


def test_the_five_lines_are_those_of_the_readme() -> None:
    code = install.five_lines("7s")
    assert code.startswith("import slmrec\n") and 'time_budget="7s"' in code
    lines = [line for line in code.splitlines() if line and not line.startswith("#")]
    assert len(lines) == 5


@pytest.mark.heavy
@pytest.mark.timeout(1800)
def test_the_wheel_works_in_an_empty_environment(tmp_path: Path) -> None:
    numbers = install.measure(sys.executable, tmp_path, users=300, time_budget="30s")
    with_models = {path.parent.name for path in tmp_path.glob("empty/out/tiny/*/model.safetensors")}
    assert numbers["five_lines_s"] and {"finetune", "distill"} <= with_models
    assert (tmp_path / "empty" / "out" / "shop" / "best").is_dir()
