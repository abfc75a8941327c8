from __future__ import annotations

import copy
import logging
from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from fpe_hf import widen
from fpe_hf.discovery import MLPBlock, MLPBlocks, find_mlps
from fpe_hf.errors import DiscoveryError
from fpe_hf.linear import is_conv1d, make_linear, stock_of, weight_of
from tiny_models import FAMILIES, KINDS, MLP, tiny_inputs, tiny_model

D, H = 8, 16


class Custom(nn.Module):
    """Projections that `body` wires up."""

    def __init__(self, body: Callable[[Custom, Tensor], object]) -> None:
        super().__init__()
        self.up, self.gate, self.fused = nn.Linear(D, H), nn.Linear(D, H), nn.Linear(D, 2 * H)
        self.down, self.other = nn.Linear(H, D), nn.Linear(H, D)
        self.scale = nn.Parameter(torch.ones(H))
        self.body = body

    def forward(self, x: Tensor) -> object:
        return self.body(self, x)


def find_custom(body: Callable[[Custom, Tensor], object]) -> MLPBlocks:
    return find_mlps(Custom(body), (torch.zeros(2, 3, D),))


def doubled(model: nn.Module, block: MLPBlock) -> None:
    """Replaces the projections by ones with every hidden neuron twice, at half the weight.

    The outputs stay the same if, and only if, the block is what discovery says.
    """
    for name in block.ups:
        up = model.get_submodule(name)
        sources = weight_of(up), up.bias
        model.set_submodule(name, _rebuilt(up, *(_twice(part, block.fused) for part in sources)))
    down = model.get_submodule(block.down)
    weight = weight_of(down)
    model.set_submodule(block.down, _rebuilt(down, torch.cat([weight, weight], 1) / 2, down.bias))


def _twice(rows: Tensor | None, fused: str | None) -> Tensor | None:
    if rows is None:
        return None
    if fused == "halves":
        return torch.cat([half.repeat(2, *[1] * (rows.dim() - 1)) for half in rows.chunk(2)])
    return torch.cat([rows, rows])


def _rebuilt(module: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    return make_linear(weight.detach(), bias, stock_of(module) or "linear")


@pytest.mark.parametrize("family", FAMILIES)
def test_finds_exactly_the_blocks_of_a_family(family: str) -> None:
    model = tiny_model(family)
    blocks = find_mlps(model)
    assert len(blocks) == FAMILIES[family]
    assert {block.kind for block in blocks} == {KINDS[family]}
    assert len({block.name for block in blocks}) == len(blocks)
    for block in blocks:
        assert (
            block.in_features
            == model.get_submodule(block.up).weight.shape[
                0 if is_conv1d(model.get_submodule(block.up)) else 1
            ]
        )
        assert block.parents == (64 if family == "dinov2" else MLP)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_hidden_neurons_can_be_doubled(family: str) -> None:
    model = tiny_model(family)
    blocks, inputs = find_mlps(model), tiny_inputs(model)
    before = model(**inputs)
    for block in blocks:
        doubled(model, block)
    after = model(**inputs)
    for name, expected in before.items():
        if isinstance(expected, Tensor):
            torch.testing.assert_close(after[name], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "t5", "whisper", "clip"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finds_the_same_in_half_precision_and_eager_attention(
    family: str, dtype: torch.dtype
) -> None:
    model = tiny_model(family)
    expected = find_mlps(model)
    model.set_attn_implementation("eager")
    assert find_mlps(model.to(dtype)) == expected


@pytest.mark.parametrize("family", ["clip", "t5_gated", "whisper", "distilbert"])
def test_example_inputs_give_the_same(family: str) -> None:
    model = tiny_model(family)
    assert find_mlps(model, tiny_inputs(model)) == find_mlps(model)


@pytest.mark.parametrize(
    ("family", "up", "down"),
    [
        ("bert_masked_lm", "cls.predictions.transform.dense", "cls.predictions.decoder"),
        ("roberta", "lm_head.dense", "lm_head.decoder"),
        ("modernbert", "head.dense", "decoder"),
    ],
)
def test_language_model_head_is_refused_for_its_norm(family: str, up: str, down: str) -> None:
    (miss,) = find_mlps(tiny_model(family)).near_misses
    assert (miss.up, miss.down, miss.block) == ((up,), down, None)
    assert "normalises over the hidden axis" in miss.reason


@pytest.mark.parametrize(
    ("family", "up", "down"),
    [
        ("bert_classifier", "bert.pooler.dense", "classifier"),
        ("distilbert", "pre_classifier", "classifier"),
        ("siglip", "vision_model.head.mlp.fc1", "vision_model.head.mlp.fc2"),
    ],
)
def test_blocks_outside_a_stack_are_offered(family: str, up: str, down: str) -> None:
    (miss,) = find_mlps(tiny_model(family)).near_misses
    assert (miss.up, miss.down) == ((up,), down)
    assert "outside a repeated stack" in miss.reason
    assert miss.block is not None
    assert miss.block.up == up


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "opt", "vit", "clip", "albert"])
def test_attention_makes_no_noise(family: str) -> None:
    assert find_mlps(tiny_model(family)).near_misses == []


