"""Which neurons go, and is the model still right?"""

from pruner.apply import check, prune_
from pruner.captured import capture
from pruner.checkpoint import Saved, load_pruned, save_pruned
from pruner.compression import compress
from pruner.config import (
    PruningConfig,
    create_aggressive_config,
    create_conservative_config,
    create_default_config,
)
from pruner.core import NeuronPruner
from pruner.engine import PruningEngine
from pruner.expansion import ExpansionResult, expand_
from pruner.expansion_plan import ExpansionPlan
from pruner.exporting import Exported, export
from pruner.gradual import GradualPruning
from pruner.integration import IntegratedSystem
from pruner.lineage import pruning_history
from pruner.masking import masked
from pruner.metrics import PruningMetrics, compute_metrics
from pruner.optimization import optimize
from pruner.plan import PruningPlan
from pruner.prune_result import PruneResult
from pruner.recovery import Recovery, recover
from pruner.strategies import GradualPruner, MagnitudePruner, StructuredPruner
from pruner.validation import PruningValidator, validate_pruning
from pruner.verification import VerificationReport, verify
from pruner.workflow import IntegratedTrackingPruningWorkflow, create_simple_workflow

__all__ = [
    "ExpansionPlan",
    "ExpansionResult",
    "Exported",
    "GradualPruner",
    "GradualPruning",
    "IntegratedSystem",
    "IntegratedTrackingPruningWorkflow",
    "MagnitudePruner",
    "NeuronPruner",
    "PruneResult",
    "PruningConfig",
    "PruningEngine",
    "PruningMetrics",
    "PruningPlan",
    "PruningValidator",
    "Recovery",
    "Saved",
    "StructuredPruner",
    "VerificationReport",
    "capture",
    "check",
    "compress",
    "compute_metrics",
    "create_aggressive_config",
    "create_conservative_config",
    "create_default_config",
    "create_simple_workflow",
    "expand_",
    "export",
    "load_pruned",
    "masked",
    "optimize",
    "prune_",
    "pruning_history",
    "recover",
    "save_pruned",
    "validate_pruning",
    "verify",
]
