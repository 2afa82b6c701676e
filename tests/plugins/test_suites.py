"""The shipped suites: their protocols are frozen, and every setting in them is possible."""

import csv
import tomllib
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metabench.api.recipe import Recipe
from metabench.episodes.protocol import Protocol, Rotation
from metabench.plugins import load_registry
from metabench.runner.matrix import Filters, build_matrix
from metabench.runner.overrides import parse_override
from metabench.runner.suite import open_suite

# Rows may share a table only under equal digests: a change here parts new numbers from old ones.
PROTOCOLS = {
    "fewshot": {
        "5w1s15q": "b317a4739d2e5a4eaf9c4a707d0a658b",
        "5w5s15q": "f866428046bfaf0dd65e5c762972f607",
    },
    "fewshot-full": {
        "2w5s15q": "991a271a8b554435f4c0d03c4d13fe1b",
        "5w1s15q": "b317a4739d2e5a4eaf9c4a707d0a658b",
        "5w5s15q": "f866428046bfaf0dd65e5c762972f607",
    },
    "fewshot-dirichlet": {
        "5w1s15q-dirichlet2": "c419ea8dd56bdc89f6af544eca0e433c",
        "5w5s15q-dirichlet2": "5ba9fb65c972ef617f3ddf5c320386a5",
    },
    "omniglot-quick": {
        "5w1s15q": "3a62baaec9167447d63d4e0ae036ce9a",
        "5w5s15q": "db9f7d274ba905bc61db01a27a5ea8e4",
        "20w1s15q": "0628044dffe05e1980cb10f91d6b78ec",
        "20w5s15q": "758b96a2f5dfd1168222e551cd9b5060",
    },
    "omniglot": {
        "5w1s15q": "b23da18be6de1d556251652cb47b2110",
        "5w5s15q": "3703afbc65b986256c25a91f4efe541f",
        "20w1s15q": "669bf1fc77b94f7ab487b5d4c1fdafe7",
        "20w5s15q": "37769af2ea201fd28d73f8eab1ce7d72",
    },
    "reference-maml": {
        "5w1s1q": "def0c5a1894866f172878eff1560035e",
        "5w5s5q": "690d8d3e851555320fa7767e2f69fa5a",
        "20w1s1q": "16bd211cfbdeac8b120b0c408c0422e1",
        "20w5s5q": "be30abe6e672a33dddea6a7329c0e760",
    },
    "reference-matching-networks": {
        "5w1s15q": "6907a099c815dbbf6bf6cfe0ed8dd3cd",
        "5w5s15q": "e77b38e4e19a7626265aabedee31b7e3",
        "20w1s15q": "6db26a01d8e0141e5aabf8c13b3a5d53",
        "20w5s15q": "a7bee5f57bfc3637d4ecbb4b601fb706",
    },
    "reference-protonet": {
        "5w1s15q": "b23da18be6de1d556251652cb47b2110",
        "5w5s15q": "3703afbc65b986256c25a91f4efe541f",
        "20w1s15q": "669bf1fc77b94f7ab487b5d4c1fdafe7",
        "20w5s15q": "37769af2ea201fd28d73f8eab1ce7d72",
    },
    "reference-reptile": {
        "5w1s1q": "1e697a7260189ec3d0e2a5c4c8dd59c2",
        "5w5s1q": "d1c5dec92fb55e9b52f1271c6ef081b2",
        "20w1s1q": "194e479cb9f94ddf36f6f749f270a4cb",
        "20w5s1q": "323e224b4ac849d17f8edc90b7af219e",
    },
    "smoke": {"5w1s5q": "8921b75c9471cc823111b49d32f895b2"},
}
SUITES = sorted(PROTOCOLS)
CI = Path(__file__).parents[2] / "ci"
MEASUREMENTS = CI.parent / "leaderboards" / "measurements"
WHOLE = ["fewshot-full", "smoke"]
"""Suites that have every built-in algorithm."""
STANDING = ["fewshot", "fewshot-full", "omniglot", "omniglot-quick", "smoke"]
"""Suites in which algorithms stand on supervised training."""
CLASSIC = {("maml", "batch-norm-batch"), ("reptile", "batch-norm-batch"), ("maml++", "")}
"""Variants of optimisation-based algorithms that look at all queries, as published."""


@cache
def registry():
    return load_registry(strict=True)


@cache
def cells_of(name):
    """The cells of one seed, all settings checked against the real plugins."""
    return build_matrix(open_suite(name, registry()), registry(), Filters(seeds=1))


def test_every_shipped_suite_is_in_the_table():
    builtin = {name for name, entry in registry().suites.items() if entry.plugin == "builtin"}
    assert builtin == set(PROTOCOLS)


