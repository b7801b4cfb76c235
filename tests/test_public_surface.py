"""What others rely on: the names of the package, and that importing them costs no torch where none is needed."""

import importlib
import subprocess
import sys

import pytest

import naysay

NAMES = [
    "D2OConfig",
    "D2OTerms",
    "D2OTrainer",
    "GroupLogps",
    "NaysayError",
    "RunConfig",
    "__version__",
    "d2o_loss",
    "load_config",
    "run_stages",
    "sample_anchors",
]
WITHOUT_TORCH = """
import sys
class Block:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in {"torch", "transformers", "peft", "accelerate"}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Block())
"""


def test_the_public_names_are_these():
    assert naysay.__all__ == NAMES
    assert len(NAMES) <= 15
    assert dir(naysay) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name):
    value = getattr(naysay, name)
    assert name == "__version__" or value.__doc__


def test_names_of_the_issue_are_where_it_says():
    from naysay.core.groups import D2OTerms, GroupLogps
    from naysay.core.objective import d2o_loss

    assert (naysay.GroupLogps, naysay.D2OTerms, naysay.d2o_loss) == (GroupLogps, D2OTerms, d2o_loss)
    assert list(GroupLogps.__dataclass_fields__) == [
        "anchors",
        "ref_anchors",
        "anchor_mask",
        "negatives",
        "ref_negatives",
        "negative_mask",
    ]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'd2o'"):
        _ = naysay.d2o
    assert not hasattr(naysay, "_nothing")


def test_the_version_is_the_installed_one():
    from importlib.metadata import version

    assert naysay.__version__ == version("naysay")


@pytest.mark.parametrize(
    "code",
    [
        "import naysay; print(naysay.__version__)",
        "from naysay.config import load_config; print(load_config().training.beta)",
        "from naysay import NaysayError, RunConfig, load_config; print(RunConfig())",
        "import naysay.records, naysay.errors, naysay.statistics, naysay.artifacts.digests, naysay.artifacts.store",
        "import naysay.pipeline.runner, naysay.ingest.stage, naysay.reporting.stage",
    ],
)
def test_it_works_without_torch(code):
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_same_block_stops_what_needs_torch():
    """Otherwise the test above would prove nothing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH + "import naysay; naysay.d2o_loss"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "ModuleNotFoundError" in done.stderr


def test_every_error_is_also_the_standard_one_and_has_an_exit_code():
    errors = importlib.import_module("naysay.errors")
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.NaysayError)
    ]
    assert len(kinds) > 8
    for kind in kinds:
        assert kind.exit_code in {1, 2}
        standard = [base for base in kind.__mro__ if base.__module__ == "builtins"]
        assert kind is errors.NaysayError or standard[0] is not Exception, kind
    assert errors.NonFiniteLossError.exit_code == 1
    assert errors.ConfigError.exit_code == 2
