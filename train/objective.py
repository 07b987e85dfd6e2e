"""views of crops -> self-supervised loss and metrics.

DINO on class tokens, iBOT on hidden patch tokens, KoLeo on class tokens, and on request Gram anchoring, as DINOv2
(arXiv:2304.07193) and DINOv3 (arXiv:2508.10104) define them and SPECTRE (arXiv:2511.17209) used them on CT. Report alignment
is in `alignment.py`. Both are a module that the loop prepares, calls and saves without knowing what it learns:

    loss, metrics = objective(batch)   # metrics: name -> number without gradient, of this process's rows
    loss.backward(); optimizer.step()
    objective.after_step(step)         # steps of the optimizer so far, never micro-steps
    objective.state_dict()             # all that another run needs: student, teacher, heads, centres, step

`objective.model` is what is trained (for checkpointing, compiling, parameter groups), `inference_model` what is exported.

Shapes as in modeling_ctfm.py, and `v` views, `m` hidden tokens of a batch, `q` prototypes. Rows are ordered by view, then
by crop. For several processes see `processes.py`.
"""

# ruff: noqa: F722
import copy
import math
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..modeling_ctfm import CTFMLocalModel
from .processes import ALONE, Processes

Metrics = dict[str, Tensor]
AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class MomentumCentringConfig:
    """Targets = softmax of logits minus their running mean.

    Args:
        momentum: of that mean, by step (DINO, DINOv2 and SPECTRE: 0.9).
    """

    momentum: float = 0.9


@dataclass(frozen=True, kw_only=True)
class SinkhornConfig:
    """Targets that use all prototypes of a batch alike (SwAV, arXiv:2006.09882).

    Args:
        num_iterations: (SwAV, DINOv2, DINOv3: 3).
    """

    num_iterations: int = 3


@dataclass(frozen=True, kw_only=True)
class GramConfig:
    """Keeps the likeness between patch tokens close to that of an earlier teacher (DINOv3, section 4).

    Args:
        weight: of the loss (DINOv3: 2.0).
        first_step: the earlier teacher is the one of this step; no loss before (DINOv3: 1,000,000).
        refresh_steps: from then on it is replaced after so many steps (DINOv3: 10,000).
    """

    weight: float = 2.0
    first_step: int = 1_000_000
    refresh_steps: int = 10_000


@dataclass(frozen=True, kw_only=True)
class SelfSupervisionConfig:
    """Every number of self-supervision. Values are SPECTRE's (paper table 5, configs/dinov2_default.yaml) unless said.

    Args:
        dino_weight, ibot_weight, koleo_weight: of the losses; KoLeo is added over the global views, as in DINOv2.
        num_prototypes, head_hidden_size, head_bottleneck_size: of the heads.
        ibot_head_is_separate: own head for patch tokens, or that of the class token (DINOv2: own at large scale).
        student_temperature: of the student's softmax.
        first_teacher_temperature, last_teacher_temperature: of the teacher's, growing linearly over
        teacher_temperature_warmup_steps: 30 of 150 epochs.
        first_teacher_momentum, last_teacher_momentum: of the moving average, along a cosine over all steps of the phase.
        frozen_prototype_steps: the prototypes stay as drawn for one epoch (DINO and DINOv2: 1 epoch).
        centring: of the teacher's logits.
        gram: None leaves Gram anchoring out, as SPECTRE did.
    """

    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    num_prototypes: int = 65_536
    head_hidden_size: int = 2048
    head_bottleneck_size: int = 256
    ibot_head_is_separate: bool = True
    student_temperature: float = 0.1
    first_teacher_temperature: float = 0.04
    last_teacher_temperature: float = 0.07
    teacher_temperature_warmup_steps: int = 16_620
    first_teacher_momentum: float = 0.992
    last_teacher_momentum: float = 1.0
    frozen_prototype_steps: int = 554
    centring: MomentumCentringConfig | SinkhornConfig = MomentumCentringConfig()
    gram: GramConfig | None = None


