"""Reference log-probs: keyed by content, audited, the same after a kill, whatever the split of a group."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from conftest import TEMPLATE, make_model, make_tokenizer
from naysay.artifacts.reference_cache import ReferenceCache
from naysay.errors import ReferenceMismatchError
from naysay.modeling import reference
from naysay.modeling.digests import policy_digest, weights_digest
from naysay.modeling.forward import one_at_a_time_logps
from naysay.modeling.reference import score_groups

GROUPS = [
    ([256, 5, 9, 11], [[7, 6, 257], [1, 257], [9, 9, 4, 2, 257]]),
    ([256, 2], [[4, 257], [8] * 12]),
    ([256, 100, 101, 102], [[103] * 9, [103] * 8, [1]]),
    ([256, 2], [[4, 257], [5, 5]]),  # shares a sequence with the second group
    ([256, 30], [[31, 32, 257]]),
]


def score(root, model=None, groups=GROUPS, budget=18, **changes):
    return score_groups(
        model or make_model(),
        make_tokenizer(),
        groups,
        cache_root=root,
        tokens_per_microbatch=budget,
        head_chunk=8,
        **changes,
    )


def logps(scored):
    return [list(item.logps) for item in scored]


def test_the_values_are_the_sums_of_the_oracle(tmp_path):
    scored = score(tmp_path)
    model = make_model()
    assert [item.tokens for item in scored] == [tuple(map(len, answers)) for _, answers in GROUPS]
    for item, group in zip(scored, GROUPS, strict=True):
        assert item.logps == pytest.approx(one_at_a_time_logps(model, [group]).tolist(), rel=1e-4, abs=1e-4)


def test_an_oversized_group_is_split_and_gives_the_same_values(tmp_path):
    whole = score(tmp_path / "whole", make_model(dtype=torch.float64), budget=1000)
    for budget in (1, 8, 13, 24):
        split = score(tmp_path / str(budget), make_model(dtype=torch.float64), budget=budget)
        for one, other in zip(logps(whole), logps(split), strict=True):
            assert one == pytest.approx(other, rel=1e-6)
    assert len(list((tmp_path / "1").rglob("*.safetensors"))) > len(list((tmp_path / "whole").rglob("*.safetensors")))


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_half_filled_cache_gives_the_bits_of_an_uninterrupted_run(tmp_path, monkeypatch, kept):
    expected = score(tmp_path / "whole")
    assert len(list((tmp_path / "whole").rglob("*.safetensors"))) > 3
    add, added = ReferenceCache.add, []

    def killed(self, *values):
        if len(added) == kept:
            raise KeyboardInterrupt
        added.append(values)
        add(self, *values)

    with monkeypatch.context() as patch:
        patch.setattr(ReferenceCache, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            score(tmp_path / "killed")
    assert score(tmp_path / "killed") == expected
    assert score(tmp_path / "killed") == expected  # and a third time, all from the cache


def test_a_full_cache_is_read_not_computed(tmp_path, monkeypatch):
    expected = score(tmp_path)

    def forbidden(*args):
        raise AssertionError("computed again")

    monkeypatch.setattr(
        reference, "_score_batch", lambda m, g, keys, b, cache, h: [cache[k] for ks in keys for k in ks]
    )
    assert score(tmp_path) == expected
    monkeypatch.setattr(reference, "_score_batch", forbidden)
    with pytest.raises(AssertionError, match="computed again"):
        score(tmp_path / "empty")


def test_shards_together_fill_the_cache_and_do_not_overwrite_each_other(tmp_path):
    """Also where the shards score the same sequences: here rank 1 has the sequences of rank 0 in other batches."""
    for rank in (0, 1):
        assert score(tmp_path, shard=(rank, 2)) == []
    files = {path.name for path in tmp_path.rglob("*.safetensors")}
    scored = score(tmp_path)
    assert {path.name for path in tmp_path.rglob("*.safetensors")} == files
    for one, other in zip(logps(scored), logps(score(tmp_path / "alone")), strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_the_digest_is_the_content(tmp_path):
    """Same content, same digest, wherever it lies and whatever it is called; another content, another digest."""
    model, tokenizer = make_model(), make_tokenizer()
    digest = policy_digest(model, tokenizer)
    assert policy_digest(make_model(), make_tokenizer()) == digest
    for folder in ("here", "moved"):
        model.config._name_or_path = tokenizer.name_or_path = folder
        model.save_pretrained(tmp_path / folder)
        loaded = type(model).from_pretrained(tmp_path / folder)
        assert policy_digest(loaded, tokenizer) == digest
    others = [policy_digest(make_model(seed=1), tokenizer), policy_digest(make_model().double(), tokenizer)]
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    others.append(policy_digest(model, tokenizer))
    tokenizer.chat_template = TEMPLATE + " "
    others.append(policy_digest(make_model(), tokenizer))
    more = make_tokenizer()
    more.add_tokens(["another"])
    others.append(policy_digest(make_model(), more))
    assert len({digest, *others}) == 6


def adapted(*, alpha=8, modules="all-linear", save=None, seed=0):
    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=modules, modules_to_save=save, init_lora_weights=False)
    model = make_model()
    torch.manual_seed(seed)
    return get_peft_model(model, config).eval()


def test_an_adapter_counts_where_it_is_on():
    plain = weights_digest(make_model())
    for save in (None, ["lm_head"]):
        model = adapted(save=save)
        on = weights_digest(model)
        with model.disable_adapter():
            assert weights_digest(model) == plain
        assert weights_digest(model) == on == weights_digest(adapted(save=save)) != plain
    # Also what its weights are multiplied by, which no weight shows.
    assert len({weights_digest(adapted()), weights_digest(adapted(seed=1)), weights_digest(adapted(alpha=16))}) == 3


def test_the_cache_keeps_the_policies_of_one_peft_model_apart(tmp_path):
    model = adapted()
    on = score(tmp_path, model)
    with model.disable_adapter():
        off = score(tmp_path, model)
    assert off == score(tmp_path / "plain")
    assert logps(on)[0] != pytest.approx(logps(off)[0], abs=0.1)


def corrupt(root, change):
    """Change one value in every file of a cache."""
    (folder,) = root.iterdir()
    for path in folder.glob("*.safetensors"):
        stored = ReferenceCache.__new__(ReferenceCache)
        stored.folder, stored._values = folder, {}
        stored._load(path)
        path.unlink()
        keys = list(stored._values)
        values = [stored._values[key][0] for key in keys]
        stored.add(keys, [change(values[0]), *values[1:]], [stored._values[key][1] for key in keys])


@pytest.mark.parametrize(
    "change", [lambda v: v + 0.1, lambda v: -v, lambda v: float("nan")], ids=["off", "sign", "nan"]
)
def test_the_audit_catches_a_corrupted_value(tmp_path, change):
    groups = GROUPS[:2]  # 5 sequences: at least 8 are audited, so all of them
    expected = score(tmp_path, groups=groups)
    corrupt(tmp_path, lambda value: value + 1e-4)
    assert logps(score(tmp_path, groups=groups))[0] == pytest.approx(expected[0].logps, abs=1e-3)
    corrupt(tmp_path, change)
    with pytest.raises(ReferenceMismatchError, match="delete this folder and run the same command again") as caught:
        score(tmp_path, groups=groups)
    assert "\n" not in str(caught.value)


def test_scoring_and_its_audit_do_not_touch_the_random_state_of_sampling_and_training(tmp_path):
    model = make_model()
    score(tmp_path, model)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    score(tmp_path, model)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_scoring_leaves_the_model_as_it_was(tmp_path):
    model = make_model().train()
    digest = weights_digest(model)
    score(tmp_path, model)
    assert model.training
    assert weights_digest(model) == digest
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
