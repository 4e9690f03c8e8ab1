"""What torch.fx cannot see of a module is refused by name, in the sizes that occur."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from mpicoded.errors import ModelError
from mpicoded.network.graph import trace
from mpicoded.network.ops import Normalize
from mpicoded.runtime.check import check
from mpicoded.runtime.deployment import Deployment, uncoded
from networks import plan_of

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (1, 8, 8)
HEIGHT: dict[str, Any] = {"split": "height", "k": 2}
IMAGES: dict[str, Any] = {"split": "batch", "k": 2, "batch": 2}


class Net(nn.Module):
    """Layers of every kind; ``body`` may use them in another way, ``head`` from the pooled map."""

    def __init__(
        self,
        head: Callable[[Net, Tensor], Tensor] | None = None,
        body: Callable[[Net, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm, self.relu, self.pool = nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)
        self.more = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU())
        self.drop, self.same = nn.Dropout(), nn.Identity()
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 10)
        self.head, self.body = head, body

    def forward(self, x: Tensor) -> Tensor:
        if self.body is not None:
            return self.body(self, x)
        x = self.more(self.pool(self.relu(self.norm(self.conv(x)))))
        x = self.mean(self.same(self.drop(x)))
        return self.fc(x.flatten(1)) if self.head is None else self.head(self, x)


def deployed(model: nn.Module, **how: Any) -> Deployment:
    chain = trace(model, SHAPE)
    return uncoded(chain, plan_of(chain, how.pop("split"), **how), None)


def refusal(model: nn.Module, query: Tensor | None = None, **how: Any) -> str:
    """Return the one line that refuses the model."""
    with pytest.raises(ModelError) as error:
        check(deployed(model, **how or HEIGHT), query)
    text = str(error.value)
    assert "\n" not in text and text.startswith(type(model).__name__)
    return text


def double(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2


def double_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] * 2,)


def double_large(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 2 if output.abs().max() > 20 else output


LAYERS = ("conv", "norm", "relu", "pool", "more.0", "more.1", "drop", "same")
SPLITS: dict[str, dict[str, Any]] = {
    "height": HEIGHT, "tiles": {"split": "tiles", "k": 4, "tiles": (2, 2)}, "batch": IMAGES,
    "three images": {"split": "width", "k": 3, "batch": 3},
    "stages": {"split": "height", "k": 2, "stages": ("pool", "more.0")},
    "neighbours": {"split": "height", "k": 3, "direct": True},
}  # fmt: skip


class TestHooks:
    @pytest.mark.parametrize("layer", LAYERS)
    def test_of_a_layer_are_named(self, layer: str) -> None:
        for kind, add, hook in (
            ("hook", nn.Module.register_forward_hook, double),
            ("pre-hook", nn.Module.register_forward_pre_hook, double_input),
        ):
            model = Net()
            module = model.get_submodule(layer)
            add(module, hook)
            # batch norm behind it undoes what is twice as large, but not the bias
            who = f"layer {layer} ({type(module).__name__}) has a forward {kind} that changes"
            assert who in refusal(model)

    @pytest.mark.parametrize("split", SPLITS)
    def test_are_found_however_the_work_is_cut(self, split: str) -> None:
        model = Net()
        chain = trace(model, SHAPE)
        how = dict(SPLITS[split])
        stages, name, k = how.pop("stages", ()), how.pop("split"), how.pop("k")
        plan = plan_of(chain, name, k, 0, *stages, **how)
        check(uncoded(chain, plan, None))
        model.more[0].register_forward_hook(double)
        with pytest.raises(ModelError, match=r"layer more.0 \(Conv2d\) has a forward hook"):
            check(uncoded(chain, plan, None))

    def test_of_the_model_and_of_all_modules(self) -> None:
        model = Net()
        model.register_forward_hook(double)
        assert "Net has a forward hook that changes its output" in refusal(model)
        handle = register_module_forward_hook(
            lambda m, x, y: y * 2 if isinstance(m, nn.Conv2d) else None
        )
        try:
            assert "a hook for all modules changes" in refusal(Net())
        finally:
            handle.remove()

    def test_that_only_look_on_or_run_with_their_layer_may_stay(self) -> None:
        model, seen = Net(), list[float]()
        model.conv.register_forward_hook(lambda m, x, y: seen.append(float(y.detach().mean())))
        model.more.register_forward_hook(double)  # traced with the container
        model.fc.register_forward_hook(double)  # the head runs this layer as it is
        for how in (HEIGHT, IMAGES):
            deployment = deployed(model, **how)
            check(deployment)
            x = torch.randn(2 if how is IMAGES else 1, *SHAPE)
            assert torch.allclose(deployment.run_unsplit(x), model(x), atol=1e-5)
        assert seen

    def test_of_a_layer_that_is_not_lost_are_not_blamed(self) -> None:
        model = Net()
        model.fc.register_forward_hook(double)
        model.more[0].register_forward_hook(double)
        assert "layer more.0 (Conv2d) has" in refusal(model)

    def test_that_hide_from_torch_fx_are_named_too(self) -> None:
        model = Net()
        hook = lambda m, x, y: None if isinstance(y, fx.Proxy) else y * 2  # noqa: E731
        model.more.register_forward_hook(hook)
        assert "layer more (Sequential) has a forward hook" in refusal(model)

    def test_of_a_layer_that_is_used_twice(self) -> None:
        model = Net(body=lambda m, x: m.fc(m.mean(m.more(m.relu(m.relu(m.conv(x))))).flatten(1)))
        model.relu.register_forward_hook(double)  # lost once, and run once
        assert "layer relu (ReLU)" in refusal(model)

    def test_that_act_on_some_values_only(self) -> None:
        model = Net()
        model.conv.register_forward_hook(double_large)
        assert "layer conv (Conv2d) has a forward hook" in refusal(model)

    def test_that_change_less_than_another_order_of_sums(self) -> None:
        for head, hook in (
            (None, lambda m, x, y: y.half().float()),
            (lambda m, x: torch.cat([m.fc(x.flatten(1)), x.flatten(1) * 0 + 1e6], 1), double),
        ):
            model = Net(head)
            model.conv.register_forward_hook(hook)
            assert "layer conv (Conv2d) has a forward hook" in refusal(model, **IMAGES)

    def test_that_alone_make_one_tensor(self) -> None:
        model = Net(lambda m, x: (m.fc(x.flatten(1)), x))  # type: ignore[arg-type, return-value]
        model.register_forward_hook(lambda m, x, y: y[0])
        assert "gives one tensor by a hook alone" in refusal(model)


@pytest.fixture
def pixels() -> Normalize:
    return Normalize.of((0.5,), (0.25,))


def test_a_black_image_hides_nothing(pixels: Normalize) -> None:
    """A hook on a layer without bias doubles nothing of it: random pixels are run besides."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.MaxPool2d(2))
    chain = trace(model, SHAPE)
    bare = uncoded(chain, plan_of(chain, "height", 2), pixels)
    black = torch.full((1, *SHAPE), 0.0)
    check(bare, black)
    model[0].register_forward_hook(double)
    with pytest.raises(ModelError, match="layer 0"):
        check(bare, black)


