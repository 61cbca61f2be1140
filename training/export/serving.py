"""The routing of an exported model: every token is served, so that outputs do not depend on the batch or on chance."""

from typing import Any, Literal

from model.config import StMoeConfig

Routing = Literal["dropless", "trained"]
ROUTINGS: tuple[Routing, ...] = ("dropless", "trained")


def served(values: dict[str, Any], routing: Routing) -> tuple[StMoeConfig, str]:
    """Return the config of the exported model, and in words how it routes.

    ``dropless``: an expert takes every token that chooses it, and the random choice of further experts becomes a
    certain one. With expert choice the experts choose among the tokens of a batch, which no setting changes.

    Args:
        values: the ``model`` section of the run.
        routing: ``trained`` keeps everything as it was trained.
    """
    trained = StMoeConfig(**values)
    if not trained.num_experts:
        return trained, "Dense: no routing."
    if trained.gating == "expert_choice":
        return trained, (
            "Expert choice, as trained: in the encoder each expert chooses among the tokens of the whole batch, so the "
            "output for a text depends on the texts beside it and on padding. Give texts one by one where outputs must "
            "be repeatable."
        )
    if routing == "trained":
        return trained, _as_trained(trained)
    drawn = trained.second_policy == "random" and "top_n" in (trained.gating, trained.decoder_gating)
    second = "all" if drawn else trained.second_policy
    changes = {"capacity": "dropless", "second_policy": second, "batch_prioritized": False}
    were = {key: getattr(trained, key) for key, value in changes.items() if getattr(trained, key) != value}
    text = (
        "Dropless: every token is served by the experts that it chooses, so the output for a text does not depend on "
        "the texts beside it in the batch, nor on the cache."
    )
    if were:
        arguments = ", ".join(f"{key}={value!r}" for key, value in were.items())
        text += f" Trained with {arguments}, which from_pretrained takes, too."
    return StMoeConfig(**values | changes), text


def _as_trained(config: StMoeConfig) -> str:
    """Describe the routing of a model with token choice that keeps it."""
    depends = []
    if config.capacity == "factor":
        depends.append("on the texts beside it and on the cache, since experts have a capacity")
    if config.second_policy == "random" and "top_n" in (config.gating, config.decoder_gating):
        depends.append("on chance, since experts after the best are drawn")
    what = f"depends {' and '.join(depends)}" if depends else "depends on nothing else"
    kept = f"capacity = {config.capacity}, second_policy = {config.second_policy}"
    return f"As trained: {kept}. The output for a text {what}."
