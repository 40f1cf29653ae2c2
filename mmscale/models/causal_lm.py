"""CausalLM: language models of transformers as models of MMEngine."""

from __future__ import annotations

import torch
from mmengine.model import BaseModel
from torch import nn
from torch.nn.functional import cross_entropy

from mmscale.arch.checks import choice
from mmscale.errors import UsageError
from mmscale.registry import MODELS


@MODELS.register_module()
class CausalLM(BaseModel):
    """A causal language model of transformers with random weights; nothing is downloaded.

    Needs transformers, an optional requirement.

    Args:
        config: ``model_type``, such as ``llama`` or ``gpt2``, and arguments of the configuration
            that transformers has for it.
        data_preprocessor: Config of the preprocessor; the default moves tokens to the device.

    Raises:
        ImportError: transformers is not installed.
        ValueError: The config has no known ``model_type``, or a key that it does not know.
    """

    def __init__(self, config: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.language_model = _language_model(config)

    def forward(
        self, inputs: torch.Tensor, data_samples: None = None, mode: str = 'tensor'
    ) -> torch.Tensor | dict[str, torch.Tensor] | list[dict[str, float]]:
        """Predicts each token from those before it.

        Args:
            inputs: Tokens of shape (N, length).
            data_samples: Unused: tokens are their own labels.
            mode: ``tensor`` returns logits of shape (N, length, vocabulary); ``loss`` the mean
                cross-entropy of all tokens but the first ones, in nats; ``predict`` its sum and
                the number of ``tokens`` for each sequence, which ``Perplexity`` takes.

        Raises:
            ValueError: The mode is none of these.
        """
        choice('mode', mode, ('tensor', 'loss', 'predict'))
        logits = self.language_model(inputs).logits
        if mode == 'tensor':
            return logits
        if mode == 'loss':
            return self.losses(logits, inputs)
        entropy = _entropy(logits, inputs)
        return [
            {'cross_entropy': total, 'tokens': entropy.shape[1]}
            for total in entropy.double().sum(dim=1).tolist()
        ]

    def losses(self, logits: torch.Tensor, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Losses by name, ``language_loss`` here, as :meth:`forward` says.

        Args:
            logits: Predictions of shape (N, length, vocabulary).
            inputs: Tokens of shape (N, length).
        """
        return {'language_loss': _entropy(logits, inputs).mean()}


def _entropy(logits: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of all tokens but the first ones, shape (N, length - 1)."""
    predicted = logits[:, :-1].float().transpose(1, 2)
    return cross_entropy(predicted, inputs[:, 1:], reduction='none')


def _language_model(config: dict) -> nn.Module:
    try:
        from transformers import CONFIG_MAPPING, AutoModelForCausalLM
    except ImportError:
        raise ImportError("CausalLM needs transformers: pip install 'transformers<5'") from None
    settings = dict(config)
    model_type = settings.pop('model_type', None)
    if model_type not in CONFIG_MAPPING:
        raise UsageError(f'config: model_type={model_type!r:.60} is none of transformers')
    kind = CONFIG_MAPPING[model_type]
    # transformers keeps keys that it does not know without a word.
    allowed = {*kind().to_dict(), *kind.attribute_map, 'attn_implementation'}
    unknown = sorted(settings.keys() - allowed)
    if unknown:
        raise UsageError(
            f'config: {unknown[0]}={settings[unknown[0]]!r:.60} is no setting of {kind.__name__}'
        )
    # A cache of keys and values is for generating text.
    return AutoModelForCausalLM.from_config(kind(**{'use_cache': False, **settings}))
