"""Grad-CAM against its definition, on the two kinds of network and one that cannot have it."""

import numpy as np
import pytest
import timm
import torch

from femtobooth.core.errors import ModelError
from femtobooth.recognizer.model.saliency import grad_cam, overlay

NETWORKS = ["test_convnext", "test_efficientnet", "test_resnet"]


@pytest.fixture(params=NETWORKS)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, pretrained=False, num_classes=5).eval()


def test_shape_range_and_independence_of_the_batch(model):
    batch = torch.randn(3, 3, 96, 128)
    maps = grad_cam(model, batch, [0, 4, 2])
    with torch.no_grad():
        assert maps.shape == (3, *model.forward_features(batch).shape[2:])
    assert maps.min() >= 0 and all(one.max() in (0, pytest.approx(1)) for one in maps)
    assert np.allclose(maps[1], grad_cam(model, batch[1:2], [4])[0], atol=1e-5)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pooled_linear_head_has_a_closed_form():
    """Mean pooling and a linear layer: the weights of the channels are the class's row, and the map is CAM (Zhou et al.
    2016).
    """
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=5).eval()
    batch = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        features = model.forward_features(batch)
        expected = torch.einsum("bchw,bc->bhw", features, model.get_classifier().weight[[3, 1]]).clamp(min=0)
    expected = expected / expected.amax(dim=(1, 2), keepdim=True)
    assert np.allclose(grad_cam(model, batch, [3, 1]), expected.numpy(), atol=1e-5)


def test_it_finds_the_place_that_matters():
    """A network whose class 1 is the brightness of the right half's map: the evidence lies on the right."""
    model = timm.create_model("test_resnet", pretrained=False, num_classes=2).eval()
    channels = model.num_features

    class Brightness(torch.nn.Module):
        num_features = channels

        def forward_features(self, x):
            return torch.nn.functional.avg_pool2d(x.mean(1, keepdim=True), 16).expand(-1, channels, -1, -1)

        def forward_head(self, features):
            return torch.stack([-features.mean((1, 2, 3)), features.mean((1, 2, 3))], 1)

    batch = torch.zeros(1, 3, 64, 64)
    batch[..., 32:] = 1
    evidence = grad_cam(Brightness(), batch, [1])[0]
    assert np.all(evidence[:, :2] == 0) and np.all(evidence[:, 2:] == 1)
    assert not grad_cam(Brightness(), batch, [0]).any()  # nothing speaks for class 0: zeros, no division by zero


def test_the_mode_of_the_network_stays(model):
    model.train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    grad_cam(model, torch.randn(2, 3, 64, 64), [0, 1])
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_a_transformer_is_refused_in_words():
    model = timm.create_model("test_vit", pretrained=False, num_classes=5)
    with pytest.raises(ModelError, match="convolutional"):
        grad_cam(model, torch.zeros(1, 3, *model.pretrained_cfg["input_size"][1:]), [0])


def test_overlay_brightens_where_the_evidence_is():
    grey = np.full((40, 60, 3), 128, np.uint8)
    evidence = np.zeros((2, 3), np.float32)
    evidence[0, 2] = 1
    drawn = overlay(grey, evidence)
    assert drawn.shape == grey.shape and drawn.dtype == np.uint8
    assert drawn[5, 55].astype(int).max() > drawn[35, 5].astype(int).max() + 40
    assert np.ptp(drawn[35, 5]) == 0  # no colour where nothing speaks