def patched(path: str) -> Net:
    model = Net()
    module = model.get_submodule(path)
    own = module.forward
    module.forward = lambda x: own(x) * 2  # type: ignore[method-assign]
    return model


class Called(Net):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2  # type: ignore[no-any-return]


class Stubborn(Net):
    def train(self, mode: bool = True) -> Stubborn:
        super().train(mode)
        self.norm.train()
        return self


def overwrites(m: Net, x: Tensor) -> Tensor:
    """torch.fx reads x += 1 as x = x + 1, so ``kept`` would keep the old numbers."""
    x = m.conv(x)
    kept = x
    x += 1
    return m.fc(m.mean(m.more(x * kept)).flatten(1))


def overwrites_a_view(m: Net, x: Tensor) -> Tensor:
    x = m.conv(x)
    x[:, :1].relu_()
    return m.fc(m.mean(m.more(x)).flatten(1))


UNSEEN: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward of a layer": (lambda: patched("conv"), r"layer conv \(Conv2d\) got a forward\(\)"),
    "forward of the model": (lambda: patched(""), r"Net got a forward\(\) of its own"),
    "call": (Called, "a __call__ of its own: put what that does into forward"),
    "training mode": (Stubborn, r"layer norm \(BatchNorm2d\) stays in training mode"),
    "overwrites": (lambda: Net(body=overwrites), r"from layer more.0 .*\(x \+= y\).* x = x \+ y"),
    "overwrites a view": (lambda: Net(body=overwrites_a_view), r"layer more.0 .*another name"),
}


@pytest.mark.parametrize("case", UNSEEN)
def test_what_torch_fx_does_not_see(case: str) -> None:
    make, text = UNSEEN[case]
    assert re.search(text, refusal(make())), refusal(make())


