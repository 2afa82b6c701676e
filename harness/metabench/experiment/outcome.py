"""What came of a run, as pandas data frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabench.runner.cells import Cell
from metabench.runner.run import RunResult
from metabench.store.store import Store

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class Experiment:
    """A run of a suite, and what came of it.

    Attributes:
        suite: the suite's name.
        results: the result folder.
        outcome: which cells were reused, ran and failed.
    """

    suite: str
    results: Path
    outcome: RunResult

    @property
    def store(self) -> Store:
        """The result folder, opened."""
        return Store(self.results)

    def to_frame(self, episodes: bool = False) -> pd.DataFrame:
        """One row a cell, failed ones included.

        Columns: suite, dataset, protocol, algorithm, variant, backbone, seed, inference, metric,
        score (mean over test episodes), validation_score, episodes, status (`ok`, how it failed,
        or `missing` if it was not run), selected_step, budget, train_items, parameters, train_s,
        test_s, key. What is not known is NaN. Behind them stands a column `figure:NAME` for each
        figure that an algorithm measured of itself on meta-validation (`figure:mapped_accuracy`).

        Args:
            episodes: one row a test episode instead; `episode` is its number (the same number is
                the same episode in every cell of a protocol) and `score` its own score.
        """
        import pandas as pd

        plan, store = self.outcome.plan, self.store
        pairs = list(zip(plan.cells, plan.keys, strict=True))
        rows = [self._row(store, cell, key) for cell, key in pairs]
        figures = sorted({name for row in rows for name in row if name.startswith(_FIGURE)})
        kinds = _NUMBERS | dict.fromkeys(figures, "float64")
        frame = pd.DataFrame(rows, columns=[*_COLUMNS, *figures]).astype(kinds)
        if not episodes:
            return frame
        return _by_episode(frame, store)

    def leaderboard(self) -> pd.DataFrame:
        """The suite's table in the result folder, ranked: a row a method, over seeds."""
        import pandas as pd

        from metabench.leaderboard.rows import COLUMNS
        from metabench.leaderboard.table import leaderboard

        return pd.DataFrame(leaderboard(self.store, self.suite), columns=list(COLUMNS))

    def _row(self, store: Store, cell: Cell, key: str) -> dict[str, Any]:
        row: dict[str, Any] = {
            "suite": cell.suite,
            "dataset": cell.dataset.label,
            "protocol": cell.protocol.name,
            "algorithm": cell.algorithm.label,
            "variant": cell.variant,
            "backbone": cell.backbone.label,
            "seed": cell.seed,
            "inference": cell.inference,
            "metric": cell.protocol.metric,
            "key": key,
        }
        record = store.find(key)
        if record is None:
            failed = store.failure(key)
            return row | {"status": failed.failure.status if failed else "missing"}
        info = store.run_info(key)
        times = {"train_s": info.train_s, "test_s": info.test_s}
        verified = {"inference": record.inference, "status": "ok"}
        figures = {_FIGURE + name: value for name, value in record.result.figures.items()}
        return row | record.result.model_dump() | times | verified | figures

    def __repr__(self) -> str:
        plan, failures = self.outcome.plan, self.outcome.failures
        done = len(plan.finished) + len(self.outcome.ran)
        count = len(plan.cells)
        facts = ["1 cell" if count == 1 else f"{count} cells", f"{done} finished"]
        facts += [f"{len(failures)} failed"] if failures else []
        return f"<Experiment {self.suite}: {', '.join(facts)}; results in {self.results}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the summary, and the table."""
        from html import escape

        columns = ["dataset", "protocol", "algorithm", "variant", "backbone", "inference"]
        columns += ["score", "ci95", "seeds", "status"]
        table = self.leaderboard()[columns].to_html(
            index=False, na_rep="", float_format="{:.4f}".format
        )
        return f"<p>{escape(repr(self))}</p>{table}"


_COLUMNS = (
    *("suite", "dataset", "protocol", "algorithm", "variant", "backbone", "seed", "inference"),
    *("metric", "score", "validation_score", "episodes", "status", "selected_step", "budget"),
    *("train_items", "parameters", "train_s", "test_s", "key"),
)
_NUMBERS = {
    **dict.fromkeys(("score", "validation_score", "train_s", "test_s"), "float64"),
    **dict.fromkeys(("episodes", "selected_step", "budget", "train_items", "parameters"), "Int64"),
}


_FIGURE = "figure:"


def _by_episode(frame: pd.DataFrame, store: Store) -> pd.DataFrame:
    """The rows of finished cells, each repeated for its test episodes."""
    import numpy as np
    import pandas as pd

    parts = [frame.iloc[:0].assign(episode=pd.Series(dtype="int64"))]
    for number in np.flatnonzero(frame["status"] == "ok"):
        row = frame.iloc[number]
        scores = store.episodes(row["key"]).scores(row["metric"])
        part = frame.iloc[np.full(len(scores), number)]
        parts.append(part.assign(episode=np.arange(len(scores)), score=scores))
    order = [{"episodes": "episode"}.get(name, name) for name in frame.columns]
    return pd.concat(parts, ignore_index=True)[order]
