"""The HParams page: what a run was made with, and its last metrics, in the folder of its curves.

``SummaryWriter.add_hparams`` would make a run of its own beside them.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    STATUS_FAILURE,
    STATUS_SUCCESS,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo

METRICS = {
    "validation/cross_entropy": "validation cross-entropy",
    "validation/score": "mean score of tasks",
    "validation/loss": "validation objective",
    "train/cross_entropy": "cross-entropy",
    "train/tokens": "tokens",
    "train/tokens_per_second": "tokens/s",
    "train/step_seconds": "seconds per step",
    "train/mfu": "MFU",
}
SECTIONS = ("model", "optimizer", "parallel")  # whole; of the others these keys
KEYS = (
    "data.objective", "data.inputs_length", "data.noise_density", "data.mean_noise_span_length", "data.seed",
    "training.steps", "training.global_batch_size", "training.micro_batch_size", "training.precision",
    "training.deepspeed_config", "training.compile", "training.activation_checkpointing", "training.init_from",
    "training.seed", "training.trainable", "training.init_optimizer",
)  # fmt: skip


def hyperparameters(config: Mapping[str, Mapping[str, Any]]) -> dict[str, bool | float | str]:
    """Return the values of a configuration that tell runs apart, by key; what is null is left out."""
    flat = {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
    kept = {key: value for key, value in flat.items() if key.partition(".")[0] in SECTIONS or key in KEYS}
    return {
        key: value if isinstance(value, bool | int | float | str) else str(value)
        for key, value in kept.items()
        if value is not None
    }


def session_start(values: Mapping[str, bool | float | str], wall_time: float) -> Iterator[Summary.Value]:
    """Yield the summaries that begin a run.

    Args:
        values: of ``hyperparameters``.
        wall_time: when it began, in seconds since 1970.
    """
    experiment = Experiment(
        hparam_infos=[HParamInfo(name=key, type=_data_type(value)) for key, value in values.items()],
        metric_infos=[
            MetricInfo(name=MetricName(tag=tag), display_name=display_name) for tag, display_name in METRICS.items()
        ],
    )
    start = SessionStartInfo(start_time_secs=wall_time)
    for key, value in values.items():
        field = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[key], field, value)
    yield _summary(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    yield _summary(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def session_end(*, success: bool, wall_time: float) -> Summary.Value:
    """Return the summary that ends a run. Without it, TensorBoard takes the run to be going on."""
    end = SessionEndInfo(status=STATUS_SUCCESS if success else STATUS_FAILURE, end_time_secs=wall_time)
    return _summary(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))


def _data_type(value: bool | float | str) -> int:
    return {bool: DATA_TYPE_BOOL, str: DATA_TYPE_STRING}.get(type(value), DATA_TYPE_FLOAT64)


def _summary(tag: str, content: HParamsPluginData) -> Summary.Value:
    return Summary.Value(tag=tag, metadata=metadata.create_summary_metadata(content), tensor=metadata.NULL_TENSOR)
