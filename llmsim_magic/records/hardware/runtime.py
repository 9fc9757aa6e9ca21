"""What a runtime needs of a device's memory beside weights, cache and activations."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """An allowance, each figure from `source`, for devices of `from_memory_bytes` or more.

    Of the memory chips software sees `visible_share`, and of that it takes `usable_share`.
    `context_bytes` are held by drivers and libraries of one device, `parallel_context_bytes` by
    those of one that works with others. Sampling takes `logit_copies` times the float32 logits of
    `sampled_sequences`. A prompt is read in chunks of `chunk_tokens`; 0 reads it whole. With
    `own_attention` it runs attention kernels of its own in place of the model's.
    """

    name: str
    from_memory_bytes: int
    usable_share: float
    visible_share: float
    context_bytes: int
    parallel_context_bytes: int
    sampled_sequences: int
    logit_copies: float
    chunk_tokens: int
    own_attention: bool
    source: str
    note: str

    def usable_bytes(self, memory_bytes: int) -> int:
        """Of a device's memory, what the runtime takes for all it holds."""
        return int(memory_bytes * self.visible_share * self.usable_share)

    def context(self, ranks: int) -> int:
        """Bytes of drivers and libraries on each of so many devices."""
        return self.context_bytes if ranks == 1 else self.parallel_context_bytes

    def sampling_bytes(self, vocabulary: int) -> int:
        """What sampling takes at most: copies of float32 logits."""
        return int(self.logit_copies * self.sampled_sequences * vocabulary * 4)
