from __future__ import annotations

import json
import lzma
from pathlib import Path

import pytest
import torch
from models import ConvNet, torchvision_model
from torch import Tensor, nn

import ghn_init
from ghn_init import GHN, GHNConfig, GHNInitError

CONFIGS = {
    "ghn3": GHNConfig("ghn3", 16, 2, 8, (16, 16, 11, 11), 10),
    "ghn2": GHNConfig("ghn2", 16, 1, 1, (32, 32, 11, 11), 10),
}
RECORDED = [
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s",
    "googlenet", "inception_v3", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50", "resnext50_32x4d",
    "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "vgg11", "vgg11_bn", "vit_b_16",
    "wide_resnet50_2",
]  # fmt: skip


def seeded(arch: str) -> GHN:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GHN(CONFIGS[arch], arch).requires_grad_(False).eval()


DATA = Path(__file__).parent / "data"
COMMITTED = json.loads(lzma.decompress((DATA / "predictions.json.xz").read_bytes()))


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, GHN]:
    folder = shared / "golden"
    return {a: ghn_init.load_ghn(folder / f"{a}_seeded.safetensors") for a in ("ghn3", "ghn2")}


def relative_errors(tensor: Tensor, recorded: dict) -> dict[str, float]:
    """Against the recorded statistics, relative to them or to the norm, whichever is larger.

    (A sum may nearly cancel: then it says nothing about the tensor.) Where only the first values
    are recorded, those are compared.
    """
    x = tensor.double().flatten()
    head = torch.tensor(recorded["head"], dtype=torch.double)
    errors = {"head": ((x[: len(head)] - head).norm() / head.norm()).item()}
    if "norm" in recorded:
        norm = recorded["norm"]
        proj = (x * torch.arange(len(x), dtype=torch.double).cos()).sum().item()
        errors["norm"] = abs(x.norm().item() - norm) / norm
        errors["sum"] = abs(x.sum().item() - recorded["sum"]) / max(abs(recorded["sum"]), norm)
        errors["proj"] = abs(proj - recorded["proj"]) / max(abs(recorded["proj"]), norm)
    return errors


def check_recorded(model: nn.Module, ghn: GHN, recorded: dict[str, dict]) -> None:
    """Every tensor to 1e-4, and none more or fewer than the published implementation predicts."""
    expected = {name: values for name, values in recorded.items() if values["predicted"]}
    predicted = ghn_init.predict(model, ghn)
    assert expected
    assert predicted.keys() == expected.keys()
    for name, wanted in expected.items():
        tensor = predicted[name]
        assert list(tensor.shape) == wanted["shape"]
        if name.endswith("pos_embedding"):
            tensor = tensor[:, 1:]  # the class token's row is drawn at random
        errors = relative_errors(tensor, wanted)
        assert max(errors.values()) < 1e-4, (name, errors)


