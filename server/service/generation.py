"""The use case of `POST /v1/generate`: a command in, an open run of sequences out."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time

from server.core import AdapterSource, BaseModel, FinishReason, SamplingParams, Scoring
from server.engine.client import RESTART_WAIT, EngineClient, SequenceStream
from server.engine.messages import Hello
from server.errors import ContextTooLong, DeadlineReached, InvalidRequest, WaybillError
from server.metrics import Metrics
from server.service.adapters import AdapterService
from server.service.admission import Gate
from server.service.choice import Choice
from server.service.detokenizer import Detokenizer
from server.service.exchange import (
    DEFAULT_MAX_TOKENS,
    MAX_LABELLED,
    MAX_SCORED,
    MAX_SEQUENCES,
    AdapterUsed,
    GenerateCommand,
    Prompt,
    Usage,
)
from server.service.labelling import Ids, Joined, LabelChoice, join
from server.service.prompt_tokens import PromptTokens
from server.service.prompting import Prompter, RenderedPrompt
from server.service.run import Run
from server.service.seeds import choice_seed
from server.service.sources import source_of
from server.service.structure import StructureReader, check_beside
from server.service.tenants import Tenant
from server.service.tokenizer import Tokenizer
from server.store.version import Version


class GenerationService:
    """Runs generate calls on the engine, and knows every one that is open."""

    def __init__(
        self,
        *,
        engine: EngineClient,
        adapters: AdapterService,
        prompter: Prompter,
        tokenizer: Tokenizer,
        base: BaseModel,
        gate: Gate,
        metrics: Metrics,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._prompter = prompter
        self._tokenizer = tokenizer
        self._base = base
        self._gate = gate
        self._metrics = metrics
        self._structures = StructureReader()
        self._runs: set[Run] = set()

    async def open(self, tenant: Tenant, command: GenerateCommand) -> Run:
        """Resolve, render, judge and submit; the caller must `close` the run.

        Raises AdapterNotFound, InvalidRequest, ContextTooLong, Overloaded, Draining, EngineRestarting.
        """
        arrived = time.monotonic()
        places = command.num_prompts * command.n
        self._check_command(command, places)
        self._gate.enter(places)
        version: Version | None = None
        try:
            async with asyncio.timeout(command.timeout):
                if command.adapter is not None:
                    version = await self._adapters.acquire(tenant, command.adapter)
                asked = await self._render(version, command)
                structure = command.structure
                grammar = None if structure is None else await self._structures.read(structure)
                await self._engine.wait_ready(RESTART_WAIT)
            more = sum(prompt.sequences(self._abreast(command)) - 1 for prompt in asked if isinstance(prompt, Joined))
            if more:
                self._gate.enter(more)
                places += more
            return self._start(tenant, command, version, asked, grammar, arrived, places)
        except BaseException as error:
            self._give_back(version, places)
            if isinstance(error, TimeoutError):
                raise DeadlineReached("timeout_s passed before the first token") from None
            raise

    def fail_all(self, error: WaybillError) -> None:
        """End every open run with this error (the server's time to shut down is over)."""
        for run in tuple(self._runs):
            run.fail(error)

    def _check_command(self, command: GenerateCommand, places: int) -> None:
        """Refuse what is wrong whatever the adapter."""
        if places > MAX_SEQUENCES:
            raise InvalidRequest(f"prompts times n is {places}; the most is {MAX_SEQUENCES}", param="n")
        if command.max_tokens == 0 and command.prompt_logprobs is None:
            raise InvalidRequest("max_tokens is 0, which is for prompt_logprobs alone", param="max_tokens")
        if command.num_prompts * len(command.labels) > MAX_LABELLED:
            raise InvalidRequest(f"prompts times labels are more than {MAX_LABELLED}", param="labels")
        if command.structure is not None:
            check_beside(command.structure, command)
        vocabulary = self._base.vocab_size
        named = [("stop_token_ids", command.sampling.stop_token_ids)]
        named.append(("logit_bias", tuple(token for token, _ in command.sampling.logit_bias)))
        named += [("prompt", prompt) for prompt in command.prompts if not isinstance(prompt, str)]
        for param, ids in named:
            if ids and not 0 <= min(ids) <= max(ids) < vocabulary:
                raise InvalidRequest(f"{param} holds token ids outside 0..{vocabulary - 1}", param=param)

    async def _render(self, version: Version | None, command: GenerateCommand) -> list[RenderedPrompt | Joined]:
        """Render every prompt in a thread: templates and tokenizers are not made to share an event loop."""
        spec = None if version is None else version.spec
        hello = self._engine.hello
        given_up = threading.Event()  # a thread cannot be cancelled, and a thousand labels take it a while

        def one(prompt: Prompt | None, label: str = "") -> RenderedPrompt:
            if given_up.is_set():
                raise DeadlineReached("nobody waits for it any more")
            return self._prompter.render(
                spec,
                prompt=prompt,
                messages=command.messages,
                fields=command.fields,
                task=command.task,
                label=label,
                last=command.truncate_prompt_tokens,
                add_special_tokens=command.add_special_tokens,
            )

        def with_labels(prompt: Prompt | None) -> Joined:
            alone = one(prompt)
            # Text that can never fit is not read once more with every label.
            _require_room(len(alone.tokens), 0, hello, "the prompt", "prompt")
            together = [one(prompt, label) for label in command.labels]
            return join(alone, together, command.labels, self._base.vocab_size)

        def work() -> list[RenderedPrompt | Joined]:
            return [with_labels(prompt) if command.labels else one(prompt) for prompt in command.prompts or (None,)]

        try:
            return await asyncio.to_thread(work)
        finally:
            given_up.set()

    def _start(
        self,
        tenant: Tenant,
        command: GenerateCommand,
        version: Version | None,
        asked: list[RenderedPrompt | Joined],
        grammar: str | None,
        arrived: float,
        places: int,
    ) -> Run:
        text_tokens = sum(prompt.num_text_tokens for prompt in asked)
        _check_scores(command, text_tokens)
        seed = secrets.randbits(63) if command.seed is None else command.seed
        hello = self._engine.hello
        prompts = [prompt.shared if isinstance(prompt, Joined) else prompt for prompt in asked]
        sources = [None if version is None else source_of(self._base, version, prompt) for prompt in prompts]
        limits = [_max_tokens(command, prompt, source, hello) for prompt, source in zip(asked, sources, strict=True)]
        salt = tenant.name if command.cache_salt is None else f"{tenant.name}/{command.cache_salt}"
        choices: list[Choice] = []
        try:
            for prompt, source, max_tokens in zip(asked, sources, limits, strict=True):
                for number in range(command.n):
                    if isinstance(prompt, Joined):
                        choices.append(self._label(len(choices), prompt, source, salt, command))
                        continue
                    params = _params(command, max_tokens, choice_seed(seed, number), grammar)
                    stream = self._engine.submit(prompt.tokens, params, source, salt, _scoring(command))
                    choices.append(self._choice(len(choices), stream, prompt, command))
        except BaseException:
            for choice in choices:
                choice.abort()
            raise
        virtual_tokens = 0 if version is None else version.spec.num_virtual_tokens * len(asked)

        def on_close(run: Run) -> None:
            self._runs.discard(run)
            self._give_back(version, places)
            self._observe(run)

        run = Run(
            choices,
            adapter=None if version is None else _used(version),
            seed=seed,
            usage=lambda completion: Usage(
                text_tokens,
                completion,
                virtual_tokens,
                sum(choice.cached_tokens for choice in choices[:: command.n]),  # a prompt counts once, as it does above
            ),
            arrived=arrived,
            deadline=None if command.timeout is None else arrived + command.timeout,
            details=command.details,
            on_close=on_close,
        )
        self._runs.add(run)
        return run

    def _choice(self, index: int, stream: SequenceStream, prompt: RenderedPrompt, command: GenerateCommand) -> Choice:
        return Choice(
            index,
            stream,
            PromptTokens(prompt, self._base.vocab_size, self._tokenizer.token_text),
            Detokenizer(
                self._tokenizer if command.skip_special_tokens else self._tokenizer.special_shown,
                command.stop,
                include_stop=command.include_stop,
                min_tokens=command.sampling.min_tokens,
            ),
            frozenset(command.sampling.stop_token_ids),
            command.include_stop,
            self._tokenizer.token_text,
            self._metrics.observe_gap,
        )

    def _label(
        self, index: int, joined: Joined, source: AdapterSource | None, salt: str, command: GenerateCommand
    ) -> Choice:
        def submit(tokens: Ids, scoring: Scoring) -> SequenceStream:
            return self._engine.submit(tokens, SamplingParams(max_tokens=0), source, salt, scoring)

        return LabelChoice(
            index,
            joined,
            submit,
            abreast=self._abreast(command),
            prompt=PromptTokens(joined.shared, self._base.vocab_size, self._tokenizer.token_text),
            detokenizer=Detokenizer(self._tokenizer),
            observe_gap=self._metrics.observe_gap,
        )

    def _abreast(self, command: GenerateCommand) -> int:
        """Return how many sequences for the labels of one prompt may be open at once."""
        return max(1, min(MAX_SEQUENCES, self._gate.limit) // command.num_prompts)

    def _observe(self, run: Run) -> None:
        usage, timings = run.usage, run.timings
        self._metrics.observe_answer(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            virtual_tokens=usage.virtual_tokens,
            finish_reasons=tuple(choice.finish or FinishReason.ABORT for choice in run.choices),
            queue=timings.queue_ms / 1000,
            ttft=timings.ttft_ms / 1000,
            total=timings.total_ms / 1000,
        )

    def _give_back(self, version: Version | None, places: int) -> None:
        if version is not None:
            self._adapters.release(version)
        self._gate.leave(places)


def _used(version: Version) -> AdapterUsed:
    spec = version.spec
    return AdapterUsed(version.name, version.label, version.digest, spec.kind, spec.num_virtual_tokens)


def _params(command: GenerateCommand, max_tokens: int, seed: int, grammar: str | None) -> SamplingParams:
    sampling = command.sampling
    return SamplingParams(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=sampling.logit_bias,
        seed=seed,
        min_tokens=sampling.min_tokens,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs,
        typical_p=sampling.typical_p,
        grammar=grammar,
    )


def _scoring(command: GenerateCommand) -> Scoring | None:
    return None if command.prompt_logprobs is None else Scoring(top=command.prompt_logprobs)


def _check_scores(command: GenerateCommand, text_tokens: int) -> None:
    """Raise InvalidRequest where more would be told of the prompts than a reply may hold."""
    top = command.prompt_logprobs
    if top is not None and (numbers := text_tokens * command.n * (1 + top)) > MAX_SCORED:
        raise InvalidRequest(
            f"log-probabilities of {numbers} tokens and candidates of prompts; the most are {MAX_SCORED}:"
            " send fewer prompts at once, or ask for fewer of the likeliest",
            param="prompt_logprobs",
        )


def _max_tokens(
    command: GenerateCommand, prompt: RenderedPrompt | Joined, source: AdapterSource | None, hello: Hello
) -> int:
    """Return how many tokens to generate. Raises ContextTooLong for what can never fit this engine."""
    prefix = 0 if source is None else source.prefix_len
    if isinstance(prompt, Joined):
        longest = prefix + len(prompt.shared.tokens) + prompt.longest
        _require_room(longest, prefix, hello, "the prompt with its longest label", "labels")
        return 0
    if not prompt.tokens:
        raise InvalidRequest("the prompt is empty: it holds no token", param="prompt")
    held = f"{prefix + len(prompt.tokens)} tokens"
    if source is not None:
        held += f", {source.num_virtual_tokens} of them virtual"
    room = min(hello.max_model_len, _capacity(prefix, hello)) - prefix - len(prompt.tokens)
    default = max(room, 1) if command.fill_context else min(DEFAULT_MAX_TOKENS, max(room, 1))
    wanted = default if command.max_tokens is None else command.max_tokens
    if wanted > room:
        raise ContextTooLong(
            # Programs look for the first words: they are what other servers say too.
            f"this model's maximum context length is {prefix + len(prompt.tokens) + room} tokens here: the prompt takes"
            f" {held}, and max_tokens is {wanted}",
            param="prompt" if room < 1 else "max_tokens",
        )
    if command.sampling.min_tokens > wanted:
        raise InvalidRequest(f"min_tokens is above max_tokens ({wanted})", param="min_tokens")
    return wanted


def _require_room(tokens: int, prefix: int, hello: Hello, what: str, param: str) -> None:
    """Raise ContextTooLong where `what` is more than fits this engine."""
    room = min(hello.max_model_len, _capacity(prefix, hello))
    if tokens > room:
        raise ContextTooLong(f"{what} takes {tokens} tokens; the most are {room}", param=param)


def _capacity(prefix: int, hello: Hello) -> int:
    """Return how many tokens one sequence with such a prefix may hold if it has the whole KV pool to itself."""
    prefix_blocks = -(-prefix // hello.block_size)
    if prefix_blocks > hello.prefix_blocks:
        raise ContextTooLong(
            f"the adapter's prefix takes {prefix_blocks} KV blocks; this server has {hello.prefix_blocks} for prefixes",
            param="adapter",
        )
    return prefix + (hello.num_blocks - prefix_blocks) * hello.block_size
