"""What a stage has become after each of its instructions."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from orch_agent.images.model import HistoryEntry, ImageConfig
from orch_agent.images.steps import Step


@dataclass(frozen=True, slots=True)
class StageState:
    """A stage's image so far; each step returns a new one."""

    config: ImageConfig
    diff_ids: tuple[str, ...] = ()
    chain_ids: tuple[str, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    args: Mapping[str, str] = field(default_factory=dict)
    """Build arguments declared in this stage so far."""
    created: str = ""
    """When the last step that changed files was done, RFC 3339."""
    sets_cmd: bool = False
    """Whether CMD was given in this stage: an inherited one ends with ENTRYPOINT."""

    @property
    def parent_chain(self) -> str | None:
        """The stack of layers so far, None for no layer."""
        return self.chain_ids[-1] if self.chain_ids else None

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that ENV set, or the base image."""
        return dict(item.partition("=")[::2] for item in self.config.env)

    @property
    def variables(self) -> Mapping[str, str]:
        """What words of instructions may name: arguments, and over them the environment."""
        return {**self.args, **self.environment}

    def with_history(self, text: str) -> "StageState":
        """The state with a line of history for an instruction that changed no file."""
        return replace(self, history=(*self.history, _entry(text, self.created, empty_layer=True)))

    def with_step(self, step: Step, text: str) -> "StageState":
        """The state with a step's layer on top (if it gave one) and a line of history."""
        history = (*self.history, _entry(text, step.created, empty_layer=not step.diff_id))
        if not step.diff_id:
            return replace(self, history=history, created=step.created)
        return replace(
            self,
            diff_ids=(*self.diff_ids, step.diff_id),
            chain_ids=(*self.chain_ids, step.chain_id),
            history=history,
            created=step.created,
        )


def _entry(text: str, created: str, *, empty_layer: bool) -> HistoryEntry:
    return HistoryEntry(created_by=text, empty_layer=empty_layer, created=created, comment="orch image build")
