import pytest
from torch.utils.data import DataLoader, Dataset

from ldm_lightning.utils.errors import error_line


class Broken(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        raise ValueError("3 of 4 files cannot be read.")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_is_one_line_wherever_it_was_raised(num_workers):
    with pytest.raises(ValueError, match="cannot be read") as caught:
        next(iter(DataLoader(Broken(), num_workers=num_workers)))
    assert error_line(caught.value) == "ValueError: 3 of 4 files cannot be read."