class Counting(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * self.calls


class Tiring(Net):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (1 if self.calls < 4 else 2)


VARYING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: Net(lambda m, x: m.fc(F.dropout(x.flatten(1)))), r"as dropout \(dropout\)"),
    "noise": (lambda: Net(lambda m, x: m.fc(x.flatten(1) + torch.randn(8))), r"layer fc \(Linear"),
    "counter": (Counting, "from Counting on"),
    "not at first": (Tiring, "after other images"),
}


@pytest.mark.parametrize("case", VARYING)
def test_what_is_not_the_same_each_time(case: str) -> None:
    make, text = VARYING[case]
    assert re.search(
        f"same images when it is called again.*{text}", refusal(make(), torch.rand(1, *SHAPE))
    )


H = Callable[["Net", Tensor], Tensor]
SHAPES: dict[str, tuple[H, str]] = {
    "squeeze": (lambda m, x: m.fc(x.squeeze()), r"\(10,\) instead of \(1, 10\).* squeeze \(squ"),
    "squeeze at the end": (lambda m, x: m.fc(x.flatten(1)).squeeze(), r"\(10,\) .* squeeze \(sq"),
}


@pytest.mark.parametrize("case", SHAPES)
def test_shapes_that_hold_for_other_numbers_of_images(case: str) -> None:
    head, text = SHAPES[case]
    for how in (HEIGHT, IMAGES):  # both have one image in a unit
        assert re.search(text, refusal(Net(head), **how))
    check(deployed(Net(head), split="height", k=2, batch=3))  # and there it is right
    check(deployed(Net(head), split="batch", k=2, batch=4))


def test_a_view_that_merges_images() -> None:
    model = Net(lambda m, x: m.fc(x.view(-1, 16)[:, :8]))
    assert "(1, 10) for 2 images, not an answer for each" in refusal(model)


def test_images_that_change_with_their_company() -> None:
    def head(m: Net, x: Tensor) -> Tensor:
        return m.fc(x.flatten(1)).softmax(0)

    assert "another answer in other company" in refusal(Net(head), **IMAGES)
    check(deployed(Net(head), split="height", k=2, batch=2))  # one rank sees the whole query


@fx.wrap
def overwrite(x: Tensor) -> Tensor:
    return x.mul_(2)


class OverwritesItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(overwrite(x))


def test_queries_are_not_overwritten() -> None:
    assert "overwrites the images that it is given" in refusal(OverwritesItsInput(), **IMAGES)
    deployment = deployed(
        Net(body=lambda m, x: m.fc(m.mean(m.more(m.conv(x.mul_(2)))).flatten(1))), **HEIGHT
    )
    check(deployment)
    x = torch.rand(1, *SHAPE)
    kept = x.clone()
    assert torch.allclose(deployment.base(x), deployment.run_unsplit(x), atol=1e-5)
    assert torch.equal(x, kept)


class Doubling(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


def with_conv(change: Callable[[Net], Any]) -> Net:
    model = Net()
    change(model)
    return model


RIGHT: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "weight norm": lambda: with_conv(lambda m: weight_norm(m.conv)),
    "pruned": lambda: with_conv(lambda m: prune.l1_unstructured(m.conv, "weight", 0.5)),
    "subclass": lambda: with_conv(lambda m: setattr(m, "conv", Doubling(1, 4, 3, padding=1))),
    "channels last": lambda: Net().to(memory_format=torch.channels_last),  # type: ignore[call-overload]
    "halves": lambda: Net(
        body=lambda m, x: m.fc(m.mean((m.more(m.conv(x)).half() * 2).float()).flatten(1))
    ),
    "aten": lambda: Net(lambda m, x: m.fc(torch.ops.aten.relu(x).flatten(1))),
    "not a number": lambda: Net(lambda m, x: m.fc(torch.log(x).flatten(1))),
    "a class": lambda: Net(lambda m, x: m.fc(x.flatten(1)).argmax(1)),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_passes(case: str) -> None:
    for how in (HEIGHT, IMAGES):
        check(deployed(RIGHT[case](), **how))


def test_a_relu_hides_nothing_that_is_not_a_number() -> None:
    """What is joined with a convolution may make 0 of it, and then torch gives another answer."""

    def body(m: Net, x: Tensor) -> Tensor:
        return m.fc(m.mean(m.more(torch.log(m.conv(x)))).flatten(1))

    deployment, x = deployed(Net(body=body), **HEIGHT), torch.rand(1, *SHAPE)
    check(deployment)  # made-up images tell nothing of it
    assert not deployment.base(x).isfinite().any()
    if deployment.run_unsplit(x).isfinite().any():
        assert "gives 10 outputs for the first query that are NaN" in refusal(Net(body=body), x)
