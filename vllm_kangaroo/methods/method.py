"""What the rest of the package needs to know of a method of drafting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, cast

from vllm_kangaroo.methods.origin import Chooser
from vllm_kangaroo.options import EarlyExitPlan, MethodOptions

if TYPE_CHECKING:
    from vllm_kangaroo.drafting.draft_function import Propose
    from vllm_kangaroo.profile.method_search import MethodSearch


@dataclass(frozen=True)
class Method:
    """One method of drafting. What needs torch is named by its place and imported when it is asked for."""

    name: str
    """In ``speculative_config["method"]``, on command lines and in files."""
    title: str
    """In headings."""
    options: type[MethodOptions]
    """What a user can set; ``resolve`` says at which exits the model is cut, and so which passes there are."""
    propose: str
    """``package.module:function`` that drafts a round, a :class:`vllm_kangaroo.drafting.draft_function.Propose`."""
    choosers: Mapping[int, Chooser]
    """Who may choose a draft, by the numbers in :attr:`vllm_kangaroo.drafting.kangaroo.Drafts.exits`."""
    plan: type[EarlyExitPlan] = EarlyExitPlan
    """What ``resolve`` makes of the options: a subclass if drafting needs a setting that no other method has."""
    drafting_only: frozenset[str] = frozenset()
    """Fields of its plan that change no compiled pass, beside those that all methods have."""

    on_v2: bool = False
    """Whether vLLM's V2 model runner serves it too."""

    search: str | None = None
    """By what ``profile`` tries its settings, a :class:`vllm_kangaroo.profile.method_search.MethodSearch`, as
    ``package.module``; None leaves the method out of profiles."""
    plot_colour: str = "C4"
    """Of its curve in the plot of a profile, as matplotlib names colours."""

    tiny: Mapping[str, Any] | None = None
    """Options that suit the demo's small model, which is shown with them; None if it has none for this method."""

    @property
    def has_exits(self) -> bool:
        """Whether an exit drafts, so that a model needs one that is fit to."""
        return any(self.choosers)

    def load_propose(self) -> Propose:
        """The function that drafts."""
        return cast("Propose", resolve_name(self.propose))

    def load_search(self) -> MethodSearch | None:
        """What ``profile`` tries its settings by, None if it leaves the method out."""
        return None if self.search is None else cast("MethodSearch", resolve_name(self.search))
