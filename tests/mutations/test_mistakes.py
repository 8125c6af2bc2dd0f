"""The planted mistakes fit the package as it is; ``make test-mutations`` plants them."""

import pytest

from tests.mutations.__main__ import MISTAKES, ROOT


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.what)
def test_every_mistake_has_its_place_and_its_tests(mistake):
    content = mistake.made_in(ROOT / "ldm_lightning")
    compile(content, mistake.file, "exec")
    assert all((ROOT / "tests" / test).is_file() for test in mistake.tests.split())
