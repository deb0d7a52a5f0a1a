"""The flexible ViT against values of the public module (synthetic weights), and against literal versions of its parts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctfoundry.errors import ContractError
from ctfoundry.keys import Key
from ctfoundry.models.patches import inflate_channels, inflate_depth, resize_kernel, resize_matrix
from ctfoundry.models.rotary import Rotary, RotaryDraw, draw_rotary, rotate
from ctfoundry.models.vit import FlexibleViT, Tokens, draw_depth
from models.synthetic import fill, noise

HERE = Path(__file__).parent
GOLDEN = (HERE / "flexict-golden.txt").read_text().splitlines()
pytestmark = pytest.mark.xdist_group("vit")


@pytest.fixture(scope="module")
def base() -> FlexibleViT:
    torch.manual_seed(0)
    network = FlexibleViT(rotary="bfloat16").eval()
    fill(network)
    return network


def tiny(axes: int = 3, patch: object = 4, **more: object) -> FlexibleViT:
    network = FlexibleViT(axes, patch, (48, 3, 4), base_patch=4, **more).eval()  # type: ignore[arg-type]
    fill(network)
    return network


def image(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.from_numpy((4 * noise(name, shape)).astype(np.float32))


# ---------------------------------------------------------------------- the published module


def test_keys_and_shapes_are_the_published_ones(base: FlexibleViT) -> None:
    expected = {}
    for line in (HERE / "flexict-keys.txt").read_text().splitlines():
        name, shape, dtype, _ = line.split("\t")
        expected[name] = (ast.literal_eval(shape), dtype)
    found = {k: (tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in base.state_dict().items()}
    assert found == expected
    assert len(found) == 219
    assert sum(p.numel() for p in base.parameters()) == 143_999_424


def numbers(line: str) -> list[list[float]]:
    return [ast.literal_eval(part) for part in re.findall(r"\[[^\]]*\]", line) if "." in part]


def compare(x: Tensor, line: str) -> None:
    """First four values, the last, mean and mean size; the bounds are those of the reference."""
    found = re.search(r"first4 (\[.*?\]) mean (\S+) abs-mean (\S+) last (\S+)", line)
    assert found is not None
    first, last = ast.literal_eval(found.group(1)), float(found.group(4))
    shape = ast.literal_eval(re.search(r"\(([\d, ]+)\)", line).group(0))  # type: ignore[union-attr]
    assert tuple(x.shape) == shape
    flat = x.flatten()
    assert max(abs(a - b) for a, b in zip([*flat[:4].tolist(), flat[-1].item()], [*first, last], strict=True)) < 2e-3
    assert abs(x.mean().item() - float(found.group(2))) < 3e-4
    assert abs(x.abs().mean().item() - float(found.group(3))) < 3e-4


@pytest.mark.parametrize("patch", [8, 16])
@pytest.mark.parametrize("axes", ["2D", "3D"])
def test_golden_outputs(base: FlexibleViT, axes: str, patch: int) -> None:
    x = image("input2d", (2, 1, 48, 64)) if axes == "2D" else image("input3d", (1, 1, 16, 32, 48))
    lines = {line.split(" (")[0]: line for line in GOLDEN}
    with torch.no_grad():
        (out,) = base(x, patches=[patch])
        maps = base.intermediate(x, [3, 7, 11, 15], patch=patch)
    compare(out.cls, lines[f"{axes} p{patch} cls"])
    compare(out.patches, lines[f"{axes} p{patch} patch"])
    compare(out.storage, lines[f"{axes} p{patch} storage"])
    # the golden "layer3 map" is that of block 3, the first of the four asked for
    grid = (len(x), 864, *maps[0].grid)
    compare(maps[0].patches.transpose(1, 2).reshape(grid), lines[f"{axes} p{patch} layer3 map"])
    assert torch.allclose(maps[3].patches, out.patches)


@pytest.mark.parametrize("line", [line for line in GOLDEN if "resampled" in line], ids=lambda line: line[:24])
def test_golden_kernels(base: FlexibleViT, line: str) -> None:
    weight = base.patch_embed_2D.proj.weight if line.startswith("2D") else base.patch_embed_3D.proj.weight
    wanted = tuple(int(n) for n in re.search(r"resampled (\S+)", line).group(1).split("x"))  # type: ignore[union-attr]
    compare(resize_kernel(weight.detach(), wanted * 2 if len(wanted) == 1 else wanted), line)


def test_golden_rotary_tables(base: FlexibleViT) -> None:
    for name, rope in (("periods2D", base.rope_embed_2D), ("periods3D", base.rope_embed_3D)):
        (expected,) = numbers(next(line for line in GOLDEN if line.startswith(name)))
        assert rope.periods.tolist() == expected
    sin, cos = base.rope_embed_2D((3, 5))
    assert sin.dtype == torch.bfloat16
    a, b, c = numbers(next(line for line in GOLDEN if line.startswith("rope2d")))
    assert (sin[0, :6].tolist(), sin[7, 16:22].tolist(), cos[14, 30:40].tolist()) == (a, b, c)
    sin, cos = base.rope_embed_3D((2, 3, 4))
    a, b, c = numbers(next(line for line in GOLDEN if line.startswith("rope3d")))
    assert (sin[0, :4].tolist(), sin[5, 10:16].tolist(), cos[23, 22:38].tolist()) == (a, b, c)


@torch.no_grad()
def test_golden_difference_of_rotary_types(base: FlexibleViT) -> None:
    """How far a CLS token moves where the tables are float32 instead: the reference's own measurement."""
    line = next(line for line in GOLDEN if line.startswith("bf16-vs-fp32"))
    expected = [float(v) for v in re.findall(r"(?:cls|cos) (\S+)", line)]
    x = image("input2d", (2, 1, 48, 64))
    (published,) = base(x)
    kept = base.rope_embed_2D
    base.rope_embed_2D = Rotary(2, 72)
    try:
        (exact,) = base(x)
    finally:
        base.rope_embed_2D = kept
    a, b = published.cls.double(), exact.cls.double()
    assert (a - b).abs().max().item() == pytest.approx(expected[0], abs=2e-3)
    assert nn.functional.cosine_similarity(a, b)[0].item() == pytest.approx(expected[1], abs=2e-6)  # the first sample's


