"""The custom-scalars page: the health of a run first. ``http://localhost:6006/#custom_scalars`` opens it.

A chart is a title and regular expressions of tags, each matched from its beginning. TensorBoard would merge two charts
of one title.
"""

from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.custom_scalar.layout_pb2 import Category, Chart, Layout, MultilineChartContent
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG, PLUGIN_NAME


def _both(column: str) -> list[str]:
    """The curve of training and over it that of validation."""
    return [f"train/{column}$", f"validation/{column}$"]


LAYOUT: dict[str, dict[str, list[str]]] = {
    "Health of the run": {
        "cross-entropy": _both("cross_entropy"),
        "validation cross-entropy of each domain": ["validation/cross_entropy/.+"],
        "load-balance loss L_B (1 is uniform)": _both("load_balance_loss"),
        "router z-loss L_Z": _both("router_z_loss"),
        "output z-loss": _both("output_z_loss"),
        "gradient norm": ["train/grad_norm$"],
        "dropped tokens, share per layer": ["train/dropped_fraction"],
        "router entropy per layer (nats)": ["train/router_entropy/.+"],
        "load of experts, coefficient of variation per layer": ["train/expert_load_cv/.+"],
        "dead experts per layer": ["train/dead_experts/.+"],
        "tokens per second": ["train/tokens_per_second$"],
        "MFU": ["train/mfu$"],
        "seconds of a step": [
            "train/step_seconds$",
            "train/(data|forward|backward|all_to_all|optimizer|checkpoint)_seconds$",
        ],
        "learning rate": ["train/learning_rate$"],
        "memory (bytes)": ["train/(peak_)?memory_bytes$"],
    },
    "Tasks": {
        "mean score of all tasks (%)": ["validation/score$"],
        "score of each task (%)": ["validation/score/.+"],
        "accuracy (%)": ["validation/accuracy/.+"],
        "F1 and exact match (%)": ["validation/(f1|mean_3class_f1|em|exact_match)/.+"],
        "ROUGE (%)": ["validation/rouge(1|2|Lsum)/.+"],
    },
    "Against tokens": {
        "cross-entropy against tokens": [f"tokens/{tag}" for tag in _both("cross_entropy")],
        "objective against tokens": [f"tokens/{tag}" for tag in _both("loss")],
    },
    "Routers": {
        "router confidence (mean largest probability)": ["train/router_confidence/.+"],
        "largest logsumexp of router logits": ["train/max_router_logsumexp/.+"],
        "mean logsumexp of router logits": ["train/router_logsumexp/.+"],
        "load-balance loss per layer": ["train/load_balance_loss/.+"],
        "router z-loss per layer": ["train/router_z_loss/.+"],
        "first choices dropped": ["train/dropped_first_choices/.+"],
        "second choices dropped": ["train/dropped_second_choices/.+"],
        "second choices requested": ["train/requested_second_choices/.+"],
    },
    "Speed": {
        "model TFLOP/s per rank": ["train/model_tflops$"],
        "rows of capacity without a token": ["train/capacity_padding$"],
        "bytes of all-to-alls per step": ["train/all_to_all_bytes$"],
    },
    "Parameters": {
        "gradient norm per family": ["train/gradient_norm/.+"],
        "RMS of weights per family": ["train/parameter_rms/.+"],
        "RMS of updates per family": ["train/update_rms/.+"],
    },
    "Faults": {
        "skipped steps": ["train/skipped_steps$"],
        "roll-backs": ["guard/rollbacks$"],
        "rows skipped, retries of sources": ["train/data_(bad_rows|retries)$"],
    },
}


def layout_summary() -> Summary.Value:
    """Return the summary that gives TensorBoard the layout."""
    categories = [
        Category(
            title=title,
            chart=[
                Chart(title=chart, multiline=MultilineChartContent(tag=patterns)) for chart, patterns in charts.items()
            ],
            closed=number > 0,
        )
        for number, (title, charts) in enumerate(LAYOUT.items())
    ]
    content = Layout(category=categories).SerializeToString()
    return Summary.Value(
        tag=CONFIG_SUMMARY_TAG,
        tensor=TensorProto(dtype=DT_STRING, string_val=[content], tensor_shape=TensorShapeProto()),
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN_NAME)),
    )