@dataclass(frozen=True, kw_only=True)
class SelfSupervisionBatch:
    """Views of b crops.

    global_views: `(v, b, c, D, H, W)`, two or more.
    local_views: `(v, b, c, D, H, W)`, smaller ones.
    token_mask: `(v, b, n)`, True = hidden, from `masking.py`. On the CPU it does not make the GPU wait.
    """

    global_views: Tensor
    local_views: Tensor
    token_mask: Tensor

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "SelfSupervisionBatch":
        """The same views on another device; the token mask stays where it is."""
        moved = {
            field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
            for field in fields(self)
            if field.name != "token_mask"
        }
        return replace(self, **moved)


# ---- equations ----


def cross_entropy(
    targets: Float[Tensor, "rows q"], logits: Float[Tensor, "rows q"], temperature: float
) -> Float[Tensor, " rows"]:
    """Of soft targets that sum to one: `-sum(targets * log_softmax(logits / temperature))`."""
    logits = logits.float() / temperature
    return logits.logsumexp(-1) - (targets * logits).sum(-1)


def dino_loss(targets: Float[Tensor, "t b q"], logits: Float[Tensor, "v b q"], temperature: float) -> Float[Tensor, ""]:
    """Mean cross entropy over all pairs of a teacher's and a student's view but the same one (arXiv:2104.14294, eq. 3).

    The student's first views must be the teacher's. For all pairs at once: the mean over student views of
    `logsumexp` needs no targets, and the rest is linear in them.
    """
    num_teacher, num_student = len(targets), len(logits)
    logits = logits.float() / temperature
    total = targets.sum(0)  # (t, b, q) -> (b, q)
    log_sums = logits.logsumexp(-1)  # (v, b)
    agreement = (logits * total).sum(-1)  # (v, b)
    same = (logits[:num_teacher] * targets).sum(-1)  # (t, b)
    pairs = num_teacher * num_student - num_teacher
    value = num_teacher * log_sums.sum(0) - log_sums[:num_teacher].sum(0) - agreement.sum(0) + same.sum(0)
    return value.mean() / pairs


def ibot_loss(
    targets: Float[Tensor, "m q"],
    logits: Float[Tensor, "m q"],
    weights: Float[Tensor, " m"],
    num_views: int,
    temperature: float,
) -> Float[Tensor, ""]:
    """Cross entropy at hidden tokens, mean over the tokens of a view, then over all views (arXiv:2111.07832, eq. 2).

    A view without hidden tokens counts as zero, in DINOv2 as in SPECTRE.
    """
    return (cross_entropy(targets, logits, temperature) * weights).sum() / num_views


def koleo_loss(features: Float[Tensor, "b e"], processes: Processes = ALONE) -> Float[Tensor, ""]:
    """Minus the mean logarithm of the distance to the nearest neighbour on the sphere (arXiv:1806.03198, eq. 2).

    Neighbours are sought among the rows of all processes.
    """
    features = nn.functional.normalize(features.float(), dim=-1)
    everyone = processes.gather(features)
    with torch.no_grad():
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 would take another row for the nearest
            similarity = features @ everyone.T  # (b, count*b)
        similarity.diagonal(processes.rank * len(features)).fill_(-2.0)
        nearest = similarity.argmax(1)
    return -(nn.functional.pairwise_distance(features, everyone[nearest], eps=1e-8) + 1e-8).log().mean()


def gram_loss(student: Float[Tensor, "b n e"], anchor: Float[Tensor, "b n e"]) -> Float[Tensor, ""]:
    """Mean squared difference of the cosine similarities between a view's tokens, negative ones as zero (DINOv3, eq. 2)."""
    student, anchor = (nn.functional.normalize(tokens.float(), dim=-1) for tokens in (student, anchor))
    with torch.autocast(student.device.type, enabled=False):  # cosines near 1 differ by less than bfloat16 resolves
        return nn.functional.mse_loss((student @ student.mT).clamp(min=0), (anchor @ anchor.mT).clamp(min=0))


def entropy(probabilities: Float[Tensor, "rows q"]) -> Float[Tensor, " rows"]:
    return torch.special.entr(probabilities).sum(-1)


def along_cosine(first: float, last: float, step: int, num_steps: int) -> float:
    """From `first` in step 0 to `last` in step `num_steps - 1`."""
    share = min(step / max(num_steps - 1, 1), 1.0)
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


# ---- centring: teacher's logits -> targets ----