def test_every_golden_line_is_read() -> None:
    known = (
        "periods",
        "rope",
        "bf16-vs-fp32",
        "2D kernel",
        "3D kernel",
        *(f"{a} p{p}" for a in ("2D", "3D") for p in (8, 16)),
    )
    assert len(GOLDEN) == 25
    assert all(line.startswith(known) for line in GOLDEN)


# ---------------------------------------------------------------------- literal versions


def literal(network: FlexibleViT, x: Tensor, size: tuple[int, ...], draw: RotaryDraw | None = None) -> Tensor:
    """The formulas of the reference in float64, one sample, head and token at a time where that is shorter to read."""
    state = {k: v.double() for k, v in network.state_dict().items()}
    axes = x.ndim - 2
    name = f"patch_embed_{axes}D.proj"
    conv = nn.functional.conv2d if axes == 2 else nn.functional.conv3d
    kernel = state[f"{name}.weight"]
    if tuple(kernel.shape[2:]) != size:
        # the matrix is known to float32 only, so what lies below that is no rank
        inverse = torch.linalg.pinv(resize_matrix(tuple(kernel.shape[2:]), size).double(), rtol=1e-5)
        kernel = (kernel.flatten(2) @ inverse).reshape(*kernel.shape[:2], *size)
    y = conv(x.double(), kernel, state[f"{name}.bias"], stride=size)
    grid = y.shape[2:]
    y = y.flatten(2).transpose(1, 2)
    prefix = torch.cat([state["cls_token"], state["storage_tokens"]], 1).expand(len(x), -1, -1)
    y = torch.cat([prefix, y], 1)
    heads = network.blocks[0].attn.heads  # type: ignore[union-attr]
    head = network.width // heads
    at = torch.stack(torch.meshgrid(*[2 * (torch.arange(n).double() + 0.5) / n - 1 for n in grid], indexing="ij"), -1)
    if draw is not None:
        at = (at + torch.tensor(draw.shift)) * torch.tensor(draw.factor)
    period = 100 ** (2 * torch.arange(head // (2 * axes)).double() / (head / 2))
    angle = torch.cat([2 * torch.pi * at.reshape(-1, axes)[:, a : a + 1] / period for a in range(axes)], 1)
    norm = nn.functional.layer_norm
    for i in range(len(network.blocks)):
        b = f"blocks.{i}."
        z = norm(y, (network.width,), state[b + "norm1.weight"], state[b + "norm1.bias"], 1e-6)
        q, k, v = (z @ state[b + "attn.qkv.weight"].T).reshape(*z.shape[:2], 3, heads, head).permute(2, 0, 3, 1, 4)
        for t in (q, k):
            u, w = t[:, :, -len(angle) :, : head // 2].clone(), t[:, :, -len(angle) :, head // 2 :].clone()
            t[:, :, -len(angle) :, : head // 2] = u * angle.cos() - w * angle.sin()
            t[:, :, -len(angle) :, head // 2 :] = w * angle.cos() + u * angle.sin()
        z = ((q @ k.transpose(-1, -2)) / head**0.5).softmax(-1) @ v
        z = z.transpose(1, 2).flatten(2) @ state[b + "attn.proj.weight"].T + state[b + "attn.proj.bias"]
        y = y + z * state[b + "ls1.gamma"]
        z = norm(y, (network.width,), state[b + "norm2.weight"], state[b + "norm2.bias"], 1e-6)
        z = z @ state[b + "mlp.fc1.weight"].T + state[b + "mlp.fc1.bias"]
        z = 0.5 * z * (1 + torch.erf(z / 2**0.5)) @ state[b + "mlp.fc2.weight"].T + state[b + "mlp.fc2.bias"]
        y = y + z * state[b + "ls2.gamma"]
    return norm(y, (network.width,), state["norm.weight"], state["norm.bias"], 1e-6)


def joined(tokens: Tokens) -> Tensor:
    return torch.cat([tokens.cls[:, None], tokens.storage, tokens.patches], 1)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((2, 1, 8, 12), (4, 4)), ((1, 1, 12, 18), (6, 6)), ((2, 1, 8, 12), (2, 6)), ((1, 1, 8, 8, 12), (4, 4, 4)),
     ((1, 1, 4, 16, 16), (2, 8, 8)), ((1, 1, 6, 6, 9), (2, 3, 3))],
)  # fmt: skip
def test_equals_the_literal_version(shape: tuple[int, ...], patch: tuple[int, ...]) -> None:
    """Also for patches that are no cube, and smaller or larger than the stored kernel."""
    network, x = tiny(len(shape) - 2, patch), image("x", shape)  # type: ignore[arg-type]
    with torch.no_grad():
        (out,) = network(x)
    torch.testing.assert_close(joined(out).double(), literal(network, x, patch), atol=2e-5, rtol=1e-4)
    assert out.grid == tuple(n // p for n, p in zip(shape[2:], patch, strict=True))


def test_rotary_options_equal_the_literal_version() -> None:
    network, x = tiny(), image("x", (1, 1, 8, 8, 12))
    draw = RotaryDraw((0.1, -0.2, 0.05), (1.3, 0.7, 1.0))
    with torch.no_grad():
        (out,) = network(x, rotary=[draw])
        (plain,) = network(x)
    torch.testing.assert_close(joined(out).double(), literal(network, x, (4, 4, 4), draw), atol=2e-5, rtol=1e-4)
    assert (joined(out) - joined(plain)).abs().max() > 1e-3


def test_rotary_draws_stay_in_their_bounds() -> None:
    """Shift and jitter are drawn for each axis, the rescaling is common; factors are as often above 1 as below."""
    key, many = Key.of("rotary"), 400
    draws = [draw_rotary(key(i), 3, shift=0.25, jitter=1.5) for i in range(many)]
    shift = np.array([d.shift for d in draws])
    factor = np.log([d.factor for d in draws]) / np.log(1.5)
    for x, bound in ((shift, 0.25), (factor, 1.0)):
        assert np.abs(x).max() <= bound
        assert np.abs(x.mean(0)).max() < 5 * bound / (3 * many) ** 0.5  # five standard errors
        np.testing.assert_allclose(x.std(0), bound / 3**0.5, rtol=0.1)
        assert abs(np.corrcoef(x.T)[0, 1]) < 0.25  # each axis its own
    common = np.log([draw_rotary(key(i), 3, rescale=2.0).factor for i in range(many)]) / np.log(2)
    np.testing.assert_allclose(common, common[:, :1].repeat(3, 1))
    assert 0.95 < np.abs(common).max() <= 1
    assert draw_rotary(key, 2) == RotaryDraw((0.0, 0.0), (1.0, 1.0))
    assert draw_rotary(key, 2, shift=1.0) == draw_rotary(key, 2, shift=1.0)
    with pytest.raises(ContractError, match="at least 1"):
        draw_rotary(key, 2, jitter=0.5)


def test_periods_by_their_span() -> None:
    rope = Rotary(2, 16, span=(0.5, 40.0))
    np.testing.assert_allclose(rope.periods.numpy(), np.geomspace(0.5, 40, 4), rtol=1e-6)
    assert tiny(2, rotary_span=(1, 8)).rope_embed_2D.periods[-1] == 8
    for wrong in ({"span": (0, 1)}, {"span": (2, 1)}, {"mode": "longest"}):
        with pytest.raises(ContractError):
            Rotary(2, 16, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="float16"):
        tiny(rotary="float16")


@pytest.mark.parametrize(("mode", "length"), [("max", 6), ("min", 2)])
def test_rotary_modes_span_one_length_for_all_axes(mode: str, length: int) -> None:
    sin, _ = Rotary(2, 8, mode=mode)((2, 6))  # type: ignore[arg-type]
    rows, columns = np.meshgrid(np.arange(2), np.arange(6), indexing="ij")
    expected = np.sin(2 * np.pi * (2 * (rows.ravel() + 0.5) / length - 1))
    np.testing.assert_allclose(sin[:, 0].numpy(), expected, atol=1e-5)
    expected = np.sin(2 * np.pi * (2 * (columns.ravel() + 0.5) / length - 1))
    np.testing.assert_allclose(sin[:, 2].numpy(), expected, atol=1e-5)


def test_rotation_keeps_lengths_and_prefix() -> None:
    sin, cos = Rotary(2, 8)((3, 4))
    x = torch.randn(2, 5, 15, 8, generator=torch.Generator().manual_seed(0))
    y = rotate(x, sin, cos)
    assert torch.equal(y[:, :, :3], x[:, :, :3])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))


def test_several_sizes_in_one_pass_equal_each_alone() -> None:
    network = tiny()
    inputs = [image("a", (2, 1, 8, 8, 8)), image("b", (3, 1, 4, 8, 4)), image("c", (2, 1, 12, 8))]
    with torch.no_grad():
        together = network(inputs)
        alone = [network(x)[0] for x in inputs]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(joined(one), joined(other), atol=1e-5, rtol=1e-4)


def test_several_patch_sizes_in_one_pass_equal_each_alone() -> None:
    network, sizes = tiny(), [(4, 4, 4), (2, 8, 4), (3, 6), 8]
    inputs = [
        image("a", (2, 1, 8, 8, 8)),
        image("b", (1, 1, 4, 16, 8)),
        image("c", (2, 1, 12, 12)),
        image("d", (1, 1, 8, 8, 16)),
    ]
    with torch.no_grad():
        together = network(inputs, patches=sizes)
        alone = [network(x, patches=[p])[0] for x, p in zip(inputs, sizes, strict=True)]
    assert [t.grid for t in together] == [(2, 2, 2), (2, 2, 2), (4, 2), (1, 1, 2)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(joined(one), joined(other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("patch", [(2, 8, 4), (4, 6, 6), 8])
def test_every_helper_takes_the_patch_of_the_moment(patch: object) -> None:
    """features, levels, intermediate, forward and the memory estimate of a network whose patch was changed, weights shared."""
    network, x = tiny(), image("x", (1, 1, 8, 24, 24))
    other = network.with_patch(patch)  # type: ignore[arg-type]
    size = (patch,) * 3 if isinstance(patch, int) else patch
    assert (network.patch, other.patch) == ((4, 4, 4), size)
    assert other.levels[-1].stride == size
    assert other.levels[-1].offset == tuple((p - 1) / 2 for p in size)  # type: ignore[union-attr]
    with torch.no_grad():
        (out,) = other(x)
        maps, vectors = other.features(x, ("block1", "block2"))
        seen = network.intermediate(x, [1, 2], patch=patch)  # type: ignore[arg-type]
        torch.testing.assert_close(joined(out).double(), literal(network, x, size), atol=2e-5, rtol=1e-4)  # type: ignore[arg-type]
    for tokens, level in zip(seen, ("block1", "block2"), strict=True):
        assert tokens.grid == tuple(n // p for n, p in zip((8, 24, 24), size, strict=True))  # type: ignore[call-overload]
        assert torch.equal(maps[level].flatten(2).transpose(1, 2), tokens.patches)
    assert torch.equal(vectors["cls"], out.cls)
    assert (
        other.peak_bytes((8, 24, 24)) > network.with_patch(8).peak_bytes((8, 24, 24)) * (1 if patch == 8 else 1.5) - 1
    )
    assert all(a is b for a, b in zip(network.parameters(), other.parameters(), strict=True))


@torch.no_grad()
def test_ct_and_pet_on_one_grid() -> None:
    """A network for two images: equal ones give the old answer, other ones the literal one (repeat, divide by the channels)."""
    network, x, pet = tiny(), image("x", (1, 1, 8, 8, 12)), image("pet", (1, 1, 8, 8, 12))
    both = network.with_channels(2)
    assert (network.in_channels, both.in_channels) == (1, 2)
    (old,), (same,), (mixed,) = network(x), both(torch.cat([x, x], 1)), both(torch.cat([x, pet], 1))
    torch.testing.assert_close(joined(same), joined(old), atol=1e-5, rtol=1e-4)
    (mean,) = network((x + pet) / 2)  # the first layer is linear
    torch.testing.assert_close(joined(mixed), joined(mean), atol=1e-5, rtol=1e-4)
    assert (joined(mixed) - joined(old)).abs().max() > 1e-3
    (slices,) = both(image("s", (2, 2, 8, 8)), patches=[8])
    assert slices.patches.shape == (2, 1, 48)
    assert both.blocks is network.blocks
    fresh = FlexibleViT(3, 4, (48, 3, 4), base_patch=4, in_channels=2)
    fresh.load_state_dict(both.state_dict())
    with pytest.raises(ContractError, match="2 channels"):
        both.with_channels(3)


@pytest.mark.parametrize(("size", "shape"), [("small", (432, 12)), ("base", (864, 16)), ("large", (1152, 24))])
def test_sizes(size: str, shape: tuple[int, int]) -> None:
    """Parameters counted by hand from the reference, 1.1; heads are 72 wide in all."""
    with torch.device("meta"):
        network = FlexibleViT(size=size)
    k, blocks = shape
    block = 2 * 2 * k + 3 * k * k + (k * k + k) + 2 * k + (4 * k * k + 4 * k) + (4 * k * k + k)
    patches = (8**2 + 8**3) * k + 2 * k
    assert sum(p.numel() for p in network.parameters()) == blocks * block + patches + (1 + 4 + 1) * k + 2 * k
    assert {b.attn.heads * 72 for b in network.blocks} == {k}  # type: ignore[union-attr]


def test_masked_patches_are_the_mask_token() -> None:
    network, x = tiny(2), image("x", (2, 1, 8, 8))
    mask = torch.tensor([[True, False, False, True], [False] * 4])
    changed = x.clone()
    changed[0, :, :4, :4] = 7.0
    with torch.no_grad():
        (one,), (two,) = network(x, masks=[mask]), network(changed, masks=[mask])
        (free,) = network(x)
    assert torch.equal(joined(one), joined(two))  # what stood under the mask does not matter
    torch.testing.assert_close(joined(one)[1], joined(free)[1])
    assert (joined(one)[0] - joined(free)[0]).abs().max() > 1e-3


def test_stochastic_depth_as_published() -> None:
    """Subsets of max(floor(0.8 b), 1), factor b / subset, drawn for every branch; a batch of one is never dropped."""
    draws = draw_depth(Key.of("depth"), 3, [10, 1, 2], 0.2)
    assert [[len(a) for a, _ in block] for block in draws] == [[8, 1, 1]] * 3
    assert len({tuple(m.tolist()) for block in draws for pair in block[:1] for m in pair}) > 1
    network, x = tiny(2), image("x", (2, 1, 8, 8))
    with torch.no_grad():
        (one,) = network(x[:1], depth=draw_depth(Key.of("d"), 3, [1], 0.2))
        (free,) = network(x[:1])
        torch.testing.assert_close(joined(one), joined(free))
        # With one of two samples kept in every branch, the other passes through all blocks untouched.
        kept = tuple(((torch.tensor([1]), torch.tensor([1])),) for _ in range(3))
        (out,) = network(x, depth=kept)
        embedded = torch.cat([network.cls_token, network.storage_tokens], 1)[0]
        torch.testing.assert_close(out.before_norm[0, :5], embedded)
        block = network.blocks[0]
        tables = [network.rope_embed_2D((2, 2))]
        start = torch.cat([embedded, network.patch_embed_2D(x[1:], (4, 4))[0]])
        want = start + 2 * block.ls1(block.attn(block.norm1(start), [(1, 9)], tables))  # type: ignore[union-attr,operator]
        want = want + 2 * block.ls2(block.mlp(block.norm2(want)))  # type: ignore[union-attr,operator]
        got = block(torch.cat([torch.zeros_like(start), start]), [(2, 9)], tables, kept[0])[9:]
        torch.testing.assert_close(got, want)


def test_kernels_for_several_channels_and_for_depth() -> None:
    kernel = image("k", (6, 1, 4, 4))
    x = image("x", (1, 1, 8, 8))
    plain = nn.functional.conv2d(x, kernel, stride=4)
    pair = inflate_channels(kernel, 2)
    torch.testing.assert_close(nn.functional.conv2d(x.expand(-1, 2, -1, -1), pair, stride=4), plain)
    with pytest.raises(ContractError, match="2 channels"):
        inflate_channels(pair, 3)
    volume = x[:, :, None].expand(-1, -1, 4, -1, -1)
    for how in ("average", "centre"):
        deep = inflate_depth(kernel, 4, how)  # type: ignore[arg-type]
        torch.testing.assert_close(nn.functional.conv3d(volume, deep, stride=4)[:, :, 0], plain)
    assert inflate_depth(kernel, 8, "centre")[:, :, 4].equal(kernel)


def test_a_resized_kernel_answers_resized_patches() -> None:
    """Growing loses nothing: the answer to an upsampled patch is that of the stored kernel (FlexiViT, section 3.4)."""
    kernel, patch = image("k", (5, 1, 8, 8)).double(), image("p", (1, 1, 8, 8)).double()
    matrix = resize_matrix((8, 8), (16, 16)).double()
    grown = (matrix @ patch.flatten()).reshape(1, 1, 16, 16)
    before = kernel.flatten(1) @ patch.flatten()
    after = resize_kernel(kernel.float(), (16, 16)).double().flatten(1) @ grown.flatten()
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- what an encoder sees


def test_features_and_levels() -> None:
    network, x = tiny(3, (2, 4, 4)), image("x", (2, 1, 6, 8, 12))
    with torch.no_grad():
        maps, vectors = network.features(x, ("block2", "block0"))
        (out,) = network(x)
    assert maps["block2"].shape == maps["block0"].shape == (2, 48, 3, 2, 3)
    assert torch.equal(maps["block2"].flatten(2).transpose(1, 2), out.patches)
    assert torch.equal(vectors["cls"], out.cls)
    torch.testing.assert_close(vectors["cls+mean"], torch.cat([out.cls, out.patches.mean(1)], 1))
    level = network.levels[-1]
    assert (level.name, level.stride, level.offset) == ("block2", (2, 4, 4), (0.5, 1.5, 1.5))
    flat = tiny(2, 4)
    maps, _ = flat.features(image("y", (3, 1, 1, 8, 8)), ("block1",))
    assert maps["block1"].shape == (3, 48, 1, 2, 2)
    assert flat.levels[0].stride == (1, 4, 4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda n: n.features(torch.zeros(1, 1, 6, 8, 8), ("block2",)), "no whole number of patches"),
        (lambda n: n.features(torch.zeros(1, 2, 8, 8, 8), ("block2",)), "1 channels"),
        (lambda n: n.features(torch.zeros(1, 1, 8, 8, 8), ("blok2",)), "block2"),
        (lambda n: n.intermediate(torch.zeros(1, 1, 8, 8, 8), [3]), "0 to 2"),
        (lambda n: n.intermediate(torch.zeros(1, 1, 8, 8, 8), 4), "3 blocks"),
        (lambda n: n(torch.zeros(1, 1, 8, 8, 8), patches=[(4, 4)]), "3 axes"),
        (lambda n: n(torch.zeros(1, 1, 8, 9, 8)), "no whole number of patches"),
        (lambda n: n(torch.zeros(1, 1, 8, 8, 8), patches=[(4, 3, 4)]), "no whole number of patches"),
        (lambda n: n([torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 10)]), "no whole number of patches"),
        (lambda n: n.intermediate(torch.zeros(1, 1, 8, 8, 7), 1), "no whole number of patches"),
        (lambda n: n.with_patch(3).features(torch.zeros(1, 1, 8, 8, 8), ()), "no whole number of patches"),
        (lambda n: n(torch.zeros(1, 2, 8, 8, 8)), "1 channels"),
        (lambda n: FlexibleViT(3, 8, "bse"), "base"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(call, match: str) -> None:
    with pytest.raises(ContractError, match=match):
        call(tiny())


def test_gradients_reach_every_weight() -> None:
    network = tiny().train()
    volumes, slices = network([image("v", (1, 1, 8, 8, 8)), image("s", (2, 1, 8, 8))],
                              masks=[torch.arange(8)[None] < 3, None])  # fmt: skip
    (joined(volumes).square().sum() + joined(slices).square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_bf16_stays_near() -> None:
    network, x = tiny(), image("x", (1, 1, 8, 8, 12))
    with torch.no_grad():
        (full,) = network(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            (half,) = network(x)
    assert torch.nn.functional.cosine_similarity(full.cls, half.cls.float()).item() > 0.999
