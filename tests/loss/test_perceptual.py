import warnings

import lpips
import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from ldm_lightning.loss.perceptual import BACKBONES, Lpips, TinyPerceptual, gray_triplets
from ldm_lightning.nn.tiny_features import TinyFeatures, feature_distance
from ldm_lightning.utils.pretrained import WEIGHT_FILES


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub cache with random weights of the published structures; VGG without its classifier."""
    home = tmp_path_factory.mktemp("torch_home")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    for name in ("alexnet", "squeezenet1_1"):
        weights = getattr(torchvision.models, name)().state_dict()
        torch.save(weights, folder / WEIGHT_FILES[name])
    vgg = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])
    weights = {f"features.{name}": value for name, value in vgg.state_dict().items()}
    torch.save(weights, folder / WEIGHT_FILES["vgg16"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        patch.setattr(torch.hub, "_hub_dir", None)
        yield folder


@pytest.fixture(params=["tiny", *BACKBONES])
def distance(request, hub):
    return TinyPerceptual() if request.param == "tiny" else Lpips(request.param)


def pair(size=(40, 48), channels=3, batch=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, channels, *size, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.2 * noise).clamp(-1, 1), images


def package_lpips(net, hub):
    """The `lpips` package, loaded by itself from the same files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if net != "vgg":
            return lpips.LPIPS(net=net, verbose=False)
        reference = lpips.LPIPS(net=net, verbose=False, pnet_rand=True)
    weights = torch.load(hub / WEIGHT_FILES["vgg16"], weights_only=True)
    for name, value in reference.net.state_dict().items():
        value.copy_(weights["features." + name.split(".", 1)[1]])
    return reference


@pytest.mark.parametrize("net", BACKBONES)
def test_lpips_equals_the_package_in_value_and_gradient(net, hub):
    reconstructions, images = pair()
    reconstructions.requires_grad_()
    values = Lpips(net)(reconstructions, images)
    expected = package_lpips(net, hub)(reconstructions, images).flatten()
    assert values.shape == (2,)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-7)
    (gradient,) = torch.autograd.grad(values.sum(), reconstructions)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), reconstructions)
    scale = expected_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, expected_gradient / scale, rtol=0, atol=1e-4)


def test_tiny_distance_is_the_feature_distance_of_the_packaged_network():
    reconstructions, images = pair()
    network = TinyFeatures.pretrained()
    expected = feature_distance(network.stages(reconstructions), network.stages(images))
    torch.testing.assert_close(TinyPerceptual()(reconstructions, images), expected.detach())


def test_distance_is_zero_for_equal_images_and_positive_otherwise(distance):
    reconstructions, images = pair()
    assert torch.equal(distance(images, images), torch.zeros(2))
    assert (distance(reconstructions, images) > 0).all()


def test_nothing_of_the_network_can_be_trained_stored_or_switched(distance):
    assert distance.state_dict() == {}
    assert list(distance.parameters()) == []
    assert list(distance.buffers()) == []
    holder = torch.nn.Sequential(distance).train().requires_grad_(True)
    assert holder.state_dict() == {}
    assert not any(module.training for module in distance.network.modules())
    assert not any(parameter.requires_grad for parameter in distance.network.parameters())


def test_values_do_not_change_after_train(distance):
    reconstructions, images = pair()
    before = distance(reconstructions, images)
    assert torch.equal(distance.train()(reconstructions, images), before)


def test_gradient_reaches_reconstructions_alone(distance):
    reconstructions, images = pair()
    reconstructions.requires_grad_()
    images.requires_grad_()
    distance(reconstructions, images).sum().backward()
    assert images.grad is None
    assert reconstructions.grad.isfinite().all()
    assert (reconstructions.grad.flatten(1).abs().amax(dim=1) > 0).all()


