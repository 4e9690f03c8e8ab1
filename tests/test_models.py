"""The networks: sizes as published, shapes, torch.fx, weights, and every error."""

from __future__ import annotations

import gzip
import os
import pickle
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import fx, nn

from mpicoded.errors import DataError, ModelError
from mpicoded.models import MODELS, build, load_weights
from mpicoded.network.graph import trace, whole_network
from mpicoded.network.pieces import whole_flops

# name, args, input (C, H, W), output behind B: small variants that run in a blink
SMALL = [
    ("lenet5", {}, (1, 32, 32), (10,)),
    ("lenet5", {"channels": 3, "classes": 4, "width": [8, 12]}, (3, 32, 32), (4,)),
    ("base-mlp", {}, (1, 28, 28), (10,)),
    ("vgg", {"depth": 11, "classes": 10, "size": 32, "hidden": 16}, (3, 32, 32), (10,)),
    ("vgg9", {"classes": 7}, (3, 32, 32), (7,)),
    ("vgg11", {"classes": 10, "size": 64, "hidden": 16, "batch_norm": True}, (3, 64, 64), (10,)),
    ("vgg11", {"classes": 10, "size": 32, "hidden": 16}, (3, 70, 45), (10,)),
    ("vgg16", {"classes": 10, "size": 32, "hidden": 16}, (3, 32, 32), (10,)),
    ("vgg13", {"classes": 10, "size": 32, "hidden": 16}, (3, 32, 32), (10,)),
    ("vgg16-features", {}, (3, 64, 40), (512, 2, 1)),
    ("resnet18", {"classes": 10}, (3, 64, 64), (10,)),
    ("resnet18", {"classes": 10, "channels": 1, "stem": "cifar"}, (1, 32, 32), (10,)),
    ("resnet20", {}, (3, 32, 32), (10,)),
    ("resnet34", {"classes": 10, "stem": "cifar"}, (3, 32, 32), (10,)),
    ("resnet50", {}, (3, 64, 64), (1000,)),
    ("inception-v3", {"classes": 7, "aux": False}, (3, 75, 80), (7,)),
    ("mobilenet-v2", {"width": 0.35}, (3, 64, 64), (1000,)),
    ("yolov2", {}, (3, 64, 96), (425, 2, 3)),
    ("tiny-yolov2", {"classes": 20}, (3, 64, 96), (125, 2, 3)),
]
IDS = [f"{name}-{'-'.join(map(str, args.values()))}" for name, args, _, _ in SMALL]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_every_model_is_tried() -> None:
    assert {name for name, *_ in SMALL} == set(MODELS)


@pytest.mark.parametrize(("name", "args", "shape", "out"), SMALL, ids=IDS)
def test_shape_and_fx(
    name: str, args: dict[str, object], shape: tuple[int, ...], out: tuple[int, ...]
) -> None:
    model = build(name, args)
    assert not any(module.training for module in model.modules())
    x = torch.rand(2, *shape)
    with torch.no_grad():
        y = model(x)
        traced = fx.symbolic_trace(model)(x)
    assert y.shape == (2, *out)
    assert torch.equal(y, traced)


@pytest.mark.parametrize(
    ("name", "args", "count"),
    [
        # torchvision's documentation of the same networks
        ("vgg11", {}, 132_863_336),
        ("vgg11", {"batch_norm": True}, 132_868_840),
        ("vgg16", {}, 138_357_544),
        # by hand: convolutions, scale and shift of every channel, 2048-128-128-10
        ("vgg9", {}, 287_008 + 2 * 448 + 262_272 + 16_512 + 1_290),
        ("vgg16", {"batch_norm": True}, 138_365_992),
        ("vgg13", {}, 133_047_848),
        ("resnet18", {}, 11_689_512),
        ("resnet34", {}, 21_797_672),
        ("resnet50", {}, 25_557_032),
        ("inception-v3", {}, 27_161_264),
        ("mobilenet-v2", {}, 3_504_872),
        # without the side classifier: 3,326,696 fewer
        ("inception-v3", {"aux": False}, 23_834_568),
        # the convolutions of VGG-16 by hand: sum of 9 c_in c_out + c_out
        ("vgg16-features", {}, 14_714_688),
        # the usual CIFAR variants: 11.17 M and, He et al. Table 6, 0.27 M
        ("resnet18", {"classes": 10, "stem": "cifar"}, 11_173_962),
        ("resnet20", {}, 272_474),
        ("base-mlp", {}, 784 * 200 + 200 + 200 * 100 + 100 + 100 * 10 + 10),
        ("lenet5", {}, 156 + 2_416 + 576 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10),
    ],
)
def test_number_of_parameters(name: str, args: dict[str, object], count: int) -> None:
    with torch.device("meta"):
        assert parameters(build(name, args)) == count


