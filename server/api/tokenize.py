"""`/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them; `/tokenize` also as TGI does."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from server.api.auth import CurrentTenant, protected_router
from server.api.body import read_json
from server.api.client import unless_gone
from server.api.fields import Adapter, FieldTexts, Task, TokenIds
from server.api.generate import MAX_BODY
from server.api.openai.chat import Message
from server.api.openai.selection import Selection, reraised, select
from server.api.openapi import ANY_ROUTE, WITH_BODY, error_replies, json_body
from server.api.replies import large_reply
from server.api.strict import Strict
from server.engine.client import EngineClient
from server.errors import InvalidRequest, WaybillError
from server.service.tenants import Tenant
from server.service.tokenizer import Tokenizer
from server.service.tokenizing import Located, Question, TokenizingService

router = protected_router()

Model = Annotated[str, Field(max_length=400)]


class TokenizeRequest(Strict):
    """The body of `POST /tokenize`. Exactly one of `prompt`, `messages`, `fields` and `inputs` is given."""

    prompt: str | None = Field(None, description="Text. One of `prompt`, `messages`, `fields` and `inputs` is needed.")
    messages: Annotated[list[Message], Field(min_length=1, max_length=1024)] | None = Field(
        None, description="A conversation, rendered by the base model's chat template."
    )
    fields: FieldTexts | None = Field(None, description="What fills the adapter's template, by field name.")
    inputs: str | None = Field(
        None,
        description=(
            "Text, answered as TGI does: a list of tokens with the characters that each stands for. Not "
            "with an adapter."
        ),
    )
    model: Model | None = Field(None, description="The base model, an adapter, or `base:adapter`.")
    adapter: Adapter | None = Field(
        None, description="An adapter. Virtual tokens are not among `tokens`; `virtual_tokens` is their number."
    )
    task: Task | None = Field(None, description="Name or index of the task of a multitask adapter.")
    add_special_tokens: bool | None = Field(
        None, description="As in `/v1/generate`; with messages only `false`. Default: true; of messages, false."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Only with messages: begin the assistant's turn. Default: true."
    )
    return_token_strs: bool = Field(False, description="Tell each token as the vocabulary writes it, in `token_strs`.")

    def check(self) -> None:
        """Raise InvalidRequest for fields that say nothing together."""
        given = [name for name in ("prompt", "messages", "fields", "inputs") if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                f"exactly one of prompt, messages, fields and inputs is needed; got {' and '.join(given) or 'none'}",
                param="prompt",
            )
        if self.add_special_tokens and self.messages is not None:
            raise InvalidRequest(
                "add_special_tokens: the chat template writes every special token", param="add_special_tokens"
            )
        if self.add_generation_prompt is not None and self.messages is None:
            raise InvalidRequest("add_generation_prompt is for messages", param="add_generation_prompt")
        if self.inputs is not None and self.return_token_strs:
            raise InvalidRequest("return_token_strs is for prompt; inputs tells texts", param="return_token_strs")

    def question(self, adapter: str | None) -> Question:
        """Return it as the service takes it."""
        return Question(
            prompt=self.prompt,
            messages=None if self.messages is None else tuple(message.plain() for message in self.messages),
            fields=self.fields,
            adapter=adapter,
            task=self.task,
            add_special_tokens=self.add_special_tokens is not False,
            add_generation_prompt=self.add_generation_prompt is not False,
        )


class TokenizeReply(BaseModel):
    """The text tokens. An adapter's virtual tokens are counted apart; they take room in `max_model_len` too."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None
    virtual_tokens: int


class LocatedToken(BaseModel):
    """One token in TGI's words: the characters from `start` to `stop` of the text."""

    id: int
    text: str
    start: int
    stop: int


class DetokenizeRequest(Strict):
    """The body of `POST /detokenize`."""

    tokens: TokenIds = Field(description="Ids of the vocabulary.")
    model: Model | None = Field(None, description="The base model or an adapter on it: their tokens are the same.")


class DetokenizeReply(BaseModel):
    """The text, special tokens by their names."""

    prompt: str


