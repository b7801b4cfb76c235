"""What type of weights the training stage asks for."""

import pytest
import torch

from naysay.artifacts.run_directory import RunDirectory
from naysay.config import RunConfig
from naysay.training import stage


@pytest.mark.parametrize("on_gpu", [True, False])
@pytest.mark.parametrize(
    ("method", "dtype", "mixed"),
    [("full", "auto", True), ("full", "bfloat16", False), ("full", "float32", False), ("lora", "auto", False)],
)
def test_all_weights_are_trained_in_float32_where_their_type_is_left_open(
    tmp_path, monkeypatch, on_gpu, method, dtype, mixed
):
    monkeypatch.setattr(stage, "pick_dtype", lambda name, device: torch.bfloat16 if on_gpu else torch.float32)
    config = RunConfig.model_validate({"training": {"method": method}, "model": {"dtype": dtype, "device": "cpu"}})
    expected = "float32" if mixed and on_gpu else dtype
    assert stage.trained_model(config) == config.model.model_copy(update={"dtype": expected})
    assert stage._arguments(config, RunDirectory(tmp_path)).bf16 == (mixed and on_gpu)
