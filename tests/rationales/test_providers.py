from __future__ import annotations

from typing import get_args

import pytest

from kd.rationales.prompts import reply_schema
from kd.rationales.providers import PROVIDERS, ProviderName, Structured, response_format

SCHEMA = reply_schema(("negative", "positive"))


def test_every_provider_that_can_be_named_is_known():
    assert tuple(PROVIDERS) == get_args(ProviderName)


def test_only_what_is_far_away_needs_a_key_and_is_reached_safely():
    for name, provider in PROVIDERS.items():
        is_far = name in ("openai", "groq")
        assert bool(provider.api_key_env) == is_far
        assert (provider.base_url or "").startswith("https://") == is_far


@pytest.mark.parametrize(
    ("provider", "model", "structured"),
    [
        ("openai", "gpt-4o-mini", "json_schema"),
        ("groq", "openai/gpt-oss-120b", "json_schema"),
        ("groq", "qwen/qwen3-32b", "json_object"),
        ("vllm", "openai/gpt-oss-120b", "json_schema"),
        ("llama.cpp", "any", "json_object_schema"),
        ("transformers", "any", "none"),
        ("custom", "openai/gpt-oss-120b", "none"),
    ],
)
def test_a_model_is_told_to_write_json_as_its_provider_can(provider, model, structured):
    assert PROVIDERS[provider].structured_for(model) == structured


def test_json_is_asked_for_in_the_words_of_each_server():
    assert response_format("none", SCHEMA) == {}
    formats = {
        name: response_format(name, SCHEMA)["response_format"]
        for name in get_args(Structured)
        if name != "none"
    }
    assert formats["json_object"] == {"type": "json_object"}
    assert formats["json_object_schema"] == {"type": "json_object", "schema": SCHEMA}
    assert formats["json_schema"]["type"] == "json_schema"
    assert formats["json_schema"]["json_schema"]["schema"] == SCHEMA


def test_the_schema_is_one_that_strict_modes_take():
    assert SCHEMA["additionalProperties"] is False
    assert SCHEMA["required"] == list(SCHEMA["properties"])
