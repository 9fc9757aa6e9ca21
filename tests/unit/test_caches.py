"""What a model carries from token to token is its cache, wherever it keeps it; nothing else is."""

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import llmsim_magic as llmsim
from llmsim_magic.records.errors import NoDecode
from tests.helpers import small_models
from tests.helpers.cache_names import cache_keyword, cache_of

PHASES = ("prefill", "decode")
SIZES: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
FLOAT = 4  # bytes


def test_image_features_that_a_model_passes_on_are_no_cache() -> None:
    """SAM 2 takes `image_embeddings` in place of an image, and returns them."""
    config = transformers.Sam2Config()
    report = llmsim.trace(config)
    assert report.trace.cache == ()
    assert report.summary.value["cache_bytes"] == 0
    with pytest.raises(NoDecode):
        llmsim.trace(config, phase="decode")


@pytest.mark.parametrize("phase", PHASES)
def test_states_in_plain_lists_are_a_cache(phase: str) -> None:
    """XLNet returns `mems`: every layer's input for each of the tokens read so far."""
    config = transformers.XLNetConfig(vocab_size=100, d_model=64, n_layer=3, n_head=4, d_inner=96)
    tokens = 9 + (phase == "decode")
    report = llmsim.trace(config, phase=phase, batch=2, context=9)
    assert report.summary.value["cache_bytes"] == 3 * 2 * tokens * 64 * FLOAT


def recurrent_gemma() -> transformers.RecurrentGemmaConfig:
    """Two recurrent layers and one with attention, which has one head of keys of 64 / 4 values."""
    return transformers.RecurrentGemmaConfig(**SIZES, lru_width=64, num_key_value_heads=1)


@pytest.mark.parametrize("phase", PHASES)
def test_states_in_attributes_of_modules_are_a_cache(phase: str) -> None:
    config = recurrent_gemma()
    tokens = 9 + (phase == "decode")
    keys_and_values = 2 * tokens * 16
    convolution, recurrent = 64 * (config.conv1d_width - 1), 64
    report = llmsim.trace(config, phase=phase, batch=2, context=9)
    expected = 2 * (keys_and_values + 2 * (convolution + recurrent)) * FLOAT
    assert report.summary.value["cache_bytes"] == expected
    assert report.memory.loc["cache", "bytes"] == expected


def test_a_step_from_states_in_modules_does_the_work_of_the_real_one() -> None:
    config = recurrent_gemma()
    config._attn_implementation = "eager"  # torch counts no fused attention on a CPU
    model = transformers.RecurrentGemmaForCausalLM(config).eval()
    given = {cache_keyword(model): transformers.DynamicCache(config=config), "use_cache": True}
    with torch.no_grad():
        model(input_ids=torch.ones(2, 9, dtype=torch.long), **given)
        with FlopCounterMode(display=False) as real:
            model(input_ids=torch.ones(2, 1, dtype=torch.long), **given)
    report = llmsim.trace(config, phase="decode", batch=2, context=9)
    assert report.summary.value["flops"] == real.get_total_flops()
    read = {storage.name for storage in report.trace.recorded.storages if storage.role == "cache"}
    assert "model.layers.0.temporal_block.conv1d_state" in read


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("name", sorted({*small_models.CONFIGS} - {*small_models.ENCODERS}))
def test_summary_and_memory_give_one_size_of_the_cache(name: str, phase: str) -> None:
    report = llmsim.trace(small_models.CONFIGS[name](), phase=phase, batch=2, context=7)
    assert report.memory.loc["cache", "bytes"] == report.summary.value["cache_bytes"] > 0


def test_the_cache_of_a_long_decode_step_holds_the_new_token_too() -> None:
    """A context beyond one chunk of prefill, whose cache comes from the step itself."""
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, max_position_embeddings=16384)
    report = llmsim.trace(config, phase="decode", batch=3, context=9000, hardware="H100")
    expected = 3 * 3 * 2 * 9001 * 2 * 16 * FLOAT
    assert report.summary.value["cache_bytes"] == expected
    assert report.memory.loc["cache", "bytes"].tolist() == [expected] * 2
    assert report.costing.fits["cache_bytes"].tolist() == [expected] * 2


class Config(transformers.PreTrainedConfig):
    model_type = "of_this_test"
    vocab_size, hidden_size = 50, 8


class Recurrent(transformers.PreTrainedModel):
    """One GRU cell, whose state the model keeps in an attribute between passes."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.cell = nn.GRUCell(config.hidden_size, config.hidden_size)
        self.last: Any = None
        self.states: dict[str, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        state = self.states.get("cell")
        for token in hidden.unbind(1):
            state = self.cell(token, state)
        self.last = hidden  # for inspection: no pass reads it
        self.states["cell"] = state
        return state


class Forgetful(Recurrent):
    """The same work from nothing in each pass."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        self.states = {}
        return super().forward(input_ids)


