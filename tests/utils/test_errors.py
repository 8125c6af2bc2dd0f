import pytest
from torch.utils.data import DataLoader, Dataset

from ldm_lightning.utils.errors import error_line

TEXT = "3 of 4 files cannot be read."


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError(TEXT)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_is_one_line_wherever_it_was_raised(num_workers):
    with pytest.raises(ValueError, match="files") as caught:
        next(iter(DataLoader(Broken(), num_workers=num_workers)))
    assert error_line(caught.value) == f"ValueError: {TEXT}"