def test_names_of_a_block() -> None:
    bert, llama = find_mlps(tiny_model("bert"))[0], find_mlps(tiny_model("llama"))[1]
    assert bert.name == "encoder.layer.0"
    assert bert.activation == "gelu"
    assert llama.name == "model.layers.1.mlp"
    assert llama.ups == ("model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj")
    assert llama.activation == "silu"
    assert find_mlps(tiny_model("gpt2"))[0].activation == "NewGELUActivation"


def test_shared_layers_are_one_block() -> None:
    (block,) = find_mlps(tiny_model("albert"))
    assert block.calls == 2
    layer = nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))
    (block,) = find_mlps(nn.Sequential(layer, nn.Tanh(), layer))
    assert (block.name, block.calls, block.shared) == ("0", 2, ("2.0", "2.2"))


def test_clip_at_its_true_shapes() -> None:
    with torch.device("meta"):
        model = hf.CLIPModel(hf.CLIPConfig())
    blocks = find_mlps(model)
    assert {(block.in_features, block.parents) for block in blocks} == {(512, 2048), (768, 3072)}
    assert len(blocks) == 24


def test_llama_70b_on_the_meta_device() -> None:
    config = hf.LlamaConfig(
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
    )
    with torch.device("meta"):
        model = hf.LlamaForCausalLM(config)
        blocks = find_mlps(model)
    assert len(blocks) == 80
    assert {(block.in_features, block.parents) for block in blocks} == {(8192, 28672)}


# -- the model is left as it was ------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_leaves_the_model_untouched(family: str) -> None:
    model = tiny_model(family).train()
    model.get_submodule(next(name for name, _ in model.named_children())).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    training = [module.training for module in model.modules()]
    config, random_state = model.config.to_dict(), torch.random.get_rng_state()
    find_mlps(model)
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.config.to_dict() == config
    assert [module.training for module in model.modules()] == training
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_takes_back_what_the_forward_pass_caches() -> None:
    def body(self: Custom, x: Tensor) -> Tensor:
        self.cached = torch.zeros_like(x)
        return self.down(torch.relu(self.up(x)))

    model = Custom(body)
    assert len(find_mlps(model)) == 1
    assert not hasattr(model, "cached")


def test_a_failing_forward_leaves_the_model_untouched() -> None:
    model = Custom(lambda self, x: self.down(self.up(x + 1).tolist()))
    with pytest.raises(DiscoveryError):
        find_mlps(model.train())
    assert model.training
    assert not model.up._forward_hooks
    assert isinstance(model.up.weight, nn.Parameter)


# -- other modules --------------------------------------------------------------------------------


def test_plain_sequential() -> None:
    (block,) = find_mlps(nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)))
    assert block == MLPBlock("", "0", "2", "relu", in_features=8, parents=24, out_features=3)


def test_network_with_an_mlp_head() -> None:
    head = [nn.Linear(4, 16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 4)]
    trunk = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    (block,) = find_mlps(nn.Sequential(*trunk, *head))
    assert (block.up, block.down) == ("4", "7")


def test_overlapping_blocks_are_taken_once() -> None:
    layers = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)]
    blocks = find_mlps(nn.Sequential(*layers))
    assert [(block.up, block.down) for block in blocks] == [("0", "2")]
    assert blocks.near_misses[0].reason == "it shares a projection with the block 0 -> 2"


