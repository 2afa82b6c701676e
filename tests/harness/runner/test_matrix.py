"""Matrices: which cells a suite gives, under which filters and changes, and how they are named."""

import pickle
import re
from pathlib import Path

import pytest
from small_registry import REGISTRY, SUITE, Learner, LearnerSettings

from metabench.api.recipe import Recipe
from metabench.errors import UnknownNameError, UsageError
from metabench.runner.cells import Cell
from metabench.runner.matrix import Filters, build_matrix
from metabench.runner.resolve import load_choice
from metabench.runner.suite import load_suite


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mine.toml"


@pytest.fixture
def matrix(path):
    """Build the matrix of SUITE, or of another text, with filters by keyword."""

    def build(text=SUITE, **filters):
        path.write_text(text, encoding="utf-8")
        return build_matrix(load_suite(path), REGISTRY, Filters(**filters))

    return build


def ids(cells):
    return [cell.id for cell in cells]


def test_every_combination_once_in_the_order_of_the_file(matrix):
    assert ids(matrix(seeds=1)) == [
        "points/5w1s15q/learner:rate=0.1/net-32/seed0",
        "points/5w1s15q/learner:classic/net-32/seed0",
        "points/5w1s15q/metric/net-32/seed0",
        "points/5w1s15q/metric/pixels/seed0",
        "points/5w5s15q/learner:rate=0.1,steps=3/net-32/seed0",
        "points/5w5s15q/learner:classic/net-32/seed0",
        "points/5w5s15q/metric/net-32/seed0",
        "points/5w5s15q/metric/pixels/seed0",
    ]
    cells = matrix()
    assert [cell.seed for cell in cells] == [0, 1] * 8
    assert len({cell.id for cell in cells}) == 16
    assert len({cell.row for cell in cells}) == 8


def test_hyperparameters_are_complete_and_typed(matrix):
    cell = matrix(algorithms=["learner/rate*"], protocols=["5w5s"])[0]
    assert cell.algorithm.hyperparameters == {"rate": 0.1, "steps": 3, "norm": "support"}
    assert cell.backbone.hyperparameters == {"width": 32}
    cls, hp = load_choice(REGISTRY, "algorithm", cell.algorithm)
    assert cls is Learner
    assert hp == LearnerSettings(rate=0.1, steps=3)


def test_a_recipe_is_laid_over_the_algorithms_own(matrix):
    one, five = (matrix(algorithms=["learner/rate*"], seeds=1, protocols=[p])[0] for p in P)
    assert one.recipe == Recipe(steps=80, ways=20, validate_every=10)
    assert five.recipe == Recipe(steps=80, ways=20, validate_every=10, lr=0.01)


P = ["5w1s", "5w5s"]


def test_a_base_takes_the_place_of_the_algorithms_own_recipe(matrix):
    text = SUITE + '[[algorithm]]\nname = "learner"\nvariant = "shared"\nrecipe = "shared"\n'
    cells = matrix(text, algorithms=["metric", "learner/shared"])
    assert {cell.algorithm.name for cell in cells} == {"metric", "learner"}
    assert {cell.recipe for cell in cells} == {Recipe(steps=400, lr=0.25, validate_every=10)}


def test_none_empties_an_optional_setting(matrix):
    text = SUITE.replace("recipe = {steps = 80}", 'recipe = {ways = "none"}')
    assert matrix(text)[0].recipe.ways is None


def test_the_inference_mode_follows_the_hyperparameters(matrix):
    modes = {cell.variant: cell.inference for cell in matrix(algorithms=["learner"])}
    assert modes == {
        "rate=0.1": "inductive",
        "rate=0.1,steps=3": "inductive",
        "classic": "transductive",
    }


def test_the_default_class_split_is_the_data_sets_first(matrix):
    assert {cell.protocol.class_split for cell in matrix()} == {"first"}
    changed = matrix(settings=["protocol.class_split=second"])
    assert {cell.protocol.class_split for cell in changed} == {"second"}
    with pytest.raises(UsageError, match="no class split called 'secnd'\ndid you mean 'second'"):
        matrix(settings=["protocol.class_split=secnd"])


