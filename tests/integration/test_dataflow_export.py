"""Our dataflow held against an independent truth: the SSA graph of `torch.export`.

Both are contracted to leaf module calls: for each call, the leaf module calls whose outputs it
reads, straight or through functions. The export runs on real weights; it shares no code with us.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import fx, nn

import llmsim_magic as llmsim

Call = tuple[str, int]  # the path of a leaf module, and which of its calls
Reads = dict[Call, set[Call]]

transformers = pytest.importorskip("transformers")

# torch.export's own notice on its tree specs.
pytestmark = pytest.mark.filterwarnings("ignore:.*treespec:FutureWarning")


# the truth: torch.export


def exported_reads(model: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Reads:
    with torch.no_grad():
        program = torch.export.export(model, args, keywords, strict=False)
    # Functionalised: an in-place write becomes a value, so that edges are all there is.
    graph = program.run_decompositions({}).graph
    calls = _leaf_calls(model, graph)
    reads: Reads = {}
    for node, call in calls.items():
        if not _passes_through(node):
            reads.setdefault(call, set()).update(
                source
                for operand in node.all_input_nodes
                for source in _sources(operand, calls)
                if source != call
            )
    return reads


def _leaf_calls(model: nn.Module, graph: fx.Graph) -> dict[fx.Node, Call]:
    """For each node inside a leaf module the call that it belongs to, calls in order."""
    leaves = {
        path
        for path, module in model.named_modules()
        # A dropout at rest stands in the graph as a clone, which no kernel runs for.
        if not list(module.children()) and not isinstance(module, nn.Dropout)
    }
    known: dict[str, Call] = {}
    count: dict[str, int] = {}
    found: dict[fx.Node, Call] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if node.op != "call_function" or not stack:
            continue
        key, (name, _) = list(stack.items())[-1]
        path = name.partition("@")[0]
        if path not in leaves:
            continue
        # A second call of a module stands in the stack under a name of its own: `…lin@1`.
        if key not in known:
            known[key] = (path, count.get(path, 0))
            count[path] = count.get(path, 0) + 1
        found[node] = known[key]
    return found


def _sources(node: fx.Node, calls: dict[fx.Node, Call]) -> Iterator[Call]:
    """The leaf calls that made a value, looking through functions, views and the like."""
    seen: set[fx.Node] = set()
    left = [node]
    while left:
        node = left.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in calls and not _passes_through(node):
            yield calls[node]
        else:
            left.extend(node.all_input_nodes)


def _passes_through(node: fx.Node) -> bool:
    """Whether a node hands on what it was given: views, no-op casts, picks."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:  # operator.getitem, which picks one of several results
        return True
    if not schema.returns:  # an assertion
        return True
    aliases = [value.alias_info for value in schema.returns]
    return all(alias is not None and not alias.is_write for alias in aliases)


# ours


def our_reads(report: Any) -> Reads:
    ops = report.ops
    busy = set(report.kernels.loc[~report.kernels.is_view, "op_order"].dropna())
    calls: dict[int, Call] = {}
    count: dict[str, int] = {}
    for order, operator in ops.iterrows():
        if operator.kind == "module" and order in busy:
            calls[order] = (operator.path, count.get(operator.path, 0))
            count[operator.path] = count.get(operator.path, 0) + 1
    found: Reads = {}
    for order, call in calls.items():
        seen: set[int] = set()
        left = list(ops.depends_on[order])
        reads = found[call] = set()
        while left:
            source = left.pop()
            if source in seen:
                continue
            seen.add(source)
            if source in calls:
                reads.add(calls[source])
            else:
                left.extend(ops.depends_on[source])
    return found


def differences(ours: Reads, truth: Reads) -> list[str]:
    """One line per difference, so that a failure says which edge is wrong."""
    lines = []
    for call in sorted(ours.keys() | truth.keys()):
        mine, true = ours.get(call), truth.get(call)
        if mine is None or true is None:
            lines.append(f"{call}: {'only in torch.export' if mine is None else 'only in ours'}")
            continue
        lines += [f"{call} misses {source}" for source in sorted(true - mine)]
        lines += [f"{call} has {source} too many" for source in sorted(mine - true)]
    return lines


# HuggingFace models


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_layer=2,
        n_embd=64,
        n_head=4,
        vocab_size=96,
        n_positions=32,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


_SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 96,
}


def _bert() -> nn.Module:
    return transformers.BertModel(transformers.BertConfig(**_SMALL))


def _llama() -> nn.Module:
    config = transformers.LlamaConfig(**_SMALL, num_key_value_heads=2, use_cache=False)
    return transformers.LlamaForCausalLM(config)