def test_transformer_encoder_layer_in_spite_of_its_fast_path() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    blocks = find_mlps(nn.TransformerEncoder(layer, 2).eval())
    assert [block.name for block in blocks] == ["layers.0", "layers.1"]
    assert torch.backends.mha.get_fastpath_enabled()


def test_compiled_model() -> None:
    blocks = find_mlps(torch.compile(tiny_model("bert")))  # type: ignore[arg-type]
    assert [block.name for block in blocks] == [f"_orig_mod.encoder.layer.{i}" for i in (0, 1)]


# -- how blocks may be wired ----------------------------------------------------------------------


def _halves(self: Custom, x: Tensor) -> Tensor:
    up, gate = self.fused(x).chunk(2, -1)
    return self.down(up * torch.relu(gate))


def _interleaved(self: Custom, x: Tensor) -> Tensor:
    both = self.fused(x)
    return self.down(torch.relu(both[..., ::2]) * both[..., 1::2])


def _interleaved_by_view(self: Custom, x: Tensor) -> Tensor:
    gate, up = self.fused(x).view(*x.shape[:-1], H, 2).unbind(-1)
    return self.down(torch.relu(gate) * up)


def _in_place(self: Custom, x: Tensor) -> Tensor:
    return self.down(self.up(x).relu_().mul_(2))


@pytest.mark.parametrize(
    ("body", "kind", "activation"),
    [
        (lambda self, x: self.down(torch.relu(self.gate(x)) * self.up(x)), "gated", "relu"),
        (lambda self, x: self.down(self.up(x) * torch.relu(self.gate(x))), "gated", "relu"),
        (
            lambda self, x: self.down(self.up(x.view(-1, D)) * self.gate(x.reshape(-1, D)).tanh()),
            "gated",
            "tanh",
        ),
        (lambda self, x: self.down(torch.relu(self.up(x)) ** 2), "plain", "relu+pow"),
        (lambda self, x: self.down(torch.relu(self.up(x)) * (x[..., :1] > 0)), "plain", "relu"),
        (lambda self, x: self.down(torch.relu(self.up(x)).mean(-2)), "plain", "relu"),
        (lambda self, x: self.down(torch.nn.functional.glu(self.fused(x))), "fused", "glu"),
        (_in_place, "plain", "relu"),
        (_halves, "fused", "relu"),
        (_interleaved, "fused", "relu"),
        (_interleaved_by_view, "fused", "relu"),
    ],
)
def test_accepted(body: Callable[[Custom, Tensor], object], kind: str, activation: str) -> None:
    (block,) = find_custom(body)
    assert (block.kind, block.activation) == (kind, activation)
    if kind == "gated":
        assert block.ups == ("gate", "up")
    if kind == "fused":
        assert block.fused == ("interleaved" if "interleaved" in body.__name__ else "halves")


def _in_place_view(self: Custom, x: Tensor) -> Tensor:
    hidden = self.up(x)
    hidden[..., :4].relu_()
    return self.down(torch.tanh(hidden))


def _pieces(self: Custom, x: Tensor) -> Tensor:
    hidden = self.up(x)
    return self.down(torch.cat([hidden[..., :8].relu(), hidden[..., 8:].tanh()], -1))


def _leak(self: Custom, x: Tensor) -> tuple[Tensor, Tensor]:
    hidden = torch.relu(self.up(x))
    return self.down(hidden), hidden


def _two_readers(self: Custom, x: Tensor) -> Tensor:
    hidden = self.up(x)
    return self.down(torch.relu(hidden)) + self.other(hidden)


def _neighbours(self: Custom, x: Tensor) -> Tensor:
    hidden = torch.relu(self.up(x))
    return self.down(hidden * hidden.roll(1, -1))


