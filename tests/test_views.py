import pytest

from kd.errors import ModelError
from kd.models import EncoderClassifier
from kd.views import view_of


@pytest.mark.fault(37)
def test_a_view_is_cut_where_the_model_ends(make_model):
    model = EncoderClassifier(path=str(make_model()))  # it reads 64 tokens
    model.load()
    short, long = view_of(model, 20), view_of(model, 1000, "text and rationale")
    assert (short.max_length, short.room, short.reads) == (20, 40, "text")
    assert (long.max_length, long.room, long.reads) == (64, 64, "text and rationale")
    assert short.tokenizer is model.tokenizer


def test_a_model_that_is_not_loaded_reads_nothing(make_model):
    with pytest.raises(ModelError, match="not loaded yet"):
        view_of(EncoderClassifier(path=str(make_model())), 20)
