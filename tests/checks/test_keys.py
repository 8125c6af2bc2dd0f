"""Every key refuses values of another type, by name and before torch is imported."""

import copy
import functools
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ldm_lightning.checks import keys as key_checks
from ldm_lightning.checks.keys import check_keys
from ldm_lightning.checks.kinds import OPEN_MAPPINGS, Kind, kind_of, said, wrong_values
from ldm_lightning.config import CONF_DIR, register_resolvers

STAGES = {
    "first": ["experiment=vq_f8", "data=webdataset"],
    "second": ["experiment=ldm_kl_f4", "data=webdataset", "conditioner=class_label"],
}
WRONG = {
    "flag": ["abc", 1, None, [True]],
    "whole": ["abc", "1", 1.5, True, None, [[1]], float("inf"), -1],
    "number": ["abc", "1e-6", True, None, [[1.0]], float("nan"), float("inf")],
    "text": [True, ["a", ["b"]], {"a": 1}],
    "path": [3, True, {"a": 1}],
}


@functools.cache
def composed(command, words):
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose(command, list(words), return_hydra_config=True)
    choices = dict(cfg.hydra.runtime.choices)
    OmegaConf.set_struct(cfg, False)
    del cfg["hydra"]
    return cfg, choices


def check(cfg, choices, command="train"):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        check_keys(cfg, choices, command=command)


def leaves(value, key=""):
    if not isinstance(value, dict) or not value:
        return {key: value}
    found = {}
    for name, item in value.items():
        found |= leaves(item, f"{key}.{name}" if key else str(name))
    return found


def put(values, key, value):
    *parents, name = key.split(".")
    for parent in parents:
        values = values[parent]
    values[name] = value


def refused_by(kind):
    return [value for value in WRONG.get(kind.name, []) if not kind.accepts(value)]


@functools.cache
def defaults_of(command, words):
    cfg, choices = composed(command, words)
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return key_checks._defaults(command, choices)


COMMANDS = {
    "first stage": ("train", tuple(STAGES["first"])),
    "second stage": ("train", tuple(STAGES["second"])),
    **{command: (command, ()) for command in ("evaluate", "encode", "sample", "report")},
    **{command: (command, ()) for command in ("plan", "pipeline")},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_key_refuses_every_value_of_another_type_by_name(name):
    defaults = defaults_of(*COMMANDS[name])
    found = {key: value for key, value in leaves(defaults).items() if key not in OPEN_MAPPINGS}
    for number in range(max(map(len, WRONG.values()))):
        changed, expected = copy.deepcopy(defaults), []
        for key, default in found.items():
            values = refused_by(kind_of(key, default))
            if number < len(values):
                put(changed, key, values[number])
                expected.append(f"{key}={said(values[number])}")
        lines = wrong_values(changed, defaults)
        assert sorted(line.partition(": expected ")[0] for line in lines) == sorted(expected)
        assert len(expected) > 100 or "stage" not in name or number > 1


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_and_flag_of_conf_has_a_kind_that_is_checked(name):
    defaults = leaves(defaults_of(*COMMANDS[name]))
    names = {key: kind_of(key, default).name for key, default in defaults.items()}
    numbers = {key for key, default in defaults.items() if isinstance(default, (int, float))}
    assert {key for key in numbers if names[key] in ("path", "any")} == set()
    texts = {key for key in numbers if names[key] == "text"}
    assert texts <= {"precision"}  # 32, bf16, ...
    asked = {"optim.learning_rate", "optim.clip_norm", "data.max_val_images", "resolution"}
    assert {names[key] for key in asked & set(names)} <= {"whole", "number"}


def test_own_keys_beside_those_of_train_are_checked_too():
    cfg, choices = composed("pipeline", ())
    changed = cfg.copy()
    check(changed, choices, "pipeline")
    for key, value in (("samples.num_samples", 1), ("first_stage.overrides", "max_steps=3")):
        OmegaConf.update(changed, key, value)
    with pytest.raises(ValueError, match=r"first_stage.overrides=.* samples.num_samples=1"):
        check(changed, choices, "pipeline")


@pytest.mark.parametrize(
    ("experiment", "scale"), [("vqgan_f16", "paper"), ("ldm_celebahq", "cpu"), ("ldm_dit_s", "gpu")]
)
def test_what_conf_holds_is_accepted(experiment, scale):
    check(*composed("train", (f"experiment={experiment}", f"scale={scale}")))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Kind("number", least=0, is_open=True), [1e-9, 3], [0, -1]),
        (Kind("whole", least=1, is_list=True, length=2), [[1, 2]], [[1], [1, 2, 3], [1, 0], 1]),
        (Kind("whole", least=1, is_list=True, length=2, or_one=True), [1, [1, 2]], ["1", [1]]),
        (Kind("whole", words=("auto",)), ["auto", 2], ["automatic", 2.0, True]),
        (Kind("flag", or_null=True), [None, False], [0, "true"]),
        (Kind("number", least=0, most=1), [0, 1, 0.5], [1.01, float("nan")]),
    ],
)
def test_kinds_accept_and_refuse(kind, good, bad):
    assert [value for value in good if not kind.accepts(value)] == []
    assert [value for value in bad if kind.accepts(value)] == []