def _rms_norm(self: Custom, x: Tensor) -> Tensor:
    hidden = torch.relu(self.up(x))
    return self.down(hidden * hidden.pow(2).mean(-1, keepdim=True).rsqrt())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (lambda self, x: self.down(self.up(x).tanh() * self.gate(x + 1)), "different inputs"),
        (lambda self, x: self.down(torch.relu(self.up(x)) * self.scale), "parameter per hidden"),
        (lambda self, x: self.down(torch.relu(self.up(x) + self.scale)), "parameter per hidden"),
        (lambda self, x: self.down(torch.relu(self.up(x) * (2 * self.scale))), "per hidden"),
        (lambda self, x: self.down(self.fused(x)[..., :H].relu()), "only 16 of the 32 rows"),
        (lambda self, x: self.down(self.up(x).relu().flip(-1)), "in another order"),
        (lambda self, x: self.down(self.up(x).relu()[..., torch.arange(H)]), "index tensor"),
        (lambda self, x: self.down(self.up(x).view(-1, 4, 4).relu().view(-1, H)), "reshaped"),
        (lambda self, x: self.down(torch.relu(self.up(x))) + self.up.weight.sum(), "up.weight is"),
        (
            lambda self, x: self.down(self.up(x).relu() * torch.cat([x, x], -1)),
            "another activation of the hidden width",
        ),
        (lambda self, x: self.down(self.up(x).relu()) + self.down(x.repeat(1, 1, 2)), "2 times"),
        (_in_place_view, "in place through a view"),
        (_pieces, "reshaped over the hidden axis"),
        (_leak, "the model's output"),
        (_two_readers, "also read by other"),
        (_neighbours, "several rows of one projection"),
        (_rms_norm, "reduces over the hidden axis"),
    ],
)
def test_refused_with_reason(body: Callable[[Custom, Tensor], object], reason: str) -> None:
    blocks = find_custom(body)
    assert blocks == []
    assert any(reason in miss.reason for miss in blocks.near_misses)


@pytest.mark.parametrize(
    "body",
    [
        lambda self, x: self.down(self.up(x)),
        lambda self, x: self.down(torch.softmax(self.up(x) @ self.gate(x).mT, -1) @ self.up(x)),
        lambda self, x: self.down(torch.softmax(self.up(x), -1)),
    ],
)
def test_no_mlp_and_no_noise(body: Callable[[Custom, Tensor], object]) -> None:
    blocks = find_custom(body)
    assert blocks == []
    assert blocks.near_misses == []


# -- projections that cannot be replaced ----------------------------------------------------------


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(D, H), nn.ReLU(), nn.Linear(H, D))


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(D, D), nn.ReLU(), nn.Linear(D, D))
    model[2].weight = model[0].weight
    return model


def _subclassed() -> nn.Module:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    model = _mlp()
    model[2] = Doubled(H, D)
    return model


def _parametrized() -> nn.Module:
    model = _mlp()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def _adapted() -> nn.Module:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["0"])
    model: nn.Module = peft.get_peft_model(_mlp(), config)
    return model


