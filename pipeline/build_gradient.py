"""From the config of a gradient learner to what it is composed of: initial values, rule, estimate."""

from __future__ import annotations

from typing import Literal, assert_never

from pipeline.episode import Params
from pipeline.errors import InputError
from pipeline.learners.estimators import Estimate, Evolution, EvolvedRule, FirstOrder, Implicit, Reptile, Unrolled, Warp
from pipeline.learners.gradient import GradientLearner
from pipeline.learners.initials import Context, Fresh, Initial, Learned, Prototypes
from pipeline.learners.learned_rules import Curvature, MetaLstm, Mlp, Procedure
from pipeline.learners.rules import PerElement, PerStep, Rule, Sgd
from pipeline.models.network import Network
from pipeline.models.norm import Running
from pipeline.schema.gradient import (
    ContextConfig,
    CurvatureConfig,
    EstimateConfig,
    EvolutionConfig,
    EvolvedRuleConfig,
    FirstOrderConfig,
    FreshConfig,
    GradientConfig,
    ImplicitConfig,
    LearnedConfig,
    LinearHeadConfig,
    LstmConfig,
    MlpConfig,
    PerElementConfig,
    PerStepConfig,
    ProcedureConfig,
    PrototypesConfig,
    ReptileConfig,
    SgdConfig,
    UnrolledConfig,
    WarpConfig,
)
from pipeline.schema.model import DecoderConfig, ModelConfig, ResNet12Config
from pipeline.schema.run import RunConfig
from pipeline.tasks.task import Task


def gradient_learner(config: RunConfig, chosen: GradientConfig, model: Network, task: Task) -> GradientLearner:
    """The learner that adapts this model, its head among it.

    Raises:
        InputError: the parts do not go together.
    """
    if chosen.statistics == "start" and config.start is None:
        raise InputError(
            "learner.statistics = start: nothing is named that would bring norm statistics; "
            "set start to a supervised run, or learner.statistics = support"
        )
    differentiated = chosen.estimate.rest if isinstance(chosen.estimate, EvolvedRuleConfig) else chosen.estimate
    if _drops(config.model) and isinstance(differentiated, ImplicitConfig):
        raise InputError(
            "learner.estimate.kind = implicit needs an inner optimum, which losses that change with every step have "
            "not; set model.drop = 0 or another estimate"
        )
    initial = _initial(chosen, model, task)
    rule = _rule(chosen, {name: value for name, value in model.named_parameters() if name in initial.names})
    held = [("model", model), ("initial", initial), ("rule", rule)]
    trained = {
        f"{part}.{name}": value
        for part, module in held
        for name, value in module.named_parameters()
        if value.requires_grad and name not in initial.replaced
    }
    if isinstance(chosen.estimate, WarpConfig) and trained.keys() <= {f"model.{name}" for name in initial.names}:
        raise InputError(
            f"learner.estimate.kind = warp trains what does not adapt, and with learner.adapts = {chosen.adapts!r} all does; "
            r"set model.warp = true and learner.adapts = '(?!encoder\.warps).*'"
        )
    return GradientLearner(
        model,
        task,
        initial=initial,
        rule=rule,
        estimate=_estimate(chosen.estimate, chosen, trained, config.seed),
        steps=chosen.steps,
        test_steps=chosen.test_steps or chosen.steps,
        support_weight=chosen.support_weight,
        running=Running(model) if chosen.statistics == "start" else None,
    )


def _initial(config: GradientConfig, model: Network, task: Task) -> Initial:
    match config.initial:
        case LearnedConfig():
            return Learned(model, config.adapts)
        case PrototypesConfig():
            if not isinstance(config.head, LinearHeadConfig):
                raise InputError(
                    "learner.initial.kind = prototypes sets weight and bias of a linear head; "
                    "set learner.head.kind = linear, or learner.initial.kind = fresh"
                )
            return Prototypes(model, config.adapts)
        case FreshConfig():
            return Fresh(model, config.adapts, beyond=task.outputs(0), per_way=task.per_way)
        case ContextConfig():
            return Context(model)
        case _ as never:
            assert_never(never)


def _rule(config: GradientConfig, fast: Params) -> Rule:
    match config.rule:
        case SgdConfig(lr=lr):
            return Sgd(lr)
        case PerElementConfig(lr=lr):
            return PerElement(lr, fast)
        case PerStepConfig(lr=lr):
            return PerStep(lr, fast, config.steps)
        case CurvatureConfig(lr=lr):
            return Curvature(lr, fast)
        case LstmConfig(lr=lr, hidden=hidden):
            return MetaLstm(lr, hidden)
        case MlpConfig(lr=lr, hidden=hidden):
            return Mlp(lr, hidden)
        case ProcedureConfig(lr=lr, momentum=momentum, normalised=normalised):
            return Procedure(lr, config.steps, momentum=momentum, normalised=normalised)
        case _ as never:
            assert_never(never)


def _estimate(asked: EstimateConfig, config: GradientConfig, trained: Params, seed: int) -> Estimate:
    match asked:
        case UnrolledConfig(recompute=recompute, multi_step=multi_step, first_order_until=until):
            if recompute and (multi_step or until):
                raise InputError(
                    "learner.estimate.recompute goes with neither multi_step nor first_order_until; set them to 0"
                )
            return Unrolled(config.steps, recompute=recompute, multi_step=multi_step, first_order_until=until)
        case FirstOrderConfig():
            return FirstOrder()
        case ReptileConfig():
            return Reptile()
        case ImplicitConfig(damping=damping, solver=solver, iterations=iterations, tolerance=tolerance):
            return Implicit(damping, solver, iterations, tolerance)
        case EvolutionConfig(sigma=sigma, pairs=pairs):
            return Evolution(trained, sigma=sigma, pairs=pairs, seed=seed)
        case EvolvedRuleConfig(sigma=sigma, pairs=pairs, rest=rest):
            searched = {name: value for name, value in trained.items() if name.startswith("rule.")}
            if not searched:
                raise InputError(
                    "learner.estimate.kind = es_rule evolves the parameters of the rule, and "
                    f"learner.rule.kind = {config.rule.kind} has none; set learner.rule.kind = procedure"
                )
            evolution = Evolution(searched, sigma=sigma, pairs=pairs, seed=seed)
            return EvolvedRule(_estimate(rest, config, trained, seed), evolution)
        case WarpConfig(initial=initial):
            return Warp(_initial_estimate(initial, config.steps))
        case _ as never:
            assert_never(never)


def _initial_estimate(kind: Literal["unrolled", "first_order", "reptile"], steps: int) -> Estimate:
    match kind:
        case "unrolled":
            return Unrolled(steps)
        case "first_order":
            return FirstOrder()
        case "reptile":
            return Reptile()
        case _ as never:
            assert_never(never)


def _drops(model: ModelConfig) -> bool:
    match model:
        case ResNet12Config(drop=drop) | DecoderConfig(backbone=ResNet12Config(drop=drop)):
            return drop > 0
        case _:
            return False