@pytest.mark.parametrize(
    ("name", "size"),
    # bytes of yolov2.weights and yolov2-tiny.weights, COCO's, as Darknet publishes them: a header
    # of 16, then float32; batch norm with its statistics
    [("yolov2", 203_934_260), ("tiny-yolov2", 44_948_596)],
)
def test_yolo_has_as_many_numbers_as_the_published_files(name: str, size: int) -> None:
    with torch.device("meta"):
        state = build(name, {}).state_dict()
    numbers = sum(t.numel() for key, t in state.items() if "num_batches" not in key)
    assert 16 + 4 * numbers == size


@pytest.mark.parametrize(
    ("name", "size", "billions", "digits"),
    [
        # multiply-adds, twice that here: torchvision's documentation of the weights (GFLOPS)
        ("vgg11", 224, 2 * 7.609, 3),
        ("vgg13", 224, 2 * 11.308, 3),
        ("vgg16", 224, 2 * 15.47, 3),
        ("resnet18", 224, 2 * 1.814, 3),
        ("resnet34", 224, 2 * 3.664, 3),
        ("resnet50", 224, 2 * 4.089, 3),
        ("inception-v3", 299, 2 * 5.713, 3),
        ("mobilenet-v2", 224, 2 * 0.301, 3),
        # BFLOPs of Darknet's page on YOLO, which counts 2 as here
        ("yolov2", 608, 62.94, 2),
        ("yolov2", 416, 29.47, 2),
        ("tiny-yolov2", 416, 5.41, 2),
    ],
)
def test_flops_are_as_published(name: str, size: int, billions: float, digits: int) -> None:
    with torch.device("meta"):
        model = build(name, {})
    chain = trace(model, (3, size, size))
    flops = whole_flops(chain, whole_network(chain).ops) / 1e9
    assert flops == pytest.approx(billions, abs=1.01 * 10**-digits)
    assert chain.output_shape == ((425, size // 32, size // 32) if "yolo" in name else (1000,))


def test_lenet_stages_have_names() -> None:
    names = [name for name, _ in build("lenet5", {}).named_children()]
    assert names == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "fc1", "fc2", "fc3"]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("vgg16", ["features.0.weight", "features.28.bias", "classifier.6.weight"]),
        ("vgg16-features", ["0.weight", "28.bias"]),
        ("resnet18", ["conv1.weight", "layer2.0.downsample.1.running_var", "fc.bias"]),
        ("base-mlp", ["nn.0.weight", "nn.4.bias"]),
        ("resnet50", ["layer1.0.downsample.0.weight", "layer4.2.bn3.running_mean"]),
        (
            "inception-v3",
            [
                "Conv2d_1a_3x3.conv.weight",
                "Mixed_6e.branch7x7dbl_5.bn.running_var",
                "Mixed_7c.branch3x3dbl_3b.bn.bias",
                "AuxLogits.conv1.bn.weight",
                "AuxLogits.fc.bias",
                "fc.weight",
            ],
        ),
        (
            "mobilenet-v2",
            [
                "features.0.1.weight",
                "features.1.conv.0.0.weight",
                "features.1.conv.2.bias",
                "features.17.conv.3.running_var",
                "features.18.0.weight",
                "classifier.1.bias",
            ],
        ),
    ],
)
def test_tensors_have_the_published_names(name: str, keys: list[str]) -> None:
    with torch.device("meta"):
        assert set(keys) <= set(build(name, {}).state_dict())


def test_vgg16_features_have_standard_indices() -> None:
    with torch.device("meta"):
        layers = build("vgg16-features", {})
    pools = [int(name) for name, m in layers.named_children() if isinstance(m, nn.MaxPool2d)]
    assert pools == [4, 9, 16, 23, 30]


