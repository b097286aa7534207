"""What a hook may ask of the run that its event belongs to: another prediction, what a prediction stands for, another
step, work that is not to be done."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from sdkit.events import Stage, checked
from sdkit.inputs.arguments import Settings
from sdkit.inputs.checks import whole
from sdkit.model import schedulers
from sdkit.model.condition import Condition
from sdkit.model.model import Model
from sdkit.model.schedulers import Visit
from sdkit.model.tokens import Word, find, places_of, read_tokens, words_of
from sdkit.noise import NoiseLevel, guide, prediction_from, x0_from
from sdkit.unet.scope import Scope

if TYPE_CHECKING:
    from sdkit.process.materials import Embeds

T = TypeVar("T")


class Asked:
    """The part of a `Run` that is for hooks."""

    model: Model
    scheduler: Any
    visits: list[Visit]
    shape: tuple[int, ...]
    record: dict[str, Any]
    levels: dict[int, NoiseLevel]
    seen: dict[Stage, Tensor]
    tokens: dict[str, Tensor]
    embeds: Embeds
    step: int | None
    condition: Condition | None
    scope: Scope
    unet: Any
    settings: Settings
    guidance_scale: float
    _kept: dict[Hashable, Any]

    def write(self, **values: Any) -> None:
        """Write down where the run is: for its process and what is here, and nobody else."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def guided(self) -> bool:
        """Whether the U-Net predicts with and without the words."""
        return self.guidance_scale > 1 and not self.model.takes_guidance

    def guide(self, noise: Tensor) -> Tensor:
        """What guidance makes of predictions, (B, C, h, w): of the two halves, unconditional first; what lies beyond
        is left out, and without an unconditional half there is nothing to do."""
        pictures = self.shape[0]
        if not self.guided or len(noise) == pictures:
            return noise if len(noise) == pictures else noise[:pictures]
        uncond, cond = noise[:pictures], noise[pictures : 2 * pictures]
        return guide(uncond, cond, self.guidance_scale, self.settings.guidance_rescale)

    def stop(self) -> None:
        """End the run with the x0 of this step, when its DENOISED has been shown; called at LATENT, with that latent,
        before anything is predicted."""
        self.write(stopped=True)

    def go_to(self, step: int, x: Tensor) -> None:
        """Go on at another step, an earlier or a later one, with a latent (B, C, h, w): from LATENT at once, from other
        stages when this step's DENOISED has been shown. What the scheduler remembers of steps before is forgotten.

        Raises:
            ValueError: there is no such step, or the scheduler cannot begin there.
        """
        if not 0 <= whole("step", step, at_least=0) < len(self.visits):
            raise ValueError(f"there is no step {step} to go to; the run has {len(self.visits)}, from 0")
        schedulers.check_beginning(self.scheduler, step, self.visits[step])
        if x.shape != self.shape:
            raise ValueError(f"the latent to go on with has shape {tuple(x.shape)}, but {self.shape} is needed")
        self.record.setdefault("visited", list(range(len(self.visits) if self.step is None else self.step + 1)))
        self.write(target=(step, x.detach()))

    def renoised(self, x: Tensor, step: int, noise: Tensor) -> Tensor:
        """x (B, C, h, w) as LATENT shows it now, the clean one too, taken to the level of a noisier step with noise of
        unit variance: what the forward process makes of it."""
        here = NoiseLevel(0, 1.0, 0.0) if self.step is None else self.levels[self.step]
        there = self.level_of(step)
        ratio = there.alpha / here.alpha
        variance = there.sigma**2 - (ratio * here.sigma) ** 2
        if variance < 0:
            raise ValueError(f"step {step} is less noisy than the latent is; go on from a noisier one")
        noised: Tensor = ratio * x + variance**0.5 * noise.to(x)
        return noised

    def leave_scheduler(self) -> None:
        """Have an edit of this step's LATENT leave the scheduler's memory as it is, as in diffusers."""
        self.write(left_alone=True)

    def level_of(self, step: int) -> NoiseLevel:
        """How noisy x is at any step, visited or not."""
        alpha, sigma = schedulers.alpha_sigma(self.scheduler, self.visits[step])
        return NoiseLevel(self.visits[step].t, float(alpha), float(sigma))

    def predict(
        self, x: Tensor | None = None, text: Tensor | None = None, *, model: Model | None = None, hooks: Any = ()
    ) -> Tensor:
        """Ask the U-Net once more at this step: one prediction (R, C, h, w) for each row of the text embeddings.

        Gradients flow through it under `torch.enable_grad()` where x or text requires them.

        Args:
            x: (B, C, h, w) latents as LATENT shows them; by default those that it showed last.
            text: (R, L, D) embeddings, R a multiple of B; by default those that this step hears. What else there is of
                each row (pooled embeddings, sizes, masks) goes with them.
            model: another model of the same anatomy.
            hooks: for the inside of the U-Net during this call; those of the run are not called.
        """
        if self.step is None or self.condition is None:
            raise ValueError("predict asks the U-Net at a step; call it at a stage that belongs to one")
        model, visit = model or self.model, self.visits[self.step]
        x = self.seen[Stage.LATENT] if x is None else x
        text = self.condition.text if text is None else text
        if len(x) != self.shape[0] or not len(text) or len(text) % len(x):
            raise ValueError(
                f"x has {len(x)} rows and text {len(text)}; expected {self.shape[0]}, one for each picture, and a "
                "multiple of it"
            )
        unet = self.unet if model is self.model else model.unet
        scope = Scope(unet, checked(hooks), self, notes=False)
        wanted = torch.is_grad_enabled() and (x.requires_grad or text.requires_grad)
        predict = (torch.enable_grad() if wanted else torch.no_grad())(model.predict)
        try:
            with scope.at(self.step, visit.t):
                scaled = self.scheduler.scale_model_input(x, visit.tensor)
                condition = self.condition.hearing(text, len(x))
                return predict(scaled, visit.tensor, condition, (self.step, len(self.visits)), scope.unet)
        finally:
            scope.close()

    def x0_of(self, noise: Tensor, x: Tensor | None = None) -> Tensor:
        """The x0 that predictions (R, C, h, w) stand for at this step; x as in `predict`."""
        return x0_from(noise, self._beside(noise, x), *self._here, self._kind).to(noise.dtype)

    def noise_of(self, x0: Tensor, x: Tensor | None = None) -> Tensor:
        """The predictions that x0 (R, C, h, w) stand for: the inverse of `x0_of`."""
        return prediction_from(x0, self._beside(x0, x), *self._here, self._kind).to(x0.dtype)

    def eps_of(self, noise: Tensor, x: Tensor | None = None) -> Tensor:
        """The noise of unit variance in x that predictions stand for; they are that noise where it is predicted."""
        if self._kind == "epsilon":
            return noise
        (alpha, sigma), x = self._here, self._beside(noise, x)
        return ((x - alpha * self.x0_of(noise, x)) / sigma).to(noise.dtype)

    @property
    def _kind(self) -> str:
        kind: str = self.scheduler.config.prediction_type
        return kind

    @property
    def _here(self) -> tuple[Tensor, Tensor]:
        if self.step is None:
            raise ValueError("x0 and predictions belong to a step; ask at a stage that belongs to one")
        return schedulers.alpha_sigma(self.scheduler, self.visits[self.step])

    def _beside(self, rows: Tensor, x: Tensor | None) -> Tensor:
        x = self.seen[Stage.LATENT] if x is None else x
        return x if len(x) == len(rows) else torch.cat([x] * (len(rows) // len(x)))

    def hold(self, *layers: str) -> None:
        """Keep what these parts of the U-Net give in this step's call, by name in `held`: said at LATENT or CONTEXT."""
        self.scope.hold(layers)

    @property
    def held(self) -> dict[str, Any]:
        """What the parts of the U-Net gave that were named to `hold`: as their `forward` returns it."""
        return self.scope.held

    def give(self, layer: str, output: Any) -> None:
        """Have a part of the U-Net give this in this step's call, without computing it: said at LATENT or CONTEXT.

        Args:
            layer: its name, such as "mid_block" or "up_blocks.0.attentions.0.transformer_blocks.0.attn2"; "" for the
                whole U-Net.
            output: what its `forward` returns, most simply one of `held`; a prediction for the whole.
        """
        self.scope.give(layer, output)
        if layer not in (given := self.record.setdefault("given", [])):
            given.append(layer)

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What a hook keeps between two events: made at the first call, and gone with the run."""
        if key not in self._kept:
            self._kept[key] = make()
        value: T = self._kept[key]
        return value

    @property
    def token_ids(self) -> Tensor | None:
        """The token ids (2B, L) for the first text encoder; of one half where embeddings stand for the other."""
        return next(iter(self.tokens.values()), None)

    @property
    def words(self) -> tuple[list[list[Word]], list[list[Word]]]:
        """The words of the negative prompts and of the prompts, for each picture; none where embeddings were given."""
        pictures, ids, tokenizer = self.shape[0], self.token_ids, self.model.tokenizer
        rows = [] if ids is None else [words_of(row, tokenizer) for row in read_tokens(ids, tokenizer)]
        negative = self.embeds.negative_prompt_embeds is None and self.guided
        first = rows[:pictures] if negative else [[] for _ in range(pictures)]
        return first, rows[-pictures:] if self.embeds.prompt_embeds is None else [[] for _ in range(pictures)]

    def places(self, word: str) -> list[list[int]]:
        """Where a word stands in the prompt of each picture: rows of the text embeddings, columns of attention.

        Raises:
            ValueError: it is in none of the prompts.
        """
        _, prompts = self.words
        find([one for words in prompts for one in words], word)
        return [places_of(words, word) for words in prompts]