class FourBits(nn.Linear):
    """A quantized layer as those of bitsandbytes: a subclass that unpacks its weight."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        packed = torch.zeros(in_features * out_features // 2, 1, dtype=torch.uint8)
        self.weight = nn.Parameter(packed, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        unpacked = torch.cat([self.weight & 15, self.weight >> 4])
        weight = unpacked.view(self.out_features, self.in_features).to(x.dtype)
        return nn.functional.linear(x, weight, self.bias)


class Packed(nn.Module):
    """A quantized layer as those of GPTQ: buffers only, and names of its own for its sizes."""

    def __init__(self, infeatures: int, outfeatures: int) -> None:
        super().__init__()
        self.infeatures, self.outfeatures = infeatures, outfeatures
        self.register_buffer("qweight", torch.zeros(outfeatures, infeatures, dtype=torch.int8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.qweight.to(x.dtype).t()


def _quantized_by_class() -> nn.Module:
    return nn.Sequential(FourBits(D, H), nn.ReLU(), FourBits(H, D))


def _quantized_by_buffers() -> nn.Module:
    return nn.Sequential(Packed(D, H), nn.ReLU(), Packed(H, D))


def _quantized_by_tensor() -> nn.Module:
    """As torchao does: the module is stock, its weight a tensor of another class."""
    model = _mlp()
    weight = model[0].weight.detach()
    model[0].weight = nn.Parameter(TwoTensor(weight, weight.clone()))
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_tied, "tied to"),
        (_quantized_by_class, "dequantize or replace it"),
        (_quantized_by_buffers, "dequantize or replace it"),
        (_quantized_by_tensor, "quantized (TwoTensor"),
        (_subclassed, "not a plain linear layer"),
        (_parametrized, "remove its parametrizations first"),
        (_adapted, "merge it into the weights first"),
    ],
)
def test_projection_that_cannot_be_replaced(make: Callable[[], nn.Module], reason: str) -> None:
    blocks = find_mlps(make(), (torch.zeros(2, D),))
    assert blocks == []
    assert reason in blocks.near_misses[0].reason


@pytest.mark.parametrize("kind", ["LoraConfig", "IA3Config"])
def test_adapters_of_peft_are_merged_first(kind: str) -> None:
    peft = pytest.importorskip("peft")
    names = ["fc1", "fc2"]
    more = {"feedforward_modules": names} if kind == "IA3Config" else {}
    config = getattr(peft, kind)(target_modules=names, **more)
    adapted = peft.get_peft_model(tiny_model("vit"), config)
    with pytest.raises(DiscoveryError, match="merge it into the weights first"):
        widen(adapted)
    assert len(find_mlps(adapted.merge_and_unload())) == 2


def test_adapters_of_attention_are_no_hindrance() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(tiny_model("llama"), config)
    assert len(find_mlps(adapted)) == 2


# -- ways to run ----------------------------------------------------------------------------------


def _depends_on_values(self: Custom, x: Tensor) -> Tensor:
    return self.down(torch.relu(self.up(x))) if x.sum().item() < 1 else x


def test_code_that_depends_on_values_is_run_for_real() -> None:
    assert len(find_custom(_depends_on_values)) == 1


def test_code_that_depends_on_values_on_the_meta_device() -> None:
    assert len(find_mlps(Custom(_depends_on_values).to("meta"), (torch.zeros(2, 3, D),))) == 1


def test_model_that_does_not_run() -> None:
    model = Custom(lambda self, x: self.missing(x))
    with pytest.raises(DiscoveryError, match=r"Custom could not be run.*Pass example_inputs"):
        find_mlps(model)


def test_bad_example_inputs(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(DiscoveryError, match="Check that model"):
        find_mlps(_mlp(), (torch.zeros(2, D + 1),))
    assert not caplog.records


def test_module_without_known_inputs() -> None:
    with pytest.raises(DiscoveryError, match="Pass example_inputs"):
        find_mlps(nn.ReLU())


def test_result_does_not_depend_on_the_default_device() -> None:
    model = tiny_model("llama")
    expected = find_mlps(copy.deepcopy(model))
    with torch.device("meta"):
        assert find_mlps(model) == expected


class TimedLayer(nn.Module):
    """A layer of a diffusion transformer that embeds the timestep itself."""

    def __init__(self) -> None:
        super().__init__()
        self.timestep_embedder = nn.Sequential(nn.Linear(D, H), nn.SiLU(), nn.Linear(H, D))
        self.mlp = nn.Sequential(nn.Linear(D, H), nn.GELU(), nn.Linear(H, D))
        self.labels = nn.Parameter(torch.zeros(D))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        x = x * (self.timestep_embedder(time) + self.labels)
        return x + self.mlp(x)


class Timed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([TimedLayer(), TimedLayer()])

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, time)
        return x


def test_timestep_embedders_in_a_stack_are_offered() -> None:
    found = find_mlps(Timed(), (torch.randn(2, D), torch.randn(2, D)))
    assert [block.name for block in found] == ["layers.0.mlp", "layers.1.mlp"]
    assert {miss.reason for miss in found.near_misses} == {
        "it embeds a timestep; name it in targets to widen it"
    }
    assert all(miss.block is not None for miss in found.near_misses)


class _Session:
    """State that a model keeps in an argument, as video models do."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


class _WithSession(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor, session: _Session) -> Tensor:
        session.seen.append(x)
        return x + self.down(torch.relu(self.up(x)))


def test_state_in_the_inputs_is_left_alone() -> None:
    session = _Session()
    found = find_mlps(_WithSession(), {"x": torch.randn(2, 8), "session": session})
    assert [block.down for block in found] == ["down"]
    assert session.seen == []
