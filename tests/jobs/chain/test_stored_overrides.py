"""The words that a chain may hold choose parts and set values, and do nothing else."""

import pytest

from ldm_lightning.jobs.chain.stored_overrides import check_overrides

HARMLESS = [
    *("experiment=ldm_kl_f4", "data=image_folder", "data.root=/photos", "recipe=none", "seed=3"),
    *("data.root='/my photos'", "optim.betas=[0.9,0.999]", "~callbacks.ema", "logger=wandb"),
    *("diffusion/schedule=cosine", "gate.thresholds.ssim={metric:val/ssim,at_least:0.6}"),
    *("first_stage.overrides=['max_steps=2','optim.learning_rate=1e-3']", "output_dir=/here"),
    *("encode.overrides=['flip=true']", "samples.overrides=['sampler=heun']", "cache_dir=/c"),
    *("train_crop=center", "name=a.b-c"),
]
HOSTILE = [
    # interpolations
    *("name=${oc.env:HOME}", "name='${oc.env:HOME}'", "data.root=${created:/tmp/x}"),
    *("name=a${seed}", "first_stage.overrides=['name=${oc.env:HOME}']"),
    *("optim.betas=[0.9,'${oc.decode:1}']", "gate.thresholds.ssim={metric:'${seed}'}"),
    # Hydra's own keys, and options in the place of words
    *("hydra.run.dir=/tmp/x", "+hydra.searchpath=[file:///tmp]", "~hydra.job_logging"),
    *("hydra/launcher=basic", "hydra/job_logging=stdout", "hydra.mode=MULTIRUN"),
    *("hydra={run:{dir:/tmp}}", "++hydra.callbacks.x._target_=os.mkdir", "hydra/launcher@x=none"),
    *("--config-dir=/tmp", "--multirun", "-m", "--config-path", "", "words"),
    # what instantiate calls
    *("data._target_=os.mkdir", "+denoiser._partial_=true", "denoiser={_target_:os.mkdir}"),
    *("callbacks.ema={_target_:torch.load,f:x}", "+callbacks.x={a:[{_target_:os.mkdir}]}"),
    *("+data._args_=[1]", "first_stage.overrides=['loss.perceptual._target_=torch.hub.load']"),
    # files of configuration from elsewhere
    *("data=../../../tmp/evil", "data=/tmp/evil", "+experiment=[/tmp/evil]", "data=''"),
    *("diffusion/schedule=../x", "data@loss=shapes", "logger=[csv,../x]", "denoiser=a/../b"),
    # more than one run
    *("seed=1,2", "seed=range(3)", "data=choice(shapes,latents)", "experiment=glob(*)"),
    # where steps write
    *("encode.overrides=['output=/tmp/x']", "first_stage.overrides=['output_dir=/tmp/x']"),
    *("samples.overrides=['resume=x']", "samples.overrides=['++output=/tmp/x']"),
    "samples.overrides=['hydra.run.dir=/tmp']",
    # permission, which is the command line's to give
    *("trusted_packages=[evil]", "samples.overrides=['trusted_packages=[evil]']"),
]


@pytest.mark.parametrize("word", HARMLESS)
def test_words_that_choose_and_set_are_taken(word):
    check_overrides([word], source="chain.json")


@pytest.mark.parametrize("word", HOSTILE)
def test_words_that_could_do_more_are_refused_by_name(word):
    with pytest.raises(ValueError, match="chain.json") as refused:
        check_overrides(["seed=3", word], source="chain.json")
    inner = word.partition("['")[2].partition("'")[0] if ".overrides=" in word else word
    assert repr(inner) in str(refused.value) or repr(word) in str(refused.value)
