"""DeepSpeed's configuration: the user's JSON file, completed from the YAML config."""

import difflib
import json
import re
from typing import Any

from common.paths import beside, searched
from common.project import ROOT
from common.strict_json import to_json
from common.text import divisors, either, most_divisor, neighbours
from training.config.deepspeed_keys import Key, known_keys
from training.config.errors import FP16_REFUSED, ConfigError
from training.config.run import RunConfig

# DeepSpeed's keys that the YAML config sets, and where.
OWNED_KEYS = {
    "train_batch_size": "training.global_batch_size",
    "train_micro_batch_size_per_gpu": "training.micro_batch_size",
    "gradient_accumulation_steps": "training.global_batch_size and training.micro_batch_size",
    "gradient_clipping": "optimizer.gradient_clipping",
    "optimizer": "the optimizer section",
    "scheduler": "the optimizer section",
    "bf16": "training.precision",
    "bfloat16": "training.precision",
    "torch_autocast": "training.precision",
    "communication_data_type": "training.gradient_reduce_dtype",
    "data_types": "training.gradient_accumulate_dtype",
}
# DeepSpeed wants to be told that the optimizer is not one of its own.
SET_HERE = {"zero_allow_untested_optimizer": True, "zero_force_ds_cpu_optimizer": False}
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "boolean": (bool,), "integer": (int,), "number": (int, float), "string": (str,), "array": (list,),
    "object": (dict,), "null": (type(None),),
}  # fmt: skip

# The modules whose own weights go into bf16 products. DeepSpeed compares exact types, not subclasses.
PRODUCTS = (
    "torch.nn.Linear",
    "model.layers.attention.QueryProjection",
    "model.moe.experts.Experts",
    "parallel.experts.ExchangedExperts",
)