def test_stride_is_where_the_paper_has_it() -> None:
    net = build("resnet18", {})
    seen = []
    for number in range(1, 5):
        layer = net.get_submodule(f"layer{number}")
        layer.register_forward_hook(lambda _m, _x, y: seen.append(tuple(y.shape[1:])))
    net(torch.zeros(1, 3, 224, 224))  # He et al., Table 1
    assert seen == [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]


# a network of the user's own

OWN = """
from torch import nn
SIZE = 3
def tiny(width=2):
    return nn.Conv2d(1, width, 3)
def number():
    return 7
def broken():
    raise RuntimeError("no such width")
class Net(nn.Module):
    def __init__(self, depth):
        super().__init__()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a module that lies in the current folder, in a package new to this test."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / name).mkdir()
    (tmp_path / name / "nets.py").write_text(OWN)
    (tmp_path / name / "wrong.py").write_text("def f(:\n")
    (tmp_path / name / "needs.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", os.getcwd())])
    return name


def test_own_function_and_class(own: str) -> None:
    assert parameters(build(f"{own}.nets:tiny", {"width": 5})) == 5 * 9 + 5
    assert type(build(f"{own}.nets:Net", {"depth": 1})).__name__ == "Net"


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("nets:tinny", {}, r"module \w+\.nets has no tinny \(did you mean 'tiny'\?\)"),
        ("nets:SIZE", {}, "SIZE is int and cannot be called"),
        ("nets:number", {}, r"nets:number' is int, not a torch\.nn\.Module"),
        ("nets:broken", {}, "failed: RuntimeError: no such width"),
        ("nets:tiny", {"widht": 3}, r"'widht' \(did you mean 'width'\?\); its args: width=2"),
        ("nets:Net", {}, "missing a required argument: 'depth'; its args: depth"),
        ("nets:tiny", {"width": "x"}, "with args {'width': 'x'} failed: TypeError"),
        ("netz:tiny", {}, r"module \w+\.netz is not found from .*PYTHONPATH"),
        ("wrong:f", {}, r"importing \w+\.wrong failed: SyntaxError"),
        ("needs:f", {}, "module no_such_library is not found"),
    ],
)
def test_own_errors(own: str, spec: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(f"{own}.{spec}", args)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("lenet", {}, r"no model 'lenet' \(did you mean 'lenet5'\?\); known: base-mlp, .*factory"),
        ("zzz", {}, "no model 'zzz'; known"),
        ("", {}, "no model ''"),
        ("a:b:c", {}, "no model 'a:b:c'"),
        ("a.b:c()", {}, "no model"),
        ("a..b:c", {}, "no model"),
        ("../a:c", {}, "no model"),
        ("a:c\n", {}, "no model"),
        ("os:system", {"command": "false"}, "os is Python's own library"),
        ("no_such_package:net", {}, "module no_such_package is not found"),
        ("lenet5", {"chanels": 1}, r"\(did you mean 'channels'\?\); its args: channels=1, classes"),
        ("lenet5", {"width": [6]}, "failed: ValueError: not enough values"),
        ("lenet5", {"channels": -1}, "model 'lenet5' with args {'channels': -1} failed"),
        ("base-mlp", {"classes": 3}, "its args: none"),
        ("vgg", {"depth": 12}, r"depth = 12 is not known; known: \[11, 13, 16\]"),
        ("vgg16", {"size": 16}, "size = 16 is too small; .* 32 pixels"),
        ("resnet18", {"stem": "imagnet"}, "stem = 'imagnet' is not known; known: \"imagenet\""),
    ],
)
def test_errors(name: str, args: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        build(name, args)


# weights


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "pth", "t7"])
def test_weights_come_back(tmp_path: Path, suffix: str) -> None:
    made, filled = build("lenet5", {}), build("lenet5", {})
    path = tmp_path / f"weights.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(made.state_dict(), path)
    load_weights(filled, path)
    for key, tensor in made.state_dict().items():
        assert torch.equal(filled.state_dict()[key], tensor)


def test_old_weights_without_counters_load(tmp_path: Path) -> None:
    made, filled = build("resnet20", {}), build("resnet20", {})
    nn.init.uniform_(made.get_submodule("bn1").get_buffer("running_mean"))
    state = {k: v for k, v in made.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "old.safetensors")
    load_weights(filled, tmp_path / "old.safetensors")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(made(x), filled(x))


def lenet_state(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    state = {**build("lenet5", {}).state_dict()}
    for key, tensor in changes.items():
        name = key.replace("__", ".")
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    return state


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fc3__bias": None}, r"1 missing tensor: fc3\.bias \(10,\)\. Give"),
        ({"fc4__bias": torch.zeros(3)}, r"1 unexpected tensor: fc4\.bias \(3,\)"),
        (
            {"fc3__bias": torch.zeros(9)},
            r"misshapen tensor: fc3\.bias \(9,\) where the model has \(10,\)",
        ),
        ({"fc3__bias": torch.zeros(10, dtype=torch.int8)}, r"\(10,\) of integers where .* \(10,\)"),
        (
            {f"{n}__{t}": None for n in ("fc1", "fc2") for t in ("weight", "bias")},
            r"4 missing tensors: fc1\.weight \(120, 576\), .* and 1 more",
        ),
    ],
    ids=["missing", "unexpected", "misshapen", "quantised", "many"],
)
def test_weights_that_do_not_fit(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    path, model = tmp_path / "w.safetensors", build("lenet5", {})
    save_file(lenet_state(**changes), path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match=message) as error:
        load_weights(model, path)
    assert str(path) in str(error.value) and "LeNet5" in str(error.value)
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in before)


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (open, (str(self.path), "w"))


def test_weights_that_would_run_code_are_refused(tmp_path: Path) -> None:
    bait, path = tmp_path / "owned", tmp_path / "w.pt"
    torch.save({"a": Evil(bait)}, path)
    with pytest.raises(DataError, match=r"w\.pt is not a file of plain tensors"):
        load_weights(build("lenet5", {}), path)
    path.write_bytes(pickle.dumps(Evil(bait), protocol=2))
    with pytest.raises(DataError, match=r"w\.pt is not a file of plain tensors"):
        load_weights(build("lenet5", {}), path)
    assert not bait.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3, "state_dict": {}}, r"no flat dictionary of tensors \(it holds: epoch, state"),
        ([torch.zeros(1)], r"\(it holds: list\)"),
        (OrderedDict(), "no flat dictionary"),
    ],
)
def test_weights_of_another_form(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=message):
        load_weights(build("lenet5", {}), tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_weights_files_that_are_none(tmp_path: Path, suffix: str) -> None:
    model, path = build("lenet5", {}), tmp_path / f"w.{suffix}"
    with pytest.raises(DataError, match="does not exist; train the model, or mend the path"):
        load_weights(model, path)
    (save_file if suffix == "safetensors" else torch.save)(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=f"w.{suffix} is not a "):
        load_weights(model, path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=f"w.{suffix} is not a "):
        load_weights(model, path)
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match="is a folder"):
        load_weights(model, path)


@pytest.mark.parametrize(("name", "right"), [("mnist", 9793), ("fashion-mnist", 8947)])
def test_published_base_mlp(name: str, right: int) -> None:
    """MNIST: 97.93 %, as the authors published it; Fashion-MNIST: what their weights give here."""
    folder = Path(os.environ.get("MPICODED_DATA", ""))
    weights = folder / "base-mlp" / f"{name}.t7"
    if "MPICODED_DATA" not in os.environ or not weights.exists():
        pytest.skip(f"needs MPICODED_DATA with {name}/ and base-mlp/{name}.t7")
    model = build("base-mlp", {})
    load_weights(model, weights)
    raw = [gzip.decompress((folder / name / f"t10k-{f}-ubyte.gz").read_bytes())
           for f in ("images-idx3", "labels-idx1")]  # fmt: skip
    images = np.frombuffer(raw[0], np.uint8, offset=16).reshape(-1, 1, 28, 28)
    labels = np.frombuffer(raw[1], np.uint8, offset=8)
    with torch.no_grad():
        answers = model(torch.from_numpy(images / np.float32(255))).argmax(1).numpy()
    assert int((answers == labels).sum()) == right
