"""The columns of ``metrics.jsonl``, declared once: ``python -m training.monitoring.columns`` prints docs/metrics.md.

A column is the key of a row, so ``row[CROSS_ENTROPY]`` reads it; ``<…>`` in its name stands for a family of parameters,
or for a source or domain of text.
"""

import re
from collections.abc import Iterable
from typing import Any

TRAIN, VALIDATION, ROUTING, CHECKPOINT, GUARD = "train", "validation", "routing", "checkpoint", "guard"
SPLITS = {
    TRAIN: "Rows of training, `split: train`, every `training.log_every` steps",
    VALIDATION: "Rows of an evaluation, `split: validation`",
    ROUTING: "Rows of the routers' load and probabilities, `split: routing`: at each evaluation, of the training "
    "batches of the logged steps since the last such row",
    CHECKPOINT: "Rows of a checkpoint, `split: checkpoint`",
    GUARD: "Rows of the guard's decisions, `split: guard`",
}


class Column(str):
    """A key of a row.

    Args:
        name: the key.
        unit: of the value.
        meaning: one phrase.
        splits: whose rows have it.
    """

    unit: str
    meaning: str
    splits: tuple[str, ...]

    def __new__(cls, name: str, unit: str, meaning: str, *splits: str) -> "Column":
        """Declare the column."""
        column = super().__new__(cls, name)
        column.unit, column.meaning, column.splits = unit, meaning, splits
        COLUMNS.append(column)
        return column

    def matches(self, key: str) -> bool:
        """Return whether a row's key is this column."""
        pattern = re.sub(r"<[a-z]+>", ".+", self)
        return re.fullmatch(pattern, key) is not None


COLUMNS: list[Column] = []
_LOSS = (TRAIN, VALIDATION)

_COUNTED = (*_LOSS, ROUTING)
_ALL = (*_COUNTED, CHECKPOINT, GUARD)

SPLIT = Column("split", "", "which kind of row", *_ALL)
STEP = Column("step", "updates", "optimizer steps made", *_ALL)
TIME = Column("time", "s", "when the row was written: seconds since 1970 (UTC), as in TensorBoard and W&B", *_ALL)
TOKENS = Column("tokens", "tokens", "real tokens trained on, encoder and decoder, over all ranks", *_COUNTED)

LOSS = Column("loss", "nats per target token", "the objective, all weighted terms together", *_LOSS)
CROSS_ENTROPY = Column("cross_entropy", "nats per target token", "L_CE over the global batch", *_LOSS)
CROSS_ENTROPY_OF_DOMAIN = Column(
    "cross_entropy/<domain>",
    "nats per target token",
    "L_CE of the held-out examples of a task or, if `data.validation_files` names domains, of a domain; weighted by "
    "their target tokens, they average to `cross_entropy`",
    VALIDATION,
)
SCORE = Column(
    "score", "%", "mean of the scores of all tasks, where `training.eval_answers` asks for answers", VALIDATION
)
SCORE_OF_TASK = Column(
    "score/<task>", "%", "the one figure of a task: the mean of its headline metrics, or of all its metrics", VALIDATION
)
# The names that the metrics of ``data/tasks/metrics`` give.
for _name, _meaning in {
    "accuracy": "answers that are right",
    "f1": "F1 of class 1; of answers to questions and of own texts, mean F1 of their words",
    "mean_3class_f1": "unweighted mean of the F1 of three classes",
    "exact_match": "questions all of whose answers are judged right (MultiRC)",
    "em": "answers that equal a right one, but for case, punctuation and articles",
    "matthews_corrcoef": "Matthews correlation, times 100",
    "pearson_corrcoef": "Pearson correlation, times 100; null where all answers are the same",
    "spearman_corrcoef": "Spearman correlation, times 100; null where all answers are the same",
    "rouge1": "mean ROUGE-1 F of words",
    "rouge2": "mean ROUGE-2 F of pairs of words",
    "rougeLsum": "mean ROUGE-L F, sentence by sentence",
    "bleu": "BLEU of all answers together",
    "sequence_accuracy": "answers that equal their targets exactly",
}.items():
    Column(f"{_name}/<task>", "%", _meaning, VALIDATION)
PERPLEXITY = Column("perplexity", "", "exp(cross_entropy)", *_LOSS)
LOAD_BALANCE_LOSS = Column("load_balance_loss", "", "L_B, unweighted, mean over sparse layers; 1 is uniform", *_LOSS)
ROUTER_Z_LOSS = Column("router_z_loss", "nats²", "L_Z, unweighted: mean (logsumexp of the router logits)²", *_LOSS)
OUTPUT_Z_LOSS = Column("output_z_loss", "nats²", "mean log² Z of the output head, unweighted", *_LOSS)
Column("load_balance_loss_weighted", "nats", "c_B L_B", *_LOSS)
Column("router_z_loss_weighted", "nats", "c_Z L_Z", *_LOSS)
Column("output_z_loss_weighted", "nats", "the weighted z-loss of the output head", *_LOSS)
DROPPED_FRACTION = Column("dropped_fraction", "share", "real tokens that got no capacity slot at any expert", *_LOSS)
MAX_ROUTER_LOGIT = Column("max_router_logit", "", "largest router logit of any sparse layer", *_LOSS)

