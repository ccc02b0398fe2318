"""The transformer against textbook layers, DINOv2's names and shapes, and gradients of gradients."""

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from pipeline.errors import InputError
from pipeline.models.vit import EPS, LayerNorm, Vit

SMALL = {"channels": 3, "size": 12, "patch": 4, "width": 8, "depth": 2, "heads": 2, "hidden": 16}


def vit(**options) -> Vit:
    """Without small or equal values, so that every part is felt."""
    made = Vit(**{**SMALL, **options}).double()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return made


def images(count: int = 2, size: int = 12) -> torch.Tensor:
    return torch.rand(count, 3, size, size, dtype=torch.float64)


def shapes_of_dinov2(*, width: int, depth: int, patch: int, side: int, registers: int) -> dict[str, tuple[int, ...]]:
    """What the published files hold."""
    block = {
        "norm1.weight": (width,), "norm1.bias": (width,), "norm2.weight": (width,), "norm2.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,), "ls1.gamma": (width,), "ls2.gamma": (width,),
        "mlp.fc1.weight": (4 * width, width), "mlp.fc1.bias": (4 * width,),
        "mlp.fc2.weight": (width, 4 * width), "mlp.fc2.bias": (width,),
    }  # fmt: skip
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + side**2, width),
        "mask_token": (1, width),
        **({"register_tokens": (1, registers, width)} if registers else {}),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        **{f"blocks.{n}.{name}": shape for n in range(depth) for name, shape in block.items()},
    }


def published(side: int = 3, *, registers: int = 0, chunked: bool = False) -> dict[str, torch.Tensor]:
    shapes = shapes_of_dinov2(width=8, depth=2, patch=4, side=side, registers=registers)
    state = {name: torch.randn(shape) for name, shape in shapes.items()}
    # In chunks of one block: the second is number 1 of chunk 1.
    return {
        name.replace("blocks.0.", "blocks.0.0.").replace("blocks.1.", "blocks.1.1.") if chunked else name: value
        for name, value in state.items()
    }


@pytest.mark.parametrize("registers", [0, 4])
def test_names_and_shapes_are_those_of_dinov2_small(registers):
    expected = shapes_of_dinov2(width=384, depth=12, patch=14, side=37, registers=registers)
    del expected["mask_token"]
    options = {"width": 384, "depth": 12, "heads": 6, "hidden": 1536, "registers": registers}
    with torch.device("meta"):
        made = Vit(channels=3, size=518, patch=14, **options)
    assert {name: tuple(value.shape) for name, value in made.state_dict().items()} == expected


