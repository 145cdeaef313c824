"""Controls: ALSTM with average or maximum pooling in place of attention, all else the same code."""

from typing import Any

from action_attention.models.alstm import AttentionLSTM, GlimpseSettings, LSTMSettings, make_glimpse
from action_attention.models.attention import MaximumShare, Uniform
from action_attention.models.base import ActionModel
from action_attention.models.glimpses import Maximum, Mean
from action_attention.registry import register_model


@register_model("avg_lstm", GlimpseSettings)
class AverageLSTM(ActionModel):
    """Control: attention is uniform."""

    has_attention = False
    small_operations = True

    def make_core(self, settings: GlimpseSettings, options: dict[str, Any]) -> AttentionLSTM:
        glimpse = make_glimpse(settings, options, Mean(name="glimpse"))
        return AttentionLSTM(settings, options, Uniform(name="attention"), glimpse)


@register_model("max_lstm", LSTMSettings)
class MaxLSTM(ActionModel):
    """Control: the glimpse is the maximum over locations of each channel."""

    small_operations = True

    def make_core(self, settings: LSTMSettings, options: dict[str, Any]) -> AttentionLSTM:
        return AttentionLSTM(settings, options, MaximumShare(name="attention"), Maximum(name="glimpse"))