class MomentumCentring(nn.Module):
    """Softmax of logits minus their running mean, which takes in a step's rows after it (arXiv:2104.14294, eq. 4).

    Rows of all micro-steps and processes count alike, so that neither changes the centre.
    """

    centre: Tensor
    waiting_sum: Tensor
    waiting_count: Tensor

    def __init__(self, num_prototypes: int, config: MomentumCentringConfig, processes: Processes):
        super().__init__()
        self.momentum, self.processes = config.momentum, processes
        self.register_buffer("centre", torch.zeros(num_prototypes))
        self.register_buffer("waiting_sum", torch.zeros(num_prototypes), persistent=False)
        self.register_buffer("waiting_count", torch.zeros(1), persistent=False)

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "rows q"], temperature: Tensor) -> Float[Tensor, "rows q"]:
        logits = logits.float()
        if self.training:
            self.waiting_sum += logits.sum(0)
            self.waiting_count += len(logits)
        return ((logits - self.centre) / temperature).softmax(-1)

    @torch.no_grad()
    def after_step(self) -> None:
        total, count = self.processes.add(self.waiting_sum), self.processes.add(self.waiting_count)
        mean = total / count.clamp(min=1)
        mean = torch.where(
            (count > 0) & mean.isfinite(), mean, self.centre
        )  # a step that is skipped must leave no trace
        self.centre.lerp_(mean, 1 - self.momentum)
        self.waiting_sum.zero_()
        self.waiting_count.zero_()


class Sinkhorn(nn.Module):
    """Targets whose rows sum to one and whose columns sum about alike, over the rows of all processes.

    Rows of one micro-step only: accumulation gives other targets than a large batch. Logits must be cosines, as those of
    `PrototypeHead` are: their exponential is not guarded.
    """

    def __init__(self, num_prototypes: int, config: SinkhornConfig, processes: Processes):
        super().__init__()
        self.num_prototypes, self.num_iterations, self.processes = num_prototypes, config.num_iterations, processes

    @torch.no_grad()
    def forward(self, logits: Float[Tensor, "rows q"], temperature: Tensor) -> Float[Tensor, "rows q"]:
        shares = (logits.float() / temperature).exp()
        rows = self.processes.add(torch.full((1,), float(len(logits)), device=logits.device))
        for _ in range(self.num_iterations):
            columns = self.processes.add(shares.sum(0))
            shares = shares / columns.clamp(min=torch.finfo(shares.dtype).tiny) / self.num_prototypes
            shares = shares / shares.sum(1, keepdim=True) / rows.clamp(min=1)
        return shares * rows

    def after_step(self) -> None:
        """Keeps nothing between steps."""


def build_centring(config: SelfSupervisionConfig, processes: Processes) -> MomentumCentring | Sinkhorn:
    if isinstance(config.centring, SinkhornConfig):
        return Sinkhorn(config.num_prototypes, config.centring, processes)
    return MomentumCentring(config.num_prototypes, config.centring, processes)


# ---- student and teacher ----


class PrototypeHead(nn.Module):
    """Tokens -> cosines with prototypes, `(rows, e) -> (rows, q)`.

    Three linear layers to a bottleneck of length 1, then a weight-normed layer whose gain stays 1, where DINO freezes it.
    """

    def __init__(self, input_size: int, config: SelfSupervisionConfig):
        super().__init__()
        self.fc1 = nn.Linear(input_size, config.head_hidden_size)
        self.fc2 = nn.Linear(config.head_hidden_size, config.head_hidden_size)
        self.fc3 = nn.Linear(config.head_hidden_size, config.head_bottleneck_size)
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.head_bottleneck_size))
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.trunc_normal_(layer.weight, std=0.02)  # DINO
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.prototypes)  # every direction alike

    def forward(self, tokens: Float[Tensor, "rows e"], prototype_gradient: Tensor | float = 1.0) -> Tensor:
        """`prototype_gradient` scales the gradient of the prototypes; with 0 they stay, and DDP still finds them used."""
        hidden = nn.functional.gelu(self.fc1(tokens))
        hidden = nn.functional.gelu(self.fc2(hidden))
        hidden = nn.functional.normalize(self.fc3(hidden), dim=-1)
        prototypes = self.prototypes.detach() + prototype_gradient * (self.prototypes - self.prototypes.detach())
        return hidden @ nn.functional.normalize(prototypes, dim=-1).to(hidden.dtype).T