def textbook(model: Vit, x: torch.Tensor) -> torch.Tensor:
    """The same with torch's convolution, norm and attention layers, whose in-projection has queries, keys, values in turn."""
    w, width = dict(model.named_parameters()), model.features
    x = F.conv2d(x, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=4).flatten(2).transpose(1, 2)
    x = torch.cat([w["cls_token"].expand(len(x), -1, -1), x], 1) + w["pos_embed"]
    if "register_tokens" in w:
        x = torch.cat([x[:, :1], w["register_tokens"].expand(len(x), -1, -1), x[:, 1:]], 1)
    attend = torch.nn.MultiheadAttention(width, 2, batch_first=True).double()
    for n in range(2):
        b = {name.removeprefix(f"blocks.{n}."): value for name, value in w.items() if name.startswith(f"blocks.{n}.")}
        names = {
            "in_proj_weight": "attn.qkv.weight", "in_proj_bias": "attn.qkv.bias",
            "out_proj.weight": "attn.proj.weight", "out_proj.bias": "attn.proj.bias",
        }  # fmt: skip
        y = F.layer_norm(x, (width,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        x = (
            x
            + b["ls1.gamma"] * functional_call(attend, {own: b[theirs] for own, theirs in names.items()}, (y, y, y))[0]
        )
        y = F.layer_norm(x, (width,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = F.gelu(F.linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"]))
        x = x + b["ls2.gamma"] * F.linear(y, b["mlp.fc2.weight"], b["mlp.fc2.bias"])
    return F.layer_norm(x, (width,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 0]


@pytest.mark.parametrize("registers", [0, 2])
def test_it_is_what_the_textbook_layers_compute(registers):
    made, x = vit(registers=registers), images()
    torch.testing.assert_close(made(x), textbook(made, x), rtol=1e-10, atol=1e-12)
    assert made(x).shape == (2, made.features)


def test_a_sample_does_not_depend_on_its_company():
    """Law 8."""
    made, x = vit(), images(3)
    torch.testing.assert_close(made(x)[:1], made(x[:1]), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("registers", [0, 2])
def test_published_weights_fit_after_translation(chunked, registers):
    made, state = Vit(**{**SMALL, "hidden": 32}, registers=registers), published(registers=registers, chunked=chunked)
    made.load_state_dict(made.translated(state))
    assert torch.equal(made.pos_embed, state["pos_embed"])
    second = state["blocks.1.1.mlp.fc1.weight" if chunked else "blocks.1.mlp.fc1.weight"]
    assert torch.equal(made.blocks[1].mlp.fc1.weight, second)


def test_low_rank_factors_survive_translation():
    made = Vit(**{**SMALL, "hidden": 32}, rank=2)
    before = made.blocks[0].attn.qkv.lora_a.clone()
    made.load_state_dict(made.translated(published()))
    assert torch.equal(made.blocks[0].attn.qkv.lora_a, before)


@pytest.mark.parametrize("side", [2, 6])
def test_positions_are_interpolated_to_the_grid(side):
    """A ramp over the columns stays one away from the edges; the class token's position stays what it was."""
    made, state = Vit(**{**SMALL, "size": 4 * side, "hidden": 32}), published(12)
    ramp = (torch.arange(12.0) + 0.5) / 12
    state["pos_embed"][:, 1:] = ramp.repeat(12)[None, :, None]
    fitted = made.translated(state)["pos_embed"]
    assert torch.equal(fitted[:, 0], state["pos_embed"][:, 0])
    grid = fitted[0, 1:].unflatten(0, (side, side))
    expected = ((torch.arange(side) + 0.5) / side)[None, :, None].expand_as(grid)
    torch.testing.assert_close(grid, expected, rtol=0, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 11, 8), (1, 10, 7), (10, 8), (1, 0, 8)])
def test_positions_of_another_layout_are_refused(shape):
    state = {"pos_embed": torch.zeros(shape)}
    with pytest.raises(InputError, match=r"pos_embed of shape .* is not \(1, 1 \+ a square number, 8\)"):
        vit().translated(state)


def test_the_norm_is_torchs():
    norm, x = LayerNorm(5).double(), torch.randn(2, 3, 5, dtype=torch.float64)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    expected = F.layer_norm(x, (5,), norm.weight, norm.bias, EPS)
    torch.testing.assert_close(norm(x), expected, rtol=1e-10, atol=1e-12)


def test_two_derivatives_equal_central_differences():
    made, x = vit(depth=1, width=4, hidden=4, size=8), images(1, 8)
    params = {name: value.detach().requires_grad_() for name, value in made.named_parameters()}

    def features(*values):
        return functional_call(made, dict(zip(params, values, strict=True)), (x,))

    assert torch.autograd.gradgradcheck(features, tuple(params.values()), fast_mode=True)


def test_second_derivatives_are_the_same_under_vmap():
    """Tasks with weights of their own, walked back from outside; `F.layer_norm` with weights would fail here."""
    made = vit(registers=1)
    x = images(6).unflatten(0, (3, 2))

    def after_a_step(params, x):
        def loss(params):
            return functional_call(made, params, (x,)).square().sum()

        slopes = grad(loss)(params)
        return loss({name: value - 0.01 * slopes[name] for name, value in params.items()})

    found = []
    for run in (lambda p: vmap(after_a_step, (None, 0))(p, x).sum(), lambda p: sum(after_a_step(p, one) for one in x)):
        params = {name: value.detach().requires_grad_() for name, value in made.named_parameters()}
        run(params).backward()
        found.append({name: value.grad for name, value in params.items()})
    for name, expected in found[1].items():
        torch.testing.assert_close(found[0][name], expected, rtol=1e-9, atol=1e-11)