def _qwen3() -> nn.Module:
    config = transformers.Qwen3Config(
        **_SMALL, num_key_value_heads=2, head_dim=16, use_cache=False, tie_word_embeddings=True
    )
    return transformers.Qwen3ForCausalLM(config)


def _neox() -> nn.Module:
    """Parallel residual: attention and MLP both read the block's input."""
    config = transformers.GPTNeoXConfig(**_SMALL, use_parallel_residual=True, use_cache=False)
    return transformers.GPTNeoXForCausalLM(config)


TOKENS = torch.arange(5)[None]


@pytest.mark.parametrize("build", [_gpt2, _bert, _llama, _qwen3, _neox])
@pytest.mark.slow
def test_every_leaf_of_a_transformer_reads_what_the_exported_graph_says(
    build: Callable[[], nn.Module],
) -> None:
    model = build().eval()
    truth = exported_reads(model, (TOKENS,), {})
    ours = our_reads(llmsim.trace(model, context=TOKENS.shape[1]))
    assert not differences(ours, truth)
    assert len(truth) > 10
    assert sum(map(len, truth.values())) > len(truth)


def test_cross_attention_of_an_encoder_decoder_reads_the_encoder() -> None:
    config = transformers.T5Config(
        num_layers=2, d_model=64, d_kv=16, d_ff=128, num_heads=4, vocab_size=96, use_cache=False
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    keywords = {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :1]}
    truth = exported_reads(model, (), keywords)
    ours = our_reads(llmsim.trace(model, context=TOKENS.shape[1]))
    assert not differences(ours, truth)
    key = ("decoder.block.0.layer.1.EncDecAttention.k", 0)
    assert truth[key] == {("encoder.final_layer_norm", 0)}


@pytest.mark.slow
def test_an_image_encoder_reads_what_the_exported_graph_says() -> None:
    sizes = {key: value for key, value in _SMALL.items() if key != "vocab_size"}
    model = transformers.ViTModel(
        transformers.ViTConfig(**sizes, image_size=32, patch_size=8)
    ).eval()
    truth = exported_reads(model, (torch.zeros(1, 3, 32, 32),), {})
    ours = our_reads(llmsim.trace(model, context=5))
    assert not differences(ours, truth)


# modules by hand


class Residuals(nn.Module):
    """Two branches, a skip around both, and a branch that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(8, 8)
        self.right = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.GELU())
        self.norm = nn.LayerNorm(8)
        self.last = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left = self.left(x)
        right = self.right(x)
        joined = left + right
        normed = self.norm(joined)
        return joined + self.last(normed * left)


class Views(nn.Module):
    """A fused projection whose thirds go separate ways; a shared norm, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8)
        self.act = nn.ReLU()
        self.gate = nn.Linear(8, 8)
        self.flat = nn.Flatten(1)
        self.out = nn.Linear(24, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = self.norm(q.transpose(0, 1)).transpose(0, 1)
        k = self.norm(k)
        v = self.act(v).view(2, 3, 2, 4).permute(0, 2, 1, 3).reshape(2, 3, 8)
        scores = torch.einsum("bik,bjk->bij", q, k).softmax(-1)
        mixed = torch.bmm(scores, v)
        mixed = mixed * self.gate(x[:, :1]).expand(2, 3, 8)
        return self.out(self.flat(mixed))


class Halves(nn.Module):
    """One projection cut in two by columns, each half changed in place on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(8, 16)
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.join = nn.Linear(16, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.both(x).split(8, dim=-1)
        left, right = self.a(left), self.b(right)
        left = left.relu_().add_(x)
        return self.join(torch.cat([left, right], dim=-1)) + self.a(right)


@pytest.mark.parametrize(
    ("module", "shape"), [(Residuals, (2, 8)), (Views, (2, 3, 8)), (Halves, (2, 8))]
)
def test_every_leaf_of_a_module_by_hand_reads_what_the_exported_graph_says(
    module: type[nn.Module], shape: tuple[int, ...]
) -> None:
    model, x = module().eval(), torch.randn(shape)
    truth = exported_reads(model, (x,), {})
    ours = our_reads(llmsim.trace(model, inputs=x))
    assert not differences(ours, truth)


def test_the_truth_itself_is_what_a_reader_of_the_code_would_say() -> None:
    """Guards the contraction: were it empty or too coarse, equality would prove nothing."""
    truth = exported_reads(Views().eval(), (torch.randn(2, 3, 8),), {})
    qkv, gate, act = ("qkv", 0), ("gate", 0), ("act", 0)
    assert truth == {
        qkv: set(),
        ("norm", 0): {qkv},
        ("norm", 1): {qkv},
        act: {qkv},
        gate: set(),
        ("out", 0): {("norm", 0), ("norm", 1), act, gate},
    }
