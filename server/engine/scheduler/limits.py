"""What the scheduler may use, and in how many steps everything ends.

Age decides everything: no memory is taken from an older sequence, or from a prefix that an older one waits with, for
the sake of a younger one, and in the line for admission nobody is passed by a younger one. (Those that wait for a file
or for the compile slot stand outside the line.) The slot is what a step computes for compiling; at most one compile is
unfinished after a step, and it comes first in the next, with the whole slot. Count steps as calls of `schedule`; let M
be `max_model_len`, K the most chunks that a prefix is compiled in (where compiles are packed, the first may be cut
short by others in its step), and L the most steps between `plan.load` and the call that answers it. The oldest
unfinished sequence, wherever it stands, needs at most

- L steps until a load slot is free (only files being read keep one from it), and L until its file is read;
- K until no compile that was begun before is unfinished, and M + 2 until its prefix has room: nothing else is admitted
  meanwhile, and everything that runs computes a token a step until it ends or is preempted;
- K to compile;
- M + 2 until it is admitted, again with nothing admitted before it;
- M + 2 to run: it is never preempted, and computes a token a step.

That is `Limits.steps_bound`; then the next is the oldest. So a sequence added while n others are unfinished ends within
n + 1 times as many steps, whatever is added after it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler may use. Raises ValueError for limits under which some sequence could wait for ever."""

    max_seqs: int  # sequences that run at once
    step_tokens: int  # tokens that one step computes, compiling included
    max_model_len: int  # tokens of one sequence: prefix, prompt and output
    num_blocks: int  # the whole pool
    block_size: int  # tokens
    prefix_blocks: int  # the most of the pool that prefixes and tables count for
    max_loads: int = 8  # adapters that are read, or wait in host memory for room, at once
    packed: bool = False  # a token's result never depends on its batch, nor on how its sequence is cut into steps
    prompt_cache: bool = True  # what was computed stays for later sequences that start alike, until room is needed

    def __post_init__(self) -> None:
        if self.max_seqs < 1 or self.max_loads < 1 or self.max_model_len < 1:
            raise ValueError("max_seqs, max_loads and max_model_len must be at least 1")
        if self.step_tokens < 2 * self.max_seqs:
            raise ValueError(
                f"step_tokens is {self.step_tokens}, and {self.max_seqs} sequences need at least {2 * self.max_seqs}: "
                "half of it may go to compiling an adapter, and every sequence computes a token a step"
            )
        # A prefix and a sequence's own tokens each end with a partly filled block.
        least = -(-self.max_model_len // self.block_size) + 1
        if self.num_blocks < least:
            raise ValueError(
                f"{self.num_blocks} blocks of {self.block_size} tokens cannot hold one sequence of max_model_len "
                f"{self.max_model_len}; that takes {least}"
            )
        if not 0 <= self.prefix_blocks <= self.num_blocks:
            raise ValueError(f"prefix_blocks is {self.prefix_blocks} of {self.num_blocks} blocks")

    @property
    def compile_tokens(self) -> int:
        """Tokens that one step compiles at most.

        Unless compiles are packed, it is one adapter's and every chunk but its last has this size, so that an adapter's
        KV never depends on the load.
        """
        return self.step_tokens // 2

    def steps_bound(self, load_steps: int) -> int:
        """Steps in which the oldest sequence ends, wherever it stands, when files are read in `load_steps` steps."""
        chunks = -(-self.max_model_len // self.compile_tokens) + self.packed
        return 2 * load_steps + 2 * chunks + 3 * (self.max_model_len + 2)
