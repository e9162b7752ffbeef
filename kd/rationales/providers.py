"""Where language models answer, and how each place differs from the others, as plain data.

All of them speak the protocol of OpenAI, with other names for the same things. This room opens no
connection and reads no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["PROVIDERS", "Provider", "ProviderName", "Structured", "response_format"]

ProviderName = Literal["openai", "groq", "vllm", "llama.cpp", "transformers", "custom"]

Structured = Literal["none", "json_object", "json_object_schema", "json_schema"]
"""How a server is told to write JSON: not at all, JSON of any shape, JSON of a shape as llama.cpp
spells it, or as OpenAI does."""


@dataclass(frozen=True)
class Provider:
    """What is special about one place; a field that a server does not know may be an error there.

    Args:
        base_url: Where it answers; null if only the user knows.
        api_key_env: Environment variable that holds its key; null where none is needed.
        structured: How it is told to write JSON.
        schema_models: Beginnings of the names of models that keep to a JSON schema, where the
            others do not.
        max_tokens_field: What it calls the most tokens of an answer.
    """

    base_url: str | None = None
    api_key_env: str | None = None
    structured: Structured = "none"
    schema_models: tuple[str, ...] = ()
    max_tokens_field: str = "max_tokens"

    def structured_for(self, model: str) -> Structured:
        """Return how a model is told to write JSON here."""
        if model.startswith(self.schema_models):
            return "json_schema"
        return self.structured


PROVIDERS: Mapping[ProviderName, Provider] = {
    "openai": Provider(
        base_url="https://api.openai.com/v1",
        api_key_env="OPENAI_API_KEY",
        structured="json_schema",
        max_tokens_field="max_completion_tokens",  # its reasoning models refuse max_tokens
    ),
    # no reasoning_format: only some of its models know it, and its default is right with JSON
    "groq": Provider(
        base_url="https://api.groq.com/openai/v1",
        api_key_env="GROQ_API_KEY",
        structured="json_object",
        schema_models=("openai/gpt-oss-",),
        max_tokens_field="max_completion_tokens",
    ),
    "vllm": Provider(base_url="http://localhost:8000/v1", structured="json_schema"),
    "llama.cpp": Provider(base_url="http://localhost:8080/v1", structured="json_object_schema"),
    "transformers": Provider(base_url="http://localhost:8000/v1"),  # ignores response_format
    "custom": Provider(),
}
"""The places that are known by name; ``custom`` is any other, by its URL."""


def response_format(structured: Structured, schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a request that ask for JSON.

    Args:
        structured: How the server is told.
        schema: JSON schema of the answer.

    Returns:
        Nothing, or ``response_format``.
    """
    shapes: dict[Structured, dict[str, Any]] = {
        "json_object": {"type": "json_object"},
        "json_object_schema": {"type": "json_object", "schema": schema},
        "json_schema": {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": schema},
        },
    }
    return {"response_format": shapes[structured]} if structured in shapes else {}