def test_gradient_is_finite_where_all_features_are_zero(hub):
    distance = Lpips("alex")
    with torch.no_grad():
        for parameter in distance.network.net.parameters():
            parameter.zero_()
    reconstructions, images = pair()
    reconstructions.requires_grad_()
    distance(reconstructions, images).sum().backward()
    assert torch.equal(reconstructions.grad, torch.zeros_like(images))


def test_one_use_costs_two_forward_passes_and_one_backward_pass(hub):
    distance = Lpips("squeeze")
    reconstructions, images = pair()
    with FlopCounterMode(display=False) as forward:
        distance.network.net(images)
    reconstructions.requires_grad_()
    with FlopCounterMode(display=False) as update:
        distance(reconstructions, images).sum().backward()
    assert update.get_total_flops() <= 3.01 * forward.get_total_flops()


def test_to_moves_and_converts_the_hidden_network(distance):
    reconstructions, images = pair()
    single = distance(reconstructions, images)
    distance.double()
    double = distance(reconstructions.double(), images.double())
    torch.testing.assert_close(double.float(), single, rtol=1e-4, atol=1e-6)


def test_gray_images_count_as_rgb_with_equal_channels(distance):
    reconstructions, images = pair(channels=1)
    as_rgb = distance(reconstructions.expand(-1, 3, -1, -1), images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance(reconstructions, images), as_rgb)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_are_averaged_as_gray_images(channels):
    distance = TinyPerceptual()
    reconstructions, images = pair(channels=channels)
    each = [distance(reconstructions[:, [c]], images[:, [c]]) for c in range(channels)]
    torch.testing.assert_close(distance(reconstructions, images), torch.stack(each).mean(dim=0))
    assert gray_triplets(images).shape == (2 * channels, 3, 40, 48)


def test_distance_of_an_image_does_not_depend_on_its_batch(distance):
    reconstructions, images = pair(batch=3)
    together = distance(reconstructions, images)
    alone = torch.cat(
        [distance(r[None], i[None]) for r, i in zip(reconstructions, images, strict=True)]
    )
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)


def test_autocast_changes_a_distance_by_rounding_alone(distance):
    reconstructions, images = pair()
    exact = distance(reconstructions, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = distance(reconstructions, images)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=1e-3)


def test_building_draws_no_random_numbers(hub):
    state = torch.get_rng_state()
    Lpips("squeeze")
    TinyPerceptual()
    assert torch.equal(torch.get_rng_state(), state)


def test_protocol_names_network_and_weights(hub):
    hashes = {Lpips(net).weights_hash for net in BACKBONES} | {TinyPerceptual().weights_hash}
    assert len(hashes) == 4
    assert all(len(value) == 64 for value in hashes)
    assert Lpips("vgg").feature_network == "lpips_vgg"
    assert TinyPerceptual().feature_network == "tiny"


def test_refuses_shapes_that_differ_and_images_that_are_too_small(distance):
    _, images = pair()
    with pytest.raises(ValueError, match=r"shape.*\[2, 3, 40, 47\].*\[2, 3, 40, 48\]"):
        distance(images[..., :-1], images)
    small = images[..., :7, :7]
    with pytest.raises(ValueError, match=r"\d+ pixels\b.*\b7x7\b"):
        distance(small, small)


@pytest.mark.parametrize("net", BACKBONES)
def test_sees_images_of_the_smallest_stated_size(net, hub):
    distance = Lpips(net)
    size = (distance.min_size, distance.min_size)
    assert distance(*pair(size=size)).isfinite().all()


def test_refuses_an_unknown_net_and_a_file_of_another_network(hub, tmp_path):
    with pytest.raises(ValueError, match="alex, vgg, squeeze.*'resnet'"):
        Lpips("resnet")
    (tmp_path / WEIGHT_FILES["vgg16"]).write_bytes(
        (hub / WEIGHT_FILES["squeezenet1_1"]).read_bytes()
    )
    with pytest.raises(ValueError, match="vgg16.*network"):
        Lpips("vgg", weights_dir=tmp_path)