class SelfSupervisedModel(nn.Module):
    """The local transformer with its heads: what student and teacher both are."""

    def __init__(self, backbone: CTFMLocalModel, config: SelfSupervisionConfig):
        super().__init__()
        self.backbone = backbone
        self.dino_head = PrototypeHead(backbone.config.hidden_size, config)
        self.ibot_head = PrototypeHead(backbone.config.hidden_size, config) if config.ibot_head_is_separate else None

    @property
    def patch_head(self) -> PrototypeHead:
        return self.dino_head if self.ibot_head is None else self.ibot_head

    def encode(
        self, crops: Float[Tensor, "b c D H W"], token_mask: Bool[Tensor, "b n"] | None = None
    ) -> tuple[Float[Tensor, "b e"], Float[Tensor, "b n e"]]:
        """Class and patch tokens of crops of one size, in one pass."""
        hidden_states = self.backbone(crops, bool_masked_pos=token_mask, return_dict=True).last_hidden_state
        return hidden_states[:, 0], hidden_states[:, self.backbone.config.num_prefix_tokens :]


def frozen_copy(module: AnyModule) -> AnyModule:
    return copy.deepcopy(module).requires_grad_(False).eval()


def hidden_tokens(token_mask: Bool[Tensor, "b n"]) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Places of hidden tokens in the flat `(b*n)`, and one over the number of those in the same view."""
    counts = token_mask.sum(1, keepdim=True).clamp(min=1)
    places = token_mask.flatten().nonzero()[:, 0]
    return places, (1 / counts).expand(token_mask.shape).flatten()[places]


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What the teacher says: `(t, b, q)` of every global view, `(m, q)` at hidden tokens."""

    dino: Tensor
    ibot: Tensor


