"""The configuration: strict, with errors that name the key and the right one; every key of it does something."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig, load_config
from naysay.config.anchors import SCHEDULE_KEYS
from naysay.config.load import dotted_keys, parse_config
from naysay.config.objectives import OBJECTIVES
from naysay.config.sampling import SamplingConfig
from naysay.config.stages import STAGES
from naysay.core import baselines
from naysay.core.objective import d2o_loss
from naysay.errors import ConfigError, InputNotFoundError
from naysay.pipeline.graph import stage_module
from naysay.pipeline.saved_config import config_values

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_every_recipe_loads_and_says_its_hardware(recipe):
    config = load_config(recipe)
    header = recipe.read_text(encoding="utf-8").split("\n\n")[0]
    assert header.startswith("#")
    assert "Hardware" in header
    assert parse_config(config_values(config), "itself") == config


def test_there_are_recipes():
    assert "demo.yaml" in {path.name for path in RECIPES}


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("training.lerning_rate=1", "'training.learning_rate'"),
        ("trainin.beta=1", "'training'"),
        ("anchors.filters.max_repetitions=1", "'anchors.filters.max_repetition'"),
        ("beta=0.2", "'training.beta'"),
        ("anchors.learning_rate=1", "'training.learning_rate'"),
        ("training.lora.r_ank=8", "'training.lora.rank'"),
        ("anchors.zzz=1", "known keys of anchors: k, temperature"),
        ("zzz=1", "known keys of the top level: seed, model"),
    ],
)
def test_an_unknown_key_is_named_with_the_one_that_was_meant(override, suggestion):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    message = str(caught.value)
    assert (
        f"unknown key {override.partition('=')[0].split('.')[0]!r}" in message or override.partition("=")[0] in message
    )
    assert suggestion in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "override",
    [
        *("anchors.k=0", "anchors.k=-3", "anchors.k=2.5", "anchors.k=many", "anchors.temperature=0"),
        *("anchors.top_p=0", "anchors.top_p=1.1", "anchors.top_k=-1", "anchors.max_new_tokens=0"),
        *("anchors.instructions=[]", "anchors.filters.max_repetition=1.5", "anchors.filters.min_tokens=0"),
        *("training.alpha=-0.1", "training.beta=-1", "training.learning_rate=0", "training.epochs=0"),
        *("training.max_steps=0", "training.groups_per_step=0", "training.head_chunk=0", "training.save_steps=0"),
        *("training.tokens_per_microbatch=1", "training.method=qlora", "training.lr_scheduler_type=sine"),
        *("training.lora.rank=0", "training.lora.dropout=0.1", "training.learning_rate=.nan"),
        *("training.learning_rate=.inf", "training.alpha=.inf", "anchors.temperature=.inf", "training.epochs=.inf"),
        *("model.max_length=1", "model.dtype=int8", "model.name=null", "seed=-1", "seed=4294967296"),
        *("data.dev_fraction=1", "data.heldout_fraction=-0.1", "data.limit.train=-1", "data.format=xml"),
        *("data.map={prompts: q}", "data.near_duplicate_threshold=0", "sampling.batch_size=0", "sampling.backend=x"),
        *("evaluation.split=train", "evaluation.kl_bound=0", "evaluation.bootstrap_samples=1"),
        *("references.positive=", "evaluation.temperature=0", "evaluation.heldout_generations=-1"),
    ],
)
def test_an_impossible_value_is_one_line_that_names_the_key(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    message = str(caught.value)
    # A rule that joins two keys names their section.
    assert key in message or key.rpartition(".")[0] in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.alpha=0", "training.beta=0"],
        ["data.dev_fraction=0.5", "data.heldout_fraction=0.5"],
        ["training.method=full", "training.lora.rank=4"],
    ],
    ids=["no loss", "nothing to train on", "adapter of a full training"],
)
def test_settings_that_contradict_each_other(overrides):
    for override in overrides:
        load_config(overrides=[override] if "rank" not in override else [])
    with pytest.raises(ConfigError):
        load_config(overrides=overrides)


def test_yaml_then_flags_then_set(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 3\ntraining: {beta: 0.3, learning_rate: 2e-5}\nanchors: {k: 4}\n")
    config = load_config(recipe, ["training.beta=0.4", "anchors.k = 5"], {"training.beta": 9.0, "model.name": "m"})
    assert (config.seed, config.training.beta, config.anchors.k, config.model.name) == (3, 0.4, 5, "m")
    assert config.training.learning_rate == 2e-5  # YAML 1.1 reads this as a text
    assert load_config(overrides=["training.learning_rate=1e-3"]).training.learning_rate == 1e-3
    assert load_config() == RunConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "not valid YAML"), ("- 1", "expected a mapping"), ("training: {beta: x}", "training.beta")],
)
def test_a_broken_recipe_is_one_line(tmp_path, text, message):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(recipe)
    assert str(recipe) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_mistake_on_the_command_line_is_not_the_recipes(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("seed: 1\n")
    for override in ("judges=[{kind: offline}]", "judges=[{kind: llm_judge, url: u}]", "training.betta=1"):
        with pytest.raises(ConfigError) as caught:
            load_config(recipe, [override])
        assert str(caught.value).startswith("the command line: ")
    recipe.write_text("seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(recipe, ["training.beta=0.2"])
    assert str(caught.value).startswith(str(recipe))


def test_a_missing_recipe_and_a_broken_override():
    with pytest.raises(InputNotFoundError, match="no such file"):
        load_config("nowhere.yaml")
    for override in ("training.beta", "=1", "training.beta=[", "seed.x.y=1"):
        with pytest.raises(ConfigError):
            load_config(overrides=["seed=1", override])


def test_a_config_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        load_config().anchors.k = 3


ONE_VALUE = {"sampling.backend", "training.lora.dropout"}
OTHER = {
    "seed": 1,
    "model.name": "other",
    "model.revision": "main",
    "model.dtype": "bfloat16",
    "model.device": "cpu",
    "model.chat_template": "chat.jinja",
    "data.path": "other.jsonl",
    "data.format": "hh_rlhf",
    "data.map": {"prompt": "question"},
    "data.benign": "benign.jsonl",
    "anchors.instructions": ["Be kind."],
    "anchors.filters.drop_refusals": True,
    "references.positive": "other",
    "references.negative": "other",
    "training.method": "full",
    "training.seed": 7,
    "training.objective": "npo",
    "anchors.mode": "plain",
    "anchors.schedule": "online",
    "training.lr_scheduler_type": "linear",
    "training.max_steps": 5,
    "training.tokens_per_microbatch": 100,
    "training.gradient_checkpointing": True,
    "training.lora.target_modules": ["q_proj"],
    "training.trainer_args": {"adam_beta2": 0.9},
    "evaluation.split": "dev",
    "evaluation.suites": [{"path": "xstest.csv"}],
    "guard.enabled": False,
    "guard.entropy_range": (0.5, 2.0),
    "guard.length_range": (0.5, 2.0),
    "judges": [{"kind": "offline", "folder": "judges/mine"}],
}


def another(key):
    """A possible value of a key that is not its default."""
    if key in OTHER:
        return OTHER[key]
    value = load_config(values=dict(reader(key))).model_dump()
    for part in key.split("."):
        value = value[part]
    if value is None:
        return 7
    return value + 1 if isinstance(value, int) else value / 2 or 0.5


OBJECTIVE_ERRORS = [
    (["training.objective=npoo"], "did you mean 'npo'?"),
    (["training.objective=npo", "training.alpha=0.2"], "training.alpha is not read by training.objective 'npo'"),
    (["training.objective=ga", "training.beta=0.2"], "whose own keys are none; leave it out"),
    (["training.objective=npo", "training.beta=0"], "training.beta: Input should be greater than 0"),
    (["training.objective=npo", "training.lora.rank=0"], "training.lora.rank: Input should be"),
    (["training.objective=[1]"], "training.objective is [1]; expected one of d2o, npo"),
    (["training=3"], "training: expected a section of settings (found 3)"),
    (["anchors.refresh_every=2"], "anchors.refresh_every is not read when anchors.schedule is offline"),
    (
        ["training.objective=npo", "anchors.acceptable_share=0.5"],
        "anchors.acceptable_share is 0.5, but training.objective 'npo' reads no anchors",
    ),
    (["training.objective=dpo_self", "anchors.acceptable_share=0.5"], "reads the first own anchor alone"),
    (
        ["training.objective=simnpo", "references.positive=other"],
        "references.positive is 'other', but the gradient of training.objective 'simnpo' does not depend on it",
    ),
    (["training.objective=npo", "references.negative=other"], "references.negative is 'other', but the gradient"),
    (["anchors.filters.max_repetition=0.5"], "anchors.filters.max_repetition: Input should be less than or equal"),
    (["anchors.mode=plain", "anchors.instructions=[x]"], "anchors.instructions is not read when anchors.mode is plain"),
]


@pytest.mark.parametrize(("overrides", "message"), OBJECTIVE_ERRORS)
def test_what_the_chosen_objective_or_mode_does_not_read_is_an_error(overrides, message):
    with pytest.raises(ConfigError) as failure:
        load_config(None, overrides)
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("judges", "message"),
    [
        ("[{kind: offline, foldr: x}]", "unknown key 'judges.0.foldr'; did you mean 'judges.0.folder'?"),
        ("[{kind: ofline, folder: x}]", "judges.0.kind is 'ofline'; did you mean 'offline'?"),
        ("[{folder: x}]", "judges.0.kind is None; expected one of classifier, score_model, guard"),
        ("[{kind: offline, folder: x, threshold: 2}]", "judges.0.threshold: Input should be less than 1"),
        ("[{kind: guard, model: m, guard: llama}]", "judges.0.guard: Input should be 'llama_guard'"),
        ("{kind: offline, folder: x}", "judges: expected a list of judges, each with its kind"),
        ("[offline]", "judges: expected a list of judges, each with its kind"),
        ("[{kind: offline, folder: x}, {kind: offline, folder: x}]", "number 2 is the same as an earlier one"),
    ],
)
def test_a_judge_is_checked_like_any_section(judges, message):
    with pytest.raises(ConfigError) as failure:
        load_config(None, [f"judges={judges}"])
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    "judge",
    [
        "{kind: llm_judge, model: m, base_url: 'https://me:s3cret@host/v1'}",
        "{kind: llm_judge, model: m, base_url: 'https://host/v1?key=s3cret'}",
        "{kind: llm_judge, model: m, base_url: 'https://host/v1', key_env: sk-s3cret}",
    ],
)
def test_a_secret_in_the_place_of_a_setting_is_refused_and_not_shown(judge):
    with pytest.raises(ConfigError, match=r"judges\.0\.(base_url|key_env): ") as error:
        load_config(overrides=[f"judges=[{judge}]"])
    assert "s3cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_judges_are_read_from_a_flag_and_again_from_what_was_saved():
    config = load_config(None, ["judges=[{kind: offline, folder: x, threshold: 1e-1}, {kind: offline, folder: y}]"])
    assert [judge.threshold for judge in config.judges] == [0.1, 0.5]
    assert parse_config(config_values(config), "again") == config


@pytest.mark.parametrize(
    ("suites", "message"),
    [
        (
            "[{path: a.csv, knd: safety}]",
            "unknown key 'evaluation.suites.0.knd'; did you mean 'evaluation.suites.0.kind'",
        ),
        ("[{path: a.csv, kind: harm}]", "evaluation.suites.0.kind: Input should be 'lookalike', 'safety' or 'benign'"),
        ("[{path: a.csv, limit: 0}]", "evaluation.suites.0.limit: Input should be greater than or equal to 1"),
        ("[{kind: safety}]", "evaluation.suites.0.path: Field required"),
        ("[{path: a.csv}, {path: b/a.json}]", "two have the name 'a'; give one of them another name"),
        ("[{path: a.txt, prompt_column: q}]", "a.txt has a prompt a line and no columns"),
        ("a.csv", "evaluation.suites: expected a list of suites, each with its path"),
        ("[a.csv]", "evaluation.suites: expected a list of suites, each with its path"),
    ],
)
def test_a_suite_is_checked_like_any_section(suites, message):
    with pytest.raises(ConfigError) as failure:
        load_config(None, [f"evaluation.suites={suites}"])
    assert message in str(failure.value)
    assert "\n" not in str(failure.value)


def test_suites_are_named_after_their_files_and_read_again_from_what_was_saved():
    config = load_config(None, ["evaluation.suites=[{path: x/a.jsonl.gz, kind: benign}, {path: a.csv, name: b}]"])
    assert [suite.name for suite in config.evaluation.suites] == ["a", "b"]
    assert parse_config(config_values(config), "again") == config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_resolved_config_of_every_objective_loads_again(name):
    config = load_config(values={"training.objective": name})
    assert config.training.objective == name
    assert parse_config(config.model_dump(mode="json"), "again") == config


def reader(key):
    """What has to be set for a key to be read at all."""
    if key.startswith("anchors.") and key.rsplit(".", 1)[-1] in SCHEDULE_KEYS:
        return {"anchors.schedule": "online"}
    section, _, name = key.partition(".")
    if name.startswith("early_stopping.") and name != "early_stopping.enabled":
        return {"training.early_stopping.enabled": True}
    if section == "training":
        return {
            "training.objective": next(o for o, cls in OBJECTIVES.items() if name.split(".")[0] in cls.model_fields)
        }
    return {}


def stage_settings(config):
    return {stage: stage_module(stage).settings(config) for stage in STAGES}


@pytest.mark.parametrize("key", [key for key in dotted_keys(RunConfig) if key not in ONE_VALUE])
def test_every_key_decides_what_some_stage_does(key):
    """A key that no stage counts among its settings could be changed without any stage being done again."""
    changed = load_config(values={**reader(key), key: another(key)})
    before, after = stage_settings(load_config(values=reader(key))), stage_settings(changed)
    assert [stage for stage in STAGES if before[stage] != after[stage]]


def objective_keys():
    return {key for cls in OBJECTIVES.values() for key in cls().objective_args}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_has_the_parameters_that_its_function_takes(name):
    function = d2o_loss if name == "d2o" else getattr(baselines, f"{name}_loss")
    taken = {p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    constant = {"kto_negative": {"z0"}, "bco_negative": {"delta"}}.get(name, set())
    assert set(OBJECTIVES[name]().objective_args) == taken - constant


@pytest.mark.parametrize("key", dotted_keys(RunConfig))
def test_every_key_is_read_by_some_code(key):
    """`settings` dumps whole sections, so a key that nothing reads would not be seen by the test above."""
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (ROOT / "src" / "naysay").rglob("*.py")
        if "config" not in path.relative_to(ROOT / "src" / "naysay").parts[:-1]
    )
    if key.startswith("data.limit."):  # read by the name of the split
        assert "getattr(config.data.limit, name)" in source
    elif key.startswith("references."):  # read by role, or by its name
        assert re.search(r"getattr\(\w*(self\.)?config\.references, role\)", source)
    elif key.startswith("training.") and key.split(".")[1] in objective_keys():
        assert "OBJECTIVES[name].model_validate" in source  # each is a named argument of its function
    elif key == "sampling.backend":  # there is one engine so far; a second one must be read
        assert get_args(SamplingConfig.model_fields["backend"].annotation) == ("hf",)
    else:
        assert re.search(rf"\.{key.rsplit('.', 1)[-1]}\b", source), f"no code reads {key}"


@pytest.mark.parametrize(
    ("key", "stages"),
    [
        ("evaluation.kl_bound", ["report"]),
        ("anchors.filters.drop_refusals", ["score"]),
        ("anchors.schedule", ["train"]),
        ("anchors.temperature", ["sample"]),
        ("training.learning_rate", ["train", "report"]),
        ("evaluation.temperature", ["evaluate"]),
        ("data.heldout_fraction", ["ingest"]),
        ("data.near_duplicate_threshold", ["ingest", "evaluate"]),
        ("references.positive", ["train", "evaluate"]),
        ("judges", ["evaluate"]),
        ("evaluation.suites", ["evaluate"]),
        ("model.max_length", ["ingest", "sample", "train", "evaluate"]),
    ],
)
def test_a_key_touches_the_stages_that_read_it_and_no_other(key, stages):
    before, after = stage_settings(RunConfig()), stage_settings(load_config(values={key: another(key)}))
    assert [stage for stage in STAGES if before[stage] != after[stage]] == stages


def test_settings_are_json_and_do_not_depend_on_where_the_run_lies(tmp_path):
    for stage in STAGES:
        yaml.safe_dump(stage_module(stage).settings(RunConfig()))
        assert str(tmp_path) not in str(stage_module(stage).settings(RunConfig()))
    assert RunDirectory(tmp_path).config == tmp_path / "config.yaml"
