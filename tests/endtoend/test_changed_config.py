"""Another config in an old run: refused, or redone, or taken over from another run as far as it still holds."""

import pytest
import yaml

from endtoend.workplace import Workplace, fill
from naysay.artifacts.store import read_json
from naysay.config.stages import STAGES

BETA = "training.beta=0.3"
WEIGHTS = "adapter_model.safetensors"


def content(run) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained_with_beta(tmp_path_factory, model_folder):
    """What a run that had this beta from the start ends with."""
    folder = tmp_path_factory.mktemp("beta")
    fill(folder)
    workplace = Workplace(folder, model_folder)
    assert workplace(*workplace.command("run", BETA)) == 0
    return workplace.run("run")


def test_another_config_is_refused_with_the_keys_and_both_ways_on(naysay):
    run = naysay.do("a")
    before = content(run)
    error = naysay.refused(*naysay.command("a", BETA))
    assert "training.beta: 0.1 -> 0.3" in error
    assert f"--out NEW --reuse {run.path}" in error
    assert "--redo train" in error
    assert content(run) == before


def test_redo_train_with_another_beta(naysay, trained_with_beta):
    run = naysay.do("a")
    old = (run.adapter / WEIGHTS).read_bytes()
    anchors = run.anchors.stat().st_mtime_ns
    assert naysay(*naysay.command("a", BETA), "--redo", "train") == 0, naysay.err
    assert run.anchors.stat().st_mtime_ns == anchors
    new = (run.adapter / WEIGHTS).read_bytes()
    assert new != old
    assert new == (trained_with_beta.adapter / WEIGHTS).read_bytes()
    assert read_json(run.evaluation)["heldout"] == read_json(trained_with_beta.evaluation)["heldout"]
    assert yaml.safe_load(run.config.read_text())["training"]["beta"] == 0.3
    assert naysay(*naysay.command("a", BETA)) == 0
    assert naysay.err.count("up to date") == len(STAGES)


def test_reuse_takes_over_what_the_change_does_not_touch(naysay, trained_with_beta):
    old = naysay.do("a")
    before = content(old)
    assert naysay(*naysay.command("b", BETA), "--reuse", old.path) == 0, naysay.err
    run = naysay.run("b")
    for stage in STAGES:
        taken = stage in ("ingest", "sample", "score")
        assert run.manifest(stage).reused_from == (str(old.path) if taken else ""), stage
    assert run.anchors.read_bytes() == old.anchors.read_bytes()
    assert (run.adapter / WEIGHTS).read_bytes() == (trained_with_beta.adapter / WEIGHTS).read_bytes()
    assert content(old) == before
    assert naysay(*naysay.command("b", BETA)) == 0
    assert naysay.err.count("up to date") == len(STAGES)


def test_redo_must_reach_back_to_the_first_stage_that_changes(naysay):
    run = naysay.do("a")
    error = naysay.refused(*naysay.command("a", "anchors.temperature=0.9"), "--redo", "train")
    assert "anchors.temperature: 0.7 -> 0.9" in error
    assert "--redo sample" in error
    assert naysay(*naysay.command("a", "anchors.temperature=0.9"), "--redo", "sample") == 0, naysay.err
    assert "ingest" in naysay.err.splitlines()[1]
    assert "up to date" in naysay.err.splitlines()[1]
    assert yaml.safe_load(run.config.read_text())["anchors"]["temperature"] == 0.9


def test_a_setting_of_the_report_alone_needs_nothing(naysay):
    run = naysay.do("a")
    weights = (run.adapter / WEIGHTS).stat().st_mtime_ns
    naysay(*naysay.command("a", "evaluation.kl_bound=5.0"), "--redo", "report")
    assert naysay.err.count("up to date") == len(STAGES) - 1
    assert read_json(run.summary)["kl_bound"] == 5.0
    assert (run.adapter / WEIGHTS).stat().st_mtime_ns == weights


def test_changed_input_is_noticed(naysay):
    run = naysay.do("a")
    naysay.data.write_text(naysay.data.read_text().replace("number 3!", "number three!"))
    before = content(run)
    error = naysay.refused(*naysay.command("a"))
    assert "stage ingest was done from another content of its input 'data'" in error
    assert str(naysay.data) in error
    assert content(run) == before


def test_an_edited_chat_template_is_noticed(naysay):
    template = naysay.folder / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    setting = f"model.chat_template={template}"
    naysay.do("a", setting)
    template.write_text("{% for m in messages %}{{ m['content'] }}##\n{% endfor %}")
    error = naysay.refused(*naysay.command("a", setting))
    assert "another content of its input 'chat_template'" in error