def test_only_square_images_are_turned(matrix):
    for turned in ("protocol.rotation=classes", "*.recipe.augmentation=rotation-classes"):
        with pytest.raises(UsageError, match="quarter turns, which those of data set points"):
            matrix(settings=[turned])
        assert matrix(SUITE.replace('"points"', '"images"'), settings=[turned])


def test_a_cell_survives_json_and_pickle(matrix):
    for cell in matrix(settings=["learner.rate=1e-17", "*.recipe.clip_norm=0.1"]):
        assert Cell.model_validate_json(cell.model_dump_json()) == cell
        assert pickle.loads(pickle.dumps(cell)) == cell


def test_filters_choose_by_shell_pattern(matrix):
    assert {c.algorithm.name for c in matrix(algorithms=["met*"])} == {"metric"}
    assert {c.variant for c in matrix(algorithms=["learner/classic"])} == {"classic"}
    assert {c.variant for c in matrix(algorithms=["metric/"])} == {""}
    assert {c.backbone.label for c in matrix(backbones=["pix*"])} == {"pixels"}
    assert {c.backbone.label for c in matrix(backbones=["net"])} == {"net-32"}
    assert {c.protocol.name for c in matrix(protocols=["5w1s"])} == {"5w1s15q"}
    assert {c.protocol.name for c in matrix(protocols=["5w1s", "*5s15q"])} == {"5w1s15q", "5w5s15q"}
    assert {c.dataset.label for c in matrix(datasets=["p?ints"])} == {"points"}


def test_exclusion_is_by_algorithm_variant_both_or_backbone(matrix):
    assert {c.algorithm.name for c in matrix(exclude=["learner"])} == {"metric"}
    assert "classic" not in {c.variant for c in matrix(exclude=["classic"])}
    assert "classic" not in {c.variant for c in matrix(exclude=["learner/cl*"])}
    assert {c.backbone.label for c in matrix(exclude=["pixels"])} == {"net-32"}


@pytest.mark.parametrize(
    ("filters", "what", "known"),
    [
        ({"algorithms": ["lerner"]}, "no algorithm 'lerner'", "'learner'"),
        ({"algorithms": ["learner/clasic"]}, "no algorithm", "'learner/classic'"),
        ({"backbones": ["resnet"]}, "no backbone 'resnet'", "net-32, pixels"),
        ({"datasets": ["omniglot"]}, "no dataset 'omniglot'", "points"),
        ({"protocols": ["5w1"]}, "no protocol '5w1'", "5w1s15q, 5w5s15q"),
        ({"exclude": ["lerner"]}, "to exclude: 'lerner'", "learner/classic"),
        ({"exclude": ["metrik"]}, "to exclude: 'metrik'", "did you mean 'metric'?"),
        ({"exclude": ["*"]}, "leave nothing", "--dry-run"),
        ({"algorithms": ["learner"], "backbones": ["pixels"]}, "leave nothing", "--dry-run"),
        ({"seeds": 0}, "0 seeds", "--seeds 3"),
        ({"seeds": 10**30}, "seeds: a run takes 1 to 1000", "--seeds 3"),
        ({"seeds": [1, 1]}, "different", ""),
        ({"seeds": [-1]}, "not below 0", ""),
    ],
)
def test_a_filter_that_leaves_nothing_is_an_error(matrix, filters, what, known):
    with pytest.raises(UsageError) as caught:
        matrix(**filters)
    assert what in caught.value.message
    assert known in caught.value.hint
    assert len(str(caught.value).splitlines()) <= 2


def test_a_filter_need_only_match_something_of_the_suite(matrix):
    assert ids(matrix(algorithms=["learner", "metric"], backbones=["pixels"], seeds=1)) == [
        "points/5w1s15q/metric/pixels/seed0",
        "points/5w5s15q/metric/pixels/seed0",
    ]
    assert matrix(backbones=["pixels"], exclude=["net-*", "learner/classic"])


def test_what_is_excluded_by_name_is_not_even_loaded(matrix):
    text = SUITE + '[[algorithm]]\nname = "broken"\n[[backbone]]\nname = "broken-net"\n'
    assert ids(matrix(text, exclude=["broken", "broken-*"])) == ids(matrix())
    with pytest.raises(UnknownNameError, match="no algorithm called 'broken'"):
        matrix(text, exclude=["broken-*"])