@pytest.mark.parametrize("name", SUITES)
def test_protocol_digests_are_frozen(name):
    protocols = open_suite(name, registry()).protocols
    assert {p.name: p.digest for p in protocols} == PROTOCOLS[name]


@pytest.mark.parametrize("name", SUITES)
def test_cells_are_evaluated_under_the_frozen_protocols(name):
    assert {c.protocol.name: c.protocol.digest for c in cells_of(name)} == PROTOCOLS[name]


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_suite_has_every_algorithm_under_every_protocol(name):
    pairs = {(c.protocol.name, c.algorithm.name) for c in cells_of(name)}
    algorithms = {a for a, e in registry().algorithms.items() if e.plugin == "builtin"}
    assert pairs == {(p, a) for p in PROTOCOLS[name] for a in algorithms}


@pytest.mark.parametrize("name", STANDING)
def test_what_stands_on_supervised_training_shares_it(name):
    standing = [
        c
        for c in cells_of(name)
        if c.algorithm.name in {"baseline", "nearest-centroid"} and c.backbone.name != "identity"
    ]
    assert len({c.algorithm.name for c in standing}) == 2
    assert len({c.recipe.short_digest for c in standing}) == 1
    assert standing[0].recipe.ways is None


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_trained_on_episodes_after_it_shares_it_too(name):
    [supervised] = {c.recipe for c in cells_of(name) if c.algorithm.name == "baseline"}
    found = 0
    for cell in cells_of(name):
        ratio = cell.algorithm.hyperparameters.get("pretrain_ratio")
        if ratio is not None:
            before = Recipe(
                steps=round(ratio * cell.recipe.steps),
                batch_size=cell.recipe.batch_size,
                lr=cell.algorithm.hyperparameters["pretrain_lr"],
            )
            assert before.batch_identity == supervised.batch_identity, cell.id
            found += 1
    assert found >= 3


@pytest.mark.parametrize("name", STANDING)
def test_nearest_centroid_of_pixels_is_not_trained_and_all_else_is(name):
    for cell in cells_of(name):
        pixels = cell.backbone.name == "identity" and cell.algorithm.name == "nearest-centroid"
        assert (cell.recipe.steps == 0) == pixels


@pytest.mark.parametrize("name", STANDING)
def test_the_classic_variants_are_transductive_and_nothing_else_is(name):
    modes = {(c.algorithm.name, c.variant, c.inference) for c in cells_of(name)}
    transductive = {(a, v) for a, v, mode in modes if mode == "transductive"}
    family = {a for a, e in registry().algorithms.items() if e.family == "transductive"}
    expected = {(a, v) for a, v, _ in modes if a in family or (a, v) in CLASSIC}
    assert transductive == expected
    assert transductive >= {("maml", "batch-norm-batch")}


def test_the_suites_over_drawings_share_their_supervised_training():
    recipes = [
        {c.recipe for c in cells_of(name) if c.algorithm.name == "baseline"}
        for name in ("fewshot", "fewshot-full", "fewshot-dirichlet")
    ]
    assert recipes[0] == recipes[1] == recipes[2]
    assert len(recipes[0]) == 1


def test_fewshot_full_has_the_settings_that_did_best_on_validation():
    """Each trial is a candidate, each candidate a trial, and the suite runs the best."""
    with (MEASUREMENTS / "fewshot-full-settings.csv").open(encoding="utf-8") as file:
        trials = list(csv.DictReader(file))
    rows = tomllib.loads((CI / "candidates.toml").read_text(encoding="utf-8"))
    for protocol in {trial["protocol"] for trial in trials}:
        here = [trial for trial in trials if trial["protocol"] == protocol]
        tried = {(trial["row"], trial["settings"]) for trial in here}
        assert tried == {(row, text) for row, of_row in rows.items() for text in of_row["try"]}
        for row in rows:
            of_row = [trial for trial in here if trial["row"] == row]
            best = max(of_row, key=lambda trial: float(trial["validation"] or 0))
            name, _, variant = row.partition("/")
            [cell] = [
                cell
                for cell in cells_of("fewshot-full")
                if (cell.protocol.name, cell.algorithm.name, cell.variant)
                == (protocol, name, variant)
                and cell.backbone.label == ("identity" if name == "pca-features" else "conv4-32")
            ]
            for text in best["settings"].split():
                setting = parse_override(f"{name}.{text}")
                of_cell = cell.recipe.model_dump() if setting.recipe else None
                table = of_cell or cell.algorithm.hyperparameters
                wanted = None if setting.value == "none" else setting.value
                assert table[setting.key] == wanted, (row, text)