@pytest.mark.parametrize("phase", PHASES)
def test_only_what_the_next_step_reads_is_a_state(phase: str) -> None:
    report = llmsim.trace(Recurrent(Config()), phase=phase, batch=2, context=5)
    assert [(slot.name, slot.shape) for slot in report.trace.cache] == [("states.cell", (2, 8))]


def test_what_a_model_stores_and_never_reads_is_no_state() -> None:
    assert llmsim.trace(Forgetful(Config()), batch=2, context=5).trace.cache == ()
    with pytest.raises(NoDecode):
        llmsim.trace(Forgetful(Config()), phase="decode", batch=2, context=5)


def test_a_pass_starts_without_the_state_of_the_pass_before() -> None:
    model = Recurrent(Config())
    first, second = (llmsim.trace(model, phase="prefill", context=5) for _ in range(2))
    assert first.trace.recorded.kernels == second.trace.recorded.kernels
    assert model.states == {}


class Table(Recurrent):
    """Adds a learned table of positions to the tokens, which each pass extends where it is short.

    `lengthened` tells how: from the tokens' width alone, or in the shape of what was read.
    """

    longest = 32

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.angle = nn.Parameter(torch.ones(config.hidden_size))
        self.table: Any = None

    def lengthened(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.arange(self.longest)[:, None] * self.angle

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(input_ids)
        if self.table is None or len(self.table) < input_ids.shape[1]:
            self.table = self.lengthened(hidden)
        return hidden + self.table[: input_ids.shape[1]]


class TableLikeTokens(Table):
    def lengthened(self, hidden: torch.Tensor) -> torch.Tensor:
        steps = hidden.new_ones(self.longest, 1).cumsum(0)
        return torch.zeros_like(hidden[0, :1]) + steps * self.angle


class FirstTokens(Table):
    """Keeps what it read first, as a decoder keeps what it cross-attends to."""

    def lengthened(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[0]


@pytest.mark.parametrize("kind", [Table, TableLikeTokens])
def test_a_table_that_depends_on_no_input_is_no_state(kind: type[Table]) -> None:
    assert llmsim.trace(kind(Config()), batch=2, context=5).trace.cache == ()
    with pytest.raises(NoDecode):
        llmsim.trace(kind(Config()), phase="decode", batch=2, context=5)


@pytest.mark.parametrize("phase", PHASES)
def test_what_was_computed_from_the_input_and_is_only_read_is_a_state(phase: str) -> None:
    report = llmsim.trace(FirstTokens(Config()), phase=phase, batch=2, context=5)
    assert [(slot.name, slot.shape) for slot in report.trace.cache] == [("table", (5, 8))]


@pytest.mark.slow
def test_a_position_table_of_a_speech_model_is_no_cache() -> None:
    config = transformers.FastSpeech2ConformerConfig()
    assert llmsim.trace(config, context=8).trace.cache == ()
    with pytest.raises(NoDecode):
        llmsim.trace(config, phase="decode", context=8)


class Setting:
    """An object of a class of its own that holds no number that a model computed."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.name, self.ids = "setting", ids


class Returns(Recurrent):
    """Returns one more item, which its forward takes too."""

    def item(self, ids: torch.Tensor, state: Any) -> Any:
        raise NotImplementedError

    def forward(self, input_ids: torch.Tensor, item: Any = None) -> dict[str, Any]:
        state = super().forward(input_ids)
        self.states, self.last = {}, None
        return {"logits": state, "item": self.item(input_ids, state)}


class ReturnsIndex(Returns):
    def item(self, ids: torch.Tensor, state: Any) -> int:
        return 3


class ReturnsNames(Returns):
    def item(self, ids: torch.Tensor, state: Any) -> list[str]:
        return ["a", "b"]


class ReturnsSetting(Returns):
    def item(self, ids: torch.Tensor, state: Any) -> Setting:
        return Setting(ids)


@pytest.mark.parametrize("kind", [ReturnsIndex, ReturnsNames, ReturnsSetting])
def test_plain_values_that_a_model_returns_and_takes_are_no_cache(kind: type[Returns]) -> None:
    assert llmsim.trace(kind(Config()), batch=2, context=5).trace.cache == ()
    with pytest.raises(NoDecode):
        llmsim.trace(kind(Config()), phase="decode", batch=2, context=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Sam2VideoConfig", "Sam3TrackerVideoConfig"])
def test_the_index_of_a_video_frame_is_no_cache(name: str) -> None:
    with pytest.raises(NoDecode):
        llmsim.trace(getattr(transformers, name)(), phase="decode", context=8)


class LongShortTerm(Recurrent):
    """An LSTM whose state the caller passes back."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.cell = nn.LSTM(config.hidden_size, config.hidden_size, batch_first=True)

    def forward(self, input_ids: torch.Tensor, state: Any = None) -> dict[str, Any]:
        hidden, state = self.cell(self.embed(input_ids), state)
        return {"logits": hidden, "state": state}


@pytest.mark.parametrize("phase", PHASES)
def test_the_state_of_an_lstm_that_is_passed_back_is_a_cache(phase: str) -> None:
    report = llmsim.trace(LongShortTerm(Config()), phase=phase, batch=2, context=5)
    assert [slot.shape for slot in report.trace.cache] == [(1, 2, 8), (1, 2, 8)]


class KeepsLongShortTerm(LongShortTerm):
    """The same state, in an attribute."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden, self.last = self.cell(self.embed(input_ids), self.last)
        return hidden


@pytest.mark.parametrize("phase", PHASES)
def test_the_state_of_an_lstm_that_a_model_keeps_is_a_cache(phase: str) -> None:
    report = llmsim.trace(KeepsLongShortTerm(Config()), phase=phase, batch=2, context=5)
    assert [slot.shape for slot in report.trace.cache] == [(1, 2, 8), (1, 2, 8)]


class ReadsValues(LongShortTerm):
    """Reads a value of its data in inference mode, where torch decomposes no kernel by itself."""

    @torch.inference_mode()
    def forward(self, input_ids: torch.Tensor, state: Any = None) -> dict[str, Any]:
        output = super().forward(input_ids, state)
        if output["logits"].sum() == 1:
            raise ValueError
        return output


def test_a_forward_that_reads_values_in_inference_mode_fills_a_cache() -> None:
    report = llmsim.trace(ReadsValues(Config()), phase="decode", batch=2, context=5)
    assert [slot.shape for slot in report.trace.cache] == [(1, 2, 8), (1, 2, 8)]


def prompt_tuned(kind: str) -> Any:
    """A small Llama with a learned prompt of 20 tokens."""
    peft = pytest.importorskip("peft")
    configs = {
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20),
        "p-tuning": peft.PromptEncoderConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=20, encoder_hidden_size=32
        ),
    }
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, attn_implementation="eager")
    return peft.get_peft_model(transformers.LlamaForCausalLM(config), configs[kind])


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["prefix", "prompt", "p-tuning"])
def test_a_learned_prompt_stands_in_the_cache_before_the_tokens(kind: str, phase: str) -> None:
    tokens = 20 + 7 + (phase == "decode")
    report = llmsim.trace(prompt_tuned(kind), phase=phase, batch=2, context=7)
    # keys and values of three layers, two heads of 64 / 4 values
    assert report.summary.value["cache_bytes"] == 3 * 2 * 2 * tokens * 2 * 16 * FLOAT


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_step_after_a_learned_prompt_does_the_work_of_the_real_one(kind: str) -> None:
    model = prompt_tuned(kind).eval()
    with torch.no_grad():
        output = model(input_ids=torch.ones(2, 7, dtype=torch.long), use_cache=True)
        given = {cache_keyword(model.base_model): cache_of(output)}
        with FlopCounterMode(display=False) as real:  # as `generate` of PEFT continues
            model.base_model(input_ids=torch.ones(2, 1, dtype=torch.long), **given)
    report = llmsim.trace(model, phase="decode", batch=2, context=7)
    assert report.summary.value["flops"] == real.get_total_flops()


# PEFT itself hands an encoder-decoder its cache by the former name.
@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_learned_prompt_of_an_encoder_decoder(kind: str, phase: str) -> None:
    """A prefix stands in the decoder's own cache; a prompt stands in the encoder's input."""
    peft = pytest.importorskip("peft")
    kinds = {"prefix": peft.PrefixTuningConfig, "prompt": peft.PromptTuningConfig}
    config = transformers.T5Config(
        d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=100
    )
    tuned = kinds[kind](task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    live = peft.get_peft_model(transformers.T5ForConditionalGeneration(config), tuned)
    report = llmsim.trace(live, phase=phase, context=16)
    own = 1 + 16 * (phase == "decode") + 5 * (kind == "prefix")
    encoded = 16 + 5 * (kind == "prompt")
    assert report.summary.value["cache_bytes"] == 2 * 2 * 4 * 8 * (own + encoded) * FLOAT