LEARNING_RATE = Column("learning_rate", "", "learning rate of the last update", TRAIN)
GRAD_NORM = Column("grad_norm", "", "global gradient norm before clipping, each expert counted once", TRAIN)
SKIPPED_STEPS = Column("skipped_steps", "updates", "updates skipped so far for a non-finite gradient", TRAIN)
DROPPED_OF_LAYER = Column(
    "dropped_fraction/<layer>", "share", "real tokens that no expert of the layer processes", TRAIN
)
DROPPED_FIRST_CHOICES = Column(
    "dropped_first_choices/<layer>",
    "share",
    "first choices of real tokens beyond the expert's capacity; not with expert choice",
    TRAIN,
)
DROPPED_SECOND_CHOICES = Column(
    "dropped_second_choices/<layer>", "share", "requested second and third choices beyond the expert's capacity", TRAIN
)
REQUESTED_SECOND_CHOICES = Column(
    "requested_second_choices/<layer>", "share", "second and third choices of real tokens that were requested", TRAIN
)
ROUTER_ENTROPY = Column("router_entropy/<layer>", "nats", "mean entropy of the router's probabilities", TRAIN)
ROUTER_CONFIDENCE = Column("router_confidence/<layer>", "probability", "mean largest probability", TRAIN)
ROUTER_LOGSUMEXP = Column("router_logsumexp/<layer>", "nats", "mean logsumexp of the router logits", TRAIN)
MAX_ROUTER_LOGSUMEXP = Column("max_router_logsumexp/<layer>", "nats", "largest logsumexp of the router logits", TRAIN)
EXPERT_LOAD_CV = Column(
    "expert_load_cv/<layer>",
    "",
    "standard deviation over mean of the experts' load: real tokens whose first choice the expert is, before capacity "
    "is applied; with expert choice, the capacity slots that it filled",
    TRAIN,
)
DEAD_EXPERTS = Column("dead_experts/<layer>", "experts", "with less than 1 % of the mean load", TRAIN)
LOAD_BALANCE_OF_LAYER = Column("load_balance_loss/<layer>", "", "L_B of the layer, unweighted; 1 is uniform", TRAIN)
ROUTER_Z_OF_LAYER = Column("router_z_loss/<layer>", "nats²", "L_Z of the layer, unweighted", TRAIN)
CAPACITY_PADDING = Column("capacity_padding", "share", "rows of the experts' buffers that hold no token", TRAIN)

LOAD = Column(
    "load/<layer>", "list of shares", "of each expert in the layer's load, see `expert_load_cv/<layer>`", ROUTING
)
PROBABILITIES = Column(
    "probabilities/<layer>",
    "list of counts",
    "histogram of all router probabilities of real tokens in 20 equal bins from 0 to 1",
    ROUTING,
)

GRADIENT_NORM = Column(
    "gradient_norm/<family>", "", "of the family's gradient before clipping; their squares add up to grad_norm²", TRAIN
)
PARAMETER_RMS = Column("parameter_rms/<family>", "", "RMS of the weights before the update", TRAIN)
UPDATE_RMS = Column(
    "update_rms/<family>",
    "",
    "RMS of what the optimizer makes of the gradient, before clipping, relative scale, learning rate and weight decay: "
    "G / sqrt(V) of Adafactor, m / (sqrt(v) + epsilon) of AdamW; not with adamw_8bit",
    TRAIN,
)
CLIPPED_UPDATE_RMS = Column("clipped_update_rms/<family>", "", "the same after Adafactor's clipping", TRAIN)
CLIPPED_FRACTION = Column(
    "clipped_fraction/<family>", "share", "of tensors that Adafactor clipped; each expert counts as one", TRAIN
)