def read_deepspeed_file(path: str) -> dict[str, Any]:
    """Read the user's JSON file.

    Raises:
        ConfigError: it is missing or broken, sets a key of ``OWNED_KEYS``, has a key that DeepSpeed does not know, or a
            value of a wrong type, at any level.
    """
    text = ""
    try:
        text = beside(path, ROOT).read_text(encoding="utf-8-sig")
        options = json.loads(text, object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise ConfigError(
            f"training.deepspeed_config = {path}: no such file{searched(path)}; this project's are in "
            f"{ROOT / 'ds_configs'}"
        ) from None
    except OSError as error:
        raise ConfigError(f"training.deepspeed_config = {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        hint = "; JSON has no comments" if re.search(r"^\s*(//|#|/\*)|[,{\[]\s*(//|#|/\*)", text, re.M) else ""
        raise ConfigError(f"training.deepspeed_config = {path}: not valid JSON: {error}{hint}") from None
    if not isinstance(options, dict):
        raise ConfigError(f"training.deepspeed_config = {path}: must be a JSON object")
    if "fp16" in options:
        raise ConfigError(f"training.deepspeed_config = {path}: fp16 {FP16_REFUSED}; set training.precision")
    for key, owner in OWNED_KEYS.items():
        if key in options:
            raise ConfigError(f"training.deepspeed_config = {path}: remove {key!r}, which is set by {owner}")
    version, keys = known_keys()
    mistake = _find_mistake(options, keys, "", f"DeepSpeed {version}")
    if mistake is not None:
        raise ConfigError(f"training.deepspeed_config = {path}: {mistake}")
    for key, value in SET_HERE.items():
        if options.get(key, value) != value:
            raise ConfigError(f"training.deepspeed_config = {path}: {key} must be {to_json(value)}: remove it")
    return options


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise ValueError(f"{repeated!r} is given twice")
    return dict(pairs)


def _find_mistake(options: dict[str, Any], keys: dict[str, Key], prefix: str, reader: str) -> str | None:
    """Return the first key that DeepSpeed would ignore or refuse, with a suggestion; None if there is none."""
    for name, value in options.items():
        key, full = keys.get(name), prefix + name
        if key is None:
            return f"{full}: {reader} knows no such key; {_suggest(name, keys, prefix)}"
        if "keys" in key and isinstance(value, dict):
            mistake = _find_mistake(value, key["keys"], f"{full}.", reader)
        else:
            mistake = _find_wrong_type(full, value, key)
        if mistake is not None:
            return mistake
    return None


def _suggest(name: str, keys: dict[str, Key], prefix: str) -> str:
    spelled = name.lower().replace("optimisation", "optimization")
    close = difflib.get_close_matches(spelled, keys, n=1)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    known = known_keys()[1]
    homes = [f"{section}.{name}" for section, key in known.items() if name in key.get("keys", {})]
    homes += [name] if name in known else []
    return f"did you mean {homes[0]}?" if homes else "see https://www.deepspeed.ai/docs/config-json/"


def _find_wrong_type(name: str, value: Any, key: Key) -> str | None:
    types = ["object", *key.get("types", [])] if "keys" in key else key["types"]
    if "values" in key and not any(value == known and type(value) is type(known) for known in key["values"]):
        return f"{name} = {to_json(value)}: must be one of {', '.join(map(to_json, key['values']))}"
    if not types or value == "auto":  # DeepSpeed takes its default for auto
        return None
    kinds = {kind for kind, of in JSON_TYPES.items() if isinstance(value, of)}
    if isinstance(value, bool):
        kinds = {"boolean"}
    elif isinstance(value, float) and value.is_integer():
        kinds |= {"integer"}  # 5e8
    if kinds & set(types) or ("number" in types and "integer" in kinds):
        return None
    wanted = [kind for kind in types if kind not in ("array", "null") and (kind != "object" or types == ["object"])]
    wanted = ["object" if "keys" in key else kind for kind in wanted or types][:1]
    article = "an" if wanted[0][0] in "aeiou" else "a"
    return f"{name} = {to_json(value)}: must be {article} {wanted[0]}"


def zero_stage(options: dict[str, Any]) -> int:
    """Return the ZeRO stage of options that are checked; 0 by default."""
    return int(options.get("zero_optimization", {}).get("stage", 0))


def accumulation_steps(config: RunConfig, world_size: int, option: str | None = None) -> int:
    """Return the micro-batches per rank and step.

    Args:
        config: of the run.
        world_size: number of ranks.
        option: see ``training.config.checks.check_layout``.

    Raises:
        ConfigError: the global batch is not divisible.
    """
    t = config.training
    per_pass = t.micro_batch_size * world_size
    if t.global_batch_size % per_pass:
        raise ConfigError(
            f"training.global_batch_size = {t.global_batch_size} is not divisible by training.micro_batch_size x "
            f"{option or 'world size'} = {t.micro_batch_size} x {world_size}: set a multiple of {per_pass}"
            f"{_divide_batch(config, world_size, option)}"
        )
    return t.global_batch_size // per_pass


def _divide_batch(config: RunConfig, world_size: int, option: str | None) -> str:
    """Return ``, or`` and a micro-batch that divides the sequences of a rank or, if none does, ranks that do.

    Nothing if no number of ranks that the experts' groups allow divides the batch.
    """
    batch, size = config.training.global_batch_size, config.training.micro_batch_size
    if batch % world_size == 0:
        return f", or training.micro_batch_size={most_divisor(batch // world_size, size)}"
    known = [ranks for ranks in divisors(batch) if ranks % config.parallel.expert_parallel_size == 0]
    fitting = [ranks for ranks in known if batch // ranks % size == 0]
    near = neighbours(world_size, fitting or known)
    if not near:
        return ""
    words: list[str] = [
        f"{ranks}" if fitting else f"{ranks} with training.micro_batch_size={most_divisor(batch // ranks, size)}"
        for ranks in near
    ]
    most = f" (with training.micro_batch_size=1 up to {batch})" if world_size > batch and size > 1 else ""
    return f", or {option} {either(words)}{most}" if option else f", or start {either(words)} ranks{most}"


def deepspeed_config(config: RunConfig, world_size: int) -> dict[str, Any]:
    """Return the configuration for ``deepspeed.initialize``. Raises ConfigError."""
    precision, reduce_dtype = config.training.precision, config.training.gradient_reduce_dtype
    options = read_deepspeed_file(config.training.deepspeed_config)
    options |= {
        "train_batch_size": config.training.global_batch_size,
        "train_micro_batch_size_per_gpu": config.training.micro_batch_size,
        "gradient_accumulation_steps": accumulation_steps(config, world_size),
        # At stage 0 DeepSpeed clips wrongly when experts are spread over ranks: see optim/stage_zero.py.
        "gradient_clipping": config.optimizer.gradient_clipping if zero_stage(options) else 0.0,
        "bf16": {"enabled": precision == "bf16"},
        "communication_data_type": reduce_dtype,
    }
    options |= SET_HERE
    if precision == "bf16_autocast":
        # Left alone, DeepSpeed would reduce the gradients of some of these classes in bf16 and of others in fp32.
        low = PRODUCTS if reduce_dtype == "bf16" else ()
        options["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": list(low)}
    if precision == "bf16" and zero_stage(options):  # without ZeRO, DeepSpeed has no fp32 sums of bf16 gradients
        options["data_types"] = {"grad_accum_dtype": config.training.gradient_accumulate_dtype}
    options.setdefault("steps_per_print", 2**31)  # the trainer reports
    return options