def test_seeds_may_be_listed(matrix):
    assert {cell.seed for cell in matrix(seeds=[4, 9])} == {4, 9}


def test_a_changed_setting_is_in_the_variant(matrix):
    def variants(*settings, of="learner"):
        return {c.variant for c in matrix(algorithms=[of], protocols=["5w1s"], settings=settings)}

    assert variants("learner.steps=1") == {"rate=0.1,steps=1", "classic,steps=1"}
    assert variants("learner.rate=0.4") == {"rate=0.4", "classic,rate=0.4"}
    assert variants("*.recipe.steps=0") == {"rate=0.1,recipe.steps=0", "classic,recipe.steps=0"}
    assert variants("backbone.net.width=8", of="metric") == {"", "backbone.width=8"}
    assert variants("dataset.points.noise=1", of="metric") == {"dataset.noise=1.0"}
    assert variants("learner.rate=0.1") == {"rate=0.1", "classic"}
    assert variants("learner/classic.steps=1") == {"rate=0.1", "classic,steps=1"}


def test_changes_reach_what_they_name(matrix):
    cells = matrix(
        settings=["learner.steps=1", "*.recipe.steps=7", "backbone.net-32.width=8", "*.rate=3"]
    )
    assert {c.recipe.steps for c in cells} == {7}
    assert {c.backbone.hyperparameters["width"] for c in cells} == {8, 64}
    learners = [c for c in cells if c.algorithm.name == "learner"]
    assert {c.algorithm.hyperparameters["steps"] for c in learners} == {1}
    assert {c.algorithm.hyperparameters["rate"] for c in learners} == {3.0}


def test_a_changed_protocol_keeps_the_settings_made_for_it(matrix):
    cells = matrix(algorithms=["learner/rate*"], settings=["protocol.queries=2"], seeds=1)
    assert [c.protocol.name for c in cells] == ["5w1s2q", "5w5s2q"]
    assert cells[1].algorithm.hyperparameters["steps"] == 3


def test_protocols_that_a_change_makes_equal_are_run_once(matrix):
    cells = matrix(settings=["protocol.shots=5"])
    assert {c.protocol.name for c in cells} == {"5w5s15q"}
    assert len(cells) == 8


@pytest.mark.parametrize(
    ("setting", "what", "hint"),
    [
        ("learner.rte=1", "no key called 'rte'", "'rate'"),
        ("learner.recipe.stps=1", "no key called 'stps'", "'steps'"),
        ("*.nothing=1", "no key called 'nothing'", "distance, norm, rate, steps"),
        ("lerner.rate=1", "no algorithm 'lerner'", "'learner'"),
        ("backbone.nett.width=1", "no backbone 'nett'", "net-32"),
        ("backbone.net.widht=1", "no key called 'widht'", "'width'"),
        ("dataset.x.noise=1", "no dataset 'x'", "points"),
        ("protocol.epsodes=1", "no key called 'epsodes'", "'episodes'"),
        ("protocol.episodes=1", "episodes = 1 should be greater than or equal to 2", ""),
        ("metric.steps=3", "no key called 'steps'", "'metric.recipe.steps'"),
        ("metric.width=3", "no key called 'width'", "known: distance"),
        ("*.width=3", "no key called 'width'", "'backbone.*.width'"),
        ("net.width=3", "no algorithm 'net'", "'backbone.net.width'"),
        ("net-32.width=3", "no algorithm 'net-32'", "'backbone.net-32.width'"),
        ("points.noise=1", "no algorithm 'points'", "'dataset.points.noise'"),
        ("learner.rate=nan", "--set learner.rate=nan: rate = nan should", "rate: inner learning"),
        ("learner.rate=[inf]", "=[inf]: rate = [inf] should be a finite", "rate: inner learning"),
        ("learner.rate=2026-01-01", ": rate = 2026-01-01 has no meaning", "rate: inner learning"),
        ("learner.rate=-1", "rate = -1 should be greater than 0", "inner learning rate"),
        ("learner.rate=fast", 'rate = "fast" should be a valid number', ""),
        ("learner.norm=all", 'norm = "all"', "whose moments"),
        ("*.recipe.refit=true", "refit needs select", ""),
        ("backbone.net.width=1.5", "width = 1.5 should be a valid integer", "channels"),
        ("backbone.width=1", "of which backbone?", "backbone.NAME.width"),
        ("rate=1", "no such form", "maml.inner_lr=0.1"),
        ("learner.rate", "no such form", "maml.inner_lr=0.1"),
        (".rate=1", "no such form", "maml.inner_lr=0.1"),
    ],
)
def test_a_change_that_cannot_be_meant(matrix, setting, what, hint):
    text = SUITE.replace("validate_every = 10", "validate_every = 0")
    with pytest.raises(UsageError) as caught:
        matrix(text, settings=[setting])
    assert what in caught.value.message
    assert "--set" in caught.value.message
    assert hint in caught.value.hint
    assert len(str(caught.value).splitlines()) <= 2


