import json

from ldm_lightning.reporting.metrics_csv import MetricsCsv
from ldm_lightning.reporting.training_record import TrainingRecord, read_training_record

PROTOCOL = {"images": "a", "resolution": "32x32", "crop": "none", "channels": 3, "num_images": 5}


def write_run(folder, *, protocol=PROTOCOL):
    log = MetricsCsv(folder)
    log.log_metrics({"train/loss_total": 5.0}, 2)
    for step, psnr in ((2, 15.0), (4, 17.5), (6, 18.0)):
        log.log_metrics({"val/psnr": psnr, "val_raw/psnr": psnr - 1, "latent/std": 9.0}, step)
    summary = {"protocol": {"val/psnr": protocol}}
    (folder / "summary.json").write_text(json.dumps(summary))


def test_tells_what_was_validated_at_the_checkpoint(tmp_path):
    write_run(tmp_path)
    record = read_training_record(tmp_path, step=4)
    assert record.validated == {"val/psnr": 17.5, "latent/std": 9.0}
    assert record.psnr_rise == 2.5
    assert read_training_record(tmp_path, step=2).psnr_rise is None


def test_raw_weights_have_a_record_of_their_own_without_latents(tmp_path):
    write_run(tmp_path)
    record = read_training_record(tmp_path, step=6, stage="val_raw")
    assert record.validated == {"val/psnr": 17.0}
    assert record.psnr_rise == 0.5


def test_a_checkpoint_between_validations_has_no_record(tmp_path):
    write_run(tmp_path)
    assert read_training_record(tmp_path, step=5) == TrainingRecord()


def test_knows_whether_it_saw_the_same_images(tmp_path):
    write_run(tmp_path)
    record = read_training_record(tmp_path, step=6)
    assert record.is_of({**PROTOCOL, "num_images": 4})
    assert not record.is_of({**PROTOCOL, "images": "b"})
    assert not record.is_of({**PROTOCOL, "resolution": "64x64"})
    assert not TrainingRecord().is_of({})


def test_missing_and_damaged_files_tell_nothing(tmp_path):
    assert read_training_record(tmp_path, step=6) == TrainingRecord()
    write_run(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    record = read_training_record(tmp_path, step=6)
    assert record.validated["val/psnr"] == 18.0
    assert not record.is_of(PROTOCOL)
    (tmp_path / "metrics.csv").write_text("step,metric,value\nx,y,z\n")
    assert read_training_record(tmp_path, step=6) == TrainingRecord()