def test_fewshot_is_a_choice_of_fewshot_full():
    """Cell by cell the same, so what one of them has run the other reuses."""

    def cells(suite):
        return {
            str((c.protocol, c.algorithm, c.variant, c.backbone, c.recipe, c.seed))
            for c in cells_of(suite)
        }

    assert cells("fewshot") < cells("fewshot-full")
    names = {cell.algorithm.name for cell in cells_of("fewshot")}
    assert len(names) == 12
    families = {registry().algorithms[name].family for name in names}
    everything = {e.family for e in registry().algorithms.values() if e.plugin == "builtin"}
    assert everything - families == {"unsupervised"}


def test_every_candidate_of_settings_is_possible():
    """Before hours of trials: each makes a cell of fewshot-full, and no two of a row the same.

    Each names all settings that its row varies: what one left out would be what the suite has.
    """
    suite = open_suite("fewshot-full", registry())
    rows = tomllib.loads((CI / "candidates.toml").read_text(encoding="utf-8"))
    assert {row.partition("/")[0] for row in rows} == {e.name for e in suite.algorithms}
    for row, of_row in rows.items():
        name = row.partition("/")[0]
        assert of_row["paper"]
        assert 3 <= len(of_row["try"]) <= 4, row
        tried = set()
        for of_text in of_row["try"]:
            named = {setting.partition("=")[0] for setting in of_text.split()}
            assert named == {s.partition("=")[0] for s in of_row["try"][0].split()}, row
        for settings in of_row["try"]:
            filters = Filters(
                algorithms=(row if "/" in row else f"{row}/",),
                backbones=("identity" if name == "pca-features" else "conv4-32",),
                protocols=("5w1s15q",),
                seeds=(1000,),
                settings=tuple(f"{name}.{setting}" for setting in settings.split()),
            )
            cells = build_matrix(suite, registry(), filters)
            assert len(cells) == 1, (row, settings)
            tried.add((str(cells[0].algorithm), str(cells[0].recipe)))
        assert len(tried) == len(of_row["try"]), row


@pytest.mark.parametrize("name", SUITES)
def test_validation_comes_before_selection(name):
    for cell in cells_of(name):
        recipe = cell.recipe
        if recipe.steps and recipe.select == "best":
            assert 0 < recipe.validate_every <= recipe.steps, cell.id
            assert recipe.steps % recipe.validate_every == 0, cell.id


def test_the_quick_omniglot_is_a_prefix_of_the_long_one():
    long = {p.name: p for p in open_suite("omniglot", registry()).protocols}
    for protocol in open_suite("omniglot-quick", registry()).protocols:
        episodes = long[protocol.name].episodes
        assert protocol.model_copy(update={"episodes": episodes}) == long[protocol.name]


def test_mamls_inner_rate_is_that_of_a_mean_loss():
    alpha = {5: 0.4, 20: 0.1}  # of a loss that is summed over N*K items and divided by K
    for cell in cells_of("reference-maml"):
        ways = cell.protocol.ways
        assert cell.algorithm.hyperparameters["inner_lr"] == pytest.approx(ways * alpha[ways])


PROTOCOL = st.builds(
    Protocol,
    ways=st.integers(2, 4),
    shots=st.integers(1, 2),
    queries=st.integers(1, 2),
    rotation=st.sampled_from(Rotation),
    episodes=st.integers(2, 3),
    episode_seed=st.integers(0, 1),
    class_split=st.sampled_from(["default", "vinyals"]),
    image_size=st.sampled_from([None, 28]),
    dirichlet=st.sampled_from([None, 1, 2]),
)


@given(PROTOCOL, PROTOCOL)
def test_a_protocols_digest_is_equal_exactly_where_all_of_it_is(one, other):
    assert (one.digest == other.digest) == (one == other)


@given(PROTOCOL)
def test_no_field_of_a_protocol_is_left_out_of_its_digest(protocol):
    neutral = {key for key, value in Protocol.NEUTRAL.items() if getattr(protocol, key) == value}
    assert set(protocol.identity) == set(Protocol.model_fields) - neutral
    changes = {
        "ways": protocol.ways + 1,
        "shots": protocol.shots + 1,
        "queries": protocol.queries + 1,
        "rotation": next(r for r in Rotation if r is not protocol.rotation),
        "episodes": protocol.episodes + 1,
        "episode_seed": protocol.episode_seed + 1,
        "class_split": protocol.class_split + "2",
        "image_size": (protocol.image_size or 0) + 1,
        "dirichlet": (protocol.dirichlet or 0) + 1,
    }
    # One metric only, so far: it cannot be changed, but it is in the identity.
    assert set(changes) | {"metric"} == set(Protocol.model_fields)
    for field, value in changes.items():
        assert protocol.model_copy(update={field: value}).digest != protocol.digest, field