def test_a_change_of_what_is_filtered_out_is_an_error(matrix):
    with pytest.raises(UsageError, match="no algorithm 'learner'"):
        matrix(algorithms=["metric"], settings=["learner.rate=1"])


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ('name = "metric"', 'name = "metrik"', "no algorithm called 'metrik'\ndid you mean 'metri"),
        ('name = "pixels"', 'name = "pixel"', "no backbone called 'pixel'\ndid you mean 'pixels'"),
        ('name = "points"', 'name = "point"', "no dataset called 'point'\ndid you mean 'points'"),
    ],
)
def test_an_unknown_plugin_is_named_with_file_and_nearest_name(matrix, path, old, new, what):
    with pytest.raises(UnknownNameError, match=what) as caught:
        matrix(SUITE.replace(old, new))
    kind = what.split()[1]
    name = new.split('"')[1]
    assert re.match(
        rf"{re.escape(str(path))}, \[\[{kind}\]\] \d \({name}\): ", caught.value.message
    )


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("{rate = 0.1}", "{rat = 0.1}", "learner, hyperparameters: there is no key called 'rat'"),
        ("{rate = 0.1}", "{rate = 0}", "learner, hyperparameters: rate = 0 should be greater"),
        ("{width = 32}", "{width = 0}", "net-32, hyperparameters: width = 0 should be"),
        ("{steps = 80}", "{nesterov = true}", "learner, recipe: nesterov needs a momentum over 0"),
    ],
)
def test_a_wrong_setting_in_the_file_is_told_with_its_place(matrix, path, old, new, what):
    with pytest.raises(UsageError) as caught:
        matrix(SUITE.replace(old, new))
    assert caught.value.message.startswith(f"{path}, {what}")


def test_two_entries_that_make_one_row_are_refused(matrix):
    with pytest.raises(UsageError, match=r"make the row points/5w1s15q/metric/net-32\n.*variant"):
        matrix(SUITE + '[[algorithm]]\nname = "metric"\nrecipe = {lr = 0.1}\n')


def test_an_empty_label_hides_settings_and_nothing_else(matrix):
    text = SUITE.replace('variant = "classic"', 'variant = ""')
    cells = matrix(text, algorithms=["learner/"], settings=["learner.steps=2"])
    assert {cell.variant for cell in cells} == {"steps=2"}
    assert {cell.algorithm.hyperparameters["norm"] for cell in cells} == {"batch"}


def test_the_arguments_of_a_cell_choose_that_cell_alone(matrix):
    settings = ["*.rate=0.3", "protocol.queries=4", "backbone.net.width=2", "*.recipe.steps=1"]
    for cell in matrix(settings=settings):
        given_by = {"--algorithm": [], "--set": []}
        for option, value in zip(cell.arguments[::2], cell.arguments[1::2], strict=True):
            given_by.setdefault(option, []).append(value)
        again = matrix(
            algorithms=given_by["--algorithm"],
            backbones=given_by["--backbone"],
            datasets=given_by["--dataset"],
            protocols=given_by["--protocol"],
            seeds=[int(seed) for seed in given_by["--seed"]],
            settings=given_by["--set"],
        )
        assert again == [cell]
        assert cell.command("a b.toml").startswith("metabench run --suite 'a b.toml' --dataset ")


def test_the_same_cells_whatever_the_folder(tmp_path):
    cells = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = Path(tmp_path / folder / "mine.toml")
        path.write_text(SUITE, encoding="utf-8")
        cells.append(build_matrix(load_suite(path), REGISTRY))
    assert cells[0] == cells[1]