def test_a_text_that_looks_like_a_number_is_shown_as_a_text():
    assert [said(v) for v in ("1e-6", 1e-6, None, True, [1, "a"])] == [
        *("'1e-6'", "1e-06", "null", "true", "[1,a]")
    ]


def test_numbers_of_yaml_files_are_numbers_however_they_are_written(tmp_path):
    (tmp_path / "mine.yaml").write_text("a: 1e-6\nb: 1.0e-6\nc: 1E6\nd: '1e-6'\n")
    found = OmegaConf.load(tmp_path / "mine.yaml")
    assert [type(found[key]) for key in "abcd"] == [float, float, float, str]


def test_nothing_waits_for_torch(tmp_path):
    code = """
import sys
from ldm_lightning import train
sys.argv[1:] = ["loss.kl_weight=abc", "output_dir=" + sys.argv[1]]
try:
    train.main()
except SystemExit as end:
    assert end.code == 1
    assert "torch" not in sys.modules
else:
    raise AssertionError
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, "refused"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert "loss.kl_weight=abc" in ended.stdout + ended.stderr


def test_a_recipe_that_is_at_no_scale_is_refused_and_one_of_another_scale_is_not():
    cfg, choices = composed("train", ("experiment=kl_f8",))
    with pytest.raises(ValueError, match=r"recipe=cpu/kl_f7.*kl_f8.*recipe=none"):
        check(cfg.copy(), {**choices, "recipe": "cpu/kl_f7"})
    for recipe in ("gpu/kl_f8", "none", None):
        check(cfg.copy(), {**choices, "recipe": recipe})


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
@pytest.mark.parametrize("experiment", ["kl_f8", "ldm_kl_f8"])
@pytest.mark.parametrize("optim", sorted(path.stem for path in (CONF_DIR / "optim").glob("*.yaml")))
def test_every_optimizer_gets_only_its_own_arguments_in_both_stages(optim, experiment, scale):
    words = (f"experiment={experiment}", f"optim={optim}", f"scale={scale}", "features=tiny")
    cfg, choices = composed("train", words)
    check(cfg.copy(), choices)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (3, "loss.terms=3"),
        ({"own": 0.5}, "loss.terms.own=0.5"),
        ({"own": {"weight": 0.5}}, "loss.terms.own="),
        ({"off": None, "own": {"_target_": None}}, "loss.terms.own="),
        ({"own": {"_target_": "package.Class"}}, "loss.terms.own.weight=null"),
        ({"own": {"_target_": "package.Class", "weight": "x"}}, "loss.terms.own.weight=x"),
    ],
)
def test_an_entry_of_an_open_mapping_names_a_class(value, named):
    (line,) = wrong_values({"loss": {"terms": value}}, {"loss": {"terms": {}}})
    assert line.startswith(named)
    right = {"off": None, "own": {"_target_": "package.Class", "weight": 0.5}}
    assert wrong_values({"loss": {"terms": right}}, {"loss": {"terms": {}}}) == []
