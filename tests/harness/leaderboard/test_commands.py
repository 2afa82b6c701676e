"""The lines that run things again: what is passed on of those in a result folder."""

from __future__ import annotations

import pytest

from metabench.leaderboard.commands import cell_command, row_command


@pytest.mark.parametrize(
    "noted",
    [
        "metabench run --suite smoke --algorithm maml --seed 0",
        "metabench run --suite '/a b/my.toml' --set 'maml.inner_lr=0.1' --seed 7",
        "metabench.run('smoke', algorithms=[Mine], seeds=[0], settings=['a.b=1'])",
    ],
)
def test_runs_are_passed_on(noted: str) -> None:
    assert cell_command(noted).replace("'maml.inner_lr=0.1'", "maml.inner_lr=0.1") == noted.replace(
        "'maml.inner_lr=0.1'", "maml.inner_lr=0.1"
    )


@pytest.mark.parametrize(
    "noted",
    [
        "",
        "rm -rf /",
        "metabench clean --yes",
        "metabench run --suite 'unclosed",
        "metabench.run(__import__('os').system('x'))",
        "metabench.run('smoke'); import os",
        "metabench.run('smoke', algorithms=[f()])",
        "evil.run('smoke')",
        "metabench.run" + "(" * 300,
    ],
)
def test_anything_else_is_not(noted: str) -> None:
    assert cell_command(noted) == row_command(noted, [0], "cpu") == ""


def test_what_a_shell_would_act_on_is_quoted() -> None:
    assert cell_command("metabench run --suite x; rm y") == "metabench run --suite 'x;' rm y"
    assert cell_command("metabench run `id` $(id)") == "metabench run '`id`' '$(id)'"


def test_a_row_is_run_with_all_its_seeds_on_its_kind_of_device() -> None:
    line = row_command("metabench run --suite /p/x.toml -a maml --seed 0", [0, 2], "cuda")
    assert line == "metabench run --suite x.toml -a maml --seed 0,2 --device cuda"
    call = row_command("metabench.run('/p/x.toml', algorithms=[A], seeds=[0])", [0, 2], "cpu")
    assert call == "metabench.run('x.toml', algorithms=[A], seeds=[0, 2])"


def test_a_row_is_run_again_in_its_engine_and_precision() -> None:
    noted = "metabench run --suite x --seed 0"
    assert row_command(noted, [0], "cpu", "loop", "float32") == f"{noted} --device cpu"
    assert row_command(noted, [0], "cuda", "vmap+loop", "tf32") == (
        f"{noted} --device cuda --engine vmap --precision tf32"
    )
    call = "metabench.run('x', algorithms=[A], seeds=[0])"
    assert row_command(call, [0], "cpu", "loop", "float32") == call
    assert row_command(call, [0], "cpu", "loop", "bf16") == f"{call[:-1]}, precision='bf16')"
