from ldm_lightning.reporting.page.protocols import NOT_RECORDED, Protocols
from tests.figures import figures_of
from tests.reporting.page.runs_on_disk import example_run


def run_with(number, metric="val/psnr", **entry):
    return example_run(number, metrics={metric: 1.0}, protocols={metric: entry})


def are_same(one, other, metric="val/psnr"):
    protocols = Protocols([one, other])
    return protocols.of(one, metric) == protocols.of(other, metric)


def test_another_number_of_images_is_another_protocol():
    assert not are_same(run_with(1, num_images=10), run_with(2, num_images=20))
    assert are_same(run_with(1, num_images=10), run_with(2, num_images=10))


def test_the_same_images_elsewhere_are_the_same_images():
    one, other = run_with(1, images="71cb", root="/a"), run_with(2, images="71cb", root="/b")
    assert are_same(one, other)
    assert not are_same(run_with(1, root="/a"), run_with(2, root="/b"))


def test_the_model_that_is_measured_is_no_part_of_the_protocol():
    one = run_with(
        1, checkpoint="a.ckpt", weights_hash="aa", measured="/a/samples", measured_images="a"
    )
    other = run_with(
        2, checkpoint="b.ckpt", weights_hash="bb", measured="/b/samples", measured_images="b"
    )
    assert are_same(one, other)


def test_another_feature_network_is_another_protocol():
    one = run_with(1, feature_network="tiny", weights_hash="aa")
    assert not are_same(one, run_with(2, feature_network="tiny", weights_hash="bb"))


def test_speeds_are_compared_on_one_device_alone():
    name = "perf/decode_images_per_s"
    one, other = (example_run(n, metrics={name: 1.0}, device=d) for n, d in ((1, "a"), (2, "b")))
    assert not are_same(one, other, name)


def test_the_most_used_protocol_comes_first_and_says_what_it_is():
    runs = [run_with(1, num_images=10), run_with(2, num_images=20), run_with(3, num_images=20)]
    protocols = Protocols(runs)
    assert [(one.label, figures_of(one.text)) for one in protocols.all] == [
        ("P1", [20]),
        ("P2", [10]),
    ]
    assert protocols.used_by("val/psnr") == protocols.all
    assert protocols.metrics_of(protocols.all[0]) == ("val/psnr",)


def test_a_metric_without_a_protocol_says_so():
    assert Protocols([run_with(1)]).all[0].text == NOT_RECORDED


def test_latents_are_those_of_the_images_that_were_reconstructed():
    metrics = {"latent/std": 1.0}
    one, other = (
        example_run(n, metrics=metrics, protocols={"val/psnr": {"num_images": n}}) for n in (1, 2)
    )
    assert not are_same(one, other, "latent/std")


def test_a_protocol_is_told_in_short_for_a_figure():
    run = run_with(1, num_images=16, data="shapes", split="val", small_sample=True)
    short = Protocols([run]).all[0].short
    assert {"small", "16", "shapes,", "val"} <= set(short.split())
    assert Protocols([run_with(1)]).all[0].short == NOT_RECORDED