TOKENS_PER_SECOND = Column("tokens_per_second", "tokens/s", "over all ranks, since the last row", TRAIN)
STEP_SECONDS = Column("step_seconds", "s", "mean time of a step since the last row, on rank 0", TRAIN)
PROCESSOR_SECONDS = Column(
    "processor_seconds",
    "s",
    "processor time of rank 0's process per step, all its threads together; unlike step_seconds it hardly grows when "
    "other programs use the cores",
    TRAIN,
)
DATA_SECONDS = Column("data_seconds", "s", "time per step that the host waited for data", TRAIN)
FORWARD_SECONDS = Column(
    "forward_seconds",
    "s",
    "time of the forward passes per step, on the device; like those of backward and optimizer without waits for "
    "all-to-alls, so that the parts add up to at most step_seconds (but for data on a GPU, which it does not wait for)",
    TRAIN,
)
BACKWARD_SECONDS = Column(
    "backward_seconds", "s", "the same of the backward passes, with recomputation and reduction of gradients", TRAIN
)
OPTIMIZER_SECONDS = Column("optimizer_seconds", "s", "the same of clipping and the optimizer's update", TRAIN)
CHECKPOINT_SECONDS = Column(
    "checkpoint_seconds",
    "s",
    "time that training stood still for checkpoints since the last row, per step; not part of step_seconds",
    TRAIN,
)
MODEL_TFLOPS = Column(
    "model_tflops",
    "TFLOP/s",
    "per rank: matrix products of the logged step's forward and backward pass, of experts only the rows that hold a "
    "token, without recomputation (`model/flops.py`), over step_seconds; sparse: training.monitor.routing",
    TRAIN,
)
MFU = Column("mfu", "share", "model_tflops over peak_tflops", TRAIN)
PEAK_TFLOPS = Column(
    "peak_tflops",
    "TFLOP/s",
    "of the device by its data sheet or, of others, measured at the start; the run says which as it begins",
    TRAIN,
)
MEMORY_BYTES = Column(
    "memory_bytes", "bytes", "of tensors on the device, or of the process on a CPU; of the rank that has most", TRAIN
)
PEAK_MEMORY_BYTES = Column("peak_memory_bytes", "bytes", "the most so far", TRAIN)
ALL_TO_ALL_BYTES = Column("all_to_all_bytes", "bytes", "sent by rank 0 in all-to-alls, per step", TRAIN)
ALL_TO_ALL_SECONDS = Column("all_to_all_seconds", "s", "time that compute was blocked by them, per step", TRAIN)

Column("data_rows", "rows", "rows of text read since step 0", TRAIN)
Column("data_documents", "documents", "documents read since step 0", TRAIN)
Column("data_bad_rows", "rows", "rows skipped since step 0: malformed, empty, without text", TRAIN)
Column("data_split_documents", "documents", "documents tokenized in several pieces for their length", TRAIN)
Column("data_cut_inputs", "examples", "of tasks, whose inputs were longer than data.inputs_length", TRAIN)
Column("data_cut_targets", "examples", "of tasks, whose targets were longer than data.targets_length", TRAIN)
Column("data_retries", "", "retries of remote sources since the process started", TRAIN)
Column("data_tokens_<source>", "tokens", "raw tokens of the examples taken from each source or task", TRAIN)

STALL_SECONDS = Column("stall_seconds", "s", "time that training waited for the checkpoint", CHECKPOINT)
SAVE_SECONDS = Column("save_seconds", "s", "time until the checkpoint was published", CHECKPOINT)
RANK_BYTES = Column("rank_bytes", "bytes", "tensors that rank 0 wrote", CHECKPOINT)
ERROR = Column("error", "", "why the checkpoint could not be written; absent on success", CHECKPOINT)

DECISION = Column(
    "decision", "", "`skipped`, `spike`, `roll_back`, `continue` (nothing to roll back to) or `stop`", GUARD
)
REASON = Column("reason", "", "human-readable, one line", GUARD)
NON_FINITE_IN_A_ROW = Column("non_finite_in_a_row", "steps", "consecutive steps with a non-finite gradient", GUARD)
ROLLBACKS = Column("rollbacks", "", "rollbacks so far", GUARD)
ROLLED_BACK_TO = Column(
    "rolled_back_to",
    "updates",
    "`roll_back` only: the step returned to; rows above of later steps are undone",
    GUARD,
)

# Columns that differ between two runs which compute the same: times, rates and memory.
MEASURED = re.compile(r"time|.*_seconds|tokens_per_second|model_tflops|peak_tflops|mfu|(peak_)?memory_bytes")


def split_of(row: dict[str, Any]) -> str:
    """Return the split of a row; rows of training had none in older runs."""
    return str(row.get(SPLIT, TRAIN))


def training_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows of training."""
    return [row for row in rows if split_of(row) == TRAIN]


def undeclared(row: dict[str, Any]) -> list[str]:
    """Return the keys of a row that no column of its split declares."""
    declared = [column for column in COLUMNS if split_of(row) in column.splits]
    return [key for key in row if not any(column.matches(key) for column in declared)]


def to_markdown() -> str:
    """Return docs/metrics.md."""
    parts = [
        "# Metrics\n\n<!-- Generated: python -m training.monitoring.columns > docs/metrics.md -->\n\n"
        "`metrics.jsonl` has one JSON object per line; `null` stands for a number that is not finite. TensorBoard "
        "shows the same numbers as `<split>/<column>`."
    ]
    for split, title in SPLITS.items():
        rows = [f"| `{c}` | {c.unit or '-'} | {c.meaning} |" for c in COLUMNS if split in c.splits]
        parts.append("\n".join([f"## {title}", "", "| column | unit | meaning |", "| --- | --- | --- |", *rows]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(to_markdown())
