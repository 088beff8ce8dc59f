"""Keys that a run does not look at, for what else it was told: refused, and not passed over."""

from collections.abc import Callable

from greentrainer.config import RunConfig
from greentrainer.methods import METHODS, Method
from greentrainer.run.asked import forward_of
from greentrainer.tasks import NAMES, is_published

Used = Callable[[RunConfig, Method], bool]


def _spends(config: RunConfig, method: Method) -> bool:
    return method.budgeted or method.stops_early(config)


def _own(config: RunConfig, _method: Method) -> bool:
    return any(name not in NAMES for name in _sources(config))


def _published(config: RunConfig, _method: Method) -> bool:
    return any(map(is_published, _sources(config)))


def _sources(config: RunConfig) -> list[str]:
    return [one.path for one in config.tasks] if config.tasks else [config.task]


def _kept(config: RunConfig, method: Method) -> str:
    return forward_of(config, method, 0).keep


_LOOKED_AT: dict[str, tuple[Used, str]] = {
    "cost": (_spends, "for methods that keep to a budget, as green"),
    "metric": (lambda _config, method: method.budgeted, "what method green chooses by"),
    "lora_rank": (
        lambda config, method: method.optional or method.name == "lora",
        "for method lora, and for green and full",
    ),
    "lora_targets": (lambda config, method: method.name == "lora", "for method lora"),
    "virtual_tokens": (lambda config, method: method.virtual, "for methods prefix and prompt"),
    "top_blocks": (lambda config, method: method.name == "top_blocks", "for method top_blocks"),
    "labelled_head": (
        lambda config, _method: not (config.published and config.labelled_head),
        "left out by published",
    ),
    "keep_folder": (
        lambda config, method: _kept(config, method) == "disk",
        "for keep_activations: disk",
    ),
    **dict.fromkeys(
        ("keep_bytes", "keep_bfloat16"),
        (lambda config, method: _kept(config, method) != "nothing", "for keep_activations"),
    ),
    **dict.fromkeys(
        ("data_dir", "prompt_format"), (_published, "for published data sets, and the task is none")
    ),
    **dict.fromkeys(
        ("prompt_column", "completion_column", "messages_column", "test_path"),
        (_own, "for a task out of one's own file"),
    ),
}
"""By key: whether a run looks at it, and what it is for."""
_ALL = 1.0
"""The rho of whole fine-tuning, which any method may be told."""


def unused(config: RunConfig) -> list[str]:
    """Keys that the run was told and does not look at; none that is as if nothing were said."""
    method = METHODS[config.method]
    given = (name for name in _LOOKED_AT if _given(config, name))
    return [name for name in given if not _LOOKED_AT[name][0](config, method)]


def _given(config: RunConfig, name: str) -> bool:
    return bool(getattr(config, name) != RunConfig.model_fields[name].default)


def require_used(config: RunConfig) -> None:
    """Raise ValueError for a key that would change nothing."""
    for name in unused(config):
        raise ValueError(f"{name} is {_LOOKED_AT[name][1]}: leave it out")


def told_of_rho(config: RunConfig) -> str | None:
    """What is to be said of a `rho` that was given to a method which spends what it takes."""
    idle = "rho" in config.model_fields_set and config.rho not in (None, _ALL)
    if not idle or _spends(config, METHODS[config.method]):
        return None
    return (
        f"{config.method} spends what it takes, which may be more than rho {config.rho:g}: "
        "stop_early keeps to it, and so does method green (over adapters with lora_rank)"
    )


def written(config: RunConfig) -> str:
    """The configuration as YAML that may be given again: without a `rho` that nobody looks at."""
    idle = config.rho != _ALL and not _spends(config, METHODS[config.method])
    return config.yaml({"rho"} if idle else set())
