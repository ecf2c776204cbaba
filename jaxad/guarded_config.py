"""A ConfigDict in which a missing key ends in one sentence, wherever it is needed: no list of needed keys is kept."""

from ml_collections import ConfigDict

from jaxad.errors import UserError


class MissingKey(UserError, AttributeError, KeyError):
    """A config lacks a key that this version of jaxad needs. The other two bases let ``hasattr`` and ``get`` work."""

    __str__ = Exception.__str__  # KeyError's would put the sentence in quotes


class GuardedConfig(ConfigDict):
    """A section of a config, in which a missing key ends in a sentence that names the key and the config's file."""

    _sentence = "the config", "see experiments/ for examples", ""  # source, remedy, and the section's own key

    def _guard(self, *sentence: str) -> None:
        object.__setattr__(self, "_sentence", sentence)  # ConfigDict's own would make a key of it

    def __getitem__(self, key):
        try:
            return super().__getitem__(key)
        except KeyError as error:
            if isinstance(error, MissingKey):
                raise
            source, remedy, prefix = self._sentence
            raise MissingKey(f"{source} lacks config.{prefix}{key}; {remedy}", about=f"{prefix}{key}") from error

    def __getattr__(self, name: str):
        if name.startswith("_"):  # asked for by copy and pickle, also before there are keys
            raise AttributeError(name)
        return self[name]

    def __setstate__(self, state):
        super().__setstate__(state)
        self._guard(*state["_sentence"])


def guarded(section: ConfigDict, source: str, remedy: str, prefix: str = "") -> ConfigDict:
    """A locked copy, with the same references, that tells of missing keys: `source` lacks the key; `remedy`."""
    copied = GuardedConfig()
    copied._guard(source, remedy, prefix)
    for key, value in section.items(preserve_field_references=True):
        is_section = isinstance(value, ConfigDict)
        copied[key] = guarded(value, source, remedy, f"{prefix}{key}.") if is_section else value
    return copied.lock()
