"""Audio whose embeddings are added to those of the tokens, one embedding to each token."""

from collections.abc import Iterator

from llmsim_magic.capture.modalities import audio
from llmsim_magic.capture.modalities.modality import Layout
from llmsim_magic.capture.modalities.placeholders import EMBED_AUDIO, embedding_count
from llmsim_magic.capture.modalities.signature import InputSpec


def audio_for_tokens(spec: InputSpec) -> Iterator[Layout]:
    """Yield audio that the model turns into one embedding for each of `context` tokens.

    The length of audio for one embedding is that of audio of the default length, divided by the
    number of embeddings that the model makes of it.
    """
    main = audio.keyword(spec)
    if main is None or "input_ids" not in spec.accepted:
        return
    for layout in audio.layouts(spec):
        if embeddings := embedding_count(spec, EMBED_AUDIO, layout) // spec.batch:
            per_token = max(layout.keywords[main].shape[1:]) // embeddings
            for fitted in audio.layouts(spec, spec.context * per_token):
                if embedding_count(spec, EMBED_AUDIO, fitted) == spec.batch * spec.context:
                    yield Layout(fitted.keywords, f"{fitted.note}, {per_token} for each token")
            return
