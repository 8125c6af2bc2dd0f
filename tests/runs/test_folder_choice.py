import pytest

from ldm_lightning.runs.folder_choice import run_dir


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "../elsewhere", "a/../../elsewhere"])
@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_name_does_not_lead_out_of_the_outputs(tmp_path, monkeypatch, name, resume):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"name={name}"):
        run_dir(name, resume)
    assert not list(tmp_path.iterdir())


def test_a_name_may_have_parts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_dir("group/kl_f8", None).startswith("outputs/group/kl_f8/")
