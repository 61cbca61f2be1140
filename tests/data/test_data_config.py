"""The data section: strict, documented, quick to import."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from data.config import DataConfig


def test_defaults_are_those_of_the_paper() -> None:
    config = DataConfig()
    assert (config.inputs_length, config.noise_density, config.mean_noise_span_length) == (512, 0.15, 3.0)
    assert (config.documents_per_pack, config.num_streams, config.source) == (512, 64, "files")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unknown", 1),
        ("source", "web"),
        ("inputs_length", "512"),
        ("inputs_length", 0),
        ("noise_density", 0.0),
        ("noise_density", 1.0),
        ("mean_noise_span_length", 0.5),
        ("num_streams", 0),
        ("seed", -1),
        ("train_files", ""),
    ],
)
def test_wrong_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(ValidationError, match=key):
        DataConfig.model_validate({key: value})


def test_every_field_is_documented_and_fixed() -> None:
    assert all(field.description for field in DataConfig.model_fields.values())
    assert DataConfig.model_config.get("frozen")
    config = DataConfig()
    with pytest.raises(ValidationError, match="frozen"):
        config.__setattr__("seed", 3)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("data.config", {"torch", "datasets", "transformers", "sentencepiece"}),
        ("data.sources.open", {"torch", "datasets", "transformers", "pyarrow", "httpx", "httpx2"}),
        ("data.streaming.worker", {"torch", "datasets", "transformers", "pyarrow", "httpx", "httpx2"}),
    ],
)
def test_importing_a_module_imports_no_heavy_library(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print({heavy!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