class TokenizerInfo(BaseModel):
    """What a client needs to do as the tokenizer does; special tokens by their role, null where there is none."""

    tokenizer_class: str
    chat_template: str | None
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    pad_token: str | None
    model_max_length: int
    vocab_size: int


@router.post(
    "/tokenize",
    response_model=None,
    responses={200: {"model": TokenizeReply | list[LocatedToken]}, **error_replies((*WITH_BODY, 404, 422))},
    openapi_extra=json_body(TokenizeRequest),
)
async def tokenize(request: Request, tenant: CurrentTenant) -> Response:
    """Tell the tokens of a text: as vLLM does for `prompt`, `messages` and `fields`, as TGI does for `inputs`."""
    body = await read_json(request, TokenizeRequest, MAX_BODY)
    body.check()
    selection = await _select(request, tenant, body.model, body.adapter)
    service: TokenizingService = request.app.state.tokenizing
    if body.inputs is not None:
        _only_text(body, selection)
        located = service.locate(body.inputs, add_special_tokens=body.add_special_tokens is not False)
        found = await unless_gone(request.receive, located)
        return await unless_gone(request.receive, large_reply(lambda: [_located(token) for token in found]))
    try:
        tokenized = await unless_gone(request.receive, service.tokenize(tenant, body.question(selection.adapter)))
    except WaybillError as error:
        raise reraised(error, selection.model) from None
    tokenizer: Tokenizer = request.app.state.tokenizer
    engine: EngineClient = request.app.state.engine

    def told() -> dict[str, Any]:
        return TokenizeReply(
            count=len(tokenized.ids),
            max_model_len=engine.hello.max_model_len,
            tokens=list(tokenized.ids),
            token_strs=[tokenizer.piece(token) for token in tokenized.ids] if body.return_token_strs else None,
            virtual_tokens=tokenized.virtual_tokens,
        ).model_dump()

    return await unless_gone(request.receive, large_reply(told))


@router.post(
    "/detokenize",
    response_model=None,
    responses={200: {"model": DetokenizeReply}, **error_replies((*WITH_BODY, 404))},
    openapi_extra=json_body(DetokenizeRequest),
)
async def detokenize(request: Request, tenant: CurrentTenant) -> Response:
    """Tell the text of tokens."""
    body = await read_json(request, DetokenizeRequest, MAX_BODY)
    selection = await _select(request, tenant, body.model, None)
    if selection.adapter is not None:
        try:
            await request.app.state.adapters.get(tenant, selection.adapter)
        except WaybillError as error:
            raise reraised(error, selection.model) from None
    service: TokenizingService = request.app.state.tokenizing
    return JSONResponse({"prompt": await unless_gone(request.receive, service.detokenize(body.tokens))})


@router.get("/tokenizer_info", responses=error_replies(ANY_ROUTE))
async def tokenizer_info(request: Request) -> TokenizerInfo:
    """Tell the tokenizer's class, its special tokens and the chat template."""
    tokenizer: Tokenizer = request.app.state.tokenizer
    engine: EngineClient = request.app.state.engine
    names = tokenizer.names
    return TokenizerInfo(
        tokenizer_class=tokenizer.class_name,
        chat_template=tokenizer.chat_template,
        bos_token=names.get("bos_token"),
        eos_token=names.get("eos_token"),
        unk_token=names.get("unk_token"),
        pad_token=names.get("pad_token"),
        model_max_length=engine.hello.max_model_len,
        vocab_size=tokenizer.vocab_size,
    )


async def _select(request: Request, tenant: Tenant, model: str | None, adapter: str | None) -> Selection:
    state = request.app.state
    return await select(state.adapters, tenant, state.base.name, model=model, adapter=adapter)


def _located(token: Located) -> dict[str, Any]:
    return {"id": token.id, "text": token.text, "start": token.start, "stop": token.stop}


def _only_text(body: TokenizeRequest, selection: Selection) -> None:
    """Refuse what TGI's reply has no place for. Raises InvalidRequest."""
    if selection.adapter is not None or body.task is not None:
        param = "task" if selection.adapter is None else "adapter" if selection.model is None else "model"
        raise InvalidRequest("inputs are tokenized without an adapter; send prompt for one", param=param)
