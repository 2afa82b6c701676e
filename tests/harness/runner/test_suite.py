"""A suite file says what it says, and what is wrong with it is told in a line or two."""

from pathlib import Path

import pytest

from metabench.errors import UnknownNameError, UsageError
from metabench.registry import Entry, Registry
from metabench.runner.suite import MOST_SEEDS, load_suite, open_suite

MINIMAL = """
summary = "one row"

[[dataset]]
name = "points"

[[protocol]]
ways = 5
shots = 1

[[backbone]]
name = "net"

[[algorithm]]
name = "learner"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(folder: Path, text: str) -> UsageError:
    """The error that a suite of this text gives; it names the file and fits two lines."""
    path = written(folder, text)
    with pytest.raises(UsageError) as caught:
        load_suite(path)
    assert str(path) in caught.value.message
    assert len(str(caught.value).splitlines()) <= 2
    assert caught.value.exit_code == 2
    return caught.value


def test_a_minimal_suite(tmp_path):
    suite = load_suite(written(tmp_path, MINIMAL))
    assert (suite.name, suite.summary, suite.seeds) == ("mine", "one row", (0,))
    assert [p.name for p in suite.protocols] == ["5w1s15q"]
    assert suite.datasets[0].label == "points"
    assert suite.algorithms[0].variant is None


def test_everything_that_a_suite_may_say(tmp_path):
    text = """
        summary = "all of it"
        seeds = [3, 5]
        recipe = {validate_every = 50}
        recipes = {long = {steps = 9000}}

        [[dataset]]
        name = "points"
        label = "few-points"
        hyperparameters = {noise = 0.5}

        [[protocol]]
        ways = 20
        shots = 5
        queries = 3
        episodes = 10
        episode_seed = 7
        class_split = "other"
        image_size = 14
        rotation = "classes"
        metric = "accuracy"

        [[backbone]]
        name = "net"
        hyperparameters = {width = 32, mode = "b"}

        [[algorithm]]
        name = "learner"
        variant = "tuned"
        backbones = ["net*"]
        hyperparameters = {rate = 0.1}
        recipe = "long"

        [algorithm.protocols."20w*"]
        hyperparameters = {rate = 0.2}
        recipe = {base = "long", steps = 10}
    """
    suite = load_suite(written(tmp_path, text))
    assert suite.seeds == (3, 5)
    assert suite.recipe == {"validate_every": 50}
    assert suite.recipes == {"long": {"steps": 9000}}
    assert suite.datasets[0].label == "few-points"
    assert suite.backbones[0].label == "net,mode=b,width=32"
    protocol = suite.protocols[0]
    assert (protocol.rotation, protocol.image_size, protocol.episode_seed) == ("classes", 14, 7)
    algorithm = suite.algorithms[0]
    assert algorithm.recipe == {"base": "long"}
    assert [layer.hyperparameters for layer in algorithm.layers("20w5s3q")] == [
        {"rate": 0.1},
        {"rate": 0.2},
    ]
    assert len(algorithm.layers("5w5s3q")) == 1


def test_a_number_of_seeds_counts_from_zero(tmp_path):
    assert load_suite(written(tmp_path, "seeds = 3\n" + MINIMAL)).seeds == (0, 1, 2)


@pytest.mark.parametrize(
    "seeds",
    ["0", "-1", "true", "1.5", '"3"', "[]", "[1, 1]", "[-1]", "[1.0]", f"{MOST_SEEDS + 1}"],
)
def test_impossible_seeds(tmp_path, seeds):
    assert "seeds = " in refused(tmp_path, f"seeds = {seeds}\n" + MINIMAL).message


@pytest.mark.parametrize(
    ("line", "key", "nearest"),
    [
        ("[[datasets]]", "datasets", "dataset"),
        ("[[dataset]]\nname = 'points'\nlable = 'x'", "lable", "label"),
        ("[[protocol]]\nway = 5", "way", "ways"),
        ("[[backbone]]\nname = 'net'\nhyperparameter = {}", "hyperparameter", "hyperparameters"),
        ("[[algorithm]]\nname = 'learner'\nbackbone = ['net']", "backbone", "backbones"),
        ("[[algorithm]]\nname = 'learner'\nrecipe = {step = 3}", "step", "steps"),
        ("[recipe]\nmetabatch = 2", "metabatch", "meta_batch"),
        ("[recipes.long]\nlearning = 2", "learning", "warmup"),
        (
            "[[algorithm]]\nname = 'learner'\n[algorithm.protocols.5w1s]\nrecipes = {}",
            "recipes",
            "recipe",
        ),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(tmp_path, line, key, nearest):
    error = refused(tmp_path, f"{MINIMAL}\n{line}\n")
    assert repr(key) in error.message
    assert nearest in error.hint


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("[[protocol]]\nways = 1\nshots = 1", "ways = 1 should be greater than or equal to 2"),
        ("[[protocol]]\nways = '5'\nshots = 1", 'ways = "5" should be a valid integer'),
        ("[[protocol]]\nways = 2.5\nshots = 1", "ways = 2.5"),
        ("[[protocol]]\nways = true\nshots = 1", "ways = true"),
        ("[[protocol]]\nways = 5\nshots = 1\nrotation = 'all'", "'classes' or 'episode'"),
        (
            "[[protocol]]\nways = 5\nshots = 1\nmetric = 'f1'",
            "metric = \"f1\" should be 'accuracy'",
        ),
        ("[[protocol]]\nways = 5", "the key 'shots' is missing"),
        ("[[algorithm]]\nvariant = 'x'", "the key 'name' is missing"),
        (
            "[[algorithm]]\nname = 'learner'\nvariant = 'a/b'",
            'variant = "a/b": it may have letters, digits and _ . + = , - in it, and begins with a',
        ),
        ("[[algorithm]]\nname = 'learner'\nrecipe = {steps = -1}", "recipe: steps = -1 should be"),
        ("[[algorithm]]\nname = 'learner'\nrecipe = {lr = inf}", "lr = inf should be a finite"),
        ("[[algorithm]]\nname = 'learner'\nrecipe = {lr = 2020-01-01}", "has no meaning here"),
        ("[[algorithm]]\nname = 'learner'\nrecipe = 3", "recipe = 3"),
        ("[[algorithm]]\nname = 'learner'\nprotocols = 3", "protocols should be tables"),
        ("[recipe]\nlr = 0", "[recipe]: lr = 0 should be greater than 0"),
        ("[recipes]\nlong = 3", "[recipes.long] should be a table"),
    ],
)
def test_an_impossible_value_is_told_with_what_is_allowed(tmp_path, line, what):
    assert what in refused(tmp_path, f"{MINIMAL}\n{line}\n").message


def test_several_faults_are_counted(tmp_path):
    error = refused(tmp_path, f"{MINIMAL}\n[[protocol]]\nways = 1\nshots = 0\n")
    assert error.message.endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("line", "what", "hint"),
    [
        ("backbones = ['nett']", "no backbone called 'nett'", "did you mean 'net'"),
        ("protocols.5w5s.recipe = {steps = 1}", "no protocol called '5w5s'", "5w1s15q"),
        ("recipe = 'lang'", "no recipe called 'lang'", "did you mean 'long'"),
        ("protocols.5w1s.recipe = 'lang'", "no recipe called 'lang'", "did you mean 'long'"),
        ("recipe = {base = 3}", "no recipe called '3'", "known: long"),
    ],
)
def test_names_within_the_suite_lead_somewhere(tmp_path, line, what, hint):
    error = refused(tmp_path, f"{MINIMAL}{line}\n[recipes.long]\nsteps = 5\n")
    assert what in error.message
    assert "[[algorithm]] 1 (learner)" in error.message
    assert hint in error.hint


@pytest.mark.parametrize(
    "again",
    ["[[dataset]]\nname = 'points'", "[[backbone]]\nname = 'net'", "[[protocol]]\nways=5\nshots=1"],
)
def test_two_entries_of_one_name_are_refused(tmp_path, again):
    assert "two [[" in refused(tmp_path, f"{MINIMAL}\n{again}\n").message


@pytest.mark.parametrize("key", ["dataset", "protocol", "backbone", "algorithm"])
def test_a_suite_needs_one_of_each(tmp_path, key):
    start = MINIMAL.index(f"[[{key}]]")
    end = MINIMAL.find("[[", start + 2)
    text = MINIMAL[:start] + (MINIMAL[end:] if end > 0 else "")
    assert f"[[{key}]]" in refused(tmp_path, text).message


def test_a_suite_needs_a_summary(tmp_path):
    assert "summary" in refused(tmp_path, MINIMAL.replace("summary", "# summary")).message


def test_what_is_no_toml(tmp_path):
    file = tmp_path / "mine.toml"
    error = refused(tmp_path, "summary = \n")
    assert error.message == f"{file}, line 1, column 11: invalid value"
    error = refused(tmp_path, 'summary = "x"\nseeds = [1,\n2')
    assert error.message == (
        f"{file} ends in line 3 within something that was begun: unclosed array"
    )
    assert "close it" in error.hint
    error = refused(tmp_path, 'summary = "x"\nsummary = "y"')
    assert error.message == f"{file}, line 2, column 14: cannot overwrite a value"


def test_what_is_no_text(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not UTF-8"):
        load_suite(path)


def test_what_is_far_too_large(tmp_path):
    refused(tmp_path, MINIMAL + "#" * (1 << 20))


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        load_suite(tmp_path / "none.toml")


def test_a_file_with_the_name_of_a_registered_suite_is_refused(tmp_path):
    own = written(tmp_path, MINIMAL)
    other = tmp_path / "elsewhere" / "mine.toml"
    other.parent.mkdir()
    other.write_text(MINIMAL)
    known = Registry(
        suites={"mine": Entry("mine", "suite", "plug", "plugin 'plug' of dist 1", own)}
    )
    assert open_suite(str(own), known) == open_suite("mine", known)
    with pytest.raises(UsageError, match="has the name of suite 'mine' of plugin 'plug'") as caught:
        open_suite(str(other), known)
    assert "my-mine.toml" in caught.value.hint


def test_a_suite_is_opened_by_name_or_by_path(tmp_path):
    path = written(tmp_path, MINIMAL)
    entry = Entry(name="known", kind="suite", plugin="p", owner="p", source=path)
    registry = Registry(suites={"known": entry})
    assert open_suite("known", registry) == open_suite(str(path), registry)
    with pytest.raises(UnknownNameError, match="did you mean 'known'"):
        open_suite("knwon", registry)


def test_an_algorithm_that_the_suite_lacks_joins_on_its_first_backbone(tmp_path):
    suite = load_suite(written(tmp_path, MINIMAL + "\n[[backbone]]\nname = 'pixels'\n"))
    joined = suite.with_algorithms(["learner", "newcomer"])
    assert [(a.name, a.backbones) for a in joined.algorithms] == [
        ("learner", ("*",)),
        ("newcomer", ("net",)),
    ]
