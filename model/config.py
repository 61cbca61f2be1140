"""The Hugging Face config of the model."""

from typing import TYPE_CHECKING, Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from model.architecture import Architecture


@strict
class StMoeConfig(Architecture, PreTrainedConfig):
    """An ``Architecture`` that is saved and loaded with its weights (``save_pretrained``, ``from_pretrained``).

    Raises:
        StrictDataclassError: (huggingface_hub) a value of the wrong type, or one that ``Architecture`` refuses.
    """

    model_type = "st_moe"
    # What Trainer.predict() cannot gather: a cache, and scalars.
    keys_to_ignore_at_inference = [
        "past_key_values", "cross_entropy", "load_balance_loss", "router_z_loss", "output_z_loss", "dropped_fraction",
        "max_router_logit", "router_statistics",
    ]  # fmt: skip
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "num_heads",
        "num_hidden_layers": "num_layers",
        "head_dim": "d_kv",
    }

    is_encoder_decoder: bool = True
    use_cache: bool = True
    tie_word_embeddings: bool = False
    pad_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 1
    decoder_start_token_id: int | None = 0

    if TYPE_CHECKING:  # transformers makes an __init__ that takes any keyword and checks its type at run time

        def __init__(self, **kwargs: Any) -> None: ...

    def __post_init__(self, **kwargs: Any) -> None:
        self.resolve_defaults()
        PreTrainedConfig.__post_init__(self, **kwargs)  # @strict validates when it returns

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> "StMoeConfig":
        """Return the config of one stack, with ``num_layers`` of its own, as ``generate`` makes the decoder's cache by.

        The base class knows ``num_hidden_layers``, which is the encoder's, alone.
        """
        config: StMoeConfig = super().get_text_config(decoder=decoder, encoder=encoder)
        if decoder and not encoder and config.num_decoder_layers is not None:
            config.num_layers = config.num_decoder_layers  # of a copy
        return config
