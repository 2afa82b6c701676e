"""`metabench completion`: the script that makes a shell complete metabench's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from metabench.cli.choice import NearestChoice
from metabench.cli.output import print_text


@click.command()
@click.argument("shell", type=NearestChoice(["bash", "zsh", "fish"]))
@click.pass_context
def command(ctx: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete metabench's words.

    \b
    bash: eval "$(metabench completion bash)"                        in ~/.bashrc
    zsh:  eval "$(metabench completion zsh)"                         in ~/.zshrc
    fish: metabench completion fish > ~/.config/fish/completions/metabench.fish
    """  # noqa: D301 (click looks for the character, not for a backslash and a b)
    kind = get_completion_class(shell)
    assert kind is not None  # NearestChoice lets no other shell in
    script = kind(ctx.find_root().command, {}, "metabench", "_METABENCH_COMPLETE").source()
    print_text(script.strip() + "\n")
