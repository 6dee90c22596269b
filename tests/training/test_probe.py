import pytest
from lenext.training import train
from tests.training.common import read_metrics
@pytest.mark.parametrize("n",[1,2,3])
def test_x(undisturbed, config, tmp_path,n):
    train(config, tmp_path)
    assert read_metrics(tmp_path)==read_metrics(undisturbed)