class SelfSupervisionObjective(nn.Module):
    """See the module. The student starts from `local_model`, which is trained in place, the teacher as its equal.

    `total_steps` are those of the phase: the teacher's momentum reaches its last value with the last of them.
    """

    step: Tensor

    def __init__(
        self,
        local_model: CTFMLocalModel,
        config: SelfSupervisionConfig,
        *,
        total_steps: int,
        processes: Processes = ALONE,
    ):
        super().__init__()
        if local_model.config.air_patch_level is not None:
            raise ValueError(
                f"air_patch_level {local_model.config.air_patch_level} leaves patches out of the local transformer, and "
                "iBOT needs a token at every hidden patch. Set it to None for self-supervision."
            )
        self.config, self.total_steps, self.processes = config, total_steps, processes
        self.student = SelfSupervisedModel(local_model, config)
        self.teacher = frozen_copy(self.student)
        self.gram_anchor = None if config.gram is None else frozen_copy(local_model)
        self.dino_centring = build_centring(config, processes)
        self.ibot_centring = build_centring(config, processes)
        self.register_buffer("step", torch.zeros(1, dtype=torch.long))
        self.steps_done = 0  # the same number on the host, so that no step waits for the device
        self.register_load_state_dict_post_hook(read_step)

    @property
    def model(self) -> nn.Module:
        return self.student

    @property
    def inference_model(self) -> CTFMLocalModel:
        """The teacher's backbone, which is better than the student's (arXiv:2104.14294, section 5.1)."""
        return self.teacher.backbone

    def train(self, mode: bool = True) -> "SelfSupervisionObjective":
        """Teacher and anchor never drop anything."""
        super().train(mode)
        for frozen in (self.teacher, self.gram_anchor):
            if frozen is not None:
                frozen.eval()
        return self

    def forward(self, batch: SelfSupervisionBatch) -> tuple[Float[Tensor, ""], Metrics]:
        views = batch.global_views
        num_views, b = views.shape[:2]
        crops, local_crops = views.flatten(0, 1), batch.local_views.flatten(0, 1)
        token_mask = batch.token_mask.flatten(0, 1)
        places, weights = (tensor.to(crops.device, non_blocking=True) for tensor in hidden_tokens(token_mask))
        targets = self.teach(crops, places, num_views)

        learns = (self.step >= self.config.frozen_prototype_steps).to(crops.dtype)
        class_tokens, patch_tokens = self.student.encode(crops, token_mask.to(crops.device, non_blocking=True))
        local_class_tokens, _ = self.student.encode(local_crops)
        dino_logits = self.student.dino_head(torch.cat((class_tokens, local_class_tokens)), learns)
        ibot_logits = self.student.patch_head(patch_tokens.flatten(0, 1)[places], learns)

        config, temperature = self.config, self.config.student_temperature
        losses = {
            "dino": dino_loss(targets.dino, dino_logits.unflatten(0, (-1, b)), temperature),
            "ibot": ibot_loss(targets.ibot, ibot_logits, weights, len(crops), temperature),
            "koleo": torch.stack([koleo_loss(view, self.processes) for view in class_tokens.chunk(num_views)]).sum(),
        }
        loss = (
            config.dino_weight * losses["dino"]
            + config.ibot_weight * losses["ibot"]
            + config.koleo_weight * losses["koleo"]
        )
        if config.gram is not None and self.gram_anchor is not None and self.steps_done >= config.gram.first_step:
            losses["gram"] = self.gram_loss(crops, patch_tokens)
            loss = loss + config.gram.weight * losses["gram"]
        return loss, self.measure(losses, targets, class_tokens)

    @torch.no_grad()
    def teach(self, crops: Float[Tensor, "vb c D H W"], places: Int[Tensor, " m"], num_views: int) -> Targets:
        """The teacher sees global views with nothing hidden."""
        class_tokens, patch_tokens = self.teacher.encode(crops)
        temperature = self.teacher_temperature()
        dino = self.dino_centring(self.teacher.dino_head(class_tokens), temperature)
        ibot = self.ibot_centring(self.teacher.patch_head(patch_tokens.flatten(0, 1)[places]), temperature)
        return Targets(dino=dino.unflatten(0, (num_views, -1)), ibot=ibot)

    def gram_loss(self, crops: Float[Tensor, "vb c D H W"], patch_tokens: Float[Tensor, "vb n e"]) -> Tensor:
        """The student's tokens, of views with hidden patches as well, against those of the whole views (DINOv3)."""
        assert self.gram_anchor is not None
        with torch.no_grad():
            anchor = self.gram_anchor(crops, return_dict=True).last_hidden_state
        return gram_loss(patch_tokens, anchor[:, -patch_tokens.shape[1] :])

    @torch.no_grad()
    def measure(self, losses: Metrics, targets: Targets, class_tokens: Float[Tensor, "vb e"]) -> Metrics:
        """Losses, and the signs of collapse.

        dino_target_entropy near log(q) says that targets say nothing; dino_usage_entropy near 0 that one prototype takes
        everything; class_token_spread near 0 that crops are no longer told apart.
        """
        dino = targets.dino.flatten(0, 1)
        spread = nn.functional.normalize(class_tokens.float(), dim=-1).std(0, correction=0).square().sum().sqrt()
        return {name: value.detach() for name, value in losses.items()} | {
            "dino_target_entropy": entropy(dino).mean(),
            "dino_usage_entropy": entropy(dino.mean(0, keepdim=True))[0],
            "class_token_spread": spread,
            "teacher_temperature": self.teacher_temperature()[0],
        }

    def teacher_temperature(self) -> Float[Tensor, "1"]:
        first, last = self.config.first_teacher_temperature, self.config.last_teacher_temperature
        share = (self.step / max(self.config.teacher_temperature_warmup_steps, 1)).clamp(max=1.0)
        return first + (last - first) * share

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Moves the teacher and the centres. `step` counts the optimizer's steps, this one included."""
        config = self.config
        momentum = along_cosine(config.first_teacher_momentum, config.last_teacher_momentum, step - 1, self.total_steps)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
        self.dino_centring.after_step()
        self.ibot_centring.after_step()
        self.step.fill_(step)
        self.steps_done = step
        if self.gram_anchor is not None and config.gram is not None:
            steps_since = step - config.gram.first_step
            if steps_since >= 0 and steps_since % config.gram.refresh_steps == 0:
                self.gram_anchor.load_state_dict(self.inference_model.state_dict())


def read_step(objective: nn.Module, _: object) -> None:
    """After a checkpoint: the host's counter from the device's."""
    assert isinstance(objective, SelfSupervisionObjective)
    objective.steps_done = int(objective.step)
