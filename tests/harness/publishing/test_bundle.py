"""`publishing.bundle`, `submission` and `private`: what goes into a bundle, and what never does."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from small_bundle import SUITE, small_bundle, small_run

from metabench.errors import EvidenceError, UsageError
from metabench.plugins import registry
from metabench.publishing import private
from metabench.publishing.archive import open_bundle
from metabench.publishing.bundle import bundle, bundle_files
from metabench.publishing.private import check_nothing_private
from metabench.publishing.published import SUBMISSION, stem_of, suites_in, table_name
from metabench.publishing.submission import Submission, install_line
from metabench.store.store import Store


@pytest.fixture(scope="module")
def store(data: Path) -> Store:
    return Store.open(small_run(data), create=False)


def test_a_bundle_has_the_layout_of_a_published_folder(data: Path, store: Store) -> None:
    files = small_bundle(data)
    rows = json.loads(files["small.json"])["rows"]
    cells = {key for row in rows for key in row["cells"].values()}
    assert len(cells) == 6
    expected = {f"evidence/cells/{key}.{ending}" for key in cells for ending in ("json", "parquet")}
    rest = set(files) - expected
    assert {name for name in rest if not name.startswith("evidence/queries/")} == {
        "small.json",
        SUBMISSION,
    }
    assert {row["numbers"]["trust"] for row in rows} == {"self-reported"}


def test_the_same_results_give_the_same_bytes(store: Store, tmp_path: Path) -> None:
    first, again = (bundle(store, SUITE, registry()) for _ in range(2))
    assert first == again
    (tmp_path / "b.zip").write_bytes(first)
    assert open_bundle(tmp_path / "b.zip").content == bundle_files(store, SUITE, registry())


def test_only_chosen_rows_go_in(store: Store) -> None:
    files = bundle_files(store, SUITE, registry(), ["proto*"])
    rows = json.loads(files["small.json"])["rows"]
    assert [row["labels"]["algorithm"] for row in rows] == ["protonet"]
    assert rows[0]["numbers"]["rank"] == 1  # among those of the bundle
    one = bundle_files(store, SUITE, registry(), ["nearest-centroid/untrained"])
    assert len(json.loads(one["small.json"])["rows"]) == 1
    with pytest.raises(UsageError, match="no row of algorithm 'maml'"):
        bundle_files(store, SUITE, registry(), ["maml"])


def test_a_submission_says_how_the_plugins_are_installed(data: Path) -> None:
    told = Submission.model_validate_json(small_bundle(data)[SUBMISSION])
    assert {(p.kind, p.name) for p in told.plugins} == {
        ("algorithm", "nearest-centroid"),
        ("algorithm", "protonet"),
        ("backbone", "conv4"),
        ("dataset", "quickdraw"),
    }
    for plugin in told.plugins:
        assert plugin.distribution == "metabench"
        assert plugin.entry_point == "builtin = metabench_plugins"
        assert plugin.same_code
    assert [environment.device for environment in told.environments] == ["cpu"]


@pytest.mark.parametrize(
    ("direct_url", "expected"),
    [
        (None, "mine==1.0"),
        ('{"url": "file:///home/somebody/mine", "dir_info": {"editable": true}}', "mine==1.0"),
        ("no json", "mine==1.0"),
        ('["list"]', "mine==1.0"),
        (
            '{"url": "https://me:secret@example.org:8443/mine.git",'
            ' "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "python"}',
            "git+https://example.org:8443/mine.git@abc#subdirectory=python",
        ),
        (
            '{"url": "ssh://git@example.org/mine", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "git+ssh://git@example.org/mine@abc",
        ),
        (
            '{"url": "file:///home/me/mine", "vcs_info": {"vcs": "git", "commit_id": "abc"}}',
            "mine==1.0",
        ),
    ],
)
def test_how_a_distribution_is_installed(direct_url: str | None, expected: str) -> None:
    assert install_line("mine", "1.0", direct_url) == expected


def test_no_path_and_no_log_goes_in_though_the_suite_is_somebodys_file(
    data: Path, store: Store
) -> None:
    noted = [cell.command for cell in store.suite(SUITE)]
    assert all(str(store.root.parent) in command for command in noted)  # as a person runs it again
    whole = b"".join(small_bundle(data).values())
    assert str(store.root.parent).encode() not in whole
    assert b"small.toml" in whole
    assert b"trained in" not in whole  # the log's


@pytest.mark.parametrize(
    "text",
    [
        "/home/somebody/data",
        "--set backbone.weights=/srv/x.safetensors",
        "C:\\Users\\somebody",
        "d:/data",
        "\\\\server\\share",
        "~/data",
        "~somebody/data",
        "file:///etc/hosts",
        "see (/opt/x)",
        f"data/{getpass.getuser()}/x",
        f"runs/{socket.gethostname()}/x",
        f"me@{socket.gethostname()}",
    ],
)
def test_paths_users_and_hosts_are_refused_by_field(text: str) -> None:
    with pytest.raises(EvidenceError, match=r"^a\.json: record\.hp\[1\]"):
        check_nothing_private({"record": {"hp": ["ok", text]}}, "a.json")
    with pytest.raises(EvidenceError):
        check_nothing_private({text: 1}, "a.json")


@pytest.mark.parametrize(
    "text",
    [
        "quickdraw/5w1s15q/protonet/conv4-32/seed0",
        "git+https://example.org/a/b@c",
        "metabench run --suite my.toml --algorithm nearest-centroid/cl2n --set maml.inner_lr=0.1",
        "torchvision:resnet18",
        "Linux x86_64",
        "about ~5",
        "a / b",
    ],
)
def test_what_is_no_path_goes_in(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private, "_names", lambda: {"somebody"})
    check_nothing_private({"x": text}, "a.json")


def test_the_home_folder_is_refused_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    with pytest.raises(EvidenceError, match="holds the home folder"):
        check_nothing_private({"x": "in:/home/somebody.d"}, "a.json")


def test_a_record_with_a_path_is_not_handed_in(results: Any) -> None:
    with pytest.raises(EvidenceError, match=r"record\.identity\.algorithm\.hp\.weights"):
        _made_up(results, hp={"weights": "/home/somebody/w.safetensors"})


def _made_up(results: Any, **options: Any) -> dict[str, bytes]:
    results.row("protonet", **options)
    return bundle_files(results.store, "study", registry())


@pytest.mark.parametrize("status", ["nan", "missing", "timeout"])
def test_rows_that_are_not_finished_are_refused(results: Any, status: str) -> None:
    results.row("protonet")
    results.add("maml", status=status)
    with pytest.raises(EvidenceError, match=f"quickdraw/5w1s3q/maml/conv4-32/seed0: {status}"):
        bundle_files(results.store, "study", registry())
    assert bundle_files(results.store, "study", registry(), ["protonet"])


def test_a_plugin_that_nobody_can_install_is_refused(results: Any) -> None:
    results.row("of-a-notebook")
    with pytest.raises(EvidenceError, match="of-a-notebook is of no plugin that is installed"):
        bundle_files(results.store, "study", registry())


def test_a_suite_may_be_called_as_the_submission() -> None:
    class Named:
        place = "x"

        def names(self) -> list[str]:
            return sorted([table_name("Submission"), SUBMISSION])

        def read(self, name: str) -> bytes:
            raise NotImplementedError

    assert table_name("Submission") != "Submission.json"
    assert suites_in(Named()) == ["Submission"]
    assert stem_of("submissions") == "submissions"