@pytest.mark.parametrize("arch", CONFIGS)
def test_no_value_is_read_back(arch: str) -> None:
    """On the meta device there is none. So a prediction does not wait for a GPU midway."""
    models = [ConvNet(), torchvision_model("vit_b_16")]
    with torch.device("meta"):
        ghn = GHN(CONFIGS[arch], arch).requires_grad_(False).eval()
    graphs = [ghn_init.trace(models[0], torch.zeros(2, 3, 8, 8)), ghn_init.trace(models[1])]
    for model, predicted in zip(models, ghn_init.predict(models, ghn, graphs), strict=True):
        shapes = {name: p.shape for name, p in model.named_parameters() if name in predicted}
        assert shapes == {name: tensor.shape for name, tensor in predicted.items()}
        assert all(tensor.is_meta for tensor in predicted.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("arch", CONFIGS)
def test_a_gpu_is_not_waited_for(arch: str) -> None:
    models, ghn = [ConvNet(), torchvision_model("vit_b_16")], seeded(arch).cuda()
    graphs = [ghn_init.trace(models[0], torch.zeros(2, 3, 8, 8)), ghn_init.trace(models[1])]
    ghn_init.predict(models, ghn, graphs)  # libraries that are started on first use may wait
    try:
        torch.cuda.set_sync_debug_mode("error")
        ghn_init.predict(models, ghn, graphs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_numbers(name: str, published: dict[str, GHN], shared: Path) -> None:
    """The published implementation's predictions, tensor by tensor, to 1e-4."""
    recorded = json.loads((shared / "golden" / "torchvision" / f"{name}.json").read_text())
    for arch, ghn in published.items():
        check_recorded(torchvision_model(name), ghn, recorded[arch])


@pytest.fixture(scope="module")
def committed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GHN]:
    """The part of the two recorded hypernetworks that `COMMITTED` depends on; the rest is 0.

    The part: of the decoder, kernels up to 4 x 4, the first four input channels of every weight,
    and the first four classes; of the tables, the distances and degrees that occur.
    """
    folder = tmp_path_factory.mktemp("committed")
    for arch in CONFIGS:
        content = lzma.decompress((DATA / f"{arch}_part.safetensors.xz").read_bytes())
        (folder / f"{arch}.safetensors").write_bytes(content)
    return {arch: ghn_init.load_ghn(folder / f"{arch}.safetensors") for arch in CONFIGS}


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_part_of_the_recorded_numbers(name: str, committed: dict[str, GHN]) -> None:
    """As `test_recorded_numbers`, but without the `shared` folder.

    Vectors and the weights with at most four input channels per group are compared by all
    statistics, wider weights and classification layers by their first values.
    """
    for arch, ghn in committed.items():
        check_recorded(torchvision_model(name), ghn, COMMITTED[name][arch])


@pytest.mark.parametrize(
    ("canonical", "other"),
    [
        ("ghn3_seeded.safetensors", "ghn3_seeded.joblib.pt"),
        ("ghn2_seeded.safetensors", "ghn2_seeded.ppuda.pt"),
    ],
)
def test_layouts_load_to_the_same_numbers(canonical: str, other: str, shared: Path) -> None:
    a, b = (ghn_init.load_ghn(shared / "golden" / f).state_dict() for f in (canonical, other))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("arch", CONFIGS)
def test_list_of_models_is_decoded_as_one_batch(arch: str) -> None:
    ghn = seeded(arch)
    models = [ConvNet(), torchvision_model("mobilenet_v3_small", num_classes=10), ConvNet(width=24)]
    graphs = [ghn_init.trace(models[0], torch.zeros(2, 3, 8, 8)), *map(ghn_init.trace, models[1:])]
    together = ghn_init.predict(models, ghn, graphs)
    for model, graph, tensors in zip(models, graphs, together, strict=True):
        alone = ghn_init.predict(model, ghn, graph)
        assert tensors.keys() == alone.keys() == dict(model.named_parameters()).keys()
        for name in alone:
            torch.testing.assert_close(tensors[name], alone[name], rtol=1e-4, atol=1e-6)


def test_head() -> None:
    ghn = seeded("ghn3")
    classes = {"head.weight", "head.bias"}
    for num_classes, head, predicted in [
        (10, "auto", True), (10, "keep", False), (10, "predict", True),
        (7, "auto", False), (7, "predict", True), (25, "predict", True),
    ]:  # fmt: skip
        tensors = ghn_init.predict(ConvNet(num_classes), ghn, head=head)
        assert (classes <= tensors.keys()) == predicted
        if predicted:
            assert tensors["head.weight"].shape == (num_classes, 8)


def test_model_is_not_touched() -> None:
    model = ConvNet()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    tensors = ghn_init.predict(model, seeded("ghn3"))
    assert all(torch.equal(before[name], p) for name, p in model.state_dict().items())
    assert not any(t.requires_grad for t in tensors.values())


def test_positional_embedding_rows() -> None:
    model = torchvision_model("vit_b_16")
    ghn = seeded("ghn3")
    name = "encoder.pos_embedding"
    a, b, other = (ghn_init.predict(model, ghn, seed=s)[name] for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert torch.equal(a[:, 1:], other[:, 1:])
    assert not torch.equal(a[:, 0], other[:, 0])
    assert 0.01 < a[:, 0].std() < 0.03


def test_gradients_reach_the_hypernetwork() -> None:
    """Training needs them; `predict` itself is for inference."""
    from ghn_init.hypernetwork.prediction import predict_graphs

    ghn = seeded("ghn3").requires_grad_(True)
    graph = ghn_init.trace(ConvNet(), torch.zeros(2, 3, 8, 8))
    tensors = predict_graphs([graph], ghn)[0]
    sum(t.square().sum() for t in tensors.values()).backward()
    assert all(p.grad is not None for p in ghn.decoder.parameters())
    assert ghn.gnn[0].attn.edge_embed.embed.weight.grad.abs().sum() > 0


def test_errors() -> None:
    ghn = seeded("ghn3")
    with pytest.raises(GHNInitError, match="empty list"):
        ghn_init.predict([], ghn)
    with pytest.raises(GHNInitError, match="unknown head 'yes'"):
        ghn_init.predict(ConvNet(), ghn, head="yes")
    with pytest.raises(GHNInitError, match="2 models and 1 graphs"):
        ghn_init.predict([ConvNet(), ConvNet()], ghn, ghn_init.trace(ConvNet()))
    with pytest.raises(GHNInitError, match="no parameters"):
        ghn_init.predict(nn.ReLU(), ghn)


def test_bfloat16_weights_predict_almost_the_same(checkpoint: Path) -> None:
    model = torchvision_model("resnet18")
    full = ghn_init.predict(model, ghn_init.load_ghn(checkpoint))
    half = ghn_init.predict(model, ghn_init.load_ghn(checkpoint, dtype=torch.bfloat16))
    assert full.keys() == half.keys()
    for name, tensor in half.items():
        assert tensor.dtype == torch.float32
        assert (tensor - full[name]).norm() <= 0.02 * full[name].norm()
    with pytest.raises(GHNInitError, match=r"torch.float32 or torch.bfloat16"):
        ghn_init.load_ghn(checkpoint, dtype=torch.float16)
